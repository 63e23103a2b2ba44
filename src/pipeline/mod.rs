//! Owns the run: the threads of one epoch, the channels between them, and their end.
//!
//! ```text
//! admit --> read --> work --> (slot whole) --> transfer --> consumer
//!   ^  \______ retry ___/                         |            |
//!   +------------------- slots, read buffers -----+------------+
//! ```
//!
//! A sample's way is straight. `admit` walks the order and gives each sample its place (slot and position) and its
//! chunk a read buffer; `read` fills the buffer; `work` decodes and transforms into the place; `transfer` takes slots
//! in plan order, as each becomes whole, and hands them over. What is used again goes back to where it came from
//! through channels that are as large as there are things to hold, so no return ever blocks.
//!
//! It must never wait for memory outside `admit`, and never leave a thread behind: dropping a [`Run`] joins them all.

mod admit;
mod governor;
mod read;
mod transfer;
mod work;

use std::io;
use std::num::NonZeroUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::batch::Batch;
use crate::budget::{Account, Ledger, OverBudget, Reservation};
use crate::decode::{Limits, Options};
use crate::device::{Device, DeviceError};
use crate::metrics::Counters;
use crate::plan::Plan;
use crate::pool::{EncodedCache, JumboLane, Output, ReadBuffer, Ring, Scratch, Slot};
use crate::quarantine::{BadSample, OnBadSample, Quarantine};
use crate::sampler::{Batches, Order, Scheme};
use crate::source::Source;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, lock, spawn};
use crate::tensor::{OutputFormat, SampleSpec};
use crate::transform::Transform;
use crate::units::{ByteCount, Seed};

use admit::Chunk;
use governor::Governor;
pub use governor::Move;
pub(crate) use governor::Probe;

/// How long a reading thread without work stays: long enough to last from one epoch to the next.
const READERS_KEPT: Duration = Duration::from_millis(500);

/// What a run does, besides the sizes that the plan has fixed.
pub(crate) struct Recipe {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) transform: Arc<dyn Transform>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) format: OutputFormat,
    pub(crate) spec: SampleSpec,
    pub(crate) batch_size: NonZeroUsize,
    pub(crate) drop_last: bool,
    pub(crate) sampling: Scheme,
    pub(crate) seed: Seed,
    pub(crate) rank: u64,
    pub(crate) world_size: u64,
    pub(crate) limits: Limits,
    pub(crate) decoding: Options,
    pub(crate) on_bad_sample: OnBadSample,
    pub(crate) bad_samples_max: f64,
    /// Whether a run under way may change its size.
    pub(crate) governed: bool,
}

/// Everything that outlives an epoch: the memory, the accounts, the counters. Runs borrow from it.
pub(crate) struct Engine {
    pub(crate) recipe: Recipe,
    pub(crate) plan: Plan,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
    pub(crate) quarantine: Quarantine,
    slots: Ring<Slot>,
    outputs: Ring<Output>,
    chunks: Ring<Chunk>,
    scratches: Ring<Scratch>,
    jumbo: JumboLane,
    giant_files: Account,
    /// Small files that were read before, where the plan keeps them.
    cache: Mutex<Option<Arc<EncodedCache>>>,
    cache_account: Account,
    pub(crate) governor: Governor,
    /// Batches in the consumer's hands.
    pub(crate) in_hand: Arc<AtomicUsize>,
    /// `None` only while it is being dropped.
    readers: Option<tokio::runtime::Runtime>,
    /// One run at a time.
    running: AtomicBool,
    /// Set for good by [`Engine::stop`].
    stopped: AtomicBool,
    current: Mutex<Option<Cancel>>,
    /// Bytes that belong to no one thing: headroom, index, bookkeeping.
    _held: Vec<Reservation>,
}

/// Why an engine could not be built.
#[derive(Debug)]
pub(crate) enum BuildError {
    Budget(OverBudget),
    Device(DeviceError),
    Thread(io::Error),
}

