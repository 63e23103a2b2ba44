//! Owns points on the streams of a CUDA device as the pipeline's events.
//! It must never block in the driver: every wait has a limit, so it asks again and again.

use std::fmt;
use std::time::{Duration, Instant};

use super::driver::RawEvent;
use super::in_flight::InFlight;
use crate::device::{DeviceError, Event, Signal};
use crate::sync::{Arc, AtomicBool, Ordering};

/// How long a wait asks without a pause. Most copies that are waited for at all are nearly over.
const SPIN: Duration = Duration::from_micros(20);
/// The longest pause between two questions; it is what a wait may be late by.
const PAUSE_MAX: Duration = Duration::from_micros(200);

/// A point on one of the device's streams.
pub(super) struct RecordedEvent {
    recorded: RawEvent,
    passed: AtomicBool,
    what: &'static str,
}

impl RecordedEvent {
    pub(super) fn new(recorded: RawEvent, what: &'static str) -> Arc<Self> {
        Arc::new(RecordedEvent { recorded, passed: AtomicBool::new(false), what })
    }

    pub(super) fn recorded(&self) -> &RawEvent {
        &self.recorded
    }

    /// Whether the stream has got there.
    pub(super) fn is_passed(&self) -> Result<bool, DeviceError> {
        if self.passed.load(Ordering::Acquire) {
            return Ok(true);
        }
        let passed = self.recorded.is_over()?;
        if passed {
            self.passed.store(true, Ordering::Release);
        }
        Ok(passed)
    }

    /// Blocks until it has passed, at most this long.
    pub(super) fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        if self.is_passed()? {
            return Ok(true);
        }
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        loop {
            let waited = start.elapsed();
            if waited >= limit {
                return Ok(false);
            }
            if waited >= SPIN {
                std::thread::sleep(pause.min(limit - waited));
                pause = (2 * pause).min(PAUSE_MAX);
            }
            if self.is_passed()? {
                return Ok(true);
            }
        }
    }
}

impl fmt::Debug for RecordedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// A mark as an event. Whoever sees it pass has first let go of what the work up to it held.
pub(super) struct CudaEvent {
    mark: Arc<RecordedEvent>,
    in_flight: Arc<InFlight>,
}

impl CudaEvent {
    pub(super) fn event(mark: &Arc<RecordedEvent>, in_flight: &Arc<InFlight>) -> Event {
        Event::new(Arc::new(CudaEvent { mark: Arc::clone(mark), in_flight: Arc::clone(in_flight) }))
    }

    /// The mark in an event of this device's making.
    pub(super) fn mark_in<'e>(event: &'e Event, in_flight: &Arc<InFlight>) -> Option<&'e Arc<RecordedEvent>> {
        event.signal::<CudaEvent>().filter(|point| Arc::ptr_eq(&point.in_flight, in_flight)).map(|point| &point.mark)
    }
}

impl Signal for CudaEvent {
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        let passed = self.mark.wait_for(limit)?;
        if passed {
            self.in_flight.reap()?;
        }
        Ok(passed)
    }
}

impl fmt::Debug for CudaEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mark.fmt(f)
    }
}
