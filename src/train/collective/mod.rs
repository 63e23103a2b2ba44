//! Owns the exchange of one vector among the ranks of a run: who the ranks are, how long they wait for each other,
//! and the sum that each of them gets. It must never wait without an end, and never give two ranks two different
//! sums.
//!
//! Ranks are threads of one process, which burn's collective (`burn-collective`) connects; or processes, which meet
//! at rank 0 over the channels of `burn-communication`; or threads in each of several processes. Whatever may wait
//! for ever runs on a thread of each rank's own, and the rank waits for that with a deadline.
//!
//! The order of additions is fixed: within a process by thread, then among processes by rank. So the sum of one layout
//! (how many threads, how many processes) is the same in every run, bit for bit, and the same for every rank.

mod processes;
mod threads;
mod wire;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Builder;
use std::time::Duration;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::DistributedEnv;
use processes::Processes;
use threads::{Arrivals, GroupSlot, Threads};

/// How long ranks wait for each other where nothing else is said: longer than any validation or checkpoint of one of
/// them.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How long a rank that leaves waits for its own thread to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// All the ranks of a run, as one process sees them.
///
/// ```
/// use burn::backend::Flex;
/// use burn::tensor::Tensor;
/// use feedstock::train::ProcessGroup;
///
/// // Two ranks, as two threads of this process.
/// let group = ProcessGroup::new(None, 2)?;
/// let ranks = [0, 1].map(|thread| {
///     let group = group.clone();
///     std::thread::spawn(move || {
///         let device = Default::default();
///         let mut communicator = group.join::<Flex>(thread, &device)?;
///         let mine = Tensor::from_floats([1.0, communicator.rank() as f32], &device);
///         communicator.all_reduce_sum(mine).map(|sum| sum.into_data().to_vec::<f32>().ok())
///     })
/// });
/// for rank in ranks {
///     assert_eq!(rank.join().expect("no panic")?, Some(vec![2.0, 1.0]));
/// }
/// # Ok::<(), feedstock::train::CollectiveError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProcessGroup {
    /// This process among others; none where it is alone.
    world: Option<DistributedEnv>,
    threads: usize,
    timeout: Duration,
    slot: Arc<GroupSlot>,
}

impl ProcessGroup {
    /// The ranks of `threads` threads in this process, and as many in every other process of `world` (see
    /// [`DistributedEnv::from_env`]). A thread's rank is the process's rank times `threads`, plus the thread's number.
    ///
    /// # Errors
    /// [`CollectiveError::Config`] without threads, with several processes but no address to meet at, and where another group
    /// of several threads is still there: burn's collective keeps one for a process.
    pub fn new(world: Option<DistributedEnv>, threads: usize) -> Result<ProcessGroup, CollectiveError> {
        if threads == 0 {
            return Err(CollectiveError::Config("a group of no threads: 1 is a process with one rank".to_owned()));
        }
        let world = world.filter(|world| world.world_size > 1);
        if let Some(DistributedEnv { world_size, coordinator: None, told_by, .. }) = &world {
            return Err(CollectiveError::Config(format!(
                "{told_by} started {world_size} ranks on several machines and does not say where rank 0 is: set \
                 MASTER_ADDR to its machine's name or address, and MASTER_PORT where 29400 is in use there"
            )));
        }
        Ok(ProcessGroup { world, threads, timeout: TIMEOUT, slot: Arc::new(GroupSlot::of(threads)?) })
    }

    /// How long a rank waits for the others, when it joins and in each sum. Default: 10 minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many ranks there are in all processes.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world.as_ref().map_or(1, |world| world.world_size) * self.threads
    }

    /// The rank of one of this process's threads.
    #[must_use]
    pub fn rank(&self, thread: usize) -> usize {
        self.world.as_ref().map_or(0, |world| world.rank) * self.threads + thread
    }

    /// Joins as one of this process's threads, and waits until all ranks have joined. `B` is the backend without
    /// autodiff and the same for all threads.
    ///
    /// # Errors
    /// [`CollectiveError::Late`] if some do not come in time, [`CollectiveError::Lost`] if some leave again or are of another run,
    /// [`CollectiveError::Thread`] if no thread can be started.
    ///
    /// # Panics
    /// Panics if `thread` is not below the group's number of threads.
    pub fn join<B: Backend>(&self, thread: usize, device: &B::Device) -> Result<Communicator<B>, CollectiveError> {
        assert!(thread < self.threads, "thread {thread} of a group of {}", self.threads);
        let info = RankInfo { rank: self.rank(thread), world_size: self.world_size(), timeout: self.timeout };
        let longest = match (self.threads, &self.world) {
            // Burn's collective waits for ever, and it is from here that a wait for it ends.
            (2.., None) => info.timeout,
            (2.., Some(_)) => info.timeout * 2,
            // The wait for another process ends by itself, and then it is known which one it was.
            (_, _) => info.timeout + info.timeout / 2,
        };
        let mut communicator =
            Communicator { info, longest, thread, slot: self.slot.clone(), helper: None, sums: 0, over: false };
        if info.world_size > 1 {
            self.slot.arrivals.arrive(thread);
            let helper = Helper::start(self, info, thread, device.clone());
            communicator.helper = Some(helper.map_err(CollectiveError::Thread)?);
            communicator.wait()?;
        }
        Ok(communicator)
    }
}