impl Engine {
    /// Takes every static reservation of the plan, and the memory for it.
    /// `probe` asks how much memory is left, in place of the machine.
    pub(crate) fn build(recipe: Recipe, plan: Plan, probe: Option<Probe>) -> Result<Self, BuildError> {
        let ledger = Ledger::new(plan.budget);
        let fixed = |name, one: u64, count: usize| {
            let account = ledger.fixed_account(name, ByteCount(one) * count as u64);
            let reservations: Result<Vec<_>, _> = (0..count).map(|_| account.reserve(ByteCount(one))).collect();
            reservations.map_err(BuildError::Budget)
        };
        let device = &recipe.device;
        let mut held = Vec::new();
        let of_no_one_thing =
            |account| matches!(account, "headroom" | "index" | "reading" | "sampling" | "bookkeeping");
        for row in plan.rows.iter().filter(|row| of_no_one_thing(row.account)) {
            held.extend(fixed(row.account, row.bytes.0, 1)?);
        }
        let mut slots = Vec::new();
        for held in fixed("slots", plan.slot_bytes, plan.slots)? {
            let slot = Slot::new(device.clone(), recipe.spec.elements(), recipe.batch_size.get(), held);
            slots.push(slot.map_err(BuildError::Device)?);
        }
        let mut outputs = Vec::new();
        let mut in_ram = Vec::new();
        if device.counts_as_ram() && plan.outputs > 0 {
            in_ram = fixed("outputs", plan.output_bytes, plan.outputs)?;
        }
        let copied_bytes = if recipe.format.is_identity() { 0 } else { plan.slot_bytes as usize };
        for _ in 0..plan.outputs {
            let output = Output::new(device.clone(), plan.output_bytes as usize, copied_bytes, in_ram.pop());
            outputs.push(output.map_err(BuildError::Device)?);
        }
        let mut scratches = Vec::new();
        for held in fixed("scratch", plan.scratch_bytes, plan.workers)? {
            scratches.push(Scratch::new(held).map_err(BuildError::Device)?);
        }
        let mut chunks = Vec::new();
        for held in fixed("encoded", plan.chunk_bytes, plan.chunks)? {
            let buffer = ReadBuffer::new(plan.chunk_bytes as usize, held).map_err(BuildError::Device)?;
            chunks.push(Chunk::new(buffer));
        }
        let readers = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(plan.read_threads)
            .thread_name("feedstock-read")
            .thread_keep_alive(READERS_KEPT)
            .thread_stack_size(crate::sync::STACK_BYTES)
            .build()
            .map_err(BuildError::Thread)?;
        let engine = Engine {
            jumbo: JumboLane::new(ledger.account("jumbo", ByteCount(plan.jumbo_bytes))),
            giant_files: ledger.account("giant files", ByteCount(plan.giant_encoded_bytes)),
            cache: Mutex::new(None),
            cache_account: ledger.fixed_account("cache", ByteCount(plan.cache_bytes)),
            governor: Governor::new(&plan, probe),
            in_hand: Arc::default(),
            slots: Ring::new(slots),
            outputs: Ring::new(outputs),
            chunks: Ring::new(chunks),
            scratches: Ring::new(scratches),
            readers: Some(readers),
            recipe,
            plan,
            ledger,
            counters: Counters::default(),
            quarantine: Quarantine::default(),
            running: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            current: Mutex::new(None),
            _held: held,
        };
        engine.open_cache();
        Ok(engine)
    }

    /// The cache of small files, where there is one at the moment.
    fn cache(&self) -> Option<Arc<EncodedCache>> {
        lock(&self.cache).clone()
    }

    /// Makes an empty cache where the plan has one and there is none. An older one that is still in use keeps its bytes
    /// until it is not; then the next call makes it.
    fn open_cache(&self) {
        let mut cache = lock(&self.cache);
        if self.plan.cache_bytes > 0
            && cache.is_none()
            && let Ok(held) = self.cache_account.reserve(ByteCount(self.plan.cache_bytes))
        {
            *cache = Some(Arc::new(EncodedCache::new(self.recipe.source.len(), held)));
        }
    }

    /// The order of one epoch, for this rank.
    pub(crate) fn order(&self, epoch: u64) -> Order {
        self.own(self.recipe.sampling.order(self.recipe.seed, epoch))
    }

    /// Samples of one epoch that this rank gets.
    pub(crate) fn samples(&self) -> u64 {
        self.own(Order::sequential(self.recipe.sampling.len())).len()
    }

    fn own(&self, order: Order) -> Order {
        match order.for_rank(self.recipe.rank, self.recipe.world_size) {
            Ok(order) => order,
            Err(error) => unreachable!("the builder let this through: {error}"),
        }
    }

    /// How one epoch falls into batches, for this rank.
    pub(crate) fn batches(&self) -> Batches {
        Batches::new(self.samples(), self.recipe.batch_size, self.recipe.drop_last)
    }

    /// Calls off the run under way, and all later ones.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(cancel) = lock(&self.current).as_ref() {
            cancel.cancel();
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether slots are handed over as they are, with no output in between.
    pub(crate) fn hands_over_slots(&self) -> bool {
        self.plan.outputs == 0
    }

    /// Whether batches could be handed over or be filled at all: if not, the consumer holds everything.
    pub(crate) fn consumer_holds_all(&self) -> bool {
        let all = if self.hands_over_slots() { self.plan.slots } else { self.plan.outputs };
        self.in_hand.load(Ordering::SeqCst) >= all
    }

