//! The part of a loader that outlives its epochs: memory, accounts and counters.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::cancel::Cancel;
use super::chunk::Chunk;
use super::governor::{Governor, Probe};
use crate::bad_samples::{BadSampleList, OnBadSample};
use crate::budget::{Account, AccountKind, Ledger, OverBudget, Reservation};
use crate::decode::{Limits, Options};
use crate::device::{Device, DeviceError};
use crate::error::Error;
use crate::metrics::Counters;
use crate::plan::{Plan, PoolSizes};
use crate::pool::{EncodedCache, Output, OversizedScratch, Pool, ReadBuffer, Scratch, Slot};
use crate::rng::Seed;
use crate::sampler::{Batches, Order, Sampler};
use crate::source::{PageCache, Source};
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, lock};
use crate::tensor::{OutputFormat, SampleSpec};
use crate::transform::Transform;
use crate::units::ByteCount;

/// Time that an idle reading thread is kept: long enough to last from one epoch to the next.
const READERS_KEPT: Duration = Duration::from_millis(500);

/// Settings of a run, besides the sizes in the plan.
pub(crate) struct RunConfig {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) page_cache: PageCache,
    pub(crate) transform: Arc<dyn Transform>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) format: OutputFormat,
    pub(crate) spec: SampleSpec,
    pub(crate) batch_size: NonZeroUsize,
    pub(crate) drop_last: bool,
    pub(crate) sampling: Sampler,
    pub(crate) seed: Seed,
    pub(crate) rank: u64,
    pub(crate) world_size: u64,
    pub(crate) limits: Limits,
    pub(crate) decoding: Options,
    pub(crate) on_bad_sample: OnBadSample,
    pub(crate) max_bad_fraction: f64,
    /// Enables the governor.
    pub(crate) adapt_to_pressure: bool,
}

/// Everything that outlives an epoch. Runs borrow from it.
pub(crate) struct Engine {
    pub(crate) config: RunConfig,
    pub(crate) plan: Plan,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
    pub(crate) bad_samples: BadSampleList,
    pub(super) slots: Pool<Slot>,
    pub(super) outputs: Pool<Output>,
    pub(super) chunks: Pool<Chunk>,
    pub(super) scratches: Pool<Scratch>,
    pub(super) oversized_scratch: OversizedScratch,
    pub(super) oversized_files: Account,
    /// Cache of small files, where the plan has one.
    cache: Mutex<Option<Arc<EncodedCache>>>,
    cache_account: Account,
    pub(crate) governor: Governor,
    /// Batches that the consumer holds.
    pub(crate) in_hand: Arc<AtomicUsize>,
    /// `None` only while it is being dropped.
    pub(super) readers: Option<tokio::runtime::Runtime>,
    /// True while a run is in progress: there is one at a time.
    pub(super) running: AtomicBool,
    /// Set for good by [`Engine::stop`].
    stopped: AtomicBool,
    pub(super) current: Mutex<Option<Cancel>>,
    /// Reservations without an object of their own: headroom, index, bookkeeping.
    _held: Vec<Reservation>,
}

/// The static reservations of a plan, one by one for each of its rows.
#[derive(Default)]
struct Reserved {
    held: Vec<Reservation>,
    slots: Vec<Reservation>,
    outputs: Vec<Reservation>,
    scratches: Vec<Reservation>,
    chunks: Vec<Reservation>,
}

impl Reserved {
    fn new(plan: &Plan, ledger: &Ledger) -> Result<Self, OverBudget> {
        let mut reserved = Reserved::default();
        for row in &plan.rows {
            let fixed = || ledger.fixed_account(row.account, row.bytes());
            let each = || {
                let account = fixed();
                (0..row.count).map(|_| account.reserve(row.each)).collect::<Result<Vec<_>, _>>()
            };
            match row.account {
                AccountKind::Headroom
                | AccountKind::Index
                | AccountKind::Reading
                | AccountKind::Sampling
                | AccountKind::Bookkeeping
                | AccountKind::Other(_) => reserved.held.push(fixed().reserve(row.bytes())?),
                AccountKind::Slots => reserved.slots = each()?,
                AccountKind::Outputs => reserved.outputs = each()?,
                AccountKind::Scratch => reserved.scratches = each()?,
                AccountKind::Encoded => reserved.chunks = each()?,
                // Their accounts exist without a row as well; see `Engine::build`.
                AccountKind::Cache | AccountKind::OversizedFiles | AccountKind::OversizedImages => {}
            }
        }
        Ok(reserved)
    }
}

