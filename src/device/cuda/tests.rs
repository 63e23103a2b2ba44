//! Guarantees of a CUDA device alone, on the stand-in for its driver: order by events, memory allocated once, errors
//! with their meaning, no leaks.

use std::time::{Duration, Instant};

use super::standin::Standin;
use super::*;
use crate::device::output::convert_naive;
use crate::rng::mix64;
use crate::tensor::{DType, Layout, OutputFormat, SampleSpec};

const SPEC: SampleSpec = SampleSpec { height: 6, width: 10 };
const F32: OutputFormat = OutputFormat { dtype: DType::F32, layout: Layout::Nchw, normalize: None };

fn pixels(len: usize, salt: u64) -> Vec<u8> {
    (0..len as u64).map(|at| mix64(at ^ salt << 32) as u8).collect()
}

fn open(standin: &Standin) -> CudaDevice {
    CudaDevice::open(standin.number()).expect("the stand-in opens")
}

fn slot(device: &CudaDevice, pixels: &[u8]) -> Arc<HostMemory> {
    let mut memory = device.host_memory(pixels.len()).expect("a slot");
    memory.as_mut_slice().copy_from_slice(pixels);
    Arc::new(memory)
}

fn memory(device: &CudaDevice, samples: usize, format: &OutputFormat) -> DeviceMemory {
    let copied = if format.is_identity() { 0 } else { samples * SPEC.elements() };
    device.memory(samples * SPEC.size_bytes(format.dtype), copied).expect("memory")
}

fn feed(
    device: &CudaDevice,
    from: &Arc<HostMemory>,
    format: OutputFormat,
    to: &mut DeviceMemory,
    after: Event,
) -> Result<TransferEvents, DeviceError> {
    let (from, samples) = (Arc::clone(from), from.len() / SPEC.elements());
    device.enqueue_batch(Transfer { from, samples, spec: SPEC, format, to, after })
}

#[test]
fn a_thousand_batches_go_through_one_ring_in_order_and_nothing_is_taken_on_the_way() {
    for (format, settings) in [
        (F32, "seed=3"),
        (OutputFormat { dtype: DType::U8, layout: Layout::Nhwc, normalize: None }, "seed=4;lazy_us=20"),
    ] {
        let standin = Standin::new(settings);
        let device = open(&standin);
        let samples = 3;
        let mut ring: Vec<_> = (0..3).map(|_| (memory(&device, samples, &format), Event::done())).collect();
        let mut slots: Vec<_> =
            (0..2).map(|_| (slot(&device, &pixels(samples * SPEC.elements(), 0)), Event::done())).collect();
        let before = standin.report();
        for batch in 0..1000 {
            let (mut from, slot_free) = slots.remove(0);
            slot_free.wait().expect("copied");
            let fresh = pixels(samples * SPEC.elements(), batch);
            Arc::get_mut(&mut from).expect("the device has let go").as_mut_slice().copy_from_slice(&fresh);
            let (mut to, after) = ring.remove(0);
            let fed = feed(&device, &from, format, &mut to, after).expect("fed");
            device.step(&to, &fed.ready, None).expect("a step");
            if batch % 50 == 0 {
                let mut out = vec![0; to.len()];
                device.read_back(&to, &fed.ready, &mut out).expect("read back");
                assert_eq!(out, convert_naive(&fresh, SPEC, &format), "batch {batch}");
            }
            let released = device.release(&to).expect("released");
            ring.push((to, released));
            slots.push((from, fed.slot_free));
        }
        let after = standin.report();
        let entry = CudaDevice::memory_bytes(
            samples * SPEC.size_bytes(format.dtype),
            if format.is_identity() { 0 } else { samples * SPEC.elements() },
        );
        assert_eq!(after.number("device_bytes"), 3 * entry as u64, "ring depth x entry, exactly");
        assert_eq!(device.held().0, 3 * entry as u64);
        for key in ["device_allocs_ever", "pinned_allocs_ever", "device_bytes", "pinned_bytes", "streams", "modules"] {
            assert_eq!(after.number(key), before.number(key), "{key}");
        }
        // A few are read back, which blocks. Nothing else does.
        assert_eq!(after.number("host_syncs") - before.number("host_syncs"), 20);
        assert!(after.number("events") < 64, "events are used again: {after:?}");
        drop((ring, slots, device));
        standin.assert_empty();
    }
}

