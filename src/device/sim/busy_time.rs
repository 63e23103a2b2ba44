//! Busy time of each stream since the first step began. The callers pass the time, which is simulated.

use std::time::{Duration, Instant};

use crate::device::Utilization;

/// A stream of the device.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamKind {
    Copy,
    Compute,
}

#[derive(Debug, Default)]
pub(super) struct BusyTime {
    started: Option<Instant>,
    copy: Busy,
    compute: Busy,
}

#[derive(Debug, Default)]
struct Busy {
    total: Duration,
    since: Option<Instant>,
}

impl BusyTime {
    pub(super) fn begin(&mut self, kind: StreamKind, at: Instant) {
        if let StreamKind::Compute = kind {
            self.started.get_or_insert(at);
        }
        self.busy(kind).since = Some(at);
    }

    pub(super) fn end(&mut self, kind: StreamKind, at: Instant) {
        let started = self.started;
        let busy = self.busy(kind);
        busy.total += busy.running(started, at);
        busy.since = None;
    }

    /// Busy time up to `now`, including work in progress.
    pub(super) fn read(&self, now: Instant) -> Utilization {
        let total = |busy: &Busy| busy.total + busy.running(self.started, now);
        Utilization {
            elapsed: self.started.map_or(Duration::ZERO, |started| now.saturating_duration_since(started)),
            compute_busy: total(&self.compute),
            copy_busy: total(&self.copy),
        }
    }

    fn busy(&mut self, kind: StreamKind) -> &mut Busy {
        match kind {
            StreamKind::Copy => &mut self.copy,
            StreamKind::Compute => &mut self.compute,
        }
    }
}

impl Busy {
    /// Time from the later of the two beginnings to `at`; zero before the first step.
    fn running(&self, started: Option<Instant>, at: Instant) -> Duration {
        match (self.since, started) {
            (Some(since), Some(started)) => at.saturating_duration_since(since.max(started)),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_starts_with_the_first_step() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut busy_time = BusyTime::default();
        assert_eq!(busy_time.read(at(5)), Utilization::default());
        busy_time.begin(StreamKind::Copy, at(10));
        busy_time.end(StreamKind::Copy, at(20));
        busy_time.begin(StreamKind::Copy, at(20));
        busy_time.begin(StreamKind::Compute, at(25));
        busy_time.end(StreamKind::Copy, at(30));
        assert_eq!(busy_time.read(at(35)), Utilization { elapsed: ms(10), compute_busy: ms(10), copy_busy: ms(5) });
        busy_time.end(StreamKind::Compute, at(45));
        let early = busy_time.read(at(45));
        let late = busy_time.read(at(65));
        assert_eq!(late, Utilization { elapsed: ms(40), compute_busy: ms(20), copy_busy: ms(5) });
        assert_eq!((late.compute_share(), late.copy_share()), (0.5, 0.125));
        assert_eq!(late.since(&early), Utilization { elapsed: ms(20), compute_busy: ms(0), copy_busy: ms(0) });
        assert_eq!(Utilization::default().compute_share(), 0.0);
    }
}
