//! Events: points on streams that pass before memory may be used again.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use super::DeviceError;
use crate::sync::Arc;

/// Limit of [`Event::wait`]. Nothing that a loader enqueues takes nearly as long; a device that has not answered by
/// then hangs.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(600);

/// A device's implementation of an [`Event`]. It changes from pending to passed or failed once, and stays so.
pub trait Signal: Any + fmt::Debug + Send + Sync {
    /// Blocks until the event has passed (`true`), but at most this long (`false`: still pending). A limit of zero
    /// polls.
    ///
    /// # Errors
    /// Reason that the event failed.
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError>;
}

/// A point on a stream. It is cheap to clone, and an event that has passed stays passed.
#[derive(Clone, Default)]
pub struct Event(Option<Arc<dyn Signal>>);

impl Event {
    /// An event that has passed.
    #[must_use]
    pub const fn done() -> Self {
        Event(None)
    }

    /// An event of a device.
    #[must_use]
    pub fn new(signal: Arc<dyn Signal>) -> Self {
        Event(Some(signal))
    }

    /// Returns true if the event has passed. Does not block.
    ///
    /// # Errors
    /// Reason that the event failed, such as [`DeviceError::Lost`].
    pub fn is_done(&self) -> Result<bool, DeviceError> {
        self.wait_for(Duration::ZERO)
    }

    /// Blocks until the event has passed (`true`), but at most this long (`false`).
    ///
    /// # Errors
    /// Reason that the event failed.
    pub fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        self.0.as_ref().map_or(Ok(true), |signal| signal.wait_for(limit))
    }

    /// Blocks until the event has passed.
    ///
    /// # Errors
    /// Reason that the event failed; [`DeviceError::Timeout`] after 600 s.
    pub fn wait(&self) -> Result<(), DeviceError> {
        match self.wait_for(WAIT_MAX)? {
            true => Ok(()),
            false => Err(DeviceError::Timeout { what: format!("{self:?}"), waited: WAIT_MAX }),
        }
    }

    /// The signal, if it is a `T`. A device recognizes its own events by it, which it can order by without a wait of
    /// the host. `None` for events of other devices, and for [`Event::done`].
    #[must_use]
    pub fn signal<T: Signal>(&self) -> Option<&T> {
        let any: &dyn Any = self.0.as_deref()?;
        any.downcast_ref()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Event(done)"),
            Some(signal) => write!(f, "Event({signal:?})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Never;
    impl Signal for Never {
        fn wait_for(&self, _: Duration) -> Result<bool, DeviceError> {
            Ok(false)
        }
    }

    #[test]
    fn a_done_event_has_passed() {
        for event in [Event::done(), Event::default()] {
            assert_eq!(event.is_done(), Ok(true));
            assert_eq!(event.wait(), Ok(()));
            assert_eq!(event.clone().wait_for(Duration::ZERO), Ok(true));
            assert!(event.signal::<Never>().is_none());
        }
    }

    #[test]
    fn a_wait_times_out() {
        let event = Event::new(Arc::new(Never));
        assert_eq!(event.is_done(), Ok(false));
        let error = event.wait().expect_err("it never passes");
        assert_eq!(error.to_string(), "Event(Never) has not passed within 600 s; the device may hang");
        assert!(event.signal::<Never>().is_some());
    }
}
