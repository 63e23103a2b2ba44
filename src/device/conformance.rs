//! The suite that every device passes: the guarantees of the trait, on the CPU, on simulated accelerators and on the
//! stand-in for a GPU. It uses the trait alone; a new device is one more line in `everywhere`.

use std::mem;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::output::{all_formats, convert_naive};
use super::*;
use crate::memory::PAGE_BYTES;
use crate::rng::mix64;
use crate::sync::Arc;
use crate::tensor::{DType, Layout, Normalize, OutputFormat, SampleSpec};

/// Runs a test on every device.
fn everywhere(test: impl Fn(&Arc<dyn Device>)) {
    for name in ["cpu", "sim", "sim:h2d=2GB/s,latency=200us,step=1ms", "sim:h2d=900TB/s,latency=0us,memory=64M"] {
        let device = open(&name.parse().expect(name)).expect(name);
        test(&device);
        assert_eq!(device.check(), Ok(()), "{name}");
    }
    #[cfg(feature = "cuda")]
    for settings in ["lazy_us=0", "lazy_us=300;copy_ns_per_kib=2000"] {
        let standin = super::cuda::standin::Standin::new(settings);
        let device: Arc<dyn Device> = Arc::new(CudaDevice::open(standin.number()).expect(settings));
        test(&device);
        assert_eq!(device.check(), Ok(()), "{settings}");
        drop(device);
        standin.assert_empty();
    }
}

fn pixels(len: usize, salt: u64) -> Vec<u8> {
    (0..len as u64).map(|at| mix64(at ^ salt << 32) as u8).collect()
}

fn slot(device: &Arc<dyn Device>, pixels: &[u8]) -> Arc<HostMemory> {
    let mut memory = device.host_memory(pixels.len()).expect("a slot");
    memory.as_mut_slice().copy_from_slice(pixels);
    Arc::new(memory)
}

const SMALL: SampleSpec = SampleSpec { height: 3, width: 5 };
const PLAIN: OutputFormat = OutputFormat { dtype: DType::U8, layout: Layout::Nchw, normalize: None };

fn feed(device: &Arc<dyn Device>, from: &Arc<HostMemory>, samples: usize, to: &mut DeviceMemory) -> TransferEvents {
    let feed = Transfer { from: Arc::clone(from), samples, spec: SMALL, format: PLAIN, to, after: Event::done() };
    device.enqueue_batch(feed).expect("a batch that fits")
}

#[test]
fn memory_has_the_size_that_was_asked_for() {
    everywhere(|device| {
        for len in [0, 1, PAGE_BYTES, 100_003] {
            let host = device.host_memory(len).expect("host memory");
            assert_eq!(host.len(), len);
            assert!(host.as_ptr().addr().is_multiple_of(PAGE_BYTES));
            assert!(host.as_slice().iter().all(|&byte| byte == 0));
            let memory = device.memory(len, 0).expect("device memory");
            assert_eq!((memory.len(), memory.is_empty()), (len, len == 0));
            assert_eq!(memory.host().map(<[u8]>::len), device.reads_slots().then_some(len));
        }
    });
}

#[test]
fn every_finish_equals_the_definition() {
    everywhere(|device| {
        for (height, width, samples, capacity) in
            [(1, 1, 1, 1), (3, 5, 0, 2), (3, 5, 2, 3), (32, 32, 4, 4), (17, 0, 3, 3)]
        {
            let spec = SampleSpec { height, width };
            let pixels = pixels(capacity * spec.elements(), u64::from(width));
            let from = slot(device, &pixels);
            for format in all_formats() {
                let mut to = device.memory(capacity * spec.size_bytes(format.dtype), pixels.len()).expect("memory");
                let from = Arc::clone(&from);
                let fed =
                    device.enqueue_batch(Transfer { from, samples, spec, format, to: &mut to, after: Event::done() });
                let mut out = vec![0xEE; samples * spec.size_bytes(format.dtype)];
                device.read_back(&to, &fed.expect("fits").ready, &mut out).expect("read back");
                assert_eq!(out, convert_naive(&pixels[..samples * spec.elements()], spec, &format), "{format:?}");
                if let Some(host) = to.host() {
                    assert_eq!(out, host[..out.len()]);
                }
            }
        }
    });
}

