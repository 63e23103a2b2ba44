//! Owns what the program asks of a GPU beyond feeding it: how busy NVML says it is. It must never fail a run: without a GPU,
//! or without NVML, there is nothing to tell.

use feedstock::device::Device;

/// The GPU's own figure of how busy it is, taken in the background while a run goes on.
pub(crate) struct Gpu {
    #[cfg(feature = "cuda")]
    watch: Result<feedstock::host::GpuWatch, String>,
}

impl Gpu {
    /// Begins to look, where the device is a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn watch(device: &dyn Device) -> Option<Self> {
        let device = device.downcast_ref::<feedstock::device::CudaDevice>()?;
        let facts = device.facts().map_err(|error| error.to_string());
        Some(Gpu { watch: facts.and_then(|facts| feedstock::host::GpuWatch::start(&facts.bus_id)) })
    }

    /// There is no GPU in this build.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn watch(_: &dyn Device) -> Option<Self> {
        None
    }

    /// Share of the time in which some kernel was running; or why nobody knows.
    pub(crate) fn busy_share(&self) -> Result<f64, String> {
        #[cfg(feature = "cuda")]
        let told =
            self.watch.as_ref().map_err(Clone::clone).and_then(|watch| {
                watch.busy_share().ok_or_else(|| "the run was over before NVML was asked".to_owned())
            });
        #[cfg(not(feature = "cuda"))]
        let told = Err("this program was built without CUDA".to_owned());
        told
    }
}
