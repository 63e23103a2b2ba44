//! Snapshot of a training run: the numbers that are displayed, logged and charted.

use feedstock::ByteCount;

/// A snapshot of a training run. Shares are fractions of 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// Epoch, from 0.
    pub(super) epoch: u64,
    /// Number of epochs.
    pub(super) epochs: u64,
    /// Steps done in this epoch.
    pub(super) step: u64,
    /// Expected steps of an epoch.
    pub(super) steps: u64,
    /// Training loss.
    pub(super) loss: f64,
    /// Training accuracy.
    pub(super) accuracy: f64,
    /// Accuracy of the last validation, if any.
    pub(super) val_accuracy: Option<f64>,
    /// Learning rate of the latest step.
    pub(super) learning_rate: f64,
    /// Images per second.
    pub(super) images_per_s: f64,
    /// Share of the time in which the device was busy.
    pub(super) busy_share: f64,
    /// Share of the time in which training waited for input.
    pub(super) input_wait_share: f64,
    /// Bytes held by the loaders.
    pub(super) ram_held: ByteCount,
    /// RAM budget of the loaders.
    pub(super) ram_budget: ByteCount,
    /// Largest accounts of the loaders.
    pub(super) accounts: Vec<(&'static str, ByteCount)>,
    /// Memory of training: GPU memory or heap.
    pub(super) memory_in_use: Option<ByteCount>,
    /// Memory budget of training.
    pub(super) memory_budget: Option<ByteCount>,
    /// Remaining seconds.
    pub(super) seconds_left: Option<f64>,
}

impl Snapshot {
    /// Share of the whole run that is done.
    pub(super) fn done_share(&self) -> f64 {
        let within = self.step as f64 / self.steps.max(1) as f64;
        ((self.epoch as f64 + within.min(1.0)) / self.epochs.max(1) as f64).clamp(0.0, 1.0)
    }

    /// Steps since the first epoch: the x axis of charts, also after a resume.
    pub(super) fn global_step(&self) -> u64 {
        self.epoch.saturating_mul(self.steps).saturating_add(self.step)
    }

    /// The snapshot in one line.
    pub(super) fn to_line(&self) -> String {
        format!(
            "epoch {}/{} {}/{}  {:.0} images/s  loss {:.3}  acc {:.0} %  wait {:.0} %  busy {:.0} %  RAM {}/{}",
            self.epoch + 1,
            self.epochs,
            self.step,
            self.steps,
            self.images_per_s,
            self.loss,
            self.accuracy * 100.0,
            self.input_wait_share * 100.0,
            self.busy_share * 100.0,
            self.ram_held,
            self.ram_budget
        )
    }
}

/// Validation result at the end of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct EpochEnd {
    /// Steps since the first epoch.
    pub(super) global_step: u64,
    /// Validation loss.
    pub(super) val_loss: Option<f64>,
    /// Validation accuracy.
    pub(super) val_accuracy: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn done_share_stays_within_0_and_1() {
        let at =
            |epoch, epochs, step, steps| Snapshot { epoch, epochs, step, steps, ..Snapshot::default() }.done_share();
        assert_eq!([at(0, 4, 0, 10), at(1, 4, 5, 10), at(3, 4, 10, 10)], [0.0, 0.375, 1.0]);
        assert_eq!([at(0, 0, 0, 0), at(9, 4, 0, 10), at(0, 4, 30, 10)], [0.0, 1.0, 0.25]);
    }

    #[test]
    fn global_steps_continue_over_epochs() {
        let point = Snapshot { epoch: 2, step: 3, steps: 100, ..Snapshot::default() };
        assert_eq!(point.global_step(), 203);
    }
}
