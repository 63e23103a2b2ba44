//! Owns what is known of a training run at one moment: the plain numbers that are drawn, logged and charted. It must never
//! find any of them out: whoever trains fills them in.

use feedstock::ByteCount;

/// A moment of a training run. Shares are of 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// The epoch, from 0.
    pub(super) epoch: u64,
    /// How many epochs there will be.
    pub(super) epochs: u64,
    /// Steps done in this epoch.
    pub(super) step: u64,
    /// Steps of an epoch, as far as can be told.
    pub(super) steps: u64,
    /// Loss of training.
    pub(super) loss: f64,
    /// Share of the images trained on that were named rightly.
    pub(super) accuracy: f64,
    /// The same of the last validation, once there was one.
    pub(super) val_accuracy: Option<f64>,
    /// The learning rate of the latest step.
    pub(super) learning_rate: f64,
    /// Images a second.
    pub(super) images_per_s: f64,
    /// Share of the time in which the device was at work.
    pub(super) busy_share: f64,
    /// Share of the time in which training waited for data.
    pub(super) input_wait_share: f64,
    /// What the loaders hold.
    pub(super) ram_held: ByteCount,
    /// What they may hold.
    pub(super) ram_budget: ByteCount,
    /// The largest holders among their accounts, or none where nobody asked.
    pub(super) accounts: Vec<(&'static str, ByteCount)>,
    /// What training itself holds: of a GPU's memory, or of the heap.
    pub(super) memory_in_use: Option<ByteCount>,
    /// What it may hold.
    pub(super) memory_budget: Option<ByteCount>,
    /// Until the last epoch is done.
    pub(super) seconds_left: Option<f64>,
}

impl Snapshot {
    /// Share of the whole run that is done.
    pub(super) fn done_share(&self) -> f64 {
        let within = self.step as f64 / self.steps.max(1) as f64;
        ((self.epoch as f64 + within.min(1.0)) / self.epochs.max(1) as f64).clamp(0.0, 1.0)
    }

    /// Steps since the very first epoch: where a value stands in a chart, resumed or not.
    pub(super) fn global_step(&self) -> u64 {
        self.epoch.saturating_mul(self.steps).saturating_add(self.step)
    }

    /// The moment in one line.
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

/// What validation came to at the end of an epoch, where there was one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct EpochEnd {
    /// Steps since the very first epoch.
    pub(super) global_step: u64,
    /// Mean loss of the images validated on.
    pub(super) val_loss: Option<f64>,
    /// Share of them that were named rightly.
    pub(super) val_accuracy: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_run_is_one_however_odd_the_numbers() {
        let at =
            |epoch, epochs, step, steps| Snapshot { epoch, epochs, step, steps, ..Snapshot::default() }.done_share();
        assert_eq!([at(0, 4, 0, 10), at(1, 4, 5, 10), at(3, 4, 10, 10)], [0.0, 0.375, 1.0]);
        assert_eq!([at(0, 0, 0, 0), at(9, 4, 0, 10), at(0, 4, 30, 10)], [0.0, 1.0, 0.25]);
    }

    #[test]
    fn steps_go_on_over_epochs() {
        let point = Snapshot { epoch: 2, step: 3, steps: 100, ..Snapshot::default() };
        assert_eq!(point.global_step(), 203);
    }
}
