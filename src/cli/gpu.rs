//! Owns what the program asks of a GPU beyond feeding it: how busy NVML says it is, and what it holds. It must never fail a
//! run: without a GPU, or without NVML, there is nothing to tell.

use feedstock::ByteCount;
use feedstock::device::{Device, SimDevice};
#[cfg(feature = "cuda")]
use feedstock::{device::CudaDevice, host::GpuWatch};

/// The GPU's own figure of how busy it is, taken in the background while a run goes on.
pub(crate) struct Gpu {
    #[cfg(feature = "cuda")]
    watch: Result<GpuWatch, String>,
}

#[cfg(feature = "cuda")]
impl Gpu {
    /// Begins to look, where the device is a GPU.
    pub(crate) fn watch(device: &dyn Device) -> Option<Self> {
        let facts = device.downcast_ref::<CudaDevice>()?.facts().map_err(|error| error.to_string());
        Some(Gpu { watch: facts.and_then(|facts| GpuWatch::start(&facts.bus_id)) })
    }

    /// Share of the time in which some kernel was running; or why nobody knows.
    pub(crate) fn busy_share(&self) -> Result<f64, String> {
        let share = self.watch.as_ref().map_err(Clone::clone)?.busy_share();
        share.ok_or_else(|| "the run was over before NVML was asked".to_owned())
    }
}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    pub(crate) fn watch(_: &dyn Device) -> Option<Self> {
        None
    }

    pub(crate) fn busy_share(&self) -> Result<f64, String> {
        Err("this program was built without CUDA".to_owned())
    }
}

/// Bytes of a GPU's memory that loaders hold, and how often they have taken any.
#[cfg(feature = "cuda")]
pub(crate) fn memory(device: &dyn Device) -> Option<(ByteCount, u64)> {
    device.downcast_ref::<CudaDevice>().map(|gpu| (gpu.held(), gpu.allocations()))
}

/// Bytes of a device's own memory that loaders hold; `None` for one that has none, or cannot tell.
pub(crate) fn held(device: &dyn Device) -> Option<ByteCount> {
    let simulated = device.downcast_ref::<SimDevice>().map(SimDevice::held);
    simulated.or_else(|| memory(device).map(|(held, _)| held))
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn memory(_: &dyn Device) -> Option<(ByteCount, u64)> {
    None
}
