//! Guarantees of the simulated accelerator alone: every kind of violation is caught, none is invented, faults surface,
//! and time passes.
//!
//! No test hangs on the clock. Streams are held up by a `Gate`, an event that passes when the test says so.

use std::time::Instant;

use super::*;
use crate::device::Signal;
use crate::sync::{Condvar, Mutex, lock};
use crate::tensor::{DType, Layout, OutputFormat, SampleSpec};
use crate::units::ByteCount;

const SPEC: SampleSpec = SampleSpec { height: 8, width: 8 };
const LEN: usize = SPEC.elements();
const PLAIN: OutputFormat = OutputFormat { dtype: DType::U8, layout: Layout::Nhwc, normalize: None };

/// An event that is none of the device's own.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Signal for Gate {
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        let open = lock(&self.open);
        Ok(*self.opened.wait_timeout_while(open, limit, |open| !*open).expect("no panic").0)
    }
}

fn gate() -> (Event, impl FnOnce()) {
    let gate = Arc::new(Gate::default());
    let event = Event::new(Arc::clone(&gate) as Arc<dyn Signal>);
    (event, move || {
        *lock(&gate.open) = true;
        gate.opened.notify_all();
    })
}

fn sim(text: &str) -> SimDevice {
    SimDevice::open(text.parse().expect(text)).expect(text)
}

fn slot(value: u8) -> Arc<HostMemory> {
    let mut memory = HostMemory::pageable(LEN).expect("a slot");
    memory.as_mut_slice().fill(value);
    Arc::new(memory)
}

fn feed(
    device: &SimDevice,
    from: &Arc<HostMemory>,
    to: &mut DeviceMemory,
    after: &Event,
) -> Result<TransferEvents, DeviceError> {
    let (from, after) = (Arc::clone(from), after.clone());
    device.enqueue_batch(Transfer { from, samples: 1, spec: SPEC, format: PLAIN, to, after })
}

/// A device, a slot, and memory that holds a batch which has arrived.
fn fed(text: &str) -> (SimDevice, Arc<HostMemory>, DeviceMemory, Event) {
    let device = sim(text);
    let from = slot(1);
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &from, &mut to, &Event::done()).expect("fed");
    fed.ready.wait().expect("arrived");
    (device, from, to, fed.ready)
}

/// The one violation of this device, as recorded and as the sticky error.
#[track_caller]
fn assert_violation(device: &SimDevice, words: &str) {
    let violations = device.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains(words), "{violations:?}");
    let sticky = Err(DeviceError::Lifetime(violations[0].clone()));
    assert_eq!(device.check(), sticky);
    assert_eq!(device.memory(1, 0).map(|_| ()), sticky, "every later call says so");
    assert_eq!(device.host_memory(1).map(|_| ()), sticky);
}

#[track_caller]
fn assert_clean(device: &SimDevice) {
    assert_eq!(device.violations(), Vec::<String>::new());
    assert_eq!(device.check(), Ok(()));
}

#[test]
fn a_slot_written_before_its_copy_is_over_is_caught() {
    let device = sim("sim");
    let (held, open) = gate();
    let from = slot(1);
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &from, &mut to, &held).expect("fed");
    assert_eq!(fed.slot_free.is_done(), Ok(false));
    #[allow(unsafe_code, reason = "what a faulty slot would do")]
    // SAFETY: the first byte; the copy stream looks at it only after the gate has opened, which comes after this.
    unsafe {
        from.as_ptr().write(2);
    }
    open();
    fed.slot_free.wait().expect("the stream goes on");
    assert_violation(&device, "a slot was written before copy 1 out of it was over");
}

#[test]
fn a_slot_written_after_its_copy_is_over_is_fine() {
    let (device, mut from, mut to, _) = fed("sim");
    Arc::get_mut(&mut from).expect("ours again").as_mut_slice().fill(2);
    let again = feed(&device, &from, &mut to, &Event::done()).expect("fed");
    let mut out = [0; LEN];
    device.read_back(&to, &again.ready, &mut out).expect("read back");
    assert_eq!(out, [2; LEN]);
    assert_clean(&device);
}

