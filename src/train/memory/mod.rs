//! Owns what memory training takes: when it is read, what it is made of, how it is predicted, and what becomes of a refusal.
//! It must never free anything, nor hold a batch.

use std::fmt;

use crate::ByteCount;

mod forecast;
mod probe;

pub(super) use forecast::batch_bytes;
pub use forecast::{Forecast, MemorySaving, forecast, memory_savings, micro_batch_within};
pub(super) use probe::warm_up;
pub use probe::{ProbeResult, probe};

/// A moment of training at which memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The model is there.
    Model,
    /// The first forward pass is done, and its graph is alive.
    Forward,
    /// The first way back is done: gradients are there, the graph is gone.
    Backward,
    /// The first step is done: the optimizer has its state.
    Step,
    /// A step like every other is done.
    Steady,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 5] = [Phase::Model, Phase::Forward, Phase::Backward, Phase::Step, Phase::Steady];

    pub(super) fn place(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Model => "model loaded",
            Phase::Forward => "first forward",
            Phase::Backward => "first backward",
            Phase::Step => "optimizer step",
            Phase::Steady => "steady state",
        })
    }
}

/// What was in use at a moment, and at most since the moment before. Both without what was there before the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// Bytes in use.
    pub in_use: ByteCount,
    /// Bytes in use at most.
    pub peak: ByteCount,
}

/// Reads how much memory a device has given to this process.
pub trait MemoryMeter: Send + Sync {
    /// Bytes in use now, and at most since the peak was last reset. Waits for work under way where that is needed to know.
    fn read(&self) -> MemorySample;
    /// Lets the peak begin anew.
    fn reset_peak(&self);
    /// What is held from the system, in use or not; `None` where that cannot be told. It may take milliseconds.
    fn allocator_stats(&self) -> Option<AllocatorStats>;
    /// Runs a part of a step. Where the device refuses memory meanwhile, that becomes a value and not a panic, as far as
    /// the device lets it; whatever the part made is worth nothing then.
    fn guard(&self, part: &mut dyn FnMut()) -> Result<(), AllocRefused> {
        part();
        Ok(())
    }
}

/// What an allocator holds from the system. What lies between `reserved` and `in_use` is free, and may be in crumbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocatorStats {
    /// Bytes taken from the system.
    pub reserved: ByteCount,
    /// Bytes of them that are in use.
    pub in_use: ByteCount,
    /// The largest piece of the rest, where that can be told.
    pub largest_free: Option<ByteCount>,
}

/// The device has refused memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocRefused {
    /// Bytes that were asked for, where that is known.
    pub asked: Option<ByteCount>,
    /// What the device said.
    pub said: String,
}

/// The process's heap, where the program has installed [`CountingAllocator`](crate::host::CountingAllocator).
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapMeter;

impl MemoryMeter for HeapMeter {
    fn read(&self) -> MemorySample {
        crate::host::heap()
            .map_or_else(MemorySample::default, |heap| MemorySample { in_use: heap.in_use, peak: heap.peak })
    }

    fn reset_peak(&self) {
        crate::host::reset_heap_peak();
    }

    fn allocator_stats(&self) -> Option<AllocatorStats> {
        let arena = crate::host::malloc_info()?;
        Some(AllocatorStats { reserved: arena.reserved, in_use: arena.in_use, largest_free: Some(arena.largest_free) })
    }
}

/// The memory of burn's CUDA backend.
///
/// burn's allocator keeps what it has taken for the next time and does not tell its peak: what it holds is taken for that.
#[cfg(feature = "burn-cuda")]
#[derive(Clone, Copy, Debug)]
pub struct GpuMeter(
    /// Number of the CUDA device.
    pub u32,
);

#[cfg(feature = "burn-cuda")]
impl MemoryMeter for GpuMeter {
    fn read(&self) -> MemorySample {
        crate::adapt::burn::gpu_memory(self.0).map_or_else(
            |_| MemorySample::default(),
            |memory| MemorySample { in_use: memory.in_use, peak: memory.reserved },
        )
    }

    fn reset_peak(&self) {}

    fn allocator_stats(&self) -> Option<AllocatorStats> {
        let memory = crate::adapt::burn::gpu_memory(self.0).ok()?;
        Some(AllocatorStats { reserved: memory.reserved, in_use: memory.in_use, largest_free: None })
    }

    fn guard(&self, part: &mut dyn FnMut()) -> Result<(), AllocRefused> {
        // What a failed part has left in burn's graph goes with the next way back, which is this parameter's.
        let device = burn::backend::cuda::CudaDevice::new(self.0 as usize);
        let any = burn::module::Param::from_tensor(burn::tensor::Tensor::<super::Gpu, 1>::zeros([1], &device));
        crate::adapt::burn::survive(self.0, &any, part)
            .map_err(|error| AllocRefused { asked: error.asked, said: error.to_string() })
    }
}

/// Where the memory of a training step goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccount {
    /// The weights, and the running statistics.
    pub parameters: ByteCount,
    /// One for each number that learns.
    pub gradients: ByteCount,
    /// Momentum or moments; SGD has one for each number that learns, AdamW two.
    pub optimizer: ByteCount,
    /// What the forward pass keeps for the way back.
    pub activations: ByteCount,
    /// Images and labels.
    pub batch: ByteCount,
    /// What comes and goes within a step, on top of the others.
    pub workspace: ByteCount,
    /// In use at most, at any moment of a steady step.
    pub peak: ByteCount,
}

impl MemoryAccount {
    /// From readings at each [`Phase`], and the size of a batch.
    pub(super) fn new(at: &[MemorySample; 5], batch: ByteCount) -> Self {
        let [model, forward, backward, step, steady] = *at;
        let parameters = model.in_use;
        let optimizer = step.in_use.saturating_sub(parameters);
        let activations = forward.in_use.saturating_sub(parameters).saturating_sub(batch);
        let gradients = backward.in_use.saturating_sub(parameters);
        let kept = [parameters, optimizer, activations, batch].into_iter().sum();
        MemoryAccount {
            parameters,
            gradients,
            optimizer,
            activations,
            batch,
            workspace: steady.peak.saturating_sub(kept),
            peak: steady.peak,
        }
    }

    /// Names and sizes, in the order in which they come to be. The peak is not among them.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, ByteCount); 6] {
        [
            ("parameters", self.parameters),
            ("optimizer state", self.optimizer),
            ("batch", self.batch),
            ("activations", self.activations),
            ("gradients", self.gradients),
            ("workspace", self.workspace),
        ]
    }
}