#[test]
fn memory_that_runs_out_names_who_holds_it_and_when() {
    let standin = Standin::new("memory=100000000;others=60000000");
    let device = open(&standin);
    let held = device.memory(10_000_000, 0).expect("there is room");
    let error = device.memory(50_000_000, 0).expect_err("there is no room").to_string();
    for words in [
        "47.7 MiB asked for",
        "28.6 MiB free of 95.4 MiB",
        "batches hold 9.54 MiB",
        "others (the model, other programs) 57.2 MiB",
        "at the start",
        "smaller batches",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let mut to = memory(&device, 2, &F32);
    let fed = feed(&device, &slot(&device, &pixels(2 * SPEC.elements(), 1)), F32, &mut to, Event::done()).expect("fed");
    fed.ready.wait().expect("ready");
    standin.set("fail_alloc=1");
    let error = device.memory(1, 0).expect_err("the next one fails").to_string();
    for words in [
        "out of device memory: 256 B asked for",
        "after 1 batches",
        "free before: 28.6 MiB 0 s ago",
        "Memory use has grown",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    // It is no failure of the device: what fits is still had.
    assert_eq!(device.check(), Ok(()));
    device.memory(1, 0).expect("there is room");
    drop((held, to, fed, device));
    standin.assert_empty();
}

#[test]
fn memory_that_cannot_be_locked_is_ordinary_memory_and_a_note_says_so() {
    let standin = Standin::new("");
    let device = open(&standin);
    standin.set("fail_pin=1");
    let from = slot(&device, &pixels(4 * SPEC.elements(), 9));
    let notes = device.notes();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("could not be page-locked") && notes[0].contains("ulimit -l"), "{notes:?}");
    let mut to = memory(&device, 4, &F32);
    let fed = feed(&device, &from, F32, &mut to, Event::done()).expect("fed");
    let mut out = vec![0; to.len()];
    device.read_back(&to, &fed.ready, &mut out).expect("read back");
    assert_eq!(out, convert_naive(from.as_slice(), SPEC, &F32));
    assert_eq!(standin.report().number("pinned_bytes"), 0);
    drop((to, fed, from, device));
    standin.assert_empty();
}

#[test]
fn a_device_that_is_lost_fails_every_event_and_every_later_call() {
    let standin = Standin::new("");
    let device = open(&standin);
    let mut to = memory(&device, 2, &F32);
    let from = slot(&device, &pixels(2 * SPEC.elements(), 9));
    standin.set("lose_after=2;lose_code=999");
    let mut lost = None;
    for _ in 0..100 {
        match feed(&device, &from, F32, &mut to, Event::done()).and_then(|fed| fed.ready.wait()) {
            Ok(()) => {}
            Err(error) => lost = lost.or(Some(error)),
        }
    }
    let lost = lost.expect("it is lost");
    assert!(matches!(lost, DeviceError::Lost { .. }), "{lost}");
    assert!(lost.to_string().contains(&format!("device 'cuda:{}' is lost", standin.number())), "{lost}");
    assert_eq!(device.check(), Err(lost.clone()));
    assert_eq!(device.memory(1, 0).map(drop), Err(lost.clone()));
    assert_eq!(device.host_memory(1).map(drop), Err(lost.clone()));
    assert_eq!(device.order_after(&Event::done()), Err(lost));
    let began = Instant::now();
    drop((to, from, device));
    assert!(began.elapsed() < Duration::from_secs(5), "there is no wait for a lost device");
    assert_eq!(standin.report().violations, Vec::<String>::new());
}

#[test]
fn a_kernel_that_goes_wrong_sticks_with_its_name() {
    let standin = Standin::new("");
    let device = open(&standin);
    let mut to = memory(&device, 2, &F32);
    let from = slot(&device, &pixels(2 * SPEC.elements(), 9));
    standin.set("sticky=1;sticky_code=700");
    let fed = feed(&device, &from, F32, &mut to, Event::done()).expect("it is only enqueued");
    let error = fed.ready.wait().expect_err("the kernel fails");
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    assert_eq!(device.check(), Err(error));
}

#[test]
fn slots_are_of_the_kind_that_was_chosen() {
    for settings in ["copy_ns_per_kib=1000;wc_copy_ns_per_kib=100", "copy_ns_per_kib=100;wc_copy_ns_per_kib=1000"] {
        let standin = Standin::new(settings);
        let device = open(&standin);
        // In the first case the CPU's writing decides as well, which is this machine's affair.
        assert!(!device.is_write_combined() || settings.starts_with("copy_ns_per_kib=1000"), "{settings}");
        let slot = device.host_memory(4096).expect("a slot");
        assert_eq!(standin.report().number("pinned_wc_allocs"), u64::from(device.is_write_combined()));
        drop((slot, device));
        standin.assert_empty();
    }
}

#[test]
fn slots_are_as_large_as_asked_for_and_go_back_when_they_are_dropped() {
    let standin = Standin::new("");
    let device = open(&standin);
    let slots: Vec<_> = [1, 4097, 1_000_000].iter().map(|&len| device.host_memory(len).expect("a slot")).collect();
    assert!(slots.iter().all(|slot| slot.as_slice().iter().all(|&byte| byte == 0)));
    assert_eq!(standin.report().number("pinned_bytes"), 1 + 4097 + 1_000_000);
    drop(slots);
    assert_eq!(standin.report().number("pinned_bytes"), 0);
    drop(device);
    standin.assert_empty();
}

#[test]
fn a_consumer_with_a_stream_of_its_own_reads_and_releases_in_order() {
    let standin = Standin::new("seed=11");
    let device = open(&standin);
    let consumer = Stream::new(&device.context).expect("a stream");
    let mut ring: Vec<_> = (0..2).map(|_| (memory(&device, 2, &F32), Event::done())).collect();
    for batch in 0..50 {
        let (mut to, after) = ring.remove(0);
        let from = slot(&device, &pixels(2 * SPEC.elements(), batch));
        let fed = feed(&device, &from, F32, &mut to, after).expect("fed");
        let raw = device.raw(&to, &fed.ready).expect("a raw view");
        assert_eq!((raw.bytes, raw.ready.is_null()), (to.len(), false));
        device.order(&consumer, &fed.ready).expect("ordered");
        #[allow(unsafe_code, reason = "what a consumer would do")]
        // SAFETY: the batch is there by the order above.
        unsafe { device.kernels.step(&consumer, raw.pointer, Duration::ZERO) }.expect("a step");
        #[allow(unsafe_code, reason = "what a consumer would do")]
        // SAFETY: the stream is alive, and of this device.
        let released = unsafe { device.event_on(consumer.raw()) }.expect("an event");
        ring.push((to, released));
    }
    for (_, released) in &ring {
        released.wait().expect("over");
    }
    drop((ring, consumer, device));
    standin.assert_empty();
}

#[test]
fn memory_of_another_library_is_used_and_returned() {
    let standin = Standin::new("");
    let context = Context::open(standin.number()).expect("a context");
    let lender = Arc::clone(&context);
    let allocate = move |bytes: usize| {
        let place = lender.alloc(bytes).map_err(DeviceError::from)?;
        Ok((place, Box::new((bytes, place)) as Box<dyn Any + Send + Sync>))
    };
    #[allow(unsafe_code, reason = "what a training library would do")]
    // SAFETY: device memory of this length that nothing else uses.
    let device = unsafe { CudaDevice::open_with(standin.number(), allocate) }.expect("a device");
    let mut to = memory(&device, 2, &F32);
    let from = slot(&device, &pixels(2 * SPEC.elements(), 3));
    let fed = feed(&device, &from, F32, &mut to, Event::done()).expect("fed");
    let mut out = vec![0; to.len()];
    device.read_back(&to, &fed.ready, &mut out).expect("read back");
    assert_eq!(out, convert_naive(from.as_slice(), SPEC, &F32));
    let &(bytes, place) = CudaDevice::keep::<(usize, u64)>(&to).expect("what they keep");
    assert_eq!(device.raw(&to, &fed.ready).expect("raw").pointer, place);
    drop((to, fed, from, device));
    #[allow(unsafe_code, reason = "what a training library would do")]
    // SAFETY: theirs, and used by nothing any more.
    unsafe {
        context.free(place, bytes);
    }
    drop(context);
    standin.assert_empty();
}

#[test]
fn busy_time_is_the_streams_own() {
    let standin = Standin::new("lazy_us=0;kernel_ns=3000000");
    let device = open(&standin);
    let mut to = memory(&device, 2, &F32);
    let from = slot(&device, &pixels(2 * SPEC.elements(), 3));
    let fed = feed(&device, &from, F32, &mut to, Event::done()).expect("fed");
    let mut last = Event::done();
    for _ in 0..10 {
        last = device.step(&to, &fed.ready, Some(Duration::from_millis(2))).expect("a step");
    }
    last.wait().expect("over");
    let used = device.utilization().expect("a GPU knows");
    assert!(used.compute_busy >= Duration::from_millis(20) && used.compute_busy <= used.elapsed, "{used:?}");
    assert!(device.elapsed(&fed.slot_free, &fed.ready).expect("a time") >= Duration::from_millis(3));
    let error = device.elapsed(&Event::done(), &fed.ready).expect_err("no event of this device").to_string();
    assert!(error.contains("only events of"), "{error}");
    drop((to, fed, last, from, device));
    standin.assert_empty();
}

#[test]
fn what_a_device_is_and_how_fast_it_copies_is_told() {
    let standin = Standin::new("copy_ns_per_kib=200");
    let device = open(&standin);
    let facts = device.facts().expect("facts");
    assert_eq!((facts.driver.as_str(), facts.capability.as_str()), ("13.0", "9.0"));
    assert!(facts.memory_free <= facts.memory_total && !facts.model.is_empty() && !facts.bus_id.is_empty());
    let rates = device.transfer_rates(1 << 20).expect("rates");
    for rate in
        [Some(rates.pinned), rates.write_combined, Some(rates.pageable), Some(rates.back), Some(rates.on_device)]
    {
        assert!(rate.is_some_and(|rate| rate > 0.0 && rate.is_finite()), "{rates:?}");
    }
    drop(device);
    standin.assert_empty();
}

#[test]
fn a_device_that_is_not_there_is_refused_in_one_line() {
    super::standin::load();
    let error = CudaDevice::open(64).expect_err("there are 64").to_string();
    assert_eq!(error, "there is no cuda:64: the NVIDIA driver finds 64 devices, from cuda:0 on");
}