#[test]
fn memory_fed_while_a_step_reads_it_is_caught() {
    let (device, from, mut to, _) = fed("sim");
    let (held, open) = gate();
    let step = device.step(&to, &held, None).expect("a step");
    let error = feed(&device, &from, &mut to, &Event::done()).expect_err("step 1 reads it");
    assert!(matches!(error, DeviceError::Lifetime(_)), "{error}");
    open();
    step.wait().expect("the stream goes on");
    assert_violation(&device, "device memory 1 was written again (copy 2) while step 1 may still read it");
}

#[test]
fn a_release_that_is_too_old_is_caught() {
    let (device, from, mut to, ready) = fed("sim");
    device.step(&to, &ready, None).expect("step 1");
    let old = device.release(&to).expect("after step 1");
    old.wait().expect("step 1 is over");
    let (held, open) = gate();
    device.step(&to, &held, None).expect("step 2");
    feed(&device, &from, &mut to, &old).expect_err("step 2 reads it");
    open();
    assert_violation(&device, "while step 2 may still read it");
}

#[test]
fn an_event_of_the_wrong_stream_releases_nothing() {
    let (device, from, mut to, ready) = fed("sim");
    let (held, open) = gate();
    device.step(&to, &held, None).expect("step 1");
    feed(&device, &from, &mut to, &ready).expect_err("step 1 reads it");
    open();
    assert_violation(&device, "while step 1 may still read it");
}

#[test]
fn a_release_keeps_the_next_batch_back_until_the_step_is_over() {
    let (device, from, mut to, ready) = fed("sim");
    let mut other = device.memory(LEN, 0).expect("memory");
    let other_ready = feed(&device, &from, &mut other, &Event::done()).expect("fed").ready;
    let (held, open) = gate();
    device.order_after(&held).expect("ordered");
    device.step(&other, &other_ready, None).expect("a step");
    let step = device.step(&to, &ready, None).expect("a step");
    let released = device.release(&to).expect("released");
    let next = feed(&device, &from, &mut to, &released).expect("in order");
    // The copy stream has waited for the release once: nothing after it needs to be told again.
    let last = feed(&device, &from, &mut other, &Event::done()).expect("in order");
    assert_eq!(next.ready.is_done(), Ok(false));
    open();
    last.ready.wait().expect("arrived");
    assert_eq!(step.is_done(), Ok(true));
    assert_clean(&device);
}

#[test]
fn a_foreign_release_that_comes_too_early_is_caught() {
    let (device, from, mut to, ready) = fed("sim");
    let ((held, open_step), (foreign, open_copy)) = (gate(), gate());
    device.order_after(&held).expect("ordered");
    let step = device.step(&to, &ready, None).expect("step");
    let next = feed(&device, &from, &mut to, &foreign).expect("may be in order");
    open_copy();
    next.ready.wait().expect("the stream goes on");
    open_step();
    step.wait().expect("the stream goes on");
    assert_violation(&device, "written again (copy 2) while step 2 may still read it");
}

#[test]
fn a_foreign_release_that_comes_in_time_is_fine() {
    let (device, from, mut to, ready) = fed("sim");
    let (foreign, open) = gate();
    let step = device.step(&to, &ready, None).expect("step");
    let next = feed(&device, &from, &mut to, &foreign).expect("may be in order");
    step.wait().expect("over");
    open();
    next.ready.wait().expect("arrived");
    assert_clean(&device);
}

#[test]
fn a_step_without_ready_is_caught() {
    let device = sim("sim");
    let (held, open) = gate();
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &slot(1), &mut to, &held).expect("fed");
    device.step(&to, &Event::done(), None).expect_err("the batch is not there");
    open();
    fed.ready.wait().expect("the stream goes on");
    assert_violation(&device, "step 1 reads device memory 1 before copy 1 has filled it");
}

#[test]
fn a_step_with_the_ready_of_another_batch_is_caught() {
    let (device, from, mut to, old) = fed("sim");
    let (held, open) = gate();
    let _ = feed(&device, &from, &mut to, &held).expect("fed");
    device.step(&to, &old, None).expect_err("that was the batch before");
    open();
    assert_violation(&device, "step 1 reads device memory 1 before copy 2");
}

