//! Owns what the streams still work on: the handles of slots and device memory that copies and kernels use, until they
//! are over, and the record of how long each stream was busy.
//! It must never let go of anything before the mark behind it has passed.

use std::any::Any;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::event::RecordedEvent;
use crate::device::stream_trace::{self, What};
use crate::device::{DeviceError, HostMemory, Utilization};
use crate::sync::{Arc, Mutex, lock};

/// Intervals that are kept for the record at most; older ones are given up (and the busy time of a consumer that never
/// releases a batch with them).
const INTERVALS_MAX: usize = 4096;

/// What is under way on the streams of one device.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Slots that are being copied, in the order of the copy stream.
    slots: VecDeque<(Arc<RecordedEvent>, Arc<HostMemory>)>,
    /// Device memory that is being written, in the order of the stream that writes it last.
    memory: VecDeque<(Arc<RecordedEvent>, Arc<dyn Any + Send + Sync>)>,
    /// What the device may use, and nobody knows any more until when.
    unknown: Vec<(Arc<HostMemory>, Arc<dyn Any + Send + Sync>)>,
    started: Option<Instant>,
    copy: Busy,
    compute: Busy,
    /// Of interest to who draws a timeline, and to nobody else.
    convert: Busy,
}

/// How long one stream was busy.
#[derive(Debug, Default)]
struct Busy {
    total: Duration,
    /// Beginnings whose end has not been enqueued.
    open: VecDeque<(u64, Arc<RecordedEvent>)>,
    /// Begun and ended, in the order of their ends.
    intervals: VecDeque<Interval>,
    /// The last end that was counted.
    counted: Option<(u64, Arc<RecordedEvent>)>,
    /// How many marks there were.
    marks: u64,
    /// The same moment by the host's clock and on the device: the first beginning, then the last end that was told.
    moment: Option<(Instant, Arc<RecordedEvent>)>,
}

#[derive(Debug)]
struct Interval {
    begin: (u64, Arc<RecordedEvent>),
    end: (u64, Arc<RecordedEvent>),
}

impl Busy {
    fn number(&mut self) -> u64 {
        self.marks += 1;
        self.marks
    }

    fn begin(&mut self, mark: Arc<RecordedEvent>) {
        let number = self.number();
        // An idle stream passes it at once, so that the two clocks agree to within a launch.
        self.moment.get_or_insert_with(|| (Instant::now(), Arc::clone(&mark)));
        self.open.push_back((number, mark));
        if self.open.len() > INTERVALS_MAX {
            self.open.pop_front();
        }
    }

    fn end(&mut self, mark: Arc<RecordedEvent>) {
        let number = self.number();
        if let Some(begin) = self.open.pop_front() {
            self.intervals.push_back(Interval { begin, end: (number, mark) });
        }
    }

    /// Counts what is over on this stream, and tells it.
    fn count(&mut self, what: What) -> Result<(), DeviceError> {
        while let Some(Interval { begin, end }) = self.intervals.front() {
            if self.intervals.len() <= INTERVALS_MAX && !end.1.is_passed()? {
                break;
            }
            if end.1.is_passed()? {
                // Where intervals overlap, time counts once: from the end before on, if that is the later of the two.
                let from = self.counted.as_ref().filter(|counted| counted.0 > begin.0).unwrap_or(begin);
                let busy = from.1.recorded().until(end.1.recorded())?;
                self.total += busy;
                if let Some((host, device)) = self.moment.as_ref().filter(|_| stream_trace::is_wanted()) {
                    let ended = *host + device.recorded().until(end.1.recorded())?;
                    stream_trace::over(what, ended.checked_sub(busy).unwrap_or(ended), ended);
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
    /// A copy out of `slot`, begun at `begun` and over at `copied`, and the writing of `memory`, over at `ready`.
    pub(super) fn fed(
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
        if stream_trace::is_wanted() && !Arc::ptr_eq(copied, ready) {
            inner.convert.begin(Arc::clone(copied));
            inner.convert.end(Arc::clone(ready));
        }
    }

    /// Keeps both for good: a copy may have been enqueued, and nothing says when it is over.
    pub(super) fn leak_unknown(&self, slot: Arc<HostMemory>, memory: Arc<dyn Any + Send + Sync>) {
        lock(&self.0).unknown.push((slot, memory));
    }

    /// The consumer's work on a batch begins at `mark`, which was recorded after `since`.
    pub(super) fn begin(&self, since: Instant, mark: Arc<RecordedEvent>) {
        let mut inner = lock(&self.0);
        if inner.started.is_none() {
            inner.started = Some(since);
            // Batches that were made ready before are none of the time that is looked at.
            inner.copy.total = Duration::ZERO;
        }
        inner.compute.begin(mark);
    }

    /// The consumer's work on the batch that was begun first and is not ended ends here.
    pub(super) fn end(&self, mark: &Arc<RecordedEvent>) {
        lock(&self.0).compute.end(Arc::clone(mark));
    }

    /// Lets go of what is over. Never blocks.
    pub(super) fn reap(&self) -> Result<(), DeviceError> {
        let mut inner = lock(&self.0);
        while let Some((mark, _)) = inner.slots.front()
            && mark.is_passed()?
        {
            inner.slots.pop_front();
        }
        while let Some((mark, _)) = inner.memory.front()
            && mark.is_passed()?
        {
            inner.memory.pop_front();
        }
        inner.copy.count(What { stream: "copy", what: "copy" })?;
        inner.convert.count(What { stream: "convert", what: "convert" })?;
        inner.compute.count(What { stream: "compute", what: "step" })
    }

    /// Waits until everything is over, at most this long, and lets go of it.
    pub(super) fn synchronize(&self, limit: Duration) {
        let start = Instant::now();
        loop {
            if self.reap().is_err() {
                // Nothing works any more, so nothing is being worked on.
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

    /// What is left, and what was unknown, goes to nobody: the device may use it for as long as the process lives.
    pub(super) fn leak(&self) {
        let inner = std::mem::take(&mut *lock(&self.0));
        inner.slots.into_iter().for_each(|(_, slot)| std::mem::forget(slot));
        inner.unknown.into_iter().for_each(std::mem::forget);
        inner.memory.into_iter().for_each(|(_, memory)| std::mem::forget(memory));
    }

    /// How busy the streams were, as far as what is over tells.
    pub(super) fn utilization(&self) -> Utilization {
        // What went wrong sticks to the device, and is told by the next call.
        let _ = self.reap();
        let inner = lock(&self.0);
        Utilization {
            elapsed: inner.started.map_or(Duration::ZERO, |started| started.elapsed()),
            compute_busy: inner.compute.total,
            copy_busy: inner.copy.total,
        }
    }
}
