//! Memory of the simulated accelerator, with the batch in it and the steps that read it. Order is judged by events,
//! never by the clock: a command counts as earlier if an event orders it so, or if it is known to be over.

use super::state::DeviceState;
use crate::device::{DeviceError, HostMemory};
use crate::memory::PAGE_BYTES;
use crate::sync::{Arc, Mutex, lock};

/// Content of memory during a copy into it, at the start of every page.
const POISON: u8 = 0xA5;
const POISON_BYTES: usize = 64;

/// One allocation on the device. Commands hold it by `Arc`; it is freed when the last of them is done.
#[derive(Debug)]
pub(super) struct SimMemory {
    pub(super) device: Arc<DeviceState>,
    /// Number of the allocation, from 1, for messages.
    number: u64,
    bytes: Mutex<HostMemory>,
    life: Mutex<Life>,
}

/// The batch in the memory, and its readers.
#[derive(Debug, Default)]
struct Life {
    /// Number of the last copy enqueued that writes here; zero if there is none.
    enqueued: u64,
    /// Number of the last copy that has written here.
    arrived: u64,
    /// Steps that are enqueued and not over.
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    step: u64,
    /// Number of the copy that wrote what the step reads.
    copy: u64,
}

/// Order that an event gives a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ordered {
    /// The command comes after this command of the other stream, and all before it.
    After(u64),
    /// The event is of another device and has not passed: the order is checked once it has.
    Later,
}

impl Ordered {
    fn covers(self, number: u64) -> bool {
        match self {
            Ordered::After(seen) => number <= seen,
            Ordered::Later => true,
        }
    }
}

impl SimMemory {
    pub(super) fn new(device: &Arc<DeviceState>, number: u64, bytes: HostMemory) -> Self {
        SimMemory { device: Arc::clone(device), number, bytes: Mutex::new(bytes), life: Mutex::default() }
    }

    /// Enqueues a copy. Steps that still read the previous batch must come before it.
    pub(super) fn enqueue_copy(&self, copy: u64, ordered: Ordered) -> Result<(), DeviceError> {
        let mut life = lock(&self.life);
        if let Some(reader) = life.readers.iter().find(|reader| !ordered.covers(reader.step)) {
            return Err(self.written_too_early(copy, reader.step));
        }
        life.enqueued = copy;
        Ok(())
    }

    /// Begins a copy. The memory is poisoned until it ends.
    pub(super) fn begin_copy(&self, copy: u64, output_bytes: usize) -> Result<(), DeviceError> {
        let straggler = lock(&self.life).readers.iter().find(|reader| reader.copy < copy).map(|reader| reader.step);
        for page in lock(&self.bytes).as_mut_slice()[..output_bytes].chunks_mut(PAGE_BYTES) {
            let len = page.len().min(POISON_BYTES);
            page[..len].fill(POISON);
        }
        straggler.map_or(Ok(()), |step| Err(self.written_too_early(copy, step)))
    }

    /// Ends a copy: `write` writes the batch.
    pub(super) fn end_copy(&self, copy: u64, output_bytes: usize, write: impl FnOnce(&mut [u8])) {
        write(&mut lock(&self.bytes).as_mut_slice()[..output_bytes]);
        lock(&self.life).arrived = copy;
    }

    /// Enqueues a step that reads the memory. Returns the number of the copy that it reads from.
    pub(super) fn read(&self, step: u64, ordered: Ordered) -> Result<u64, DeviceError> {
        let mut life = lock(&self.life);
        let copy = life.enqueued;
        if copy == 0 {
            return Err(self.never_written(&format!("step {step}")));
        }
        if life.arrived < copy && !ordered.covers(copy) {
            return Err(self.read_too_early(&format!("step {step}"), copy));
        }
        life.readers.push(Reader { step, copy });
        Ok(copy)
    }

    /// Begins a step: its batch must have arrived.
    pub(super) fn begin_step(&self, step: u64, copy: u64) -> Result<(), DeviceError> {
        match lock(&self.life).arrived < copy {
            true => Err(self.read_too_early(&format!("step {step}"), copy)),
            false => Ok(()),
        }
    }

    /// Ends a step.
    pub(super) fn end_step(&self, step: u64) {
        lock(&self.life).readers.retain(|reader| reader.step != step);
    }

    /// Copies the first `out.len()` bytes to the host, for a caller whose event has passed.
    pub(super) fn read_back(&self, out: &mut [u8]) -> Result<(), DeviceError> {
        let (enqueued, arrived) = {
            let life = lock(&self.life);
            (life.enqueued, life.arrived)
        };
        match enqueued {
            0 => Err(self.never_written("read_back")),
            copy if arrived < copy => Err(self.read_too_early("read_back", copy)),
            _ => {
                out.copy_from_slice(&lock(&self.bytes).as_slice()[..out.len()]);
                Ok(())
            }
        }
    }

    fn written_too_early(&self, copy: u64, step: u64) -> DeviceError {
        self.device.violation(format!(
            "device memory {} was written again (copy {copy}) while step {step} may still read it: give the event of \
             `release` as `after`, or wait for it",
            self.number
        ))
    }

    fn read_too_early(&self, who: &str, copy: u64) -> DeviceError {
        self.device.violation(format!(
            "{who} reads device memory {} before copy {copy} has filled it: give the event `ready` of its transfer",
            self.number
        ))
    }

    fn never_written(&self, who: &str) -> DeviceError {
        self.device.violation(format!("{who} reads device memory {}, which was never written", self.number))
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        self.device.free(lock(&self.bytes).len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_poisoned_during_a_copy() {
        let device = Arc::new(DeviceState::new(None));
        let len = 2 * PAGE_BYTES;
        let memory = SimMemory::new(&device, 1, HostMemory::pageable(len).expect("two pages"));
        memory.enqueue_copy(1, Ordered::After(0)).expect("no step reads it");
        memory.begin_copy(1, len).expect("no step reads it");
        let at = |at: usize| lock(&memory.bytes).as_slice()[at];
        assert_eq!([at(0), at(63), at(64), at(PAGE_BYTES)], [POISON, POISON, 0, POISON]);
        memory.end_copy(1, len, |out| out.fill(9));
        assert_eq!([at(0), at(63), at(64), at(len - 1)], [9; 4]);
        memory.read_back(&mut [0; 8]).expect("arrived");
    }
}