#[test]
fn what_cannot_be_done_is_refused_and_does_no_harm() {
    everywhere(|device| {
        let from = slot(device, &pixels(2 * SMALL.elements(), 0));
        let mut to = device.memory(2 * SMALL.elements(), 2 * SMALL.elements()).expect("memory");
        let attempt = |samples, format, to: &mut DeviceMemory| {
            let from = Arc::clone(&from);
            device.enqueue_batch(Transfer { from, samples, spec: SMALL, format, to, after: Event::done() }).map(|_| ())
        };
        let f32 = OutputFormat { dtype: DType::F32, ..PLAIN };
        let by = |std| Some(Normalize { mean: [0.5; 3], std });
        for (samples, format, words) in [
            (3, PLAIN, "a batch in its slot needs 135 bytes, and there are 90"),
            (usize::MAX, PLAIN, "a batch in its slot needs"),
            (2, f32, "a batch in device memory needs 360 bytes, and there are 90"),
            (1, OutputFormat { normalize: by([1.0; 3]), ..PLAIN }, "u8 cannot be normalized"),
            (0, OutputFormat { normalize: by([1.0, 0.0, 1.0]), ..f32 }, "std not zero"),
            (0, OutputFormat { normalize: by([f32::NAN; 3]), ..f32 }, "std not zero"),
        ] {
            let error = attempt(samples, format, &mut to).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        let mut alien = DeviceMemory::from_handle(2 * SMALL.elements(), Box::new(()));
        for error in [
            attempt(2, PLAIN, &mut alien).expect_err("alien"),
            device.read_back(&alien, &Event::done(), &mut []).expect_err("alien"),
            device.release(&alien).expect_err("alien"),
        ] {
            assert!(error.to_string().contains("belongs to another device"), "{error}");
        }
        assert_eq!(attempt(2, PLAIN, &mut to), Ok(()));
        let long = device.read_back(&to, &Event::done(), &mut [0; 91]).expect_err("91 bytes of 90");
        assert!(matches!(long, DeviceError::Size { .. }), "{long}");
    });
}

#[test]
fn a_ring_carries_many_batches_from_thread_to_thread() {
    const BATCHES: u64 = 150;
    everywhere(|device| {
        let samples = 4;
        let format = OutputFormat { dtype: DType::Bf16, ..PLAIN };
        let expected = |n| convert_naive(&pixels(samples * SMALL.elements(), n), SMALL, &format);
        let (give_back, take) = bounded(3);
        for _ in 0..3 {
            let memory =
                device.memory(samples * SMALL.size_bytes(format.dtype), samples * SMALL.elements()).expect("ring");
            give_back.send((memory, Event::done())).expect("open");
        }
        let (hand_over, receive) = bounded(3);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let slots = [(); 2].map(|()| (slot(device, &pixels(samples * SMALL.elements(), 0)), Event::done()));
                let mut slots = Vec::from(slots);
                for n in 0..BATCHES {
                    let (mut from, slot_free) = slots.remove(0);
                    slot_free.wait().expect("the copy out of it is over");
                    let memory = Arc::get_mut(&mut from).expect("the device has dropped its handle");
                    memory.as_mut_slice().copy_from_slice(&pixels(samples * SMALL.elements(), n));
                    let (mut to, after) = take.recv().expect("open");
                    let sent = Arc::clone(&from);
                    let fed =
                        device.enqueue_batch(Transfer { from: sent, samples, spec: SMALL, format, to: &mut to, after });
                    let fed = fed.expect("a batch");
                    slots.push((from, fed.slot_free));
                    hand_over.send((n, to, fed.ready)).expect("open");
                }
            });
            for (n, memory, ready) in receive {
                device.order_after(&ready).expect("ordered");
                let mut out = vec![0; memory.len()];
                device.read_back(&memory, &ready, &mut out).expect("read back");
                assert_eq!(out, expected(n), "batch {n}");
                let released = device.release(&memory).expect("released");
                // At the end the producer has gone.
                let _ = give_back.send((memory, released));
            }
        });
    });
}