#[test]
fn a_step_that_was_ordered_or_waited_for_needs_no_ready() {
    let device = sim("sim");
    let (held, open) = gate();
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &slot(1), &mut to, &held).expect("fed");
    device.order_after(&fed.ready).expect("ordered");
    let step = device.step(&to, &Event::done(), None).expect("behind `ready` by its place on the stream");
    assert_eq!(step.is_done(), Ok(false));
    open();
    fed.ready.wait().expect("arrived");
    device.step(&to, &Event::done(), None).expect("the host has waited").wait().expect("over");
    assert_clean(&device);
}

#[test]
fn a_foreign_ready_that_comes_too_early_is_caught() {
    let device = sim("sim");
    let ((held, open_copy), (foreign, open_step)) = (gate(), gate());
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &slot(1), &mut to, &held).expect("fed");
    let step = device.step(&to, &foreign, None).expect("may be in order");
    open_step();
    step.wait().expect("the stream goes on");
    open_copy();
    fed.ready.wait().expect("the stream goes on");
    assert_violation(&device, "step 1 reads device memory 1 before copy 1");
}

#[test]
fn reading_back_before_ready_is_caught() {
    let device = sim("sim");
    let (held, open) = gate();
    let mut to = device.memory(LEN, 0).expect("memory");
    let _ = feed(&device, &slot(1), &mut to, &held).expect("fed");
    let mut out = [7; LEN];
    device.read_back(&to, &Event::done(), &mut out).expect_err("not there");
    assert_eq!(out, [7; LEN]);
    open();
    assert_violation(&device, "read_back reads device memory 1 before copy 1");
}

#[test]
fn reading_what_was_never_fed_is_caught() {
    let device = sim("sim");
    let to = device.memory(LEN, 0).expect("memory");
    device.read_back(&to, &Event::done(), &mut [0]).expect_err("never fed");
    assert_violation(&device, "read_back reads device memory 1, which was never written");
    let device = sim("sim");
    let to = device.memory(LEN, 0).expect("memory");
    device.step(&to, &Event::done(), None).expect_err("never fed");
    assert_violation(&device, "step 1 reads device memory 1, which was never written");
}

#[test]
fn memory_runs_out_at_its_limit_and_comes_back() {
    let device = sim("sim:memory=1000");
    let mut first = device.memory(600, 0).expect("600 of 1000");
    let error = device.memory(401, 0).expect_err("401 of 400");
    let free = Some(ByteCount(400));
    assert_eq!(error, DeviceError::OutOfMemory { what: "device memory", asked: ByteCount(401), free, usage: None });
    assert!(error.to_string().contains("401 B asked for, 400 B free"), "{error}");
    let second = device.memory(400, 0).expect("400 of 400");
    drop(second);
    let (held, open) = gate();
    let fed = feed(&device, &slot(1), &mut first, &held).expect("fed");
    drop(first);
    assert!(device.memory(401, 0).is_err(), "the copy still writes there");
    open();
    fed.ready.wait().expect("arrived");
    device.memory(401, 0).expect("nothing else is there any more");
    assert_clean(&device);
}

#[test]
fn a_failed_copy_fails_its_event_and_all_after_it() {
    let device = sim("sim:fail-copy=2");
    let from = slot(1);
    let [mut first, mut second] = [(); 2].map(|()| device.memory(LEN, 0).expect("memory"));
    let good = feed(&device, &from, &mut first, &Event::done()).expect("fed");
    good.ready.wait().expect("copy 1 is fine");
    let (held, open) = gate();
    let bad = feed(&device, &from, &mut second, &held).expect("enqueued");
    let step = device.step(&second, &bad.ready, None).expect("enqueued");
    open();
    let error = DeviceError::Failed { what: "copy 2".to_owned(), cause: "fail-copy was set".to_owned() };
    for event in [&bad.ready, &bad.slot_free, &step] {
        assert_eq!(event.wait(), Err(error.clone()));
        assert_eq!(event.is_done(), Err(error.clone()));
    }
    assert_eq!(good.ready.is_done(), Ok(true), "what has passed has passed");
    assert_eq!(device.check(), Err(error.clone()));
    assert_eq!(feed(&device, &from, &mut first, &Event::done()).map(|_| ()), Err(error.clone()));
    assert_eq!(device.read_back(&first, &good.ready, &mut []), Err(error));
}