/// One rank's connection to all the others. To drop it is to leave, and never waits for longer than a second.
#[derive(Debug)]
pub struct Communicator<B: Backend> {
    info: RankInfo,
    /// After this a wait ends, whatever the helper does.
    longest: Duration,
    thread: usize,
    slot: Arc<GroupSlot>,
    /// None for a rank that is alone.
    helper: Option<Helper<B>>,
    sums: u64,
    /// An exchange has failed, and no other can follow.
    over: bool,
}

/// Which of the ranks, and how long it waits.
#[derive(Clone, Copy, Debug)]
struct RankInfo {
    rank: usize,
    world_size: usize,
    timeout: Duration,
}

impl<B: Backend> Communicator<B> {
    /// Which rank this is, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.info.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.info.world_size
    }

    /// The sum of what all ranks give, which must be vectors of one length. Every rank gets the same bits.
    ///
    /// # Errors
    /// [`CollectiveError::Late`] if a rank does not come to this sum in time, [`CollectiveError::Lost`] if one has gone or gives
    /// another length. After an error no sum is possible any more.
    pub fn all_reduce_sum(&mut self, tensor: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        let Some(helper) = &self.helper else { return Ok(tensor) };
        if self.over {
            return Err(self.info.lost(
                "the other ranks".to_owned(),
                self.sums,
                "an earlier exchange failed".to_owned(),
            ));
        }
        self.slot.arrivals.arrive(self.thread);
        // A helper that has died does not take it, and does not answer either.
        let _ = helper.jobs.send(tensor);
        let sum = self.wait()?;
        self.sums += 1;
        sum.ok_or_else(|| self.info.lost("the other ranks".to_owned(), self.sums, "no sum came back".to_owned()))
    }

    fn wait(&mut self) -> Result<Option<Tensor<B, 1>>, CollectiveError> {
        let Some(helper) = &self.helper else { return Ok(None) };
        let answer = helper.answers.recv_timeout(self.longest).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => {
                    self.info.late(self.slot.arrivals.late_ranks(self.thread, self.info), self.longest)
                }
                RecvTimeoutError::Disconnected => {
                    let why = "this rank's own thread died; its message is on standard error".to_owned();
                    self.info.lost("the other ranks".to_owned(), self.sums, why)
                }
            })
        });
        if let Err(error) = &answer {
            self.over = true;
            // Whoever waits in this process for a rank that has given up is woken, and told why.
            self.slot.arrivals.give_up::<B>(error);
        }
        answer
    }
}

impl<B: Backend> Drop for Communicator<B> {
    fn drop(&mut self) {
        let Some(Helper { jobs, answers }) = self.helper.take() else { return };
        drop(jobs);
        if !self.over {
            let _ = answers.recv_timeout(GOODBYE);
        }
    }
}

/// The thread on which a rank's exchanges run.
#[derive(Debug)]
struct Helper<B: Backend> {
    jobs: Sender<Tensor<B, 1>>,
    /// Nothing but success for having joined, then a sum for each job.
    answers: Receiver<Result<Option<Tensor<B, 1>>, CollectiveError>>,
}

