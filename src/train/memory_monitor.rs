//! Memory of a run: measured at each phase, compared with the prediction, and checked against the budget. Without a
//! meter and a budget it never ends a run.

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

/// Maximum number of savings in an error.
const SAVINGS_MAX: usize = 3;

pub(super) struct MemoryMonitor {
    config: TrainConfig,
    meter: Option<Arc<dyn MemoryMeter>>,
    /// Bytes in use before the model.
    base: ByteCount,
    at: [MemorySample; 5],
    /// Number of phases that were reached.
    reached: usize,
    micro_batch: usize,
    forecast: Forecast,
    steps: u64,
    /// Steps since the model last changed its shape.
    steps_of_model: u64,
    report: Option<MemoryReport>,
    reported: bool,
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
            reported: false,
        }
    }

    pub(super) fn has_meter(&self) -> bool {
        self.meter.is_some()
    }

    /// Starts to measure: bytes in use now are not those of the run.
    pub(super) fn begin(&mut self) {
        if let Some(meter) = &self.meter {
            meter.reset_peak();
            self.base = meter.read().in_use;
        }
    }

    /// Measures a new model, and starts all phases anew.
    pub(super) fn set_model(&mut self, shape: &NetworkConfig) -> Result<(), TrainError> {
        self.config.model = shape.clone();
        (self.reached, self.steps_of_model, self.report, self.reported) = (0, 0, None, false);
        if self.micro_batch > 0 {
            self.forecast = forecast(&self.config, self.micro_batch)?;
        }
        self.measure(Phase::Model)
    }

    /// Takes the size of the first batch, predicts the memory of training with it, and refuses what exceeds the budget.
    pub(super) fn check_batch(&mut self, images: usize) -> Result<(), TrainError> {
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

    /// Number of images in a batch; 0 before the first.
    pub(super) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Measures a phase the first time that it is reached.
    fn measure(&mut self, phase: Phase) -> Result<(), TrainError> {
        self.sample(phase).map_or(Ok(()), |(phase, sample)| self.record(phase, sample))
    }

    /// Measures a phase for [`record`](Self::record), if it was not measured yet.
    pub(super) fn sample(&self, phase: Phase) -> Option<(Phase, MemorySample)> {
        // Of the phases within a batch, the second is measured before the first is recorded.
        let new = self.reached <= phase.index() && phase.index() <= self.reached + 1;
        new.then(|| self.read()).flatten().map(|sample| (phase, sample))
    }

    /// Keeps the sample of a phase.
    pub(super) fn record(&mut self, phase: Phase, sample: MemorySample) -> Result<(), TrainError> {
        self.reached = phase.index() + 1;
        self.at[phase.index()] = sample;
        if phase == Phase::Steady {
            let account = MemoryAccount::new(&self.at, batch_bytes(&self.config, self.micro_batch));
            self.report = Some(MemoryReport { at: self.at, account, forecast: self.forecast });
        }
        // Loading a model also holds its file in host memory, which is not memory of the device.
        if phase == Phase::Model { Ok(()) } else { self.check_budget(sample) }
    }

    /// Runs a part of a step, and returns an error if the device refuses memory for it.
    pub(super) fn guard<T>(&self, part: impl FnOnce() -> T) -> Result<T, TrainError> {
        let Some(meter) = &self.meter else { return Ok(part()) };
        let (mut part, mut made) = (Some(part), None);
        let guarded = meter.guard(&mut || made = part.take().map(|part| part()));
        match (guarded, made) {
            (Ok(()), Some(made)) => Ok(made),
            (Ok(()), None) => unreachable!("a guard runs the part"),
            (Err(AllocRefused { asked, message }), _) => {
                let in_use = self.read().map_or(ByteCount::ZERO, |sample| sample.in_use);
                let phase = self.reached.checked_sub(1).map(|index| Phase::ALL[index]);
                Err(self.out_of_memory(phase, asked.unwrap_or(self.forecast.account.peak), in_use, Some(message)))
            }
        }
    }

    /// Counts a step, and measures the phases that end with the first two.
    pub(super) fn stepped(&mut self) -> Result<(), TrainError> {
        self.steps += 1;
        self.steps_of_model += 1;
        match self.steps_of_model {
            1 => self.measure(Phase::Step),
            2 => self.measure(Phase::Steady),
            _ => Ok(()),
        }
    }

    /// Fills in the memory in use now.
    pub(super) fn fill(&mut self, progress: &mut Progress) -> Result<(), TrainError> {
        // The peak of the first steps belongs to their phases.
        if self.reached <= Phase::Steady.index() {
            return Ok(());
        }
        let Some(sample) = self.read() else { return Ok(()) };
        progress.memory = Some(sample);
        self.check_budget(sample)
    }

    pub(super) fn allocator_stats(&self) -> Option<AllocatorStats> {
        self.meter.as_ref()?.allocator_stats()
    }

    /// Memory by purpose, once that is known.
    pub(super) fn report(&self) -> Option<MemoryReport> {
        self.report
    }

    /// Takes the report, once.
    pub(super) fn unreported(&mut self) -> Option<MemoryReport> {
        let report = self.report.filter(|_| !self.reported);
        self.reported |= report.is_some();
        report
    }

    /// Bytes in use now, and the peak since the last call; both without what was in use before the model.
    fn read(&self) -> Option<MemorySample> {
        let meter = self.meter.as_ref()?;
        let MemorySample { in_use, peak } = meter.read();
        meter.reset_peak();
        Some(MemorySample { in_use: in_use.saturating_sub(self.base), peak: peak.saturating_sub(self.base) })
    }

    fn check_budget(&self, sample: MemorySample) -> Result<(), TrainError> {
        match self.config.device_budget {
            Some(budget) if sample.peak > budget => {
                let phase = Phase::ALL[self.reached.clamp(1, 5) - 1];
                Err(self.out_of_memory(Some(phase), sample.peak, sample.in_use, None))
            }
            _ => Ok(()),
        }
    }

    fn out_of_memory(
        &self,
        phase: Option<Phase>,
        asked: ByteCount,
        in_use: ByteCount,
        device_message: Option<String>,
    ) -> TrainError {
        TrainError::OutOfMemory(Box::new(OutOfMemory {
            phase,
            steps: self.steps,
            micro_batch: self.micro_batch,
            asked,
            budget: self.config.device_budget,
            account: self.forecast.account,
            in_use,
            // The settings are in range: the forecast has accepted them.
            savings: memory_savings(&self.config, self.micro_batch, SAVINGS_MAX).unwrap_or_default(),
            device_message,
        }))
    }
}