impl Engine {
    /// Takes every static reservation of the plan, and the memory for it. `probe` replaces the machine's memory
    /// readings.
    ///
    /// # Errors
    /// A reservation is refused, the device or the system has no memory, or the reading threads cannot be set up.
    pub(crate) fn build(config: RunConfig, plan: Plan, probe: Option<Probe>) -> Result<Self, Error> {
        let ledger = Ledger::new(plan.budget);
        let mut reserved = Reserved::new(&plan, &ledger)?;
        let device = &config.device;
        let (sample_bytes, batch_size) = (config.spec.elements(), config.batch_size.get());
        let slots = reserved.slots.into_iter().map(|held| Slot::new(device.clone(), sample_bytes, batch_size, held));
        let slots = slots.collect::<Result<_, _>>()?;
        let copied_bytes = if config.format.is_identity() { 0 } else { plan.slot_bytes as usize };
        let outputs = (0..plan.outputs).map(|_| {
            let held = reserved.outputs.pop();
            Output::new(device.clone(), plan.output_bytes as usize, copied_bytes, held)
        });
        let outputs = outputs.collect::<Result<_, _>>()?;
        let scratches = reserved.scratches.into_iter().map(Scratch::new).collect::<Result<_, _>>();
        let scratches = scratches.map_err(DeviceError::HostMemory)?;
        let chunks = reserved.chunks.into_iter().map(|held| ReadBuffer::new(held).map(Chunk::new));
        let chunks = chunks.collect::<Result<_, _>>().map_err(DeviceError::HostMemory)?;
        let readers = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(plan.read_threads)
            .thread_name("feedstock-read")
            .thread_keep_alive(READERS_KEPT)
            .thread_stack_size(crate::sync::STACK_BYTES)
            .build()
            .map_err(Error::Thread)?;
        let dynamic = |account, cap| ledger.account(account, ByteCount(cap));
        let engine = Engine {
            oversized_scratch: OversizedScratch::new(dynamic(AccountKind::OversizedImages, plan.oversized_image_bytes)),
            oversized_files: dynamic(AccountKind::OversizedFiles, plan.oversized_file_bytes),
            cache: Mutex::new(None),
            cache_account: ledger.fixed_account(AccountKind::Cache, ByteCount(plan.cache_bytes)),
            governor: Governor::new(plan.workers, probe),
            in_hand: Arc::default(),
            slots: Pool::new(slots),
            outputs: Pool::new(outputs),
            chunks: Pool::new(chunks),
            scratches: Pool::new(scratches),
            readers: Some(readers),
            config,
            plan,
            ledger,
            counters: Counters::default(),
            bad_samples: BadSampleList::default(),
            running: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            current: Mutex::new(None),
            _held: reserved.held,
        };
        engine.open_cache();
        Ok(engine)
    }

    /// The cache of small files, if there is one at the moment.
    pub(super) fn cache(&self) -> Option<Arc<EncodedCache>> {
        lock(&self.cache).clone()
    }

    /// Creates an empty cache if the plan has one and there is none. An older cache that is still in use keeps its
    /// bytes until it is not; then the next call creates it.
    fn open_cache(&self) {
        let mut cache = lock(&self.cache);
        if self.plan.cache_bytes > 0
            && cache.is_none()
            && let Ok(held) = self.cache_account.reserve(ByteCount(self.plan.cache_bytes))
        {
            *cache = Some(Arc::new(EncodedCache::new(self.config.source.len(), held)));
        }
    }

    /// The order of one epoch, for this rank.
    pub(crate) fn order(&self, epoch: u64) -> Order {
        self.for_rank(self.config.sampling.order(self.config.seed, epoch))
    }

    /// Number of samples of one epoch, for this rank.
    pub(crate) fn samples(&self) -> u64 {
        self.for_rank(Order::sequential(self.config.sampling.len())).len()
    }

    fn for_rank(&self, order: Order) -> Order {
        match order.for_rank(self.config.rank, self.config.world_size) {
            Ok(order) => order,
            Err(error) => unreachable!("the builder checked the rank: {error}"),
        }
    }

    /// Division of one epoch into batches, for this rank.
    pub(crate) fn batches(&self) -> Batches {
        Batches::new(self.samples(), self.config.batch_size, self.config.drop_last)
    }

    /// Cancels the run in progress and all later ones.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(cancel) = lock(&self.current).as_ref() {
            cancel.cancel();
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Returns true if slots are delivered as they are, without an output.
    pub(super) fn hands_over_slots(&self) -> bool {
        self.plan.outputs == 0
    }

    /// Returns true if no batch can be delivered or filled because the consumer holds all of them.
    pub(crate) fn consumer_holds_all(&self) -> bool {
        let all = if self.hands_over_slots() { self.plan.slots } else { self.plan.outputs };
        self.in_hand.load(Ordering::SeqCst) >= all
    }

    /// Numbers of objects that are active at this moment.
    pub(crate) fn active(&self) -> PoolSizes {
        PoolSizes {
            workers: self.scratches.active(),
            slots: self.slots.active(),
            outputs: self.outputs.active(),
            chunks: self.chunks.active(),
        }
    }

    /// One step of the governor: reads the machine's memory and resizes the pools.
    pub(super) fn govern(&self) {
        let waited = self.counters.consume.waited_in_so_far();
        self.governor.tick(&self.plan, waited, |level| self.resize(level));
    }

    /// Sets the pools to their sizes at this level. Objects in use give their memory back when they return.
    fn resize(&self, level: u32) -> Result<(), DeviceError> {
        let PoolSizes { workers, slots, outputs, chunks } = self.plan.at_level(level);
        // A consumer may hold more than it said; that must not leave it without a next batch.
        let in_hand = self.in_hand.load(Ordering::SeqCst);
        let beside = |least: usize, handed_over: bool| if handed_over { least.max(in_hand + 1) } else { least };
        if level > 0 {
            lock(&self.cache).take();
            self.governor.set_workers(workers);
        }
        self.slots.set_active(beside(slots, self.hands_over_slots()))?;
        if self.config.device.counts_as_ram() {
            self.outputs.set_active(beside(outputs, true))?;
        }
        self.chunks.set_active(chunks)?;
        self.scratches.set_active(workers)?;
        self.governor.set_workers(workers);
        if level == 0 {
            self.open_cache();
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Every run has been joined, so nothing is being read. Dropped in place, the runtime would panic inside of
        // asynchronous code.
        if let Some(readers) = self.readers.take() {
            readers.shutdown_background();
        }
    }
}
