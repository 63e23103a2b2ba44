//! Owns a CUDA device: page-locked slots, a copy stream, a stream that finishes batches, the consumer's compute stream, and
//! the order between them, which is by events alone.
//! It must never wait for a stream where an event will do, and never take device memory once a run has begun.
//!
//! - `driver`: the calls into NVIDIA's library, and what its errors mean.
//! - `memory`: page-locked slots, entries of the device ring, and who holds the device's memory.
//! - `kernels`: the last steps of a batch on the GPU (`kernels.cu`, which ships as `kernels.ptx`).
//! - `in_flight`: what streams still work on, and how busy they were.
//! - `event`: points on streams as events.
//! - `raw`: a batch for those who use it by their own means.
//! - `probe`: what there is, and how fast it copies.
//!
//! A batch's way, with its events (`-->` is an order between streams; nothing on the host waits):
//!
//! ```text
//! copy stream      after --> | pixels of the slot: host to device | copied = slot_free
//! finish stream                               copied --> | kernel: table, layout | ready
//! compute stream                                             ready --> | the consumer's step | released = next after
//! ```
//!
//! Copies so go on back to back while kernels run. A batch that needs no finish crosses right to its place, and is ready
//! when it is copied.

mod driver;
mod event;
mod in_flight;
mod kernels;
mod memory;
mod probe;
mod raw;
#[cfg(test)]
pub(crate) mod standin;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::time::{Duration, Instant};

use self::driver::{Context, Stream};
use self::event::{CudaEvent, RecordedEvent};
use self::in_flight::InFlight;
use self::kernels::{Addresses, Kernels};
use self::memory::{Accounts, CudaMemory, Keep, Places};
pub use self::probe::{CudaFacts, TransferRates, cuda_devices, nvrtc_is_present};
pub use self::raw::RawBatch;
use super::output::element_table;
use super::{
    Device, DeviceError, DeviceMemory, Event, HostMemory, Place, Transfer, TransferEvents, Utilization, bytes,
    check_read_back,
};
use crate::sync::{Arc, Mutex, lock};
use crate::units::ByteCount;

/// How long a device that is closed waits for what is under way.
const SYNCHRONIZE_MAX: Duration = Duration::from_secs(10);

/// An NVIDIA GPU.
///
/// Slots are page-locked and exactly as large as asked for; an entry of the device ring is one allocation
/// ([`memory_bytes`](CudaDevice::memory_bytes)), made once. A consumer has three ways to a batch:
///
/// - on the device's own compute stream: [`order_after`](Device::order_after), enqueue work on
///   [`raw`](CudaDevice::raw)'s stream, and [`release`](Device::release) (dropping a [`Batch`](crate::Batch) does that);
/// - on a stream of its own: let it wait for [`RawBatch::ready`], and release by
///   [`event_on`](CudaDevice::event_on) that stream ([`Batch::release_after`](crate::Batch::release_after));
/// - [`read_back`](Device::read_back), which blocks.
///
/// An event that is none of this device's own is waited for in the call that it is given to.
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

/// Makes device memory of this many bytes: its address, and what keeps it alive.
type Allocate = Box<dyn Fn(usize) -> Result<(u64, Box<dyn Any + Send + Sync>), DeviceError> + Send + Sync>;

impl CudaDevice {
    /// Opens the device of this number, compiles the kernels for it, and measures which kind of page-locked memory it
    /// copies from faster.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] in one line where there is no driver, an old one, no GPU or none of this number;
    /// whatever keeps the device from starting.
    pub fn open(number: u32) -> Result<Self, DeviceError> {
        Self::start(number, None)
    }

    /// As [`open`](CudaDevice::open), but entries of the device ring are memory of somebody else's, such as a training
    /// library that can use no other: `allocate` makes this many bytes and says where they are and what keeps them alive
    /// ([`keep`](CudaDevice::keep) gives that back).
    ///
    /// # Errors
    /// As [`open`](CudaDevice::open).
    ///
    /// # Safety
    /// What `allocate` returns has to be device memory of this device of at least the length asked for, aligned to 256
    /// bytes, which nothing else writes while it is kept alive.
    #[allow(unsafe_code, reason = "the caller vouches for memory of its own")]
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

