//! Owns what can be learnt of a CUDA device before anything is trained on it: what it is, how much memory it has, and how
//! fast it copies.
//! It must never keep memory that it has measured with.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::driver::{self, Refusal};
use super::event::{CudaEvent, RecordedEvent};
use super::{CudaDevice, memory};
use crate::device::{DeviceError, Event, HostMemory, WAIT_MAX, bytes};
use crate::units::ByteCount;

/// Bytes of the copies that decide which kind of page-locked memory is used: enough for a stable rate, few enough to be
/// done with in a millisecond and to fit beside the least budget.
const TRIAL_BYTES: usize = 4 << 20;
/// How often each copy is repeated; the best counts.
const TRIALS: usize = 5;
/// What write-combined memory has to gain in copying, and may lose in being written, to be used.
const WORTH: f64 = 1.05;

/// What a CUDA device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaFacts {
    /// What it is called: `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Its place on the bus: `0000:1b:00.0`.
    pub bus_id: String,
    /// What its driver is made for: `13.0`.
    pub driver: String,
    /// Compute capability: `9.0`.
    pub capability: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Device memory that is free.
    pub memory_free: ByteCount,
    /// Device memory that there is.
    pub memory_total: ByteCount,
}

/// How fast a device copies, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransferRates {
    /// From page-locked memory of the host.
    pub pinned: f64,
    /// From page-locked memory that the CPU writes past its caches; `None` where there is none.
    pub write_combined: Option<f64>,
    /// From ordinary memory of the host.
    pub pageable: f64,
    /// To page-locked memory of the host.
    pub back: f64,
    /// On the device, from place to place: bytes read (as many are written).
    pub on_device: f64,
}

/// How many CUDA devices there are.
///
/// # Errors
/// [`DeviceError::Unsupported`] in one line where there is no driver, or one that is too old.
pub fn cuda_devices() -> Result<u32, DeviceError> {
    driver::device_count()
}

/// Whether NVIDIA's run-time compiler (NVRTC) is found. Training libraries that make their kernels at run time need it; this
/// library does not.
#[must_use]
pub fn nvrtc_is_present() -> bool {
    #[allow(unsafe_code, reason = "a library is loaded")]
    // SAFETY: loads a library, whose initialisers the system trusts, and calls nothing.
    unsafe {
        cudarc::nvrtc::sys::is_culib_present()
    }
}

/// RAM that this process takes: zero where the system does not say.
pub(super) fn resident_bytes() -> ByteCount {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0u64);
    ByteCount(pages * rustix::param::page_size() as u64)
}

/// What this process may lock, for people.
pub(super) fn lock_limit() -> String {
    match getrlimit(Resource::Memlock).current {
        Some(limit) => format!("this process may lock {}: see `ulimit -l`, and how much RAM is left", ByteCount(limit)),
        None => "this process may lock as much as it likes (`ulimit -l`): see how much RAM is left".to_owned(),
    }
}

impl CudaDevice {
    /// What this device is.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
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

    /// Whether slots are page-locked memory that the CPU writes past its caches: it was found to be copied faster.
    #[must_use]
    pub fn is_write_combined(&self) -> bool {
        self.write_combined
    }

    /// Time on the device from one of its events to a later one. Waits for both.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] for events that are not of this device's streams; whatever made one fail.
    pub fn elapsed(&self, from: &Event, to: &Event) -> Result<Duration, DeviceError> {
        from.wait()?;
        to.wait()?;
        let mark = |event| CudaEvent::mark_in(event, &self.in_flight);
        match (mark(from), mark(to)) {
            (Some(from), Some(to)) => from.recorded().until(to.recorded()),
            _ => Err(DeviceError::Unsupported(format!("only events of '{}' have a time on it", self.context.name()))),
        }
    }

