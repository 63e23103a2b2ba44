//! A device written in safe code cannot read the memory that workers write, whatever it keeps.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use feedstock::device::{Device, DeviceError, DeviceMemory, Event, HostDevice, HostMemory, Transfer, TransferEvents};
use feedstock::transform::IMAGENET;
use feedstock::{DType, Error};

use super::{builder, mixed};

/// A CPU that keeps a handle to the memory of every slot, strong or weak, long after `slot_free` has passed.
#[derive(Debug, Default)]
struct Hoarder {
    cpu: HostDevice,
    weakly: bool,
    strong: Mutex<Vec<Arc<HostMemory>>>,
    weak: Mutex<Vec<Weak<HostMemory>>>,
}

impl Device for Hoarder {
    fn name(&self) -> String {
        "hoarder".to_owned()
    }

    fn host_memory(&self, len: usize) -> Result<HostMemory, DeviceError> {
        self.cpu.host_memory(len)
    }

    fn memory(&self, len: usize, copied: usize) -> Result<DeviceMemory, DeviceError> {
        self.cpu.memory(len, copied)
    }

    fn counts_as_ram(&self) -> bool {
        true
    }

    fn enqueue_batch(&self, transfer: Transfer<'_>) -> Result<TransferEvents, DeviceError> {
        match self.weakly {
            true => self.weak.lock().unwrap().push(Arc::downgrade(&transfer.from)),
            false => self.strong.lock().unwrap().push(Arc::clone(&transfer.from)),
        }
        self.cpu.enqueue_batch(transfer)
    }

    fn read_back(&self, from: &DeviceMemory, ready: &Event, out: &mut [u8]) -> Result<(), DeviceError> {
        self.cpu.read_back(from, ready, out)
    }

    fn order_after(&self, ready: &Event) -> Result<(), DeviceError> {
        self.cpu.order_after(ready)
    }

    fn step(&self, memory: &DeviceMemory, ready: &Event, duration: Option<Duration>) -> Result<Event, DeviceError> {
        self.cpu.step(memory, ready, duration)
    }

    fn release(&self, memory: &DeviceMemory) -> Result<Event, DeviceError> {
        self.cpu.release(memory)
    }

    fn check(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn a_device_that_keeps_a_slot_never_sees_it_written_again() {
    for weakly in [false, true] {
        let device = Arc::new(Hoarder { weakly, ..Hoarder::default() });
        let loader = builder(mixed(400)).normalize(IMAGENET).dtype(DType::F32).device(device.clone()).build().unwrap();
        let error = loader.epoch(0).find_map(|batch| {
            let bytes =
                || device.strong.lock().unwrap().iter().map(|slot| slot.as_slice().to_vec()).collect::<Vec<_>>();
            let before = bytes();
            // Slots that were written before this batch are written no more, however long the run goes on.
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(bytes()[..before.len()], before, "a slot that the device holds was written");
            batch.err()
        });
        let error = error.expect("more batches than slots");
        assert!(matches!(error, Error::Device(DeviceError::SlotHeld { .. })), "{error}");
        assert!(error.to_string().contains("device 'hoarder' still holds the memory of a slot"), "{error}");
        assert!(loader.stats().memory.peak <= loader.plan().budget, "no memory was taken in its place");
    }
}
