//! Device of a run: the CPU, or a GPU if burn's CUDA backend is compiled in. Opens a GPU only if training runs on it.

use std::sync::Arc;

use feedstock::Error;
use feedstock::device::{self, Device, DeviceError, DeviceSpec};

use super::failure::Failure;

/// Device that trains, and device of the batches.
pub(crate) struct Placement {
    pub(crate) device: Arc<dyn Device>,
    /// The GPU that trains; `None` is the CPU.
    #[cfg_attr(not(feature = "burn-cuda"), allow(dead_code, reason = "no GPU trains in this build"))]
    pub(crate) gpu: Option<u32>,
    /// Reason why `auto` did not choose a GPU.
    pub(crate) note: Option<String>,
}

impl Placement {
    pub(crate) fn choose(spec: &DeviceSpec) -> Result<Self, Failure> {
        match spec {
            DeviceSpec::Cuda(number) => Ok(Placement { device: gpu(*number)?, gpu: Some(*number), note: None }),
            DeviceSpec::Auto if cfg!(feature = "burn-cuda") => Ok(match gpu(0) {
                Ok(device) => Placement { device, gpu: Some(0), note: None },
                Err(Failure::Library(Error::Device(DeviceError::Absent(_)))) => Self::cpu(None),
                Err(Failure::Library(why)) => Self::cpu(Some(format!("training on the CPU: {why}"))),
                Err(other) => return Err(other),
            }),
            DeviceSpec::Auto => Ok(Self::cpu(None)),
            other => Ok(Placement { device: device::open(other)?, gpu: None, note: None }),
        }
    }

    fn cpu(note: Option<String>) -> Self {
        Placement { device: Arc::new(device::HostDevice::new()), gpu: None, note }
    }
}

#[cfg(feature = "burn-cuda")]
fn gpu(number: u32) -> Result<Arc<dyn Device>, Failure> {
    Ok(feedstock::adapt::burn::cuda_device(number)?)
}

#[cfg(not(feature = "burn-cuda"))]
fn gpu(number: u32) -> Result<Arc<dyn Device>, Failure> {
    Err(Failure::Usage(format!(
        "cuda:{number} cannot train: this program was built without burn's CUDA backend. Build it with `cargo build \
         --release --features cli,burn-cuda`, or train with --device cpu"
    )))
}
