//! Device names, as `--device` takes them, and opening a device by its name.

use std::fmt;
use std::str::FromStr;

use super::{Device, DeviceError, HostDevice, SimDevice, SimSpec};
use crate::sync::Arc;

/// A device by name: `auto`, `cpu`, `cuda:0`, `sim:h2d=25GB/s,step=20ms`.
///
/// ```
/// use feedstock::device::DeviceSpec;
/// assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
/// assert!("tpu".parse::<DeviceSpec>().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The first CUDA device, or the CPU without one.
    #[default]
    Auto,
    /// Batches stay in host memory.
    Cpu,
    /// The CUDA device with this number.
    Cuda(u32),
    /// A simulated accelerator.
    Sim(SimSpec),
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |cause: &str| DeviceError::Spec { text: text.to_owned(), cause: cause.to_owned() };
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        match (kind.trim().to_ascii_lowercase().as_str(), rest) {
            ("auto", None) => Ok(DeviceSpec::Auto),
            ("cpu", None) => Ok(DeviceSpec::Cpu),
            ("auto" | "cpu", Some(_)) => Err(refused("auto and cpu take no settings")),
            ("cuda", None) => Ok(DeviceSpec::Cuda(0)),
            ("cuda", Some(number)) => {
                let number = number.trim().parse();
                number.map(DeviceSpec::Cuda).map_err(|_| refused("expected the number of a CUDA device, as in cuda:0"))
            }
            ("sim", _) => text.parse().map(DeviceSpec::Sim),
            _ => Err(refused("expected auto, cpu, cuda:N or sim:h2d=25GB/s,latency=10us,step=20ms,memory=8G")),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceSpec::Sim(spec) => spec.fmt(f),
        }
    }
}

/// Opens a device. `auto` opens the first CUDA device, or the CPU if none can be used; if there is a driver all the
/// same, the device's [`notes`](Device::notes) give the reason.
///
/// # Errors
/// [`DeviceError::Unsupported`] or [`DeviceError::Absent`] for a device that this build or this machine does not have,
/// and any failure to start it.
pub fn open(spec: &DeviceSpec) -> Result<Arc<dyn Device>, DeviceError> {
    Ok(match spec {
        DeviceSpec::Cpu => Arc::new(HostDevice::new()),
        DeviceSpec::Cuda(number) => open_cuda(*number).map_err(|error| match error {
            DeviceError::Unsupported(reason) | DeviceError::Absent(reason) => DeviceError::Unsupported(format!(
                "cuda:{number} cannot be used: {reason}. Use --device cpu, or --device sim:step=20ms to simulate a GPU"
            )),
            error => error,
        })?,
        DeviceSpec::Sim(spec) => Arc::new(SimDevice::open(spec.clone())?),
        DeviceSpec::Auto => match open_cuda(0) {
            Ok(device) => device,
            Err(DeviceError::Absent(_)) => Arc::new(HostDevice::new()),
            Err(error) => Arc::new(HostDevice::instead(format!("batches stay in host memory: {error}"))),
        },
    })
}

#[cfg(feature = "cuda")]
fn open_cuda(number: u32) -> Result<Arc<dyn Device>, DeviceError> {
    Ok(Arc::new(super::CudaDevice::open(number)?))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: u32) -> Result<Arc<dyn Device>, DeviceError> {
    Err(DeviceError::Absent("this program was built without CUDA (feature `cuda`)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for (text, name) in [("auto", "auto"), ("CPU", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")] {
            assert_eq!(text.parse::<DeviceSpec>().expect(text).to_string(), name);
        }
        let sim: DeviceSpec = "sim:step=20ms".parse().expect("a sim");
        assert_eq!(sim.to_string().parse(), Ok(sim));
    }

    #[test]
    fn an_unknown_device_is_refused_with_its_text() {
        for text in ["", "gpu", "cpu:1", "auto:", "cuda:", "cuda:-1", "cuda:99999999999", "simulated", "sim:warp=9"] {
            let error = text.parse::<DeviceSpec>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("unknown device '{text}': ")), "{error}");
        }
    }

    #[test]
    fn devices_open_by_name() {
        let name = |text: &str| open(&text.parse().expect(text)).map(|device| device.name());
        // With CUDA, tests find a stand-in for the driver.
        let best = if cfg!(feature = "cuda") { "cuda:0" } else { "cpu" };
        assert_eq!(name("auto"), Ok(best.to_owned()));
        assert_eq!(name("cpu"), Ok("cpu".to_owned()));
        assert!(name("sim").expect("sim").starts_with("sim:"));
        let error = name("cuda:99").expect_err("not that many").to_string();
        assert!(error.contains("cuda:99 cannot be used: ") && error.contains("--device cpu"), "{error}");
    }

    #[test]
    fn a_device_can_be_downcast() {
        let device = open(&DeviceSpec::Sim(SimSpec::default())).expect("sim");
        assert!(device.downcast_ref::<SimDevice>().is_some());
        assert!(device.downcast_ref::<HostDevice>().is_none());
    }
}
