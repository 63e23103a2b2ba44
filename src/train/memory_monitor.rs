//! Owns the readings of a run: memory at each phase, beside what was predicted, and against the budget.
//! It must never be the reason why a run without a meter and without a budget ends.

use std::sync::Arc;

use super::config::TrainConfig;
use super::error::{OutOfMemory, TrainError};
use super::memory::{
    AllocRefused, AllocatorStats, Forecast, MemoryAccount, MemoryMeter, MemorySample, Phase, batch_bytes, forecast,
    memory_savings,
};
use super::model::NetworkConfig;
use super::report::{MemoryReport, Progress};
use crate::ByteCount;

/// How many savings an error lists.
const SAVINGS_MAX: usize = 3;

pub(super) struct MemoryMonitor {
    config: TrainConfig,
    meter: Option<Arc<dyn MemoryMeter>>,
    /// In use before there was a model.
    base: ByteCount,
    at: [MemorySample; 5],
    /// How many phases were reached.
    reached: usize,
    micro_batch: usize,
    forecast: Forecast,
    steps: u64,
    /// Steps of the model that there is now.
    steps_of_model: u64,
    report: Option<MemoryReport>,
    told: bool,
}

impl MemoryMonitor {
    pub(super) fn new(config: &TrainConfig, meter: Option<Arc<dyn MemoryMeter>>) -> Self {
        MemoryMonitor {
            config: config.clone(),
            meter,
            base: ByteCount::ZERO,
            at: Default::default(),
            reached: 0,
            micro_batch: 0,
            forecast: Forecast::default(),
            steps: 0,
            steps_of_model: 0,
            report: None,
            told: false,
        }
    }

    /// Whether memory is read at all.
    pub(super) fn reads(&self) -> bool {
        self.meter.is_some()
    }

    /// What is in use from here on is the run's.
    pub(super) fn begin(&mut self) {
        if let Some(meter) = &self.meter {
            meter.reset_peak();
            self.base = meter.read().in_use;
        }
    }

    /// The model has this shape from here on: it is weighed, and what it does is measured anew.
    pub(super) fn model_is(&mut self, shape: &NetworkConfig) -> Result<(), TrainError> {
        self.config.model = shape.clone();
        (self.reached, self.steps_of_model, self.report, self.told) = (0, 0, None, false);
        if self.micro_batch > 0 {
            self.forecast = forecast(&self.config, self.micro_batch)?;
        }
        self.reached(Phase::Model)
    }

    /// Learns how large batches are, from the first one; predicts what they take, and refuses what cannot fit.
    pub(super) fn batch(&mut self, images: usize) -> Result<(), TrainError> {
        if self.micro_batch > 0 {
            return Ok(());
        }
        self.micro_batch = images;
        if self.meter.is_none() && self.config.device_budget.is_none() {
            return Ok(());
        }
        self.forecast = forecast(&self.config, images)?;
        match self.config.device_budget {
            Some(budget) if self.forecast.account.peak > budget => {
                Err(self.out_of_memory(None, self.forecast.account.peak, ByteCount::ZERO, None))
            }
            _ => Ok(()),
        }
    }

    /// Images in a batch; 0 before the first.
    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Reads memory the first time that a phase is reached.
    pub(super) fn reached(&mut self, phase: Phase) -> Result<(), TrainError> {
        match self.look(phase) {
            Some((phase, reading)) => self.note(phase, reading),
            None => Ok(()),
        }
    }

    /// The reading for [`note`](Self::note), where this phase has not been read yet.
    pub(super) fn look(&self, phase: Phase) -> Option<(Phase, MemorySample)> {
        // Of the phases within a batch, the second comes before the first is noted.
        let new = self.reached <= phase.place() && phase.place() <= self.reached + 1;
        new.then(|| self.read()).flatten().map(|reading| (phase, reading))
    }

