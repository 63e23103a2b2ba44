//! Events recorded on streams, which remember that they have passed.
//!
//! The driver's blocking wait has no limit, so a wait asks again and again instead.

use std::fmt;
use std::time::{Duration, Instant};

use super::driver::RawEvent;
use crate::device::DeviceError;
use crate::sync::{Arc, AtomicBool, Ordering};

/// Time that a wait asks without a pause. Most copies that are waited for at all are nearly over.
const SPIN: Duration = Duration::from_micros(20);
/// Longest pause between two questions, and so the most that a wait may be late by.
const PAUSE_MAX: Duration = Duration::from_micros(200);

/// An event recorded on a stream of the device.
pub(super) struct RecordedEvent {
    raw: RawEvent,
    passed: AtomicBool,
    what: &'static str,
}

impl RecordedEvent {
    pub(super) fn new(raw: RawEvent, what: &'static str) -> Arc<Self> {
        Arc::new(RecordedEvent { raw, passed: AtomicBool::new(false), what })
    }

    pub(super) fn raw(&self) -> &RawEvent {
        &self.raw
    }

    /// Returns true if the stream has reached the event.
    pub(super) fn is_passed(&self) -> Result<bool, DeviceError> {
        if self.passed.load(Ordering::Acquire) {
            return Ok(true);
        }
        let passed = self.raw.is_over()?;
        if passed {
            self.passed.store(true, Ordering::Release);
        }
        Ok(passed)
    }

    /// Blocks until the event has passed (`true`), but at most this long (`false`).
    pub(super) fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        loop {
            if self.is_passed()? {
                return Ok(true);
            }
            let waited = start.elapsed();
            if waited >= limit {
                return Ok(false);
            }
            if waited >= SPIN {
                std::thread::sleep(pause.min(limit - waited));
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
    }
}

impl fmt::Debug for RecordedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}