    /// Measures how fast the device copies `len` bytes, from fresh memory that is given back afterwards.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] where there is no room for it; whatever is wrong with the device.
    pub fn transfer_rates(&self, len: usize) -> Result<TransferRates, DeviceError> {
        let len = len.max(16);
        let [place, other] = [self.trial_memory(len)?, self.trial_memory(len)?];
        let rate = |duration: Duration| len as f64 / duration.as_secs_f64().max(1e-9);
        let pinned = |write_combined| memory::pinned(&self.context, len, write_combined);
        let no_room =
            || DeviceError::OutOfMemory { what: "page-locked host memory", asked: bytes(len), free: None, usage: None };
        let mut slot = pinned(false)?.ok_or_else(no_room)?;
        Ok(TransferRates {
            pinned: rate(self.copy_time(&slot, &place)?),
            write_combined: match pinned(true)? {
                Some(slot) => Some(rate(self.copy_time(&slot, &place)?)),
                None => None,
            },
            pageable: rate(self.copy_time(&HostMemory::pageable(len)?, &place)?),
            back: rate(best(|| {
                let begin = Instant::now();
                place.read(slot.as_mut_slice())?;
                Ok(begin.elapsed())
            })?),
            on_device: rate(best(|| {
                let begin = self.mark(&self.convert, "the begin of a copy")?;
                #[allow(unsafe_code, reason = "a kernel is given addresses")]
                // SAFETY: both places are `len` bytes long, this function's own, and waited for below.
                unsafe {
                    self.kernels.copy(&self.convert, other.place, place.place, len)?;
                }
                let end = self.mark(&self.convert, "a copy on the device")?;
                self.time(&begin, &end)
            })?),
        })
    }

    /// Whether write-combined memory is worth it here: copied faster, and written hardly slower.
    pub(super) fn copies_faster_from_write_combined(&self) -> Result<bool, DeviceError> {
        let place = self.trial_memory(TRIAL_BYTES)?;
        let mut times = Vec::new();
        for write_combined in [false, true] {
            let Some(mut slot) = memory::pinned(&self.context, TRIAL_BYTES, write_combined)? else { return Ok(false) };
            let row = [0x5A; 4096];
            let written = best(|| {
                let begin = Instant::now();
                slot.as_mut_slice().chunks_exact_mut(row.len()).for_each(|chunk| chunk.copy_from_slice(&row));
                Ok(begin.elapsed())
            })?;
            times.push((self.copy_time(&slot, &place)?, written));
        }
        let [plain, combined] = times[..] else { return Ok(false) };
        Ok(is_worth_it(plain, combined))
    }

    /// Device memory to measure with.
    fn trial_memory(&self, len: usize) -> Result<Trial<'_>, DeviceError> {
        let refused = |refusal: Refusal| self.accounts.refused(&self.context, len, refusal);
        Ok(Trial { place: self.context.alloc(len).map_err(refused)?, len, device: self })
    }

    /// The best time of a copy to the device, on the copy stream.
    fn copy_time(&self, slot: &HostMemory, to: &Trial<'_>) -> Result<Duration, DeviceError> {
        best(|| {
            let begin = self.mark(&self.copy, "the begin of a copy")?;
            #[allow(unsafe_code, reason = "the device is given addresses")]
            // SAFETY: as long as each other, and waited for below; the slot is borrowed meanwhile.
            unsafe {
                self.copy.copy_in(to.place, slot.as_ptr(), to.len.min(slot.len()))?;
            }
            let end = self.mark(&self.copy, "a copy to the device")?;
            self.time(&begin, &end)
        })
    }

    /// Time between two marks, once both have passed.
    fn time(&self, begin: &RecordedEvent, end: &RecordedEvent) -> Result<Duration, DeviceError> {
        match end.wait_for(WAIT_MAX)? {
            true => begin.recorded().until(end.recorded()),
            false => Err(DeviceError::Timeout { what: format!("{end:?}"), waited: WAIT_MAX }),
        }
    }
}

/// Device memory to measure with, given back when dropped. Whoever enqueues something that uses it waits for that.
struct Trial<'a> {
    place: u64,
    len: usize,
    device: &'a CudaDevice,
}

impl Trial<'_> {
    fn read(&self, out: &mut [u8]) -> Result<(), DeviceError> {
        let out = &mut out[..self.len];
        #[allow(unsafe_code, reason = "the device is given addresses")]
        // SAFETY: `len` bytes long, and whatever wrote it was waited for.
        unsafe {
            self.device.context.read(out, self.place)
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "memory of the device's is given back by address")]
        // SAFETY: asked for with this length; whatever used it was waited for, or the device is lost.
        unsafe {
            self.device.context.free(self.place, self.len);
        }
    }
}

/// Whether write-combined memory is worth it, by how long a copy out of each kind and the writing of it take.
fn is_worth_it(plain: (Duration, Duration), combined: (Duration, Duration)) -> bool {
    combined.0.mul_f64(WORTH) < plain.0 && combined.1 < plain.1.mul_f64(WORTH)
}

/// The least of a few measurements.
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
            assert_eq!(is_worth_it(plain, combined), worth, "{combined:?}");
        }
    }
}
