//! A latch: many threads count their parts down to zero, one waits until all are done. The parts' reports are merged
//! under the latch's lock.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, lock};

/// A countdown of parts, with a report that they add to.
pub(crate) struct Latch<T> {
    state: Mutex<State<T>>,
    open: Condvar,
}

struct State<T> {
    left: usize,
    report: Option<T>,
}

impl<T> Latch<T> {
    pub(crate) fn new(parts: usize, report: T) -> Self {
        Latch { state: Mutex::new(State { left: parts, report: Some(report) }), open: Condvar::new() }
    }

    /// Adds to the report without counting a part.
    pub(crate) fn note(&self, note: impl FnOnce(&mut T)) {
        Self::with(&mut lock(&self.state), note);
    }

    /// Counts `parts` parts as done, after their last write: the waiter sees everything that was written before.
    pub(crate) fn done(&self, parts: usize, note: impl FnOnce(&mut T)) {
        let mut state = lock(&self.state);
        Self::with(&mut state, note);
        state.left -= parts;
        if state.left == 0 {
            self.open.notify_all();
        }
    }

    fn with(state: &mut MutexGuard<'_, State<T>>, note: impl FnOnce(&mut T)) {
        if let Some(report) = state.report.as_mut() {
            note(report);
        }
    }

    /// Returns true if every part is done.
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.state).left == 0
    }

    /// Blocks until every part is done, and takes the report; `None` if it was taken before.
    pub(crate) fn wait(&self) -> Option<T> {
        let mut state = lock(&self.state);
        while state.left > 0 {
            state = self.open.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.report.take()
    }
}
