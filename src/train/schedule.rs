//! Learning rate over a run: a linear warm-up, then half a cosine down to zero.

use std::f64::consts::PI;

/// Learning rate that rises linearly to its peak and falls along half a cosine to zero (Loshchilov and Hutter,
/// "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts).
///
/// ```
/// use feedstock::train::Schedule;
///
/// let schedule = Schedule { peak: 0.1, warmup: 0.2 };
/// assert_eq!((schedule.at(0.0), schedule.at(0.2)), (0.0, 0.1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Share of the run, in `[0, 1]`, in which the rate rises.
    pub warmup: f64,
}

impl Schedule {
    /// Rate at a point of the run: 0 is its start, 1 its end.
    #[must_use]
    pub fn at(&self, done: f64) -> f64 {
        let done = done.clamp(0.0, 1.0);
        if done < self.warmup {
            return self.peak * done / self.warmup;
        }
        let fallen = if self.warmup < 1.0 { (done - self.warmup) / (1.0 - self.warmup) } else { 0.0 };
        self.peak * 0.5 * (1.0 + (PI * fallen).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn it_rises_in_a_line_and_falls_along_a_cosine() {
        let schedule = Schedule { peak: 0.4, warmup: 0.2 };
        let points =
            [(0.0, 0.0), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.341_421_356_237_309_5), (0.6, 0.2), (1.0, 0.0)];
        for (done, rate) in points {
            assert!(close(schedule.at(done), rate), "{done}: {} is not {rate}", schedule.at(done));
        }
    }

    #[test]
    fn no_warmup_starts_at_the_peak_and_warmup_alone_ends_there() {
        assert!(close(Schedule { peak: 1.0, warmup: 0.0 }.at(0.0), 1.0));
        assert!(close(Schedule { peak: 1.0, warmup: 0.0 }.at(0.5), 0.5));
        assert!(close(Schedule { peak: 1.0, warmup: 1.0 }.at(0.5), 0.5));
        assert!(close(Schedule { peak: 1.0, warmup: 1.0 }.at(1.0), 1.0));
    }

    #[test]
    fn outside_the_run_it_stays_at_the_ends() {
        let schedule = Schedule { peak: 1.0, warmup: 0.1 };
        assert!(close(schedule.at(-1.0), 0.0));
        assert!(close(schedule.at(7.0), 0.0));
    }
}
