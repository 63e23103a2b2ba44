//! Recorded events as the pipeline's [`Event`]s.

use std::fmt;
use std::time::Duration;

use super::in_flight::InFlight;
use super::recorded_event::RecordedEvent;
use crate::device::{DeviceError, Event, Signal};
use crate::sync::Arc;

/// Signal of an [`Event`]. Before it reports that it has passed, it drops the memory that the work up to it held.
pub(super) struct CudaEvent {
    recorded: Arc<RecordedEvent>,
    in_flight: Arc<InFlight>,
}

impl CudaEvent {
    pub(super) fn event(recorded: &Arc<RecordedEvent>, in_flight: &Arc<InFlight>) -> Event {
        Event::new(Arc::new(CudaEvent { recorded: Arc::clone(recorded), in_flight: Arc::clone(in_flight) }))
    }

    /// Returns the recorded event in `event` if this device made it.
    pub(super) fn recorded_in<'e>(event: &'e Event, in_flight: &Arc<InFlight>) -> Option<&'e Arc<RecordedEvent>> {
        event.signal::<CudaEvent>().filter(|own| Arc::ptr_eq(&own.in_flight, in_flight)).map(|own| &own.recorded)
    }
}

impl Signal for CudaEvent {
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        let passed = self.recorded.wait_for(limit)?;
        if passed {
            self.in_flight.reap()?;
        }
        Ok(passed)
    }
}

impl fmt::Debug for CudaEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.recorded.fmt(f)
    }
}
