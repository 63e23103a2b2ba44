//! Owns the exchange among threads of one process, by burn's collective. It must never be waited for without a
//! deadline: a call here returns when all threads have made theirs, and not before.
//!
//! Of that collective only `broadcast` is used. Its `all_reduce` adds in the order of a hash map, which differs from
//! run to run wherever there are more than two ranks. Here the other threads hand over what they have, one after the
//! other, and the first adds: the order is that of the threads.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};
use burn_collective::{
    BroadcastStrategy, CollectiveConfig, CollectiveError as BurnError, PeerId, broadcast, finish_collective, register,
    reset_collective,
};

use super::{CollectiveError, RankInfo};

/// Burn's collective keeps one set of ranks for a process.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Every group has ids of its own, so that a thread that is stuck in an earlier one cannot speak in a later.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

/// The place that a group has in burn's collective, until all its ranks have left.
#[derive(Debug)]
pub(super) struct GroupSlot {
    pub(super) arrivals: Arc<Arrivals>,
}

impl GroupSlot {
    pub(super) fn of(threads: usize) -> Result<GroupSlot, CollectiveError> {
        if threads > 1 && TAKEN.swap(true, Ordering::AcqRel) {
            return Err(CollectiveError::Config(format!(
                "{threads} ranks as threads, while others of this process still exchange: drop the other ProcessGroup and its \
                 Communicator first, or run it as a process of its own"
            )));
        }
        let first = NEXT_ID.fetch_add(threads as u32, Ordering::Relaxed);
        let arrivals = (0..threads).map(|_| AtomicU64::new(0)).collect();
        Ok(GroupSlot { arrivals: Arc::new(Arrivals { first, arrivals, failure: Mutex::default() }) })
    }
}

impl Drop for GroupSlot {
    fn drop(&mut self) {
        if self.arrivals.threads() > 1 {
            TAKEN.store(false, Ordering::Release);
        }
    }
}

/// What the threads of a group know of each other.
pub(super) struct Arrivals {
    first: u32,
    /// To how many exchanges each thread has come, its joining included.
    arrivals: Vec<AtomicU64>,
    /// Why one of them has given up.
    failure: Mutex<Option<String>>,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").field("arrivals", &self.arrivals).finish_non_exhaustive()
    }
}

impl Arrivals {
    pub(super) fn threads(&self) -> usize {
        self.arrivals.len()
    }

    pub(super) fn arrive(&self, thread: usize) {
        self.arrivals[thread].fetch_add(1, Ordering::Relaxed);
    }

    /// Who keeps a thread waiting, in words: those of this process that have not come yet, else the other processes.
    pub(super) fn late_ranks(&self, thread: usize, info: RankInfo) -> String {
        let come = |at: usize| self.arrivals[at].load(Ordering::Relaxed);
        let first = info.rank - thread;
        let late = (0..self.threads()).filter(|at| come(*at) < come(thread));
        let names: Vec<_> = late.map(|at| format!("rank {} of the same process", first + at)).collect();
        if names.is_empty() { "the other ranks".to_owned() } else { names.join(", ") }
    }

    /// Ends what the other threads of this process wait for. The first reason is the one that they are told.
    pub(super) fn give_up<B: Backend>(&self, error: &CollectiveError) {
        if self.threads() < 2 {
            return;
        }
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        reset_collective::<B>();
    }
}

/// One thread among those of this process.
pub(super) struct Threads<B: Backend> {
    arrivals: Arc<Arrivals>,
    info: RankInfo,
    thread: usize,
    device: B::Device,
}

impl<B: Backend> Threads<B> {
    /// Returns when all threads have called it.
    pub(super) fn join(
        arrivals: Arc<Arrivals>,
        info: RankInfo,
        thread: usize,
        device: B::Device,
    ) -> Result<Threads<B>, CollectiveError> {
        let config = CollectiveConfig::default()
            .with_num_devices(arrivals.threads())
            .with_local_broadcast_strategy(BroadcastStrategy::Centralized);
        let threads = Threads::<B> { arrivals, info, thread, device };
        register::<B>(threads.id(), threads.device.clone(), config).map_err(|error| threads.lost(error, 0))?;
        Ok(threads)
    }

    fn id(&self) -> PeerId {
        PeerId(self.arrivals.first + self.thread as u32)
    }

    /// Hands over to the first thread, which gets the sum; the others get nothing.
    pub(super) fn gather(&self, tensor: Tensor<B, 1>, sums: u64) -> Result<Option<Tensor<B, 1>>, CollectiveError> {
        let length = tensor.dims()[0];
        let mut mine = Some(tensor);
        for giver in 1..self.arrivals.threads() {
            let given = if giver == self.thread { mine.take() } else { None };
            let received = self.broadcast(given, sums)?;
            if received.dims()[0] != length {
                let whom = format!("rank {}", self.info.rank - self.thread + giver);
                let why = format!("it gave {} numbers, this rank has {length}", received.dims()[0]);
                return Err(self.info.lost(whom, sums, why));
            }
            if self.thread == 0 {
                mine = mine.map(|sum| sum + received);
            }
        }
        Ok(mine)
    }

    /// Gives to all threads what the first has.
    pub(super) fn spread(&self, sum: Option<Tensor<B, 1>>, sums: u64) -> Result<Tensor<B, 1>, CollectiveError> {
        self.broadcast(sum, sums)
    }

    pub(super) fn leave(&self) {
        // Those who are left notice at their next exchange; after a failure there is nothing to leave.
        let _ = finish_collective::<B>(self.id());
    }

    fn broadcast(&self, given: Option<Tensor<B, 1>>, sums: u64) -> Result<Tensor<B, 1>, CollectiveError> {
        let given = given.map(|tensor| tensor.into_primitive().tensor());
        let received = broadcast::<B>(self.id(), given).map_err(|error| self.lost(error, sums))?;
        // The library moves it to everybody's device but the first caller's.
        Ok(Tensor::from_primitive(TensorPrimitive::Float(received)).to_device(&self.device))
    }

    fn lost(&self, error: BurnError, sums: u64) -> CollectiveError {
        let told = self.arrivals.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = told.unwrap_or_else(|| match error {
            BurnError::BroadcastNoTensor => "it has left".to_owned(),
            error => format!("burn's collective says {error:?}"),
        });
        self.info.lost("another rank of the same process".to_owned(), sums, why)
    }
}
