//! Memory of training: the moments at which it is measured, the meters, and its parts by purpose.

use std::fmt;

use crate::ByteCount;

mod measure;
mod predict;

pub use measure::{ProbeResult, probe};
pub(super) use measure::{batch_bytes, warm_up};
pub use predict::{forecast, memory_savings, micro_batch_within};

/// Moment of training at which memory is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// After the model was loaded.
    Model,
    /// After the first forward pass, with its graph.
    Forward,
    /// After the first backward pass: gradients, and no graph.
    Backward,
    /// After the first step: the optimizer has its state.
    Step,
    /// After the second step, which is like every further one.
    Steady,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 5] = [Phase::Model, Phase::Forward, Phase::Backward, Phase::Step, Phase::Steady];

    pub(super) fn index(self) -> usize {
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

/// Memory in use at a moment, and its peak since the moment before. Both without what was in use before the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemorySample {
    /// Bytes in use.
    pub in_use: ByteCount,
    /// Most bytes in use.
    pub peak: ByteCount,
}

/// Measures the memory that a device has given to this process.
pub trait MemoryMeter: std::fmt::Debug + Send + Sync {
    /// Bytes in use now, and the peak since it was last reset. May wait for the device.
    fn read(&self) -> MemorySample;
    /// Resets the peak to the bytes in use now.
    fn reset_peak(&self);
    /// Statistics of the allocator; `None` where there are none. May take milliseconds.
    fn allocator_stats(&self) -> Option<AllocatorStats>;
    /// Runs a part of a step. If the device refuses memory meanwhile, that is an error and not a panic, as far as the
    /// device allows it.
    ///
    /// # Errors
    /// [`AllocRefused`]; the results of the part are invalid then.
    fn guard(&self, part: &mut dyn FnMut()) -> Result<(), AllocRefused> {
        part();
        Ok(())
    }
}

/// Memory that an allocator holds. The difference of `reserved` and `in_use` is free, and may be fragmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AllocatorStats {
    /// Bytes taken from the system.
    pub reserved: ByteCount,
    /// Bytes of them that are in use.
    pub in_use: ByteCount,
    /// Largest free piece, if known.
    pub largest_free: Option<ByteCount>,
}

/// Refusal of memory by a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocRefused {
    /// Bytes that were requested, if known.
    pub asked: Option<ByteCount>,
    /// Message of the device.
    pub message: String,
}

/// Meter of the heap of this process, for a program that installs
/// [`CountingAllocator`](crate::host::CountingAllocator).
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

/// Meter of the memory of burn's CUDA backend.
///
/// burn's allocator keeps freed memory and does not tell its peak: the memory that it holds is reported as the peak.
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
        // A failed part leaves nodes in burn's graph; the next backward pass, through this parameter, frees them.
        let device = burn::backend::cuda::CudaDevice::new(self.0 as usize);
        let any = burn::module::Param::from_tensor(burn::tensor::Tensor::<super::Gpu, 1>::zeros([1], &device));
        crate::adapt::burn::survive(self.0, &any, part)
            .map_err(|error| AllocRefused { asked: error.asked, message: error.to_string() })
    }
}

/// Memory of a training step by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemoryAccount {
    /// Weights and running statistics.
    pub parameters: ByteCount,
    /// Gradients: one for each trainable number.
    pub gradients: ByteCount,
    /// State of the optimizer: one number for each trainable number for SGD, two for AdamW.
    pub optimizer: ByteCount,
    /// Activations that the forward pass keeps for the backward pass.
    pub activations: ByteCount,
    /// Images and labels.
    pub batch: ByteCount,
    /// Temporary memory within a step, on top of the others.
    pub workspace: ByteCount,
    /// Peak of a steady step.
    pub peak: ByteCount,
}

impl MemoryAccount {
    /// Derives it from a sample at each [`Phase`], and the size of a batch.
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

    /// Names and sizes, without the peak, in the order of allocation.
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

/// Predicted or measured memory of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Forecast {
    /// Images in a batch.
    pub micro_batch: usize,
    /// Memory at each [`Phase`].
    pub at: [MemorySample; 5],
    /// Memory by purpose.
    pub account: MemoryAccount,
}

/// Change of one setting that saves memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MemorySaving {
    /// Flag of the program, with its value.
    pub flag: String,
    /// Drawback, in a few words.
    pub cost: &'static str,
    /// Peak with it.
    pub peak: ByteCount,
    /// Bytes that it saves of the peak.
    pub saved: ByteCount,
}

impl fmt::Display for MemorySaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} saves {} (peak {}); {}", self.flag, self.saved, self.peak, self.cost)
    }
}
