//! Facts about a CUDA device, and measurements of its transfer rates. Memory used for a measurement is freed after it.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::driver::{self, Refusal};
use super::event::CudaEvent;
use super::recorded_event::RecordedEvent;
use super::{CudaDevice, memory};
use crate::device::{DeviceError, Event, HostMemory, WAIT_MAX, bytes};
use crate::units::ByteCount;

/// Size of the copies that decide which kind of page-locked memory is used: enough for a stable rate, little enough to
/// take a millisecond and to fit beside the least budget.
const TRIAL_BYTES: usize = 4 << 20;
/// Repetitions of each copy; the best counts.
const TRIALS: usize = 5;
/// Factor by which write-combined memory must be copied faster, and may be written slower, to be used.
const FASTER: f64 = 1.05;

/// Facts about a CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaFacts {
    /// Model name: `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// PCI address: `0000:1b:00.0`.
    pub bus_id: String,
    /// CUDA version of the driver: `13.0`.
    pub driver: String,
    /// Compute capability: `9.0`.
    pub capability: String,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Free device memory.
    pub memory_free: ByteCount,
    /// Total device memory.
    pub memory_total: ByteCount,
}

/// Transfer rates of a device, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransferRates {
    /// From page-locked memory of the host.
    pub pinned: f64,
    /// From write-combined page-locked memory, which the CPU writes past its caches; `None` if the system has none.
    pub write_combined: Option<f64>,
    /// From ordinary memory of the host.
    pub pageable: f64,
    /// To page-locked memory of the host.
    pub back: f64,
    /// On the device, bytes read (as many are written).
    pub on_device: f64,
}

/// Returns the number of CUDA devices.
///
/// # Errors
/// [`DeviceError::Absent`] without a driver; [`DeviceError::Unsupported`] for a driver that is too old.
pub fn cuda_devices() -> Result<u32, DeviceError> {
    driver::device_count()
}

/// Returns true if NVIDIA's run-time compiler (NVRTC) is found. Training libraries that compile kernels at run time
/// need it; this library does not.
#[must_use]
pub fn nvrtc_is_present() -> bool {
    #[allow(unsafe_code, reason = "a library is loaded")]
    // SAFETY: loads a library whose initializers are trusted, and calls nothing.
    unsafe {
        cudarc::nvrtc::sys::is_culib_present()
    }
}

/// Resident memory of this process; zero if the system does not tell.
pub(super) fn resident_bytes() -> ByteCount {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0u64);
    ByteCount(pages * rustix::param::page_size() as u64)
}

/// Limit of locked memory, as a hint for messages.
pub(super) fn lock_limit() -> String {
    match getrlimit(Resource::Memlock).current {
        Some(limit) => format!("this process may lock {}: check `ulimit -l` and free RAM", ByteCount(limit)),
        None => "`ulimit -l` sets no limit: check free RAM".to_owned(),
    }
}

impl CudaDevice {
    /// Reads the facts about this device.
    ///
    /// # Errors
    /// The sticky error.
    pub fn facts(&self) -> Result<CudaFacts, DeviceError> {
        let (memory_free, memory_total) = self.memory_info()?;
        let (major, minor) = self.context.capability()?;
        Ok(CudaFacts {
            model: self.context.model()?,
            bus_id: self.context.bus_id()?,
            driver: driver::dotted(driver::driver_version()?),
            capability: format!("{major}.{minor}"),
            multiprocessors: self.context.multiprocessors()?,
            memory_free,
            memory_total,
        })
    }

    /// Returns true if slots are write-combined page-locked memory, because it was found to be copied faster.
    #[must_use]
    pub fn is_write_combined(&self) -> bool {
        self.write_combined
    }

    /// Returns the time on the device from one of its events to a later one. Waits for both.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for events of other devices; the reason that an event failed.
    pub fn elapsed(&self, from: &Event, to: &Event) -> Result<Duration, DeviceError> {
        from.wait()?;
        to.wait()?;
        let recorded = |event| CudaEvent::recorded_in(event, &self.in_flight);
        match (recorded(from), recorded(to)) {
            (Some(from), Some(to)) => from.raw().until(to.raw()),
            _ => Err(DeviceError::Unsupported(format!("only events of '{}' can be timed on it", self.context.name()))),
        }
    }

