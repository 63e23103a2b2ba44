//! Snapshots of a training run from its progress and the loaders' statistics: recent rates instead of an epoch's means,
//! the largest accounts, the remaining time. The device is not queried, because that would synchronize with it.

use std::time::Instant;

use feedstock::train::{EpochReport, Progress};
use feedstock::{ByteCount, Loader};

use super::snapshot::{EpochEnd, Snapshot};

/// Window of recent rates, seconds: long enough not to jump, short enough not to lag.
const RATE_WINDOW_S: f64 = 1.0;
/// Maximum number of listed accounts.
const ACCOUNTS_MAX: usize = 8;

/// State between two snapshots.
pub(super) struct SnapshotBuilder {
    loaders: Vec<Loader>,
    ram_budget: ByteCount,
    memory_budget: Option<ByteCount>,
    /// Start of the current rate window.
    since: Progress,
    rates: Option<Rates>,
    val_accuracy: Option<f64>,
    /// Start of the run, and the share done at that time: above 0 if resumed.
    began: Option<(Instant, f64)>,
}

#[derive(Clone, Copy)]
struct Rates {
    images_per_s: f64,
    busy_share: f64,
    input_wait_share: f64,
}

impl SnapshotBuilder {
    pub(super) fn new(loaders: Vec<Loader>, ram_budget: ByteCount, memory_budget: Option<ByteCount>) -> Self {
        SnapshotBuilder {
            loaders,
            ram_budget,
            memory_budget,
            since: Progress::default(),
            rates: None,
            val_accuracy: None,
            began: None,
        }
    }

    /// Builds a snapshot from the trainer's progress.
    pub(super) fn snapshot(&mut self, now: &Progress) -> Snapshot {
        let rates = self.rates(now);
        let (ram_held, accounts) = self.memory();
        let mut snapshot = Snapshot {
            epoch: now.epoch,
            epochs: now.epochs,
            step: now.step,
            steps: now.steps,
            loss: now.loss,
            accuracy: now.accuracy,
            val_accuracy: self.val_accuracy,
            learning_rate: now.learning_rate,
            images_per_s: rates.images_per_s,
            busy_share: rates.busy_share,
            input_wait_share: rates.input_wait_share,
            ram_held,
            ram_budget: self.ram_budget,
            accounts,
            // Between steps little is in use; the peak within a step has to fit.
            memory_in_use: now.memory.map(|memory| memory.peak),
            memory_budget: self.memory_budget,
            ..Snapshot::default()
        };
        snapshot.seconds_left = self.seconds_left(snapshot.done_share());
        snapshot
    }

    /// Records the end of an epoch.
    pub(super) fn end(&mut self, epoch: &EpochReport) -> EpochEnd {
        let EpochReport { training, validation } = epoch;
        self.val_accuracy = validation.map(|score| score.accuracy).or(self.val_accuracy);
        EpochEnd {
            global_step: (training.epoch + 1).saturating_mul(training.steps),
            val_loss: validation.map(|score| score.loss),
            val_accuracy: validation.map(|score| score.accuracy),
        }
    }

    /// Rates over the window; during the first second of an epoch, its means.
    fn rates(&mut self, now: &Progress) -> Rates {
        let whole = Rates {
            images_per_s: now.images_per_s(),
            busy_share: now.compute_share,
            input_wait_share: now.input_wait_share,
        };
        if now.epoch != self.since.epoch || now.seconds < self.since.seconds {
            (self.since, self.rates) = (Progress { epoch: now.epoch, ..Progress::default() }, None);
        }
        let seconds = now.seconds - self.since.seconds;
        if seconds >= RATE_WINDOW_S {
            let spent =
                |of: fn(&Progress) -> f64| (of(now) * now.seconds - of(&self.since) * self.since.seconds) / seconds;
            self.rates = Some(Rates {
                images_per_s: now.images.saturating_sub(self.since.images) as f64 / seconds,
                busy_share: spent(|at| at.compute_share),
                input_wait_share: spent(|at| at.input_wait_share),
            });
            self.since = *now;
        }
        self.rates.unwrap_or(whole)
    }

    /// Bytes held by the loaders, and their largest accounts, summed by name.
    fn memory(&self) -> (ByteCount, Vec<(&'static str, ByteCount)>) {
        let mut held = ByteCount::ZERO;
        let mut accounts: Vec<(&'static str, ByteCount)> = Vec::new();
        for report in self.loaders.iter().map(|loader| loader.stats().memory) {
            held += report.held;
            for account in report.accounts.iter().filter(|account| account.held > ByteCount::ZERO) {
                match accounts.iter_mut().find(|(name, _)| *name == account.kind.name()) {
                    Some((_, bytes)) => *bytes += account.held,
                    None => accounts.push((account.kind.name(), account.held)),
                }
            }
        }
        accounts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        accounts.truncate(ACCOUNTS_MAX);
        (held, accounts)
    }

    /// Remaining time at the mean speed so far; `None` in the first two seconds.
    fn seconds_left(&mut self, done: f64) -> Option<f64> {
        let (began, first) = *self.began.get_or_insert((Instant::now(), done));
        let (seconds, new) = (began.elapsed().as_secs_f64(), done - first);
        (seconds >= 2.0 && new > 0.0).then(|| seconds / new * (1.0 - done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_recent() {
        let mut snapshots = SnapshotBuilder::new(Vec::new(), ByteCount(1), None);
        let at = |epoch, seconds: f64, images, waited: f64| Progress {
            epoch,
            seconds,
            images,
            input_wait_share: waited / seconds,
            ..Progress::default()
        };
        let told = |snapshot: Snapshot| (snapshot.images_per_s, (snapshot.input_wait_share * 1e6).round() / 1e6);
        assert_eq!(
            told(snapshots.snapshot(&at(0, 0.5, 100, 0.25))),
            (200.0, 0.5),
            "an epoch's first second: its means"
        );
        assert_eq!(told(snapshots.snapshot(&at(0, 1.0, 200, 0.5))), (200.0, 0.5));
        assert_eq!(told(snapshots.snapshot(&at(0, 1.5, 900, 0.5))), (200.0, 0.5), "not a second later");
        assert_eq!(told(snapshots.snapshot(&at(0, 3.0, 1200, 0.5))), (500.0, 0.0), "two seconds: 1000 images, no wait");
        assert_eq!(told(snapshots.snapshot(&at(1, 0.5, 50, 0.0))), (100.0, 0.0), "the next epoch begins anew");
    }

    #[test]
    fn validation_accuracy_is_kept_until_the_next() {
        let mut snapshots = SnapshotBuilder::new(Vec::new(), ByteCount(1), None);
        let training = Progress { epoch: 1, steps: 10, step: 10, ..Progress::default() };
        assert_eq!(snapshots.snapshot(&training).val_accuracy, None);
        let score = feedstock::train::Score { accuracy: 0.5, loss: 2.0, ..Default::default() };
        let end = snapshots.end(&EpochReport { training, validation: Some(score) });
        assert_eq!(end, EpochEnd { global_step: 20, val_loss: Some(2.0), val_accuracy: Some(0.5) });
        assert_eq!(snapshots.end(&EpochReport { training, validation: None }).val_accuracy, None);
        assert_eq!(snapshots.snapshot(&training).val_accuracy, Some(0.5));
    }
}