    /// How many of one epoch's samples may be bad before the run ends.
    fn bad_samples_allowed(&self, samples: u64) -> u64 {
        (samples as f64 * self.recipe.bad_samples_max).ceil() as u64
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Every run has been joined, so nothing is being read. Dropped in place, the runtime would refuse to go inside
        // of somebody's asynchronous code.
        if let Some(readers) = self.readers.take() {
            readers.shutdown_background();
        }
    }
}

/// Calls a run off: a flag for those at work, a channel that closes for those in a wait, a call for the ledger.
#[derive(Clone)]
pub(crate) struct Cancel {
    shared: Arc<CancelShared>,
}

struct CancelShared {
    flag: AtomicBool,
    alarm: Mutex<Option<Sender<()>>>,
    closed: Receiver<()>,
    ledger: Ledger,
}

impl Cancel {
    fn new(ledger: Ledger) -> Self {
        // A channel of one place, though nothing is ever sent: waiting on one without places allocates.
        let (alarm, closed) = bounded(1);
        let shared = CancelShared { flag: AtomicBool::new(false), alarm: Mutex::new(Some(alarm)), closed, ledger };
        Cancel { shared: Arc::new(shared) }
    }

    pub(crate) fn cancel(&self) {
        self.shared.flag.store(true, Ordering::SeqCst);
        lock(&self.shared.alarm).take();
        self.shared.ledger.wake();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.shared.flag.load(Ordering::Relaxed)
    }

    /// Nothing ever comes through it; it closes when the run is called off.
    pub(crate) fn closed(&self) -> &Receiver<()> {
        &self.shared.closed
    }
}

/// Why a run ended before its last batch.
#[derive(Debug)]
pub(crate) enum RunError {
    /// A bad sample, where the policy is to fail.
    Sample(BadSample),
    /// More bad samples than the policy allows.
    TooManyBad {
        bad: u64,
        allowed: u64,
        samples: u64,
        latest: Box<BadSample>,
    },
    Device(DeviceError),
    Thread(io::Error),
    /// Another run of the same loader is under way.
    Busy,
    Cancelled,
    /// A thread of the run died; its message is on standard error.
    WorkerDied,
}

/// One epoch under way: its threads, and the receiving end of its batches.
pub(crate) struct Run {
    pub(crate) deliveries: Receiver<Result<Batch, RunError>>,
    cancel: Cancel,
    threads: Vec<JoinHandle<()>>,
    engine: Arc<Engine>,
}

impl Run {
    /// Starts an epoch at one of its batches.
    pub(crate) fn start(engine: &Arc<Engine>, epoch: u64, first_batch: u64) -> Result<Run, RunError> {
        if engine.is_stopped() {
            return Err(RunError::Cancelled);
        }
        if engine.running.swap(true, Ordering::SeqCst) {
            return Err(RunError::Busy);
        }
        engine.counters.run_begins();
        let cancel = Cancel::new(engine.ledger.clone());
        *lock(&engine.current) = Some(cancel.clone());
        // Every batch that exists, and the error that ends the run, have a place: handing over never blocks.
        let (delivered, deliveries) = bounded(engine.plan.slots + engine.plan.outputs + 1);
        // From here on dropping `run` undoes whatever has been started.
        let mut run = Run { deliveries, cancel: cancel.clone(), threads: Vec::new(), engine: engine.clone() };

        let (admitted, pending) = bounded(engine.plan.slots);
        let (to_read, to_be_read) = bounded(engine.plan.chunks);
        let (to_work, work) = bounded(engine.plan.chunks);
        let epoch = Epoch { engine: engine.clone(), cancel: cancel.clone(), epoch };
        for worker in 0..engine.plan.workers {
            let (epoch, work) = (epoch.clone(), work.clone());
            run.spawn(&format!("feedstock-work-{worker}"), move || work::run(&epoch, worker, &work))?;
        }
        if engine.recipe.governed {
            let epoch = epoch.clone();
            run.spawn("feedstock-govern", move || governor::run(&epoch))?;
        }
        {
            let epoch = epoch.clone();
            run.spawn("feedstock-transfer", move || transfer::run(&epoch, &pending, &delivered))?;
        }
        read::start(&epoch, &to_be_read, &to_work);
        run.spawn("feedstock-admit", move || admit::run(epoch, first_batch, &admitted, to_read, to_work))?;
        if engine.is_stopped() {
            cancel.cancel();
        }
        Ok(run)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), RunError> {
        self.threads.push(spawn(name, body).map_err(RunError::Thread)?);
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.cancel.cancel();
        // Batches that nobody took go back to where they came from, which frees whoever waits for them.
        self.deliveries = crossbeam_channel::never();
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened, and its batch came out as an error.
            let _ = thread.join();
        }
        lock(&self.engine.current).take();
        self.engine.running.store(false, Ordering::SeqCst);
    }
}

/// What every thread of a run knows.
#[derive(Clone)]
pub(crate) struct Epoch {
    engine: Arc<Engine>,
    cancel: Cancel,
    epoch: u64,
}