    /// Keeps what was read when a phase was reached.
    pub(super) fn note(&mut self, phase: Phase, reading: MemorySample) -> Result<(), TrainError> {
        self.reached = phase.place() + 1;
        self.at[phase.place()] = reading;
        if phase == Phase::Steady {
            let account = MemoryAccount::new(&self.at, batch_bytes(&self.config, self.micro_batch));
            self.report = Some(MemoryReport { at: self.at, account, forecast: self.forecast });
        }
        // Files are read to load a model, which the device does not see.
        if phase == Phase::Model { Ok(()) } else { self.within(reading) }
    }

    /// Runs a part of a step, and says so where the device refuses memory for it.
    pub(super) fn guard<T>(&self, part: impl FnOnce() -> T) -> Result<T, TrainError> {
        let Some(meter) = &self.meter else { return Ok(part()) };
        let (mut part, mut made) = (Some(part), None);
        let guarded = meter.guard(&mut || made = part.take().map(|part| part()));
        match (guarded, made) {
            (Ok(()), Some(made)) => Ok(made),
            (Ok(()), None) => unreachable!("a guard runs the part"),
            (Err(AllocRefused { asked, said }), _) => {
                let in_use = self.read().map_or(ByteCount::ZERO, |reading| reading.in_use);
                let phase = self.reached.checked_sub(1).map(|place| Phase::ALL[place]);
                Err(self.out_of_memory(phase, asked.unwrap_or(self.forecast.account.peak), in_use, Some(said)))
            }
        }
    }

    /// A step is done.
    pub(super) fn stepped(&mut self) -> Result<(), TrainError> {
        self.steps += 1;
        self.steps_of_model += 1;
        match self.steps_of_model {
            1 => self.reached(Phase::Step),
            2 => self.reached(Phase::Steady),
            _ => Ok(()),
        }
    }

    /// Puts the memory of the moment into the progress.
    pub(super) fn fill(&mut self, progress: &mut Progress) -> Result<(), TrainError> {
        // The peak of the first steps belongs to their phases.
        if self.reached <= Phase::Steady.place() {
            return Ok(());
        }
        let Some(reading) = self.read() else { return Ok(()) };
        progress.memory = Some(reading);
        self.within(reading)
    }

    /// What the allocator holds, in use or not.
    pub(super) fn allocator_stats(&self) -> Option<AllocatorStats> {
        self.meter.as_ref()?.allocator_stats()
    }

    /// Where memory goes, once that is known.
    pub(super) fn report(&self) -> Option<MemoryReport> {
        self.report
    }

    /// The same, if it has not been told yet.
    pub(super) fn news(&mut self) -> Option<MemoryReport> {
        let news = self.report.filter(|_| !self.told);
        self.told |= news.is_some();
        news
    }

    /// In use now, and at most since it was last asked; without what was there before the model.
    fn read(&self) -> Option<MemorySample> {
        let meter = self.meter.as_ref()?;
        let MemorySample { in_use, peak } = meter.read();
        meter.reset_peak();
        Some(MemorySample { in_use: in_use.saturating_sub(self.base), peak: peak.saturating_sub(self.base) })
    }

    fn within(&self, reading: MemorySample) -> Result<(), TrainError> {
        match self.config.device_budget {
            Some(budget) if reading.peak > budget => {
                let phase = Phase::ALL[self.reached.clamp(1, 5) - 1];
                Err(self.out_of_memory(Some(phase), reading.peak, reading.in_use, None))
            }
            _ => Ok(()),
        }
    }

    /// What is said when memory has run out, or would.
    pub(super) fn out_of_memory(
        &self,
        phase: Option<Phase>,
        asked: ByteCount,
        in_use: ByteCount,
        said: Option<String>,
    ) -> TrainError {
        TrainError::OutOfMemory(Box::new(OutOfMemory {
            phase,
            steps: self.steps,
            micro_batch: self.micro_batch,
            asked,
            budget: self.config.device_budget,
            account: self.forecast.account,
            in_use,
            // The settings were predicted already, so they are in range.
            savings: memory_savings(&self.config, self.micro_batch, SAVINGS_MAX).unwrap_or_default(),
            said,
        }))
    }
}
