//! History of a number over a run of any length, in a fixed number of means.

/// Maximum number of means.
const KEPT: usize = 512;

/// History of a number. When it is full, neighbors are merged, and each mean stands for twice as many values.
#[derive(Clone, Debug)]
pub(super) struct History {
    means: Vec<f64>,
    /// Values per mean.
    each: u64,
    /// Sum and count of the values of an incomplete mean.
    rest: (f64, u64),
}

impl History {
    pub(super) fn new() -> Self {
        History { means: Vec::with_capacity(KEPT), each: 1, rest: (0.0, 0) }
    }

    /// Adds a value. NaN and infinities are ignored.
    pub(super) fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.rest = (self.rest.0 + value, self.rest.1 + 1);
        if self.rest.1 < self.each {
            return;
        }
        if self.means.len() == KEPT {
            let halved = self.means.chunks(2).map(mean).collect::<Vec<_>>();
            self.means.clear();
            self.means.extend(halved);
            self.each *= 2;
            // A complete mean has become half of one.
            if self.rest.1 < self.each {
                return;
            }
        }
        self.means.push(self.rest.0 / self.rest.1 as f64);
        self.rest = (0.0, 0);
    }

    /// The whole history in at most `width` values.
    pub(super) fn whole(&self, width: usize) -> Vec<f64> {
        let width = width.min(self.means.len());
        let start = |place: usize| place * self.means.len() / width.max(1);
        (0..width).map(|place| mean(&self.means[start(place)..start(place + 1)])).collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_grows_and_keeps_its_shape() {
        let mut history = History::new();
        for value in 0..100_000u32 {
            history.add(f64::from(value));
            assert!(history.means.len() <= KEPT && history.means.capacity() == KEPT);
        }
        assert_eq!(history.each, 256);
        // A straight line stays straight from its first mean to its last.
        let steps: Vec<f64> = history.means.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|&step| (step - 256.0).abs() < 1e-6), "{steps:?}");
        assert_eq!(history.means[0], 127.5);
    }

    #[test]
    fn it_is_told_in_as_many_values_as_there_is_room_for() {
        let mut history = History::new();
        assert!(history.whole(10).is_empty());
        (1..=6).for_each(|value| history.add(f64::from(value)));
        assert_eq!(history.whole(3), [1.5, 3.5, 5.5]);
        assert_eq!(history.whole(4), [1.0, 2.5, 4.0, 5.5]);
        assert_eq!(history.whole(100), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(history.whole(0).is_empty());
    }

    #[test]
    fn what_is_no_number_leaves_no_trace() {
        let mut history = History::new();
        [f64::NAN, 1.0, f64::INFINITY].into_iter().for_each(|value| history.add(value));
        assert_eq!(history.whole(9), [1.0]);
    }
}
