//! Owns the memory of the simulated accelerator and the record of who may touch it when.
//! It must never decide by the clock what an event should have ordered: what counts is what came before by events, or is
//! known to be over.

use super::engine::Engine;
use crate::device::{DeviceError, HostMemory, PAGE_BYTES};
use crate::sync::{Arc, Mutex, lock};

/// What memory holds while a copy into it is under way, at the start of every page.
const POISON: u8 = 0xA5;
const POISON_BYTES: usize = 64;

/// One allocation on the device. Commands hold it by `Arc`; its bytes are given back when the last of them is done.
#[derive(Debug)]
pub(super) struct SimMemory {
    pub(super) engine: Arc<Engine>,
    /// From 1, for people.
    number: u64,
    bytes: Mutex<HostMemory>,
    life: Mutex<Life>,
}

/// Which batch is in the memory, and who reads it.
#[derive(Debug, Default)]
struct Life {
    /// The copy enqueued last that writes here; zero if none was.
    fed: u64,
    /// The copy finished last that wrote here.
    arrived: u64,
    /// Steps that are enqueued and not over.
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    step: u64,
    /// The copy that wrote what the step reads.
    copy: u64,
}

/// What an event that was given with a command orders.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ordered {
    /// The command comes after this command of the other stream, and all before it.
    After(u64),
    /// The event is foreign and has not passed: only when it has can be seen what is over by then.
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
    pub(super) fn new(engine: &Arc<Engine>, number: u64, bytes: HostMemory) -> Self {
        SimMemory { engine: Arc::clone(engine), number, bytes: Mutex::new(bytes), life: Mutex::default() }
    }

    /// A copy is enqueued: whoever still reads the batch before must come before it.
    pub(super) fn enqueue_copy(&self, copy: u64, ordered: Ordered) -> Result<(), DeviceError> {
        let mut life = lock(&self.life);
        if let Some(reader) = life.readers.iter().find(|reader| !ordered.covers(reader.step)) {
            return Err(self.fed_too_early(copy, reader.step));
        }
        life.fed = copy;
        Ok(())
    }

    /// A copy begins. The memory is poisoned for as long as it lasts.
    pub(super) fn begin_copy(&self, copy: u64, finished_bytes: usize) -> Result<(), DeviceError> {
        let straggler = lock(&self.life).readers.iter().find(|reader| reader.copy < copy).map(|reader| reader.step);
        for page in lock(&self.bytes).as_mut_slice()[..finished_bytes].chunks_mut(PAGE_BYTES) {
            let len = page.len().min(POISON_BYTES);
            page[..len].fill(POISON);
        }
        straggler.map_or(Ok(()), |step| Err(self.fed_too_early(copy, step)))
    }

    /// A copy ends: `write` puts the batch in place.
    pub(super) fn end_copy(&self, copy: u64, finished_bytes: usize, write: impl FnOnce(&mut [u8])) {
        write(&mut lock(&self.bytes).as_mut_slice()[..finished_bytes]);
        lock(&self.life).arrived = copy;
    }

    /// A step that reads the memory is enqueued. Returns the copy it reads from.
    pub(super) fn read(&self, step: u64, ordered: Ordered) -> Result<u64, DeviceError> {
        let mut life = lock(&self.life);
        let copy = life.fed;
        if copy == 0 {
            return Err(self.never_fed(&format!("step {step}")));
        }
        if life.arrived < copy && !ordered.covers(copy) {
            return Err(self.read_too_early(&format!("step {step}"), copy));
        }
        life.readers.push(Reader { step, copy });
        Ok(copy)
    }

    /// A step begins: its batch must be there by now.
    pub(super) fn begin_step(&self, step: u64, copy: u64) -> Result<(), DeviceError> {
        match lock(&self.life).arrived < copy {
            true => Err(self.read_too_early(&format!("step {step}"), copy)),
            false => Ok(()),
        }
    }

    /// A step ends.
    pub(super) fn end_step(&self, step: u64) {
        lock(&self.life).readers.retain(|reader| reader.step != step);
    }

    /// Copies the first bytes out, for a caller whose event has passed.
    pub(super) fn read_back(&self, out: &mut [u8]) -> Result<(), DeviceError> {
        let (fed, arrived) = {
            let life = lock(&self.life);
            (life.fed, life.arrived)
        };
        match fed {
            0 => Err(self.never_fed("read_back")),
            copy if arrived < copy => Err(self.read_too_early("read_back", copy)),
            _ => {
                out.copy_from_slice(&lock(&self.bytes).as_slice()[..out.len()]);
                Ok(())
            }
        }
    }

    fn fed_too_early(&self, copy: u64, step: u64) -> DeviceError {
        self.engine.violation(format!(
            "device memory {} was fed again (copy {copy}) while step {step} may still read it: give the event of \
             `release` as `after`, or wait for it",
            self.number
        ))
    }

    fn read_too_early(&self, who: &str, copy: u64) -> DeviceError {
        self.engine.violation(format!(
            "{who} reads device memory {} before copy {copy} has filled it: give the event `ready` of its feed",
            self.number
        ))
    }

    fn never_fed(&self, who: &str) -> DeviceError {
        self.engine.violation(format!("{who} reads device memory {}, which was never fed", self.number))
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        self.engine.give_back(lock(&self.bytes).len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_garbage_while_a_copy_is_under_way() {
        let engine = Engine::new(super::super::SimSpec::default());
        let len = 2 * PAGE_BYTES;
        let memory = SimMemory::new(&engine, 1, HostMemory::pageable(len).expect("two pages"));
        memory.enqueue_copy(1, Ordered::After(0)).expect("nobody reads it");
        memory.begin_copy(1, len).expect("nobody reads it");
        let at = |at: usize| lock(&memory.bytes).as_slice()[at];
        assert_eq!([at(0), at(63), at(64), at(PAGE_BYTES)], [POISON, POISON, 0, POISON]);
        memory.end_copy(1, len, |out| out.fill(9));
        assert_eq!([at(0), at(63), at(64), at(len - 1)], [9; 4]);
        memory.read_back(&mut [0; 8]).expect("arrived");
    }
}
