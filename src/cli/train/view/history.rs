//! Owns the course of a number over a run, however long: a fixed number of means. It must never grow.

/// How many means are kept at most.
const KEPT: usize = 512;

/// The course of a number. When it is full, neighbours become one and each mean stands for twice as many values.
#[derive(Clone, Debug)]
pub(super) struct History {
    means: Vec<f64>,
    /// Values that a mean stands for.
    each: u64,
    /// Sum and number of those that make no whole mean yet.
    rest: (f64, u64),
}

impl History {
    pub(super) fn new() -> Self {
        History { means: Vec::with_capacity(KEPT), each: 1, rest: (0.0, 0) }
    }

    /// Adds a value. What is no number leaves no trace.
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
            // What was a whole mean is half of one now.
            if self.rest.1 < self.each {
                return;
            }
        }
        self.means.push(self.rest.0 / self.rest.1 as f64);
        self.rest = (0.0, 0);
    }

    /// The whole course in `width` values, or fewer where there are not as many.
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
        let mut course = History::new();
        for value in 0..100_000u32 {
            course.add(f64::from(value));
            assert!(course.means.len() <= KEPT && course.means.capacity() == KEPT);
        }
        assert_eq!(course.each, 256);
        // A straight line stays one, from its first mean to its last.
        let steps: Vec<f64> = course.means.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|&step| (step - 256.0).abs() < 1e-6), "{steps:?}");
        assert_eq!(course.means[0], 127.5);
    }

    #[test]
    fn it_is_told_in_as_many_values_as_there_is_room_for() {
        let mut course = History::new();
        assert!(course.whole(10).is_empty());
        (1..=6).for_each(|value| course.add(f64::from(value)));
        assert_eq!(course.whole(3), [1.5, 3.5, 5.5]);
        assert_eq!(course.whole(4), [1.0, 2.5, 4.0, 5.5]);
        assert_eq!(course.whole(100), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(course.whole(0).is_empty());
    }

    #[test]
    fn what_is_no_number_leaves_no_trace() {
        let mut course = History::new();
        [f64::NAN, 1.0, f64::INFINITY].into_iter().for_each(|value| course.add(value));
        assert_eq!(course.whole(9), [1.0]);
    }
}