    /// Bytes of device memory that an entry of the device ring takes ([`Device::memory`] of these two sizes): the finished
    /// batch, and where it is finished on the device the pixels that it is made from and the table of 3 KiB, each rounded
    /// up to 256 bytes.
    #[must_use]
    pub const fn memory_bytes(len: usize, copied: usize) -> usize {
        CudaMemory::bytes(len, copied)
    }

    /// Bytes of device memory that this device's entries hold.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        self.context.held()
    }

    /// How often this device has taken device memory. It stays as it is while loaders run: they take theirs when they are
    /// built, and use the same addresses for as long as they live.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.context.allocations()
    }

    /// Bytes of device memory that are free, and that there are in all, whoever holds the others.
    ///
    /// # Errors
    /// Whatever is wrong with the device.
    pub fn memory_info(&self) -> Result<(ByteCount, ByteCount), DeviceError> {
        self.context.memory_info()
    }

    fn own<'m>(&self, memory: &'m DeviceMemory) -> Result<&'m Arc<CudaMemory>, DeviceError> {
        let own = memory.handle::<Arc<CudaMemory>>().filter(|own| Arc::ptr_eq(&own.context, &self.context));
        own.ok_or_else(|| {
            DeviceError::Unsupported(format!("this memory belongs to another device than '{}'", self.context.name()))
        })
    }

    fn event(&self, mark: &Arc<RecordedEvent>) -> Event {
        CudaEvent::event(mark, &self.in_flight)
    }

    /// Whatever is enqueued on `stream` from here on begins after `event`.
    fn order(&self, stream: &Stream, event: &Event) -> Result<(), DeviceError> {
        match CudaEvent::mark_in(event, &self.in_flight) {
            Some(mark) => stream.wait(mark.recorded()),
            None => {
                // Somebody else's event may have to ask the driver.
                self.context.enter()?;
                event.wait()
            }
        }
    }

    fn mark(&self, stream: &Stream, what: &'static str) -> Result<Arc<RecordedEvent>, DeviceError> {
        Ok(RecordedEvent::new(stream.record()?, what))
    }

    /// Enqueues what a feed asks for. Returns where its copy begins, where it ends, and where the batch is ready.
    fn enqueue(&self, transfer: &Transfer<'_>, memory: &CudaMemory) -> Result<[Arc<RecordedEvent>; 3], DeviceError> {
        let (copied_bytes, empty) = (transfer.copied_bytes(), transfer.finished_bytes() == 0);
        let mut uses = lock(&memory.uses);
        let begun = self.mark(&self.copy, "the begin of a copy")?;
        let to = if transfer.is_identity() { memory.finished() } else { memory.pixels().0 };
        if !empty {
            #[allow(unsafe_code, reason = "the device is given addresses")]
            // SAFETY: the slot is held until the copy is over (`InFlight`), and by the contract of `Transfer::from` nobody writes
            // to it until then. `to` has room for as much, and comes after its last use by what `feed` has ordered.
            unsafe {
                self.copy.copy_in(to, transfer.from.as_ptr(), copied_bytes)?;
            }
        }
        let mut places = 0;
        if !transfer.is_identity() && !empty {
            if uses.table != Some(transfer.format) {
                uses.table = None;
                self.small(memory.table(), &element_table(&transfer.format))?;
                uses.table = Some(transfer.format);
            }
            if let Some(windows) = &transfer.windows {
                places = self.places(&mut uses.places, windows.places)?;
            }
        }
        let copied = self.mark(&self.copy, "a copy to the device")?;
        if transfer.is_identity() || empty {
            return Ok([begun, Arc::clone(&copied), copied]);
        }
        self.convert.wait(copied.recorded())?;
        let at = Addresses { finished: memory.finished(), pixels: to, table: memory.table(), places };
        #[allow(unsafe_code, reason = "a kernel is given addresses")]
        // SAFETY: all four are parts of the entry, which is held until the kernel is over (`InFlight`) and large enough
        // (`feed`); it comes after the copy, and the next copy into the entry after it.
        unsafe {
            let shapes = (transfer.stored(), transfer.spec);
            self.kernels.convert(
                &self.convert,
                at,
                transfer.samples,
                shapes,
                (transfer.format.dtype, transfer.format.layout),
            )?;
        }
        Ok([begun, copied, self.mark(&self.convert, "a batch on the device")?])
    }

    /// Enqueues a copy of a few bytes out of ordinary memory, which the driver reads before it returns.
    fn small(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        #[allow(unsafe_code, reason = "the device is given addresses")]
        // SAFETY: memory that is not page-locked has been read by the time the call returns, so `from` need not live
        // longer. The place is part of an entry whose use the copy stream has been ordered after.
        unsafe {
            self.copy.copy_in(to, from.as_ptr(), from.len())
        }
    }

    /// Puts windows on the device, and says where.
    fn places(&self, rooms: &mut Vec<Places>, places: &[Place]) -> Result<u64, DeviceError> {
        let bytes: Vec<u8> = places
            .iter()
            .flat_map(|place| {
                let [t0, t1] = place.top.to_ne_bytes();
                let [l0, l1] = place.left.to_ne_bytes();
                let [f0, f1, f2, f3] = u32::from(place.flip).to_ne_bytes();
                [t0, t1, l0, l1, f0, f1, f2, f3]
            })
            .collect();
        let at = match rooms.last() {
            Some(room) if room.bytes >= bytes.len() => room.at,
            _ => {
                let refused = |refusal| self.accounts.refused(&self.context, bytes.len(), refusal);
                let at = self.context.alloc(bytes.len()).map_err(refused)?;
                rooms.push(Places { at, bytes: bytes.len() });
                at
            }
        };
        self.small(at, &bytes)?;
        Ok(at)
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        self.context.name().to_owned()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        self.check()?;
        if len == 0 {
            return HostMemory::pageable(len);
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
        HostMemory::pageable(len)
    }

    fn memory(&self, len: usize, copied: usize) -> Result<DeviceMemory, DeviceError> {
        self.check()?;
        let memory = match &self.allocate {
            None => CudaMemory::alloc(&self.context, &self.accounts, len, copied)?,
            Some(allocate) => {
                let (place, keep) = allocate(CudaMemory::bytes(len, copied).max(1))?;
                CudaMemory::lent(&self.context, place, len, copied, Keep(keep))
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
        if !transfer.is_identity() && copied > room {
            let what = "pixels of a batch in device memory, to be finished there,";
            return Err(DeviceError::Size { what, needed: bytes(copied), given: bytes(room) });
        }
        self.in_flight.reap()?;
        self.order(&self.copy, &transfer.after)?;
        // A batch that nobody has read may be overwritten, but not while it is being made.
        if let Some(fed) = &lock(&memory.uses).fed {
            self.copy.wait(fed.recorded())?;
        }
        match self.enqueue(&transfer, &memory) {
            Ok([begun, copied, ready]) => {
                lock(&memory.uses).fed = Some(Arc::clone(&ready));
                self.in_flight.fed(transfer.from, memory, begun, &copied, &ready);
                self.accounts.fed(&self.context);
                Ok(TransferEvents { slot_free: self.event(&copied), ready: self.event(&ready) })
            }
            Err(error) => {
                // Its copy may have been enqueued, and nothing says when it is over.
                self.in_flight.leak_unknown(transfer.from, memory);
                Err(error)
            }
        }
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        self.check()?;
        let own = self.own(from)?;
        check_read_back(out.len(), from.len())?;
        ready.wait()?;
        if out.is_empty() {
            return Ok(());
        }
        #[allow(unsafe_code, reason = "the device is given addresses")]
        // SAFETY: the entry is `from.len()` bytes long, and `from` is borrowed, so nobody feeds it meanwhile.
        unsafe {
            self.context.read(out, own.finished())
        }
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        self.check()?;
        // Taken before the mark, so that no stream is ever busy for longer than there was time.
        let since = Instant::now();
        self.order(&self.compute, ready)?;
        self.in_flight.begin(since, self.mark(&self.compute, "the begin of a step")?);
        Ok(())
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        let own = self.own(memory)?;
        self.order_after(ready)?;
        if !memory.is_empty() {
            #[allow(unsafe_code, reason = "a kernel is given an address")]
            // SAFETY: the first byte of the batch, which is there by the order above; the next feed comes after `release`.
            unsafe {
                self.kernels.step(&self.compute, own.finished(), duration.unwrap_or_default())?;
            }
        }
        let end = self.mark(&self.compute, "a step")?;
        self.in_flight.end(&end);
        lock(&own.uses).released = Some(Arc::clone(&end));
        Ok(self.event(&end))
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        self.check()?;
        let own = self.own(memory)?;
        let end = self.mark(&self.compute, "the end of a step")?;
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
