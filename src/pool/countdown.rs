//! Owns the moment at which a slot is whole: many threads report their parts, one waits for the last.
//! It must never touch pixels.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, lock};

/// Counts parts down to zero, and gathers what they report on the way.
pub(crate) struct Countdown<T> {
    state: Mutex<State<T>>,
    whole: Condvar,
}

struct State<T> {
    left: usize,
    report: Option<T>,
}

impl<T> Countdown<T> {
    pub(crate) fn new(parts: usize, report: T) -> Self {
        Countdown { state: Mutex::new(State { left: parts, report: Some(report) }), whole: Condvar::new() }
    }

    /// Notes something about a part without counting it.
    pub(crate) fn note(&self, note: impl FnOnce(&mut T)) {
        Self::with(&mut lock(&self.state), note);
    }

    /// Counts `parts` parts as done, after their last write: whoever waits sees everything that was written before.
    pub(crate) fn done(&self, parts: usize, note: impl FnOnce(&mut T)) {
        let mut state = lock(&self.state);
        Self::with(&mut state, note);
        state.left -= parts;
        if state.left == 0 {
            self.whole.notify_all();
        }
    }

    fn with(state: &mut MutexGuard<'_, State<T>>, note: impl FnOnce(&mut T)) {
        if let Some(report) = state.report.as_mut() {
            note(report);
        }
    }

    /// Whether every part is done.
    pub(crate) fn is_whole(&self) -> bool {
        lock(&self.state).left == 0
    }

    /// Blocks until every part is done, and takes the report. `None` if it has been taken before.
    pub(crate) fn wait(&self) -> Option<T> {
        let mut state = lock(&self.state);
        while state.left > 0 {
            state = self.whole.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.report.take()
    }
}