    /// Measures copies of `len` bytes, in fresh memory that is freed afterwards.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if there is no room for it; the sticky error.
    pub fn transfer_rates(&self, len: usize) -> Result<TransferRates, DeviceError> {
        let len = len.max(16);
        let [address, other] = [self.trial_memory(len)?, self.trial_memory(len)?];
        let rate = |duration: Duration| len as f64 / duration.as_secs_f64().max(1e-9);
        let pinned = |write_combined| memory::pinned(&self.context, len, write_combined);
        let no_room =
            || DeviceError::OutOfMemory { what: "page-locked host memory", asked: bytes(len), free: None, usage: None };
        let mut slot = pinned(false)?.ok_or_else(no_room)?;
        Ok(TransferRates {
            pinned: rate(self.copy_time(&slot, &address)?),
            write_combined: match pinned(true)? {
                Some(slot) => Some(rate(self.copy_time(&slot, &address)?)),
                None => None,
            },
            pageable: rate(self.copy_time(&HostMemory::pageable(len)?, &address)?),
            back: rate(best(|| {
                let begin = Instant::now();
                address.read(slot.as_mut_slice())?;
                Ok(begin.elapsed())
            })?),
            on_device: rate(best(|| {
                let begin = self.record(&self.convert, "the begin of a copy")?;
                #[allow(unsafe_code, reason = "a kernel gets addresses")]
                // SAFETY: both blocks are `len` bytes long, belong to this function, and are waited for below.
                unsafe {
                    self.kernels.copy(&self.convert, other.address, address.address, len)?;
                }
                let end = self.record(&self.convert, "a copy on the device")?;
                self.time(&begin, &end)
            })?),
        })
    }

    /// Returns true if write-combined memory is copied faster here, and written hardly slower.
    pub(super) fn copies_faster_from_write_combined(&self) -> Result<bool, DeviceError> {
        let address = self.trial_memory(TRIAL_BYTES)?;
        let mut times = Vec::new();
        for write_combined in [false, true] {
            let Some(mut slot) = memory::pinned(&self.context, TRIAL_BYTES, write_combined)? else { return Ok(false) };
            let row = [0x5A; 4096];
            let written = best(|| {
                let begin = Instant::now();
                slot.as_mut_slice().chunks_exact_mut(row.len()).for_each(|chunk| chunk.copy_from_slice(&row));
                Ok(begin.elapsed())
            })?;
            times.push((self.copy_time(&slot, &address)?, written));
        }
        let [plain, combined] = times[..] else { return Ok(false) };
        Ok(is_better(plain, combined))
    }

    /// Allocates device memory for a measurement.
    fn trial_memory(&self, len: usize) -> Result<Trial<'_>, DeviceError> {
        let refused = |refusal: Refusal| self.accounts.refused(&self.context, len, refusal);
        Ok(Trial { address: self.context.alloc(len).map_err(refused)?, len, device: self })
    }

    /// Best time of a copy to the device, on the copy stream.
    fn copy_time(&self, slot: &HostMemory, to: &Trial<'_>) -> Result<Duration, DeviceError> {
        best(|| {
            let begin = self.record(&self.copy, "the begin of a copy")?;
            #[allow(unsafe_code, reason = "the device gets addresses")]
            // SAFETY: both are long enough, and the copy is waited for below; the slot is borrowed meanwhile.
            unsafe {
                self.copy.copy_in(to.address, slot.as_ptr(), to.len.min(slot.len()))?;
            }
            let end = self.record(&self.copy, "a copy to the device")?;
            self.time(&begin, &end)
        })
    }

    /// Time between two events, once both have passed.
    fn time(&self, begin: &RecordedEvent, end: &RecordedEvent) -> Result<Duration, DeviceError> {
        match end.wait_for(WAIT_MAX)? {
            true => begin.raw().until(end.raw()),
            false => Err(DeviceError::Timeout { what: format!("{end:?}"), waited: WAIT_MAX }),
        }
    }
}

/// Device memory for a measurement, freed when dropped. Work that uses it has to be waited for.
struct Trial<'a> {
    address: u64,
    len: usize,
    device: &'a CudaDevice,
}

impl Trial<'_> {
    fn read(&self, out: &mut [u8]) -> Result<(), DeviceError> {
        let out = &mut out[..self.len];
        #[allow(unsafe_code, reason = "the device gets addresses")]
        // SAFETY: `len` bytes long, and every write to it was waited for.
        unsafe {
            self.device.context.read(out, self.address)
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "device memory is freed by address")]
        // SAFETY: allocated with this length; every use was waited for, or the device is lost.
        unsafe {
            self.device.context.free(self.address, self.len);
        }
    }
}

/// Returns true if write-combined memory is better, by the times of a copy from each kind and of writing it.
fn is_better(plain: (Duration, Duration), combined: (Duration, Duration)) -> bool {
    combined.0.mul_f64(FASTER) < plain.0 && combined.1 < plain.1.mul_f64(FASTER)
}

/// Least of a few measurements.
fn best(mut measure: impl FnMut() -> Result<Duration, DeviceError>) -> Result<Duration, DeviceError> {
    let mut best = Duration::MAX;
    for _ in 0..TRIALS {
        best = best.min(measure()?);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_combined_memory_has_to_be_copied_faster_and_written_as_fast() {
        let us = Duration::from_micros;
        let plain = (us(100), us(50));
        for (combined, worth) in [
            ((us(90), us(50)), true),
            ((us(90), us(52)), true),
            ((us(96), us(50)), false),
            ((us(100), us(40)), false),
            ((us(50), us(60)), false),
        ] {
            assert_eq!(is_better(plain, combined), worth, "{combined:?}");
        }
    }
}
