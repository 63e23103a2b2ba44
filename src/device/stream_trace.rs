//! Owns what streams tell a `tracing` subscriber: when each copy and each step began and ended, on which stream. It must never
//! cost anything where nobody subscribes.

use std::time::Instant;

/// The target of these events. Their fields: `stream` and `what` (see [`What`]), `began_ago_ns` and `ended_ago_ns`, counted
/// back from the moment of the event.
const TARGET: &str = "feedstock::stream";

/// What is over.
#[derive(Clone, Copy)]
pub(super) struct What {
    /// "copy", "convert" or "compute".
    pub(super) stream: &'static str,
    /// "copy", "convert" or "step".
    pub(super) what: &'static str,
}

/// Whether somebody wants to know.
pub(super) fn is_wanted() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
}

/// Something on a stream is over.
pub(super) fn over(What { stream, what }: What, began: Instant, ended: Instant) {
    if is_wanted() {
        let now = Instant::now();
        let ago = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_nanos()).unwrap_or(u64::MAX);
        let (began_ago_ns, ended_ago_ns) = (ago(began), ago(ended));
        tracing::debug!(target: TARGET, stream, what, began_ago_ns, ended_ago_ns);
    }
}
