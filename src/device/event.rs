//! Owns points on streams: what has to pass before memory may be used again.
//! It must never know what kind of stream a point is on.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use super::DeviceError;
use crate::sync::Arc;

/// The longest that [`Event::wait`] waits. Nothing that a loader enqueues takes near as long; a device that has not
/// answered by then hangs.
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// What a device puts into an [`Event`].
///
/// It goes from pending to passed or to failed, once, and stays there.
pub trait Signal: Any + fmt::Debug + Send + Sync {
    /// Blocks until it has passed (`true`), but at most this long (`false`: still pending). A limit of zero asks.
    ///
    /// # Errors
    /// What kept it from ever passing.
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError>;
}

/// A point on a stream. It is cheap to clone, and once it has passed it has passed for good.
#[derive(Clone, Default)]
pub struct Event(Option<Arc<dyn Signal>>);

impl Event {
    /// An event that has passed.
    #[must_use]
    pub const fn done() -> Self {
        Event(None)
    }

    /// An event of some device's making.
    #[must_use]
    pub fn new(signal: Arc<dyn Signal>) -> Self {
        Event(Some(signal))
    }

    /// Whether it has passed. Does not block.
    ///
    /// # Errors
    /// What kept it from ever passing, such as [`DeviceError::Lost`].
    pub fn is_done(&self) -> Result<bool, DeviceError> {
        self.wait_for(Duration::ZERO)
    }

    /// Blocks until it has passed (`true`), but at most this long (`false`).
    ///
    /// # Errors
    /// What kept it from ever passing.
    pub fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        self.0.as_ref().map_or(Ok(true), |signal| signal.wait_for(limit))
    }

    /// Blocks until it has passed.
    ///
    /// # Errors
    /// What kept it from ever passing; [`DeviceError::Timeout`] after [`WAIT_MAX`].
    pub fn wait(&self) -> Result<(), DeviceError> {
        match self.wait_for(WAIT_MAX)? {
            true => Ok(()),
            false => Err(DeviceError::Timeout { what: format!("{self:?}"), waited: WAIT_MAX }),
        }
    }

    /// What is in it, if that is a `T`: how a device knows an event of its own, which it can order by without a wait of
    /// the host. `None` for a foreign one, and for [`Event::done`].
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
    fn what_is_done_is_done_at_once() {
        for event in [Event::done(), Event::default()] {
            assert_eq!(event.is_done(), Ok(true));
            assert_eq!(event.wait(), Ok(()));
            assert_eq!(event.clone().wait_for(Duration::ZERO), Ok(true));
            assert!(event.signal::<Never>().is_none());
        }
    }

    #[test]
    fn a_wait_ends() {
        let event = Event::new(Arc::new(Never));
        assert_eq!(event.is_done(), Ok(false));
        let error = event.wait().expect_err("it never passes");
        assert_eq!(error.to_string(), "Event(Never) has not passed within 600 s; the device may hang");
        assert!(event.signal::<Never>().is_some());
    }
}
