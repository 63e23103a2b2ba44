//! The budgets of a proof.

use feedstock::ByteCount;

/// A budget above any plan, to learn the minimum and the knee.
pub(super) const AMPLE: ByteCount = ByteCount(1 << 60);
/// Number of budgets if none are named.
const STEPS: u32 = 32;
/// The largest of them is at least this multiple of the knee, and at least [`UP_TO`].
const BEYOND_KNEE: u64 = 4;
const UP_TO: ByteCount = ByteCount(1 << 30);
const PAGE: u64 = 4096;

/// The requested budgets in ascending order without duplicates; or [`STEPS`] from the minimum up at equal ratios.
pub(super) fn select(asked: &[ByteCount], minimum: ByteCount, knee: ByteCount) -> Vec<ByteCount> {
    let mut budgets = if asked.is_empty() {
        let top = (knee * BEYOND_KNEE).max(UP_TO);
        let ratio = top.0 as f64 / minimum.0 as f64;
        let step = |n: u32| minimum.0 as f64 * ratio.powf(f64::from(n) / f64::from(STEPS - 1));
        // Whole pages; both ends exactly.
        let between = (1..STEPS - 1).map(|n| ByteCount((step(n) as u64).next_multiple_of(PAGE)));
        [minimum].into_iter().chain(between).chain([top]).collect()
    } else {
        asked.to_vec()
    };
    budgets.sort_unstable();
    budgets.dedup();
    budgets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_go_from_the_minimum_to_beyond_the_knee() {
        for (minimum, knee) in [(38 << 20, 65 << 20), (1 << 20, 1 << 20), (3 << 30, 9 << 30)] {
            let budgets = select(&[], ByteCount(minimum), ByteCount(knee));
            assert!(budgets.len() >= 30, "{budgets:?}");
            assert_eq!(budgets[0], ByteCount(minimum));
            assert_eq!(budgets.last(), Some(&ByteCount(knee * 4).max(UP_TO)));
            assert!(budgets.is_sorted(), "{budgets:?}");
        }
    }

    #[test]
    fn named_budgets_are_sorted_without_duplicates() {
        let asked = [ByteCount(9), ByteCount(7), ByteCount(9)];
        assert_eq!(select(&asked, ByteCount(1), ByteCount(2)), [ByteCount(7), ByteCount(9)]);
    }
}
