//! GPU utilization from NVML and device memory held by loaders. Without a GPU or NVML there is no figure, and no
//! failure.

use feedstock::ByteCount;
use feedstock::device::{Device, SimDevice};
#[cfg(feature = "cuda")]
use feedstock::{device::CudaDevice, host::GpuWatch};

/// Samples the GPU's utilization in the background during a run.
pub(crate) struct Gpu {
    #[cfg(feature = "cuda")]
    watch: Result<GpuWatch, String>,
}

#[cfg(feature = "cuda")]
impl Gpu {
    /// Starts sampling if the device is a GPU.
    pub(crate) fn watch(device: &dyn Device) -> Option<Self> {
        let facts = device.downcast_ref::<CudaDevice>()?.facts().map_err(|error| error.to_string());
        Some(Gpu { watch: facts.and_then(|facts| GpuWatch::start(&facts.bus_id).map_err(|error| error.to_string())) })
    }

    /// Share of the time in which a kernel was running, or the reason why it is unknown.
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

/// GPU memory that loaders hold, bytes, and the number of allocations.
#[cfg(feature = "cuda")]
pub(crate) fn memory(device: &dyn Device) -> Option<(ByteCount, u64)> {
    device.downcast_ref::<CudaDevice>().map(|gpu| (gpu.held(), gpu.allocations()))
}

/// Device memory that loaders hold, bytes; `None` if the device has none or does not report it.
pub(crate) fn held(device: &dyn Device) -> Option<ByteCount> {
    let simulated = device.downcast_ref::<SimDevice>().map(SimDevice::held);
    simulated.or_else(|| memory(device).map(|(held, _)| held))
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn memory(_: &dyn Device) -> Option<(ByteCount, u64)> {
    None
}
