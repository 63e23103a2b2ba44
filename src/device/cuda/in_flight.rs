//! Work in progress on the streams: handles of the slots and the device memory that copies and kernels use, each held
//! until the event behind the work has passed; and the busy time of each stream.

use std::any::Any;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::recorded_event::RecordedEvent;
use crate::device::stream_trace::{self, What};
use crate::device::{DeviceError, HostMemory, Utilization};
use crate::sync::{Arc, Mutex, lock};

/// Most intervals kept; older ones are dropped, and with them the busy time of a consumer that never releases a batch.
const INTERVALS_MAX: usize = 4096;

/// Work in progress on the streams of one device.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Slots that are being copied, in the order of the copy stream.
    slots: VecDeque<(Arc<RecordedEvent>, Arc<HostMemory>)>,
    /// Device memory that is being written, in the order of the stream that writes it last.
    memory: VecDeque<(Arc<RecordedEvent>, Arc<dyn Any + Send + Sync>)>,
    /// Memory that the device may use without an event that tells until when.
    unknown: Vec<(Arc<HostMemory>, Arc<dyn Any + Send + Sync>)>,
    started: Option<Instant>,
    copy: Busy,
    compute: Busy,
    /// Measured for `tracing` alone.
    convert: Busy,
}

/// Busy time of one stream.
#[derive(Debug, Default)]
struct Busy {
    total: Duration,
    /// Begins whose end has not been enqueued.
    open: VecDeque<(u64, Arc<RecordedEvent>)>,
    /// Complete intervals, in the order of their ends.
    intervals: VecDeque<Interval>,
    /// Last end that was counted.
    counted: Option<(u64, Arc<RecordedEvent>)>,
    /// Number of events so far.
    events: u64,
    /// One moment by the host's clock and on the device: the first begin, then the last end that was traced.
    moment: Option<(Instant, Arc<RecordedEvent>)>,
}

#[derive(Debug)]
struct Interval {
    begin: (u64, Arc<RecordedEvent>),
    end: (u64, Arc<RecordedEvent>),
}

impl Busy {
    fn number(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn begin(&mut self, event: Arc<RecordedEvent>) {
        let number = self.number();
        // An idle stream passes the event at once, so the two clocks agree to within a launch.
        self.moment.get_or_insert_with(|| (Instant::now(), Arc::clone(&event)));
        self.open.push_back((number, event));
        if self.open.len() > INTERVALS_MAX {
            self.open.pop_front();
        }
    }

    fn end(&mut self, event: Arc<RecordedEvent>) {
        let number = self.number();
        if let Some(begin) = self.open.pop_front() {
            self.intervals.push_back(Interval { begin, end: (number, event) });
        }
    }

    /// Counts the intervals that are over, and traces them.
    fn count(&mut self, what: What) -> Result<(), DeviceError> {
        while let Some(Interval { begin, end }) = self.intervals.front() {
            if self.intervals.len() <= INTERVALS_MAX && !end.1.is_passed()? {
                break;
            }
            if end.1.is_passed()? {
                // Overlapping time counts once: from the later of this begin and the previous end.
                let from = self.counted.as_ref().filter(|counted| counted.0 > begin.0).unwrap_or(begin);
                let busy = from.1.raw().until(end.1.raw())?;
                self.total += busy;
                if let Some((host, device)) = self.moment.as_ref().filter(|_| stream_trace::is_enabled()) {
                    let ended = *host + device.raw().until(end.1.raw())?;
                    stream_trace::emit(what, ended.checked_sub(busy).unwrap_or(ended), ended);
                    self.moment = Some((ended, Arc::clone(&end.1)));
                }
                self.counted = Some(end.clone());
            }
            self.intervals.pop_front();
        }
        Ok(())
    }
}

impl InFlight {
    /// Holds `slot` until `copied` and `memory` until `ready`; the copy began at `begun`.
    pub(super) fn add(
        &self,
        slot: Arc<HostMemory>,
        memory: Arc<dyn Any + Send + Sync>,
        begun: Arc<RecordedEvent>,
        copied: &Arc<RecordedEvent>,
        ready: &Arc<RecordedEvent>,
    ) {
        let mut inner = lock(&self.0);
        inner.slots.push_back((Arc::clone(copied), slot));
        inner.memory.push_back((Arc::clone(ready), memory));
        inner.copy.begin(begun);
        inner.copy.end(Arc::clone(copied));
        if stream_trace::is_enabled() && !Arc::ptr_eq(copied, ready) {
            inner.convert.begin(Arc::clone(copied));
            inner.convert.end(Arc::clone(ready));
        }
    }

    /// Holds both forever: a copy may have been enqueued, and no event tells its end.
    pub(super) fn leak_unknown(&self, slot: Arc<HostMemory>, memory: Arc<dyn Any + Send + Sync>) {
        lock(&self.0).unknown.push((slot, memory));
    }

    /// Begins the consumer's work on a batch at `event`, which was recorded after `since`.
    pub(super) fn begin(&self, since: Instant, event: Arc<RecordedEvent>) {
        let mut inner = lock(&self.0);
        if inner.started.is_none() {
            inner.started = Some(since);
            // Busy time starts with the first step.
            inner.copy.total = Duration::ZERO;
        }
        inner.compute.begin(event);
    }

    /// Ends the oldest of the consumer's begun batches at `event`.
    pub(super) fn end(&self, event: &Arc<RecordedEvent>) {
        lock(&self.0).compute.end(Arc::clone(event));
    }

    /// Drops the memory of finished work. Never blocks.
    pub(super) fn reap(&self) -> Result<(), DeviceError> {
        let mut inner = lock(&self.0);
        while let Some((event, _)) = inner.slots.front()
            && event.is_passed()?
        {
            inner.slots.pop_front();
        }
        while let Some((event, _)) = inner.memory.front()
            && event.is_passed()?
        {
            inner.memory.pop_front();
        }
        inner.copy.count(What { stream: "copy", what: "copy" })?;
        inner.convert.count(What { stream: "convert", what: "convert" })?;
        inner.compute.count(What { stream: "compute", what: "step" })
    }

    /// Waits until all work is finished, at most this long, and drops its memory.
    pub(super) fn synchronize(&self, limit: Duration) {
        let start = Instant::now();
        loop {
            if self.reap().is_err() {
                // A device that fails does no more work.
                drop(std::mem::take(&mut *lock(&self.0)));
                return;
            }
            let inner = lock(&self.0);
            if (inner.slots.is_empty() && inner.memory.is_empty()) || start.elapsed() > limit {
                return;
            }
            drop(inner);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Leaks the memory that is still held: the device may use it for as long as the process lives.
    pub(super) fn leak(&self) {
        let inner = std::mem::take(&mut *lock(&self.0));
        inner.slots.into_iter().for_each(|(_, slot)| std::mem::forget(slot));
        inner.unknown.into_iter().for_each(std::mem::forget);
        inner.memory.into_iter().for_each(|(_, memory)| std::mem::forget(memory));
    }

    /// Utilization by the work that is finished.
    pub(super) fn utilization(&self) -> Utilization {
        // An error sticks to the device, and the next call returns it.
        let _ = self.reap();
        let inner = lock(&self.0);
        Utilization {
            elapsed: inner.started.map_or(Duration::ZERO, |started| started.elapsed()),
            compute_busy: inner.compute.total,
            copy_busy: inner.copy.total,
        }
    }
}
