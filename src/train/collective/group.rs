//! The ranks of a run, and the communicator of one of them.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::error::{CollectiveError, LostReason, Problem, RankInfo, Ranks};
use super::processes::Processes;
use super::threads::Arrivals;
use crate::host::DistributedEnv;

/// Default timeout: longer than any validation or checkpoint of one of the ranks.
const TIMEOUT: Duration = Duration::from_secs(600);

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
///         let mut communicator = group.join(thread)?;
///         let own = Tensor::<Flex, 1>::from_floats([1.0, communicator.rank() as f32], &Default::default());
///         communicator.all_reduce_sum(own).map(|sum| sum.into_data().to_vec::<f32>().ok())
///     })
/// });
/// for rank in ranks {
///     assert_eq!(rank.join().expect("no panic")?, Some(vec![2.0, 1.0]));
/// }
/// # Ok::<(), feedstock::train::CollectiveError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProcessGroup {
    /// This process among others; `None` for a single process.
    world: Option<DistributedEnv>,
    threads: usize,
    timeout: Duration,
    arrivals: Arc<Arrivals>,
}

impl ProcessGroup {
    /// A group of `threads` ranks in this process, and as many in every other process of `world` (see
    /// [`DistributedEnv::from_env`]). The rank of a thread is the rank of its process times `threads`, plus the
    /// number of the thread.
    ///
    /// # Errors
    /// [`CollectiveError::Config`] for 0 threads, and for several processes without an address of rank 0.
    pub fn new(world: Option<DistributedEnv>, threads: usize) -> Result<ProcessGroup, CollectiveError> {
        if threads == 0 {
            return Err(CollectiveError::Config("a process group of 0 threads: use 1 for a single rank".to_owned()));
        }
        let world = world.filter(|world| world.world_size > 1);
        if let Some(DistributedEnv { world_size, coordinator: None, launcher, .. }) = &world {
            return Err(CollectiveError::Config(format!(
                "{launcher} started {world_size} ranks on several machines without the address of rank 0: set \
                 MASTER_ADDR to \
                 the name or address of its machine, and MASTER_PORT if port 29400 is in use there"
            )));
        }
        Ok(ProcessGroup { world, threads, timeout: TIMEOUT, arrivals: Arc::new(Arrivals::new(threads)) })
    }

    /// Maximum time that a rank waits for the others, when it joins and in each sum. Default: 10 minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Number of ranks in all processes.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world.as_ref().map_or(1, |world| world.world_size) * self.threads
    }

    /// Rank of one of the threads of this process.
    #[must_use]
    pub fn rank(&self, thread: usize) -> usize {
        self.world.as_ref().map_or(0, |world| world.rank) * self.threads + thread
    }

    /// Joins as one of the threads of this process, each of which joins once, and waits until all ranks have joined.
    ///
    /// # Errors
    /// [`CollectiveError::Late`] if some ranks do not join in time, [`CollectiveError::Lost`] if some leave again or
    /// belong to another run, [`CollectiveError::Listen`] if rank 0 cannot be reached by others.
    ///
    /// # Panics
    /// Panics if `thread` is not below the number of threads.
    pub fn join(&self, thread: usize) -> Result<Communicator, CollectiveError> {
        assert!(thread < self.threads, "thread {thread} of a group of {}", self.threads);
        let info = RankInfo { rank: self.rank(thread), world_size: self.world_size(), timeout: self.timeout };
        // The other threads of a process wait for its first thread, and this one for the other processes.
        let limit = self.timeout * if self.world.is_some() { 2 } else { 1 };
        let arrivals = Arc::clone(&self.arrivals);
        let mut communicator =
            Communicator { info, limit, thread, arrivals, processes: None, exchanges: 0, failed: false };
        communicator.exchange(Vec::new(), |communicator, values| {
            if let Some(world) = &self.world {
                communicator.processes = Some(Processes::join(world, self.threads, info)?);
            }
            Ok(values)
        })?;
        Ok(communicator)
    }
}

/// Connection of one rank to all the others. To drop it is to leave the group.
#[derive(Debug)]
pub struct Communicator {
    info: RankInfo,
    /// Maximum time that the sum of the first thread is waited for.
    limit: Duration,
    thread: usize,
    arrivals: Arc<Arrivals>,
    /// Connections to other processes, of the first thread of a process.
    processes: Option<Processes>,
    /// Number of sums.
    exchanges: u64,
    /// True once an exchange has failed: no other can follow.
    failed: bool,
}

impl Communicator {
    /// Rank of this thread, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.info.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.info.world_size
    }

    /// Sum of the vectors of all ranks, which have one length. Every rank gets the same bits.
    ///
    /// # Errors
    /// [`CollectiveError::Late`] if a rank does not come to this sum in time, [`CollectiveError::Lost`] if one is
    /// gone or gives another length. After an error every further sum fails.
    pub fn all_reduce_sum<B: Backend>(&mut self, tensor: Tensor<B, 1>) -> Result<Tensor<B, 1>, CollectiveError> {
        if self.info.world_size == 1 {
            return Ok(tensor);
        }
        let (device, dtype, shape) = (tensor.device(), tensor.dtype(), tensor.shape());
        let values = tensor.into_data().convert_dtype(DType::F32).into_vec::<f32>().expect("converted to f32");
        let sum = self.exchange(values, |communicator, mut sum| {
            let exchange = communicator.exchanges;
            communicator.processes.iter_mut().try_for_each(|processes| processes.sum(&mut sum, exchange))?;
            Ok(sum)
        })?;
        self.exchanges += 1;
        Ok(Tensor::from_data(TensorData::new(sum, shape), (&device, dtype)))
    }

    /// Sums over the threads of this process; the first thread calls `among_processes` with that sum.
    fn exchange(
        &mut self,
        values: Vec<f32>,
        among_processes: impl FnOnce(&mut Self, Vec<f32>) -> Result<Vec<f32>, CollectiveError>,
    ) -> Result<Vec<f32>, CollectiveError> {
        let Communicator { info, limit, thread, exchanges, .. } = *self;
        if self.failed {
            return Err(info.error(Ranks::default(), Problem::Lost(LostReason::EarlierFailure), exchanges));
        }
        let arrivals = Arc::clone(&self.arrivals);
        let result = match arrivals.reduce(thread, values, info, exchanges) {
            Ok(Some(sum)) => among_processes(self, sum).inspect(|sum| arrivals.broadcast(sum)),
            Ok(None) => arrivals.receive(thread, limit, info, exchanges),
            Err(error) => Err(error),
        };
        result.inspect_err(|error| {
            self.failed = true;
            arrivals.fail(error);
        })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.arrivals.leave(self.thread);
    }
}
