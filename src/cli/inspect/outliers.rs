//! Outliers by name: the largest, the smallest and the most elongated files, a fixed number of each.

use serde_json::{Value, json};

use feedstock::ByteCount;

use super::inspect_file::Finding;

/// Named files of each kind.
const NAMED: usize = 3;

/// Files of the highest rank.
#[derive(Clone, Default)]
struct End {
    named: Vec<Outlier>,
}

#[derive(Clone)]
struct Outlier {
    rank: u64,
    path: String,
    bytes: u64,
    width: u32,
    height: u32,
}

/// Outliers of every kind.
#[derive(Clone, Default)]
pub(super) struct Outliers {
    /// By bytes, by pixels, by pixels ascending, by aspect ratio.
    ends: [End; 4],
}

const TITLES: [&str; 4] = ["largest files", "most pixels", "fewest pixels", "most drawn out"];
const KEYS: [&str; 4] = ["largest_files", "most_pixels", "fewest_pixels", "most_drawn_out"];

impl Outliers {
    /// Adds a file whose header was read.
    pub(super) fn add(&mut self, finding: &Finding) {
        let (Some(bytes), Some(header)) = (finding.seen.bytes, &finding.seen.header) else { return };
        let (width, height) = (header.width, header.height);
        let pixels = u64::from(width) * u64::from(height);
        let (long, short) = (width.max(height), width.min(height));
        // In thousandths: precise enough to rank.
        let aspect = u64::from(long) * 1000 / u64::from(short.max(1));
        for (end, rank) in self.ends.iter_mut().zip([bytes, pixels, u64::MAX - pixels, aspect]) {
            end.offer(rank, || Outlier { rank, path: finding.path(), bytes, width, height });
        }
    }

    /// A title and lines for each kind in which files differ.
    pub(super) fn text(&self, alike: [bool; 4]) -> String {
        let mut lines = Vec::new();
        for ((end, title), _) in self.ends.iter().zip(TITLES).zip(alike).filter(|(_, alike)| !alike) {
            lines.push(title.to_owned());
            lines.extend(end.named.iter().map(|Outlier { path, bytes, width, height, .. }| {
                format!("  {:>11} {:>10}  {path}", format!("{width}x{height}"), ByteCount(*bytes))
            }));
        }
        lines.join("\n")
    }

    pub(super) fn json(&self) -> Value {
        let outlier = |Outlier { path, bytes, width, height, .. }: &Outlier| {
            json!({
                "path": path, "bytes": bytes, "width": width, "height": height
            })
        };
        let end = |end: &End| end.named.iter().map(outlier).collect::<Value>();
        Value::Object(KEYS.iter().zip(&self.ends).map(|(key, one)| ((*key).to_owned(), end(one))).collect())
    }
}

impl End {
    fn offer(&mut self, rank: u64, outlier: impl FnOnce() -> Outlier) {
        // Among equals the first one stays.
        let at = self.named.partition_point(|other| other.rank >= rank);
        if at < NAMED {
            self.named.insert(at, outlier());
            self.named.truncate(NAMED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_of_the_highest_rank_stay_and_of_equals_the_first() {
        let mut end = End::default();
        for (number, rank) in [5, 1, 9, 9, 2, 9, 7, 9].into_iter().enumerate() {
            end.offer(rank, || Outlier { rank, path: number.to_string(), bytes: 0, width: 1, height: 1 });
        }
        let kept: Vec<&str> = end.named.iter().map(|outlier| outlier.path.as_str()).collect();
        assert_eq!(kept, ["2", "3", "5"]);
    }
}
