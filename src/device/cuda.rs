//! A CUDA device: page-locked slots, a copy stream, a convert stream, and the consumer's compute stream. Streams are
//! ordered by events alone, and no device memory is allocated once a run has begun.
//!
//! - `driver`: calls into NVIDIA's library, and the meaning of its errors.
//! - `memory`: page-locked slots, entries of the device ring, and the use of the device's memory.
//! - `kernels`: conversion of a batch on the GPU (`kernels.cu`, which ships as `kernels.ptx`).
//! - `recorded_event`, `in_flight`, `event`: events on streams, the memory that streams still use until an event has
//!   passed, and both as the pipeline's events.
//! - `raw`: addresses and handles of a batch for other CUDA code.
//! - `probe`: facts about the device, and its transfer rates.
//!
//! One batch with its events (`-->` is an order between streams; nothing on the host waits):
//!
//! ```text
//! copy stream      after --> | pixels of the slot: host to device | copied = slot_free
//! convert stream                              copied --> | kernel: table, layout | ready
//! compute stream                                             ready --> | the consumer's step | released = next after
//! ```
//!
//! Copies so follow each other without gaps while kernels run. A batch that needs no conversion is copied straight to
//! its destination, and is ready when it is copied.

mod driver;
mod event;
mod in_flight;
mod kernels;
mod memory;
mod probe;
mod raw;
mod recorded_event;
#[cfg(test)]
pub(crate) mod standin;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::time::{Duration, Instant};

use self::driver::{Context, Stream};
use self::event::CudaEvent;
use self::in_flight::InFlight;
use self::kernels::{Addresses, Kernels};
use self::memory::{Accounts, CudaMemory, Keep};
pub use self::probe::{CudaFacts, TransferRates, cuda_devices, nvrtc_is_present};
pub use self::raw::RawBatch;
use self::recorded_event::RecordedEvent;
use super::output::element_table;
use super::{
    Device, DeviceError, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, Utilization, bytes, check_size,
};
use crate::sync::{Arc, Mutex, lock};
use crate::units::ByteCount;

/// Longest wait of a device that is dropped for work in progress.
const SYNCHRONIZE_MAX: Duration = Duration::from_secs(10);

/// An NVIDIA GPU.
///
/// Slots are page-locked and exactly as large as asked for; an entry of the device ring is one allocation
/// ([`memory_bytes`](CudaDevice::memory_bytes)), made once. A consumer can use a batch in three ways:
///
/// - on the device's own compute stream: [`order_after`](Device::order_after), enqueue work on
///   [`raw`](CudaDevice::raw)'s stream, and [`release`](Device::release) (dropping a [`Batch`](crate::Batch) does
///   that);
/// - on a stream of its own: let it wait for [`RawBatch::ready`], and release by
///   [`event_on`](CudaDevice::event_on) that stream ([`Batch::release_after`](crate::Batch::release_after));
/// - [`read_back`](Device::read_back), which blocks.
///
/// An event of another device is waited for in the call that it is given to.
pub struct CudaDevice {
    context: Arc<Context>,
    kernels: Kernels,
    copy: Stream,
    convert: Stream,
    compute: Stream,
    in_flight: Arc<InFlight>,
    accounts: Accounts,
    write_combined: bool,
    host_overhead: ByteCount,
    notes: Mutex<Vec<String>>,
    allocate: Option<Allocate>,
}

/// Allocates device memory of this many bytes: its address, and the owner that keeps it alive.
type Allocate = Box<dyn Fn(usize) -> Result<(u64, Box<dyn Any + Send + Sync>), DeviceError> + Send + Sync>;

impl CudaDevice {
    /// Opens the device with this number, compiles the kernels for it, and measures which kind of page-locked memory it
    /// copies from faster.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] without a driver; [`DeviceError::Unsupported`] for a driver that is too old, or without
    /// a GPU of this number; any failure to start the device.
    pub fn open(number: u32) -> Result<Self, DeviceError> {
        Self::start(number, None)
    }

    /// Opens a device whose ring entries are memory of another library, such as a training library that can use no
    /// other. `allocate` gets a number of bytes, and returns the address of device memory and the owner that keeps it
    /// alive ([`keep`](CudaDevice::keep) returns the owner).
    ///
    /// # Errors
    /// See [`open`](CudaDevice::open).
    ///
    /// # Safety
    /// `allocate` must return device memory of this device of at least the length asked for, aligned to 256 bytes,
    /// which nothing else writes while its owner is alive.
    #[allow(unsafe_code, reason = "the caller vouches for its memory")]
    pub unsafe fn open_with(
        number: u32,
        allocate: impl Fn(usize) -> Result<(u64, Box<dyn Any + Send + Sync>), DeviceError> + Send + Sync + 'static,
    ) -> Result<Self, DeviceError> {
        Self::start(number, Some(Box::new(allocate)))
    }

