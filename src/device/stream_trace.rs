//! `tracing` events for the copies, conversions and steps on a device's streams, each with its begin and end.

use std::time::Instant;

/// Target of these events. Their fields are `stream` and `what` (see [`What`]), `began_ago_ns` and `ended_ago_ns`,
/// counted back from the time of the event.
const TARGET: &str = "feedstock::stream";

/// Work on a stream.
#[derive(Clone, Copy)]
pub(super) struct What {
    /// "copy", "convert" or "compute".
    pub(super) stream: &'static str,
    /// "copy", "convert" or "step".
    pub(super) what: &'static str,
}

/// Returns true if a subscriber takes these events.
pub(super) fn is_enabled() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
}

/// Emits the event of finished work, if a subscriber takes it.
pub(super) fn emit(What { stream, what }: What, began: Instant, ended: Instant) {
    if is_enabled() {
        let now = Instant::now();
        let ago = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_nanos()).unwrap_or(u64::MAX);
        let (began_ago_ns, ended_ago_ns) = (ago(began), ago(ended));
        tracing::debug!(target: TARGET, stream, what, began_ago_ns, ended_ago_ns);
    }
}
