//! The state that every thread of a run shares.

use super::cancel::Cancel;
use super::engine::Engine;
use crate::sync::Arc;

/// A run's engine, cancellation and epoch.
#[derive(Clone)]
pub(super) struct RunContext {
    pub(super) engine: Arc<Engine>,
    pub(super) cancel: Cancel,
    pub(super) epoch: u64,
}