#[test]
fn an_event_that_has_passed_stays_passed() {
    everywhere(|device| {
        let from = slot(device, &pixels(SMALL.elements(), 0));
        let mut to = device.memory(SMALL.elements(), SMALL.elements()).expect("memory");
        let fed = feed(device, &from, 1, &mut to);
        for _ in 0..3 {
            for event in [&fed.ready, &fed.slot_free, &fed.ready.clone()] {
                assert_eq!(event.wait(), Ok(()));
                assert_eq!(event.is_done(), Ok(true));
                assert_eq!(event.wait_for(Duration::ZERO), Ok(true));
            }
        }
        assert_eq!(Arc::strong_count(&from), 1, "the device has dropped its handle");
        device.release(&to).expect("released").wait().expect("nothing reads it");
    });
}

#[test]
fn a_batch_overwrites_the_one_before() {
    everywhere(|device| {
        let mut to = device.memory(2 * SMALL.elements(), 2 * SMALL.elements()).expect("memory");
        for n in 0..5 {
            let pixels = pixels(2 * SMALL.elements(), n);
            let fed = feed(device, &slot(device, &pixels), 2, &mut to);
            let mut out = vec![0; 2 * SMALL.elements()];
            device.read_back(&to, &fed.ready, &mut out).expect("read back");
            assert_eq!(out, convert_naive(&pixels, SMALL, &PLAIN));
        }
    });
}

#[test]
fn things_may_be_dropped_or_forgotten_in_any_order() {
    for order in 0..4 {
        for name in ["cpu", "sim:latency=5ms"] {
            drop_in(order, open(&name.parse().expect(name)).expect(name));
        }
        #[cfg(feature = "cuda")]
        {
            let standin = super::cuda::standin::Standin::new("");
            let device = CudaDevice::open(standin.number()).expect("the stand-in");
            // Some milliseconds for the batch, as above.
            standin.set("copy_ns_per_kib=100000000");
            drop_in(order, Arc::new(device));
            standin.assert_lawful();
            if order < 3 {
                standin.assert_empty();
            }
        }
    }
}

fn drop_in(order: u32, device: Arc<dyn Device>) {
    let name = device.name();
    let from = slot(&device, &pixels(SMALL.elements(), 0));
    let mut to = device.memory(SMALL.elements(), SMALL.elements()).expect("memory");
    let fed = feed(&device, &from, 1, &mut to);
    match order {
        0 => drop((to, from, device)),
        1 => drop((device, from, to)),
        2 => drop((from, device, to)),
        _ => {
            mem::forget(to);
            mem::forget(from);
            drop(device);
        }
    }
    // Done or given up, but never left hanging.
    match fed.ready.wait_for(Duration::from_secs(60)) {
        Ok(passed) => assert!(passed, "{name}, order {order}"),
        Err(error) => assert!(matches!(error, DeviceError::Lost { .. }), "{error}"),
    }
}

#[test]
fn memory_of_a_closed_device_is_foreign_to_the_next() {
    let [first, second] = [(); 2].map(|()| open(&"sim".parse().expect("sim")).expect("sim"));
    let mut memory = first.memory(SMALL.elements(), 0).expect("memory");
    drop(first);
    let from = slot(&second, &pixels(SMALL.elements(), 0));
    let feed = Transfer { from, samples: 1, spec: SMALL, format: PLAIN, to: &mut memory, after: Event::done() };
    let error = second.enqueue_batch(feed).expect_err("foreign memory");
    assert!(matches!(error, DeviceError::ForeignMemory { .. }), "{error}");
}