    fn start(number: u32, allocate: Option<Allocate>) -> Result<Self, DeviceError> {
        let before = probe::resident_bytes();
        let context = Context::open(number)?;
        let stream = || Stream::new(&context);
        let mut device = CudaDevice {
            kernels: Kernels::load(&context)?,
            copy: stream()?,
            convert: stream()?,
            compute: stream()?,
            in_flight: Arc::default(),
            accounts: Accounts::default(),
            write_combined: false,
            host_overhead: ByteCount::ZERO,
            notes: Mutex::default(),
            allocate,
            context,
        };
        device.write_combined = device.copies_faster_from_write_combined()?;
        device.host_overhead = probe::resident_bytes().saturating_sub(before);
        Ok(device)
    }

    /// Bytes of device memory that an entry of the device ring takes ([`Device::memory`] with these two sizes): the
    /// batch and, if it is converted on the device, its pixels and the table of 3 KiB, each rounded up to 256 bytes.
    #[must_use]
    pub const fn memory_bytes(len: usize, copied: usize) -> usize {
        CudaMemory::bytes(len, copied)
    }

    /// Bytes of device memory that this device's entries hold.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        self.context.held()
    }

    /// Number of allocations of device memory so far. It stays the same while loaders run: they allocate when they are
    /// built, and keep the same addresses.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.context.allocations()
    }

    /// Free and total device memory.
    ///
    /// # Errors
    /// The sticky error.
    pub fn memory_info(&self) -> Result<(ByteCount, ByteCount), DeviceError> {
        self.context.memory_info()
    }

    fn own<'m>(&self, memory: &'m DeviceMemory) -> Result<&'m Arc<CudaMemory>, DeviceError> {
        let own = memory.handle::<Arc<CudaMemory>>().filter(|own| Arc::ptr_eq(&own.context, &self.context));
        own.ok_or_else(|| DeviceError::ForeignMemory { device: self.context.name().to_owned() })
    }

    fn event(&self, recorded: &Arc<RecordedEvent>) -> Event {
        CudaEvent::event(recorded, &self.in_flight)
    }

    /// Makes everything enqueued on `stream` from now on start after `event`.
    fn order(&self, stream: &Stream, event: &Event) -> Result<(), DeviceError> {
        match CudaEvent::recorded_in(event, &self.in_flight) {
            Some(recorded) => stream.wait(recorded.raw()),
            None => {
                // An event of another device of the driver needs a current context.
                self.context.enter()?;
                event.wait()
            }
        }
    }

    fn record(&self, stream: &Stream, what: &'static str) -> Result<Arc<RecordedEvent>, DeviceError> {
        Ok(RecordedEvent::new(stream.record()?, what))
    }

    /// Enqueues copy and conversion. Returns the begin and the end of the copy, and the event of the batch.
    fn enqueue(&self, transfer: &Transfer<'_>, memory: &CudaMemory) -> Result<[Arc<RecordedEvent>; 3], DeviceError> {
        let (copied_bytes, empty) = (transfer.copied_bytes(), transfer.output_bytes() == 0);
        let mut uses = lock(&memory.uses);
        let begun = self.record(&self.copy, "the begin of a copy")?;
        let to = if transfer.format.is_identity() { memory.output() } else { memory.pixels().0 };
        if !empty {
            #[allow(unsafe_code, reason = "the device gets addresses")]
            // SAFETY: the slot is held until the copy is over (`InFlight`), and while it is shared nothing writes to
            // it: its owner needs the only handle for that. `to` is large enough (`enqueue_batch`) and is written after
            // its last use, by the order that `enqueue_batch` has made.
            unsafe {
                self.copy.copy_in(to, transfer.from.as_ptr(), copied_bytes)?;
            }
        }
        if !transfer.format.is_identity() && !empty && uses.table != Some(transfer.format) {
            uses.table = None;
            let table = element_table(&transfer.format);
            #[allow(unsafe_code, reason = "the device gets addresses")]
            // SAFETY: the driver has read memory that is not page-locked by the time the call returns, so `table` need
            // not live longer. The address is part of an entry whose use the copy stream has been ordered after.
            unsafe {
                self.copy.copy_in(memory.table(), table.as_ptr(), table.len())?;
            }
            uses.table = Some(transfer.format);
        }
        let copied = self.record(&self.copy, "a copy to the device")?;
        if transfer.format.is_identity() || empty {
            return Ok([begun, Arc::clone(&copied), copied]);
        }
        self.convert.wait(copied.raw())?;
        let at = Addresses { output: memory.output(), pixels: to, table: memory.table() };
        #[allow(unsafe_code, reason = "a kernel gets addresses")]
        // SAFETY: all three are parts of the entry, which is held until the kernel is over (`InFlight`) and large
        // enough (`enqueue_batch`). The kernel runs after the copy, and the next copy into the entry after the kernel.
        unsafe {
            self.kernels.convert(
                &self.convert,
                at,
                transfer.samples,
                transfer.spec,
                (transfer.format.dtype, transfer.format.layout),
            )?;
        }
        Ok([begun, copied, self.record(&self.convert, "a batch on the device")?])
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        self.context.name().to_owned()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        self.check()?;
        if len == 0 {
            return Ok(HostMemory::empty());
        }
        if let Some(memory) = memory::pinned(&self.context, len, self.write_combined)? {
            return Ok(memory);
        }
        let mut notes = lock(&self.notes);
        if notes.is_empty() {
            notes.push(format!(
                "{} of host memory could not be page-locked: copies to {} are slower and wait ({})",
                bytes(len),
                self.context.name(),
                probe::lock_limit()
            ));
        }
        Ok(HostMemory::pageable(len)?)
    }

    fn memory(&self, len: usize, copied: usize) -> Result<DeviceMemory, DeviceError> {
        self.check()?;
        let memory = match &self.allocate {
            None => CudaMemory::alloc(&self.context, &self.accounts, len, copied)?,
            Some(allocate) => {
                let (address, keep) = allocate(CudaMemory::bytes(len, copied).max(1))?;
                CudaMemory::foreign(&self.context, address, len, copied, Keep(keep))
            }
        };
        Ok(DeviceMemory::from_handle(len, Box::new(Arc::new(memory))))
    }

    fn counts_as_ram(&self) -> bool {
        false
    }

    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError> {
        self.check()?;
        transfer.check()?;
        let memory = Arc::clone(self.own(transfer.to)?);
        let (copied, (_, room)) = (transfer.copied_bytes(), memory.pixels());
        if !transfer.format.is_identity() {
            check_size("the unconverted batch in device memory", copied, room)?;
        }
        self.in_flight.reap()?;
        self.order(&self.copy, &transfer.after)?;
        // A batch that was never read may be overwritten, but not while it is being made.
        if let Some(written) = &lock(&memory.uses).written {
            self.copy.wait(written.raw())?;
        }
        match self.enqueue(&transfer, &memory) {
            Ok([begun, copied, ready]) => {
                lock(&memory.uses).written = Some(Arc::clone(&ready));
                self.in_flight.add(transfer.from, memory, begun, &copied, &ready);
                self.accounts.batch(&self.context);
                Ok(TransferEvents { slot_free: self.event(&copied), ready: self.event(&ready) })
            }
            Err(error) => {
                // The copy may have been enqueued, and no event tells its end.
                self.in_flight.leak_unknown(transfer.from, memory);
                Err(error)
            }
        }
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        self.check()?;
        let own = self.own(from)?;
        check_size("a read", out.len(), from.len())?;
        ready.wait()?;
        if out.is_empty() {
            return Ok(());
        }
        #[allow(unsafe_code, reason = "the device gets addresses")]
        // SAFETY: the entry is `from.len()` bytes long, and `from` is borrowed, so no batch is transferred to it
        // meanwhile.
        unsafe {
            self.context.read(out, own.output())
        }
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        self.check()?;
        // Taken before the event is recorded, so that busy time never exceeds the time that has passed.
        let since = Instant::now();
        self.order(&self.compute, ready)?;
        self.in_flight.begin(since, self.record(&self.compute, "the begin of a step")?);
        Ok(())
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        let own = self.own(memory)?;
        self.order_after(ready)?;
        if !memory.is_empty() {
            #[allow(unsafe_code, reason = "a kernel gets an address")]
            // SAFETY: the first byte of the batch, which is there by the order above; the next transfer waits for
            // `release`.
            unsafe {
                self.kernels.step(&self.compute, own.output(), duration.unwrap_or_default())?;
            }
        }
        let end = self.record(&self.compute, "a step")?;
        self.in_flight.end(&end);
        lock(&own.uses).released = Some(Arc::clone(&end));
        Ok(self.event(&end))
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        self.check()?;
        let own = self.own(memory)?;
        let end = self.record(&self.compute, "the end of a step")?;
        self.in_flight.end(&end);
        lock(&own.uses).released = Some(Arc::clone(&end));
        Ok(self.event(&end))
    }

    fn host_overhead(&self) -> ByteCount {
        self.host_overhead
    }

    fn notes(&self) -> Vec<String> {
        lock(&self.notes).clone()
    }

    fn utilization(&self) -> Option<Utilization> {
        Some(self.in_flight.utilization())
    }

    fn check(&self) -> Result<(), DeviceError> {
        self.context.check()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.in_flight.synchronize(SYNCHRONIZE_MAX);
        self.in_flight.leak();
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({}, {} held)", self.context.name(), self.held())
    }
}
