//! Sum among the threads of one process.
//!
//! Each thread has a mailbox. A thread puts its vector there; the first thread takes them in thread order, adds them to
//! its own, and puts the sum into every other mailbox. One mutex guards all mailboxes, and one condition variable wakes
//! every waiter, which looks at its own condition again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::{CollectiveError, LostReason, Problem, RankInfo, Ranks};

/// Mailboxes of the threads of one process.
#[derive(Debug)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mailboxes: Vec<Mailbox>,
    /// Message of the first thread that failed.
    failure: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Mailbox {
    /// Number of exchanges that the thread has come to, joining included.
    arrivals: u64,
    left: bool,
    given: Option<Vec<f32>>,
    received: Option<Vec<f32>>,
}

impl Arrivals {
    pub(super) fn new(threads: usize) -> Arrivals {
        let state = State { mailboxes: vec![Mailbox::default(); threads], failure: None };
        Arrivals { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the vector of a thread. The first thread gets the sum over all threads, to pass to
    /// [`broadcast`](Self::broadcast); the others get `None`, and wait in [`receive`](Self::receive).
    pub(super) fn reduce(
        &self,
        thread: usize,
        values: Vec<f32>,
        info: RankInfo,
        exchange: u64,
    ) -> Result<Option<Vec<f32>>, CollectiveError> {
        let threads = {
            let mut state = self.state();
            state.mailboxes[thread].arrivals += 1;
            state.mailboxes.len()
        };
        if thread > 0 {
            self.state().mailboxes[thread].given = Some(values);
            self.changed.notify_all();
            return Ok(None);
        }
        let (mut sum, deadline) = (values, Instant::now() + info.timeout);
        for giver in 1..threads {
            let given = self.wait(deadline, giver, |state| state.mailboxes[giver].given.take());
            let given = given.map_err(|problem| self.error(problem, thread, info, giver, exchange))?;
            if given.len() != sum.len() {
                let reason = LostReason::Length { theirs: given.len() as u64, ours: sum.len() as u64 };
                return Err(info.error(Ranks::new([info.rank + giver]), Problem::Lost(reason), exchange));
            }
            sum.iter_mut().zip(given).for_each(|(sum, value)| *sum += value);
        }
        Ok(Some(sum))
    }

    /// Puts the sum of the first thread into the mailboxes of the others.
    pub(super) fn broadcast(&self, sum: &[f32]) {
        for mailbox in self.state().mailboxes.iter_mut().skip(1) {
            mailbox.received = Some(sum.to_vec());
        }
        self.changed.notify_all();
    }

    /// Waits for the sum.
    pub(super) fn receive(
        &self,
        thread: usize,
        limit: Duration,
        info: RankInfo,
        exchange: u64,
    ) -> Result<Vec<f32>, CollectiveError> {
        let sum = self.wait(Instant::now() + limit, 0, |state| state.mailboxes[thread].received.take());
        sum.map_err(|problem| self.error(problem, thread, RankInfo { timeout: limit, ..info }, 0, exchange))
    }

    /// Ends what the other threads wait for. The first message is the one that they get.
    pub(super) fn fail(&self, error: &CollectiveError) {
        self.state().failure.get_or_insert_with(|| error.summary());
        self.changed.notify_all();
    }

    /// Marks a thread as gone.
    pub(super) fn leave(&self, thread: usize) {
        self.state().mailboxes[thread].left = true;
        self.changed.notify_all();
    }

    /// Waits until `ready` returns a value, which thread `whom` is to bring about.
    fn wait<T>(
        &self,
        deadline: Instant,
        whom: usize,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Problem> {
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if let Some(message) = &state.failure {
                return Err(Problem::Lost(LostReason::Told(message.clone())));
            }
            if state.mailboxes[whom].left {
                return Err(Problem::Lost(LostReason::Left));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Problem::Late);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn error(&self, problem: Problem, thread: usize, info: RankInfo, whom: usize, exchange: u64) -> CollectiveError {
        let first = info.rank - thread;
        let ranks = match problem {
            Problem::Late => self.late_ranks(thread, first),
            Problem::Lost(LostReason::Told(_)) => Ranks::default(),
            Problem::Lost(_) => Ranks::new([first + whom]),
        };
        info.error(ranks, problem, exchange)
    }

    /// Ranks of this process that have come to fewer exchanges than `thread`.
    fn late_ranks(&self, thread: usize, first: usize) -> Ranks {
        let state = self.state();
        let arrivals = state.mailboxes[thread].arrivals;
        let late = state.mailboxes.iter().enumerate().filter(|(_, mailbox)| mailbox.arrivals < arrivals);
        Ranks::new(late.map(|(thread, _)| first + thread))
    }
}