#[test]
fn a_lost_device_says_so_to_everybody() {
    let device = sim("sim:lose-after=1");
    let from = slot(1);
    let mut to = device.memory(LEN, 0).expect("memory");
    let (held, open) = gate();
    let first = feed(&device, &from, &mut to, &held).expect("enqueued");
    let step = device.step(&to, &first.ready, None).expect("enqueued");
    open();
    // Which of the two streams comes first is open; that the device is lost at the second command is not.
    let error = step.wait().expect_err("lost");
    assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("lose-after=1' is lost: lose-after=1 was set"), "{error}");
    assert_eq!(device.check(), Err(error.clone()));
    assert_eq!(device.step(&to, &first.ready, None).map(|_| ()), Err(error));
}

#[test]
fn dropping_a_device_ends_whatever_is_under_way() {
    let device = sim("sim:step=3600s");
    let from = slot(1);
    let (never, _open) = gate();
    let [mut first, mut second] = [(); 2].map(|()| device.memory(LEN, 0).expect("memory"));
    let good = feed(&device, &from, &mut first, &Event::done()).expect("fed");
    let hour = device.step(&first, &good.ready, None).expect("an hour");
    good.ready.wait().expect("arrived");
    let stuck = feed(&device, &from, &mut second, &never).expect("enqueued");
    drop(device);
    assert_eq!(Arc::strong_count(&from), 1, "the slot is no longer held");
    for event in [hour, stuck.ready] {
        assert!(matches!(event.wait(), Err(DeviceError::Lost { .. })));
    }
    assert_eq!(good.ready.wait(), Ok(()));
}

#[test]
fn a_loop_without_a_wait_of_the_host_is_clean() {
    for text in ["sim", "sim:latency=300us,step=50us", "sim:latency=0us,step=300us"] {
        let device = sim(text);
        let mut ring: Vec<_> =
            (0..3).map(|_| (device.memory(LEN, 0).expect("memory"), Event::done(), Event::done())).collect();
        let mut slots: Vec<_> = (0..4).map(|_| (slot(0), Event::done())).collect();
        for n in 0..200usize {
            let (from, slot_free) = &mut slots[n % 4];
            slot_free.wait().expect("the copy out of it is over");
            Arc::get_mut(from).expect("ours again").as_mut_slice().fill(n as u8);
            let (to, released, ready) = &mut ring[n % 3];
            let fed = feed(&device, from, to, released).expect("fed");
            (*slot_free, *ready) = (fed.slot_free, fed.ready);
            device.step(to, ready, None).expect("a step");
            *released = device.release(to).expect("released");
        }
        for (at, (memory, released, ready)) in ring.iter().enumerate() {
            released.wait().expect("over");
            let mut out = [0; LEN];
            device.read_back(memory, ready, &mut out).expect("read back");
            let last = (0..200).rev().find(|n| n % 3 == at).expect("one of three");
            assert_eq!(out, [last as u8; LEN]);
        }
        assert_clean(&device);
    }
}

#[test]
fn copies_and_steps_take_their_time() {
    let start = Instant::now();
    let device = sim("sim:h2d=1MB/s,latency=2ms,step=4ms");
    let mut to = device.memory(LEN, 0).expect("memory");
    let fed = feed(&device, &slot(1), &mut to, &Event::done()).expect("fed");
    fed.ready.wait().expect("arrived");
    assert!(start.elapsed() >= Duration::from_micros(2000 + LEN as u64));
    assert_eq!(device.utilization().map(|shown| shown.elapsed), Some(Duration::ZERO), "no step yet");
    let steps: Vec<_> = (0..5).map(|_| device.step(&to, &fed.ready, None).expect("a step")).collect();
    device.step(&to, &fed.ready, Some(Duration::from_millis(1))).expect("a step").wait().expect("over");
    assert!(start.elapsed() >= Duration::from_millis(2 + 5 * 4 + 1));
    assert!(steps.iter().all(|step| step.is_done() == Ok(true)));
    let shown = device.utilization().expect("it can tell");
    assert_eq!(shown.compute_busy, Duration::from_millis(21), "busy in simulated time");
    assert_eq!(shown.copy_busy, Duration::ZERO, "copies before the first step do not count");
    assert!(shown.elapsed >= shown.compute_busy && shown.compute_share() <= 1.0);
}
