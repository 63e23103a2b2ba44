//! Owns counts of numbers by their magnitude, in memory of a fixed size, and how they are drawn. It must never grow with
//! what is counted, nor know what the numbers are.

use serde_json::{Value, json};

/// Buckets of an octave: a quantile is off by less than 1/16 of one.
const PER_OCTAVE: usize = 16;
/// Buckets of the narrowest row that is drawn: a quarter of an octave.
const ROW_LEAST: usize = 4;
/// Rows that are drawn at most.
const ROWS_MAX: usize = 12;
/// Characters of the longest bar.
const BAR: u64 = 32;

/// Counts in buckets that grow with the number.
#[derive(Clone)]
pub(crate) struct Histogram {
    /// Where the first bucket begins; what is below counts there.
    begins: f64,
    buckets: Vec<Bucket>,
    /// The least and the greatest of all.
    ends: Option<(f64, f64)>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    count: u64,
    greatest: f64,
}

/// What a histogram draws: numbers from one, below the other, and how many.
pub(crate) struct Row {
    pub(crate) from: f64,
    pub(crate) below: f64,
    pub(crate) count: u64,
}

impl Histogram {
    /// Of numbers from `begins` on, which is above zero, up to `octaves` doublings of it; the rest counts at the ends.
    pub(crate) fn new(begins: f64, octaves: usize) -> Self {
        Histogram { begins, buckets: vec![Bucket::default(); octaves * PER_OCTAVE], ends: None }
    }

    pub(crate) fn add(&mut self, number: f64) {
        // The cast saturates: what is too small counts in the first bucket.
        let place = ((number / self.begins).log2() * PER_OCTAVE as f64) as usize;
        let last = self.buckets.len() - 1;
        let bucket = &mut self.buckets[place.min(last)];
        bucket.count += 1;
        bucket.greatest = bucket.greatest.max(number);
        let (least, greatest) = self.ends.unwrap_or((number, number));
        self.ends = Some((least.min(number), greatest.max(number)));
    }

    /// The least and the greatest number; `None` before the first.
    pub(crate) fn ends(&self) -> Option<(f64, f64)> {
        self.ends
    }

    /// A number that was counted, and that this share of all did not exceed, or hardly; `None` before the first.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.buckets.iter().map(|bucket| bucket.count).sum();
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen >= rank
        });
        bucket.map(|bucket| bucket.greatest)
    }

    /// From the first bucket with something in it to the last, as finely as a dozen rows allow.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let first = self.buckets.iter().position(|bucket| bucket.count > 0);
        let last = self.buckets.iter().rposition(|bucket| bucket.count > 0);
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
        let mut wide = ROW_LEAST;
        while last / wide - first / wide >= ROWS_MAX {
            wide *= 2;
        }
        let edge = |row: usize| self.begins * 2f64.powf((row * wide) as f64 / PER_OCTAVE as f64);
        let rows = (first / wide)..=(last / wide);
        rows.map(|row| {
            let within = self.buckets.iter().skip(row * wide).take(wide);
            Row { from: edge(row), below: edge(row + 1), count: within.map(|bucket| bucket.count).sum() }
        })
        .collect()
    }

    /// The rows as bars; `name` says how a number is written.
    pub(crate) fn bars(&self, name: impl Fn(f64) -> String) -> String {
        let rows = self.rows();
        let most = rows.iter().map(|row| row.count).max().unwrap_or(0).max(1);
        let names: Vec<_> = rows.iter().map(|row| (name(row.from), name(row.below))).collect();
        let width = names.iter().map(|(from, below)| from.len().max(below.len())).max().unwrap_or(0);
        let digits = most.to_string().len();
        let line = |(row, (from, below)): (&Row, &(String, String))| {
            format!("  {from:>width$} to {below:>width$}   {:>digits$}   {}", row.count, bar(row.count, most))
                .trim_end()
                .to_owned()
        };
        rows.iter().zip(&names).map(line).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows();
        json!({
            "least": self.ends.map(|ends| ends.0),
            "p1": self.quantile(0.01),
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "greatest": self.ends.map(|ends| ends.1),
            "buckets": rows
                .iter()
                .map(|row| json!({ "from": row.from, "below": row.below, "count": row.count }))
                .collect::<Value>(),
        })
    }
}

/// A bar in eighths of a character; whatever there is shows.
fn bar(count: u64, most: u64) -> String {
    const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    let eighths = (count as f64 / most as f64 * (BAR * 8) as f64).ceil() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numbers_that_were_counted_and_hardly_too_great() {
        let mut sides = Histogram::new(1.0, 16);
        assert_eq!((sides.quantile(0.5), sides.ends()), (None, None));
        assert_eq!(sides.bars(|side| side.to_string()), "");
        for side in 1..=1000 {
            sides.add(f64::from(side));
        }
        for (share, side) in [(0.01, 10.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let told = sides.quantile(share).expect("there are some");
            assert!((1.0..1.05).contains(&(told / side)) && told.fract() == 0.0, "{share}: {told}");
        }
        assert_eq!(sides.ends(), Some((1.0, 1000.0)));
        let mut same = Histogram::new(1.0, 16);
        (0..9).for_each(|_| same.add(33.0));
        assert_eq!((same.quantile(0.01), same.quantile(0.99)), (Some(33.0), Some(33.0)));
    }

    #[test]
    fn what_is_beyond_counts_at_the_ends() {
        let mut few = Histogram::new(1.0, 2);
        [0.0, 0.5, 1.0, 4.0, 1e300].into_iter().for_each(|number| few.add(number));
        let rows = few.rows();
        assert_eq!((rows[0].count, rows[rows.len() - 1].count), (3, 2));
        assert_eq!(few.ends(), Some((0.0, 1e300)));
    }

    #[test]
    fn rows_add_up_and_are_never_many() {
        for octaves in 1..30 {
            let mut sizes = Histogram::new(1.0, 40);
            for size in 0..500 {
                sizes.add(2f64.powf(f64::from(octaves * size) / 500.0));
            }
            let rows = sizes.rows();
            assert!(rows.len() <= ROWS_MAX, "{octaves}: {}", rows.len());
            assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 500);
            assert!(rows.windows(2).all(|pair| pair[0].below == pair[1].from));
        }
        let mut two = Histogram::new(1.0, 16);
        [64.0, 65.0, 66.0, 127.0].into_iter().for_each(|number| two.add(number));
        let drawn = two.bars(|side| format!("{:.0}", side.ceil()));
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), 4, "{drawn}");
        assert_eq!(lines[0], format!("   64 to  77   3   {}", "█".repeat(BAR as usize)));
        assert_eq!(lines[1], "   77 to  91   0");
        assert_eq!(lines[3], format!("  108 to 128   1   {}▊", "█".repeat(10)), "{drawn}");
    }
}
