//! A histogram with exponential buckets, in memory of a fixed size, and its drawing as text.

use serde_json::{Value, json};

/// Buckets per octave: the error of a quantile is below 1/16 octave.
const PER_OCTAVE: usize = 16;
/// Minimum number of buckets in a drawn row: a quarter of an octave.
const ROW_LEAST: usize = 4;
/// Maximum number of drawn rows.
const ROWS_MAX: usize = 12;
/// Length of the longest bar in characters.
const BAR: u64 = 32;

/// Counts in exponential buckets.
#[derive(Clone)]
pub(crate) struct Histogram {
    /// Lower bound of the first bucket, which counts smaller numbers as well.
    begins: f64,
    buckets: Vec<Bucket>,
    /// Smallest and largest number.
    ends: Option<(f64, f64)>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    count: u64,
    greatest: f64,
}

/// A drawn row: the count of the numbers in `from..below`.
pub(crate) struct Row {
    pub(crate) from: f64,
    pub(crate) below: f64,
    pub(crate) count: u64,
}

impl Histogram {
    /// A histogram of numbers from `begins`, which is above 0, to `begins * 2^octaves`; others count in the outermost
    /// buckets.
    pub(crate) fn new(begins: f64, octaves: usize) -> Self {
        Histogram { begins, buckets: vec![Bucket::default(); octaves * PER_OCTAVE], ends: None }
    }

    pub(crate) fn add(&mut self, number: f64) {
        // The cast saturates: smaller numbers count in the first bucket.
        let place = ((number / self.begins).log2() * PER_OCTAVE as f64) as usize;
        let last = self.buckets.len() - 1;
        let bucket = &mut self.buckets[place.min(last)];
        bucket.count += 1;
        bucket.greatest = bucket.greatest.max(number);
        let (least, greatest) = self.ends.unwrap_or((number, number));
        self.ends = Some((least.min(number), greatest.max(number)));
    }

    /// Smallest and largest number; `None` before the first.
    pub(crate) fn ends(&self) -> Option<(f64, f64)> {
        self.ends
    }

    /// A counted number at this quantile, up to the error of a bucket; `None` before the first.
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

    /// Rows from the first to the last non-empty bucket, at most [`ROWS_MAX`].
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

    /// The rows as bars; `name` formats a number.
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

/// A bar in eighths of a character; any count above 0 is visible.
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
    fn quantiles_are_counted_numbers_within_the_error() {
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
    fn numbers_outside_count_in_the_outermost_buckets() {
        let mut few = Histogram::new(1.0, 2);
        [0.0, 0.5, 1.0, 4.0, 1e300].into_iter().for_each(|number| few.add(number));
        let rows = few.rows();
        assert_eq!((rows[0].count, rows[rows.len() - 1].count), (3, 2));
        assert_eq!(few.ends(), Some((0.0, 1e300)));
    }

    #[test]
    fn rows_add_up_and_are_at_most_a_dozen() {
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