impl<B: Backend> Helper<B> {
    /// The thread takes no part of the slot with it: it may be stuck when the rank has long gone.
    fn start(group: &ProcessGroup, info: RankInfo, thread: usize, device: B::Device) -> io::Result<Helper<B>> {
        let (jobs, to_do) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let (world, arrivals) = (group.world.clone(), group.slot.arrivals.clone());
        let work = move || {
            let mut links = match Links::join(world.as_ref(), arrivals, info, thread, device) {
                Ok(links) => links,
                Err(error) => return drop(answer.send(Err(error))),
            };
            let mut on = answer.send(Ok(None)).is_ok();
            while on && let Ok(tensor) = to_do.recv() {
                let sum = links.all_reduce_sum(tensor);
                on = sum.is_ok();
                on &= answer.send(sum.map(Some)).is_ok();
            }
            if let Some(threads) = &links.threads {
                threads.leave();
            }
        };
        Builder::new().name(format!("feedstock-peer-{}", info.rank)).spawn(work)?;
        Ok(Helper { jobs, answers })
    }
}

/// The levels of an exchange. Another engine (NCCL, among GPUs) would be a third field here, in place of both.
struct Links<B: Backend> {
    /// None for a process with one rank.
    threads: Option<Threads<B>>,
    /// Of a process's first thread, if there are other processes.
    processes: Option<Processes>,
    device: B::Device,
    sums: u64,
}

impl<B: Backend> Links<B> {
    fn join(
        world: Option<&DistributedEnv>,
        arrivals: Arc<Arrivals>,
        info: RankInfo,
        thread: usize,
        device: B::Device,
    ) -> Result<Self, CollectiveError> {
        let count = arrivals.threads();
        let threads = match count {
            1 => None,
            _ => Some(Threads::join(arrivals, info, thread, device.clone())?),
        };
        let processes = match world {
            Some(world) if thread == 0 => Some(Processes::join(world, count, info)?),
            _ => None,
        };
        let links = Links { threads, processes, device, sums: 0 };
        if let (Some(threads), Some(_)) = (&links.threads, world) {
            // The other threads have joined when the first has met the other processes.
            threads.spread((thread == 0).then(|| Tensor::zeros([1], &links.device)), 0)?;
        }
        Ok(links)
    }

    fn all_reduce_sum(&mut self, tensor: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        let sums = self.sums;
        self.sums += 1;
        let Some(threads) = &self.threads else { return among(&mut self.processes, tensor, &self.device) };
        let sum = match threads.gather(tensor, sums)? {
            Some(sum) => Some(among(&mut self.processes, sum, &self.device)?),
            None => None,
        };
        threads.spread(sum, sums)
    }
}

fn among<B: Backend>(
    processes: &mut Option<Processes>,
    tensor: Tensor<B, 1>,
    device: &B::Device,
) -> Result<Tensor<B, 1>, CollectiveError> {
    match processes {
        Some(processes) => processes.sum(tensor, device),
        None => Ok(tensor),
    }
}

/// Why ranks could not exchange.
#[derive(Debug)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A setting is out of its range, or something needed is not said.
    Config(String),
    /// Somebody did not come in time.
    Late {
        /// Who waited.
        rank: usize,
        /// Of how many.
        world_size: usize,
        /// For how long.
        waited: Duration,
        /// For whom, and where.
        whom: String,
    },
    /// Somebody has gone, or does not belong to this run.
    Lost {
        /// Who noticed.
        rank: usize,
        /// Of how many.
        world_size: usize,
        /// After how many sums.
        sums: u64,
        /// Who it was.
        whom: String,
        /// How it showed.
        why: String,
    },
    /// A thread could not be started.
    Thread(io::Error),
}

impl RankInfo {
    fn late(&self, whom: String, waited: Duration) -> CollectiveError {
        CollectiveError::Late { rank: self.rank, world_size: self.world_size, waited, whom }
    }

    fn lost(&self, whom: String, sums: u64, why: String) -> CollectiveError {
        CollectiveError::Lost { rank: self.rank, world_size: self.world_size, sums, whom, why }
    }
}

impl fmt::Display for CollectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CollectiveError::Config(what) => f.write_str(what),
            CollectiveError::Late { rank, world_size, waited, whom } => write!(
                f,
                "rank {rank} of {world_size} waited {:.1} s for {whom}, in vain: see whether all {world_size} were \
                 started and still run, what they printed last, and whether their machines reach each other",
                waited.as_secs_f64()
            ),
            CollectiveError::Lost { rank, world_size, sums, whom, why } => write!(
                f,
                "rank {rank} of {world_size} has lost {whom} after {sums} exchanges ({why}): what that one printed \
                 last says more"
            ),
            CollectiveError::Thread(error) => write!(f, "cannot start a thread for the exchange among ranks: {error}"),
        }
    }
}

impl std::error::Error for CollectiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CollectiveError::Thread(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
