//! `feedstock doctor`: reports what this machine provides, one line a fact.
//!
//! A missing part is a line like any other, and an error only if it was requested by name.

use clap::Args;
use serde_json::{Map, Value, json};

use feedstock::device::{self, DeviceSpec};
use feedstock::host::HostFacts;

use super::data::tell_notes;
use super::failure::{Failure, print};
use super::table::{counted, facts};

const MORE: &str = "\
Copy rates are the best of five copies of 32 MiB each. The pageable rate is that of memory that is not page-locked. \
With --device cuda:N, a device that cannot be used is an error (exit code 6).

Example:
  feedstock doctor --device cuda:0 --json";

/// Report this machine's GPU, driver, copy rates, memory limits and cores
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct DoctorArgs {
    /// Device: auto (every GPU), cpu (none) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceSpec,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One fact, as text and as JSON.
struct Finding {
    label: String,
    text: String,
    json: (&'static str, Value),
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let host = HostFacts::read();
    let mut findings = about(&host);
    let gpus = gpus(&args.device)?;
    if args.json {
        let mut object = to_object(&findings);
        let gpus = gpus.iter().map(|gpu| Value::Object(to_object(gpu))).collect();
        object.insert("devices".to_owned(), gpus);
        object.insert("notes".to_owned(), json!(host.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()));
        return print(Value::Object(object));
    }
    findings.extend(gpus.into_iter().flatten());
    tell_notes(&host.warnings);
    let lines: Vec<_> = findings.iter().map(|finding| (finding.label.as_str(), finding.text.clone())).collect();
    print(facts(&lines))
}

fn to_object(findings: &[Finding]) -> Map<String, Value> {
    findings.iter().map(|finding| (finding.json.0.to_owned(), finding.json.1.clone())).collect()
}

fn finding(label: impl Into<String>, text: String, name: &'static str, value: Value) -> Finding {
    Finding { label: label.into(), text, json: (name, value) }
}

fn about(host: &HostFacts) -> Vec<Finding> {
    let memory = &host.memory;
    let mut found = vec![
        finding(
            "memory",
            format!("{} available of {} ({})", memory.available, memory.limit, memory.limited_by),
            "memory",
            json!({
                "available_bytes": memory.available.0, "limit_bytes": memory.limit.0,
                "limited_by": memory.limited_by.to_string()
            }),
        ),
        finding(
            "cores",
            format!("{:.1} of {} usable ({})", host.cpus.usable, host.cpus.online, host.cpus.limited_by),
            "cores",
            json!({
                "usable": host.cpus.usable, "online": host.cpus.online,
                "limited_by": host.cpus.limited_by.to_string()
            }),
        ),
    ];
    let stalls = host.pressure.as_ref().and_then(|pressure| pressure.group.or(pressure.machine));
    found.push(match stalls {
        Some(stalls) => finding(
            "pressure",
            format!("tasks were stalled for want of memory {:.1} % of the last 10 s", stalls.avg10_percent),
            "memory_stalled_percent_10s",
            json!(stalls.avg10_percent),
        ),
        None => finding(
            "pressure",
            "this kernel does not measure it (PSI)".to_owned(),
            "memory_stalled_percent_10s",
            Value::Null,
        ),
    });
    let locked = host.lock_limit;
    found.push(finding(
        "ulimit -l",
        locked.map_or_else(|| "no limit".to_owned(), |limit| format!("{limit} may be locked by this process")),
        "lock_limit_bytes",
        json!(locked.map(|limit| limit.0)),
    ));
    found.push(finding(
        "ranks",
        counted(host.local_ranks.count as u64, "process"),
        "local_ranks",
        json!(host.local_ranks.count),
    ));
    found
}

#[cfg(not(feature = "cuda"))]
fn gpus(spec: &DeviceSpec) -> Result<Vec<Vec<Finding>>, Failure> {
    device::open(spec)?;
    let why = "this program was built without CUDA".to_owned();
    Ok(vec![vec![finding("GPU", why.clone(), "error", json!(why))]])
}

#[cfg(feature = "cuda")]
fn gpus(spec: &DeviceSpec) -> Result<Vec<Vec<Finding>>, Failure> {
    use feedstock::device::{CudaDevice, cuda_devices, nvrtc_is_present};

    let numbers: Vec<u32> = match spec {
        DeviceSpec::Auto => match cuda_devices() {
            Ok(count) => (0..count).collect(),
            Err(error) => {
                let why = error.to_string();
                return Ok(vec![vec![finding("GPU", why.clone(), "error", json!(why))]]);
            }
        },
        DeviceSpec::Cuda(number) => vec![*number],
        other => {
            device::open(other)?;
            Vec::new()
        }
    };
    let mut found = Vec::new();
    for number in numbers {
        let opened = device::open(&DeviceSpec::Cuda(number));
        let device = match (opened, spec) {
            (Ok(device), _) => device,
            (Err(error), DeviceSpec::Cuda(_)) => return Err(error.into()),
            (Err(error), _) => {
                let why = error.to_string();
                found.push(vec![finding(format!("cuda:{number}"), why.clone(), "error", json!(why))]);
                continue;
            }
        };
        if let Some(device) = device.downcast_ref::<CudaDevice>() {
            found.push(cuda::look(number, device)?);
        }
    }
    if let Some(last) = found.last_mut() {
        let there = nvrtc_is_present();
        let text = if there { "found" } else { "not found: training with burn on CUDA needs it; feeding does not" };
        last.push(finding("NVRTC", text.to_owned(), "nvrtc", json!(there)));
    }
    Ok(found)
}

#[cfg(feature = "cuda")]
mod cuda {
    use feedstock::device::{CudaDevice, CudaFacts, DeviceError, TransferRates};
    use feedstock::host::GpuFacts;
    use serde_json::json;

    use super::{Finding, finding};

    /// Size of each trial copy, bytes.
    const TRIAL_BYTES: usize = 32 << 20;

    /// Reports one GPU.
    pub(super) fn look(number: u32, device: &CudaDevice) -> Result<Vec<Finding>, DeviceError> {
        let CudaFacts { model, bus_id, driver, capability, multiprocessors, memory_free, memory_total } =
            device.facts()?;
        let TransferRates { pinned, write_combined, pageable, back, on_device } = device.transfer_rates(TRIAL_BYTES)?;
        let rate = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
        let (slots, kind) = match device.is_write_combined() {
            true => ("write-combined memory, which is faster here", "write-combined"),
            false => ("plain page-locked memory, which is as fast here", "plain"),
        };
        let mut found = vec![
            finding(
                format!("cuda:{number}"),
                format!("{model} at {bus_id}, capability {capability}, {multiprocessors} multiprocessors"),
                "device",
                json!({
                    "number": number, "model": model, "bus_id": bus_id, "capability": capability,
                    "multiprocessors": multiprocessors,
                }),
            ),
            finding("driver", format!("made for CUDA {driver}"), "cuda_driver", json!(driver)),
            finding(
                "VRAM",
                format!("{memory_free} free of {memory_total}"),
                "memory",
                json!({ "free_bytes": memory_free.0, "total_bytes": memory_total.0 }),
            ),
        ];
        found.push(match GpuFacts::read(&bus_id) {
            Ok(GpuFacts { driver, pcie_generation, pcie_width, .. }) => finding(
                "link",
                format!(
                    "PCIe {}.0 x{} (up to {}.0 x{}), driver {driver}",
                    pcie_generation.0, pcie_width.0, pcie_generation.1, pcie_width.1
                ),
                "link",
                json!({
                    "driver": driver, "pcie_generation": pcie_generation.0, "pcie_generation_max": pcie_generation.1,
                    "pcie_width": pcie_width.0, "pcie_width_max": pcie_width.1,
                }),
            ),
            Err(error) => finding("link", error.to_string(), "nvml_error", json!(error.to_string())),
        });
        found.push(finding(
            "copies",
            format!(
                "to the GPU {} page-locked, {} write-combined, {} pageable; back {}; on the GPU {}",
                rate(pinned),
                write_combined.map_or_else(|| "none".to_owned(), rate),
                rate(pageable),
                rate(back),
                rate(on_device)
            ),
            "bytes_per_s",
            json!({
                "pinned": pinned, "write_combined": write_combined, "pageable": pageable, "back": back,
                "on_device": on_device,
            }),
        ));
        found.push(finding("slots", format!("are {slots}"), "slots", json!(kind)));
        Ok(found)
    }
}
