//! Owns what a run tells while it runs and when it is over.
//! It must never print: whoever watches draws.

/// What a run tells its observer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The model is ready.
    Started {
        /// Trainable numbers in it.
        parameters: usize,
        /// The first epoch of this run: above 0 where it resumes.
        epoch: u64,
    },
    /// Some steps are done. Told about ten times a second.
    Progress(&'a Progress),
    /// An epoch is done and validated, and its checkpoint written.
    Epoch(&'a EpochReport),
}

/// How far an epoch has got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: u64,
    /// How many epochs there will be.
    pub epochs: u64,
    /// Steps done in this epoch.
    pub step: u64,
    /// Steps of an epoch, as far as can be told.
    pub steps: u64,
    /// Images trained on in this epoch.
    pub images: u64,
    /// Seconds of this epoch.
    pub seconds: f64,
    /// Mean loss of this epoch's images so far.
    pub loss: f64,
    /// Share of them that the model named rightly when it met them.
    pub accuracy: f64,
    /// The learning rate of the latest step.
    pub learning_rate: f64,
    /// Share of the time in which the trainer waited for data.
    pub input_wait_share: f64,
    /// Share of the time that went into forward, backward and optimizer.
    pub compute_share: f64,
}

impl Progress {
    /// Images a second in this epoch.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 }
    }
}

/// How well a model does on images that it was not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// How many images.
    pub images: u64,
    /// Their mean loss, without smoothing.
    pub loss: f64,
    /// Share of them that the model names rightly.
    pub accuracy: f64,
    /// Seconds it took to find out.
    pub seconds: f64,
}

/// What came of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EpochReport {
    /// Its training.
    pub training: Progress,
    /// Its validation, where there are images for it.
    pub validation: Option<Score>,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainReport {
    /// Trainable numbers in the model.
    pub parameters: usize,
    /// Every epoch of this run that was finished; those before a resume are not among them.
    pub epochs: Vec<EpochReport>,
    /// Whether it was stopped before its last epoch was done.
    pub interrupted: bool,
}

impl TrainReport {
    /// Images trained on.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.training.images).sum()
    }

    /// Seconds of training, without validation.
    #[must_use]
    pub fn train_seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.training.seconds).sum()
    }

    /// Images a second over all epochs, without validation.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        let seconds = self.train_seconds();
        if seconds > 0.0 { self.images() as f64 / seconds } else { 0.0 }
    }

    /// Share of the training time in which the trainer waited for data.
    #[must_use]
    pub fn input_wait_share(&self) -> f64 {
        let waited: f64 = self.epochs.iter().map(|e| e.training.input_wait_share * e.training.seconds).sum();
        let seconds = self.train_seconds();
        if seconds > 0.0 { waited / seconds } else { 0.0 }
    }

    /// The last epoch's validation.
    #[must_use]
    pub fn validation(&self) -> Option<Score> {
        self.epochs.last()?.validation
    }
}
