//! Owns the sizes: how many workers, slots and buffers a loader runs with, decided before anything is allocated, and
//! the table that explains them. Pure arithmetic over a request, the machine's facts and the data's profile.
//! It must never allocate payload, read the clock, or ask the machine anything itself.
//!
//! The byte equation, whose terms are the accounts of the ledger:
//!
//! ```text
//! budget >= headroom + index + reading + sampling + slots x slot + outputs x output + workers x scratch
//!         + chunks x chunk + cache + giant files (as stored) + giant pictures (the jumbo lane)
//! ```
//!
//! The plan starts from the least that works (one worker), then buys what raises throughput, most useful first, while
//! the budget lasts, and stops at the knee: what lies beyond buys nothing and is not taken.

mod profile;

pub use profile::{ENCODED_BYTES_MAX, Profile, Survey};

use crate::tensor::{OutputFormat, SampleSpec};
use crate::units::ByteCount;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Samples in a batch.
    pub batch_size: usize,
    /// Shape of a sample.
    pub spec: SampleSpec,
    /// The last steps on the device.
    pub format: OutputFormat,
    /// The most workers to use; `None`: as many as the machine can keep busy.
    pub workers_max: Option<usize>,
    /// Batches to prepare ahead; `None`: as many as the knee needs.
    pub prefetch_max: Option<usize>,
    /// Batches that the consumer holds at once.
    pub batches_held: usize,
    /// The ceiling.
    pub budget: ByteCount,
}

/// What the machine and the source say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Workers to run where none are asked for: the cores that the loader may keep busy.
    pub cores: usize,
    /// Why there are this many, for people.
    pub cores_because: &'static str,
    /// RAM that the source's index holds.
    pub index: ByteCount,
    /// Reads under way at once, each on a thread of its own.
    pub read_threads: usize,
    /// RAM that the source holds beyond its index while it is read.
    pub reading: ByteCount,
    /// RAM of the table that samples are drawn from.
    pub sampling: ByteCount,
    /// Whether the source's samples lie in RAM already.
    pub source_in_memory: bool,
    /// Whether finished batches lie in RAM (a CPU, or a simulated device) or in memory of the device's own.
    pub output_in_ram: bool,
    /// Whether the consumer can read slots where they are, so that a batch which needs no finish is one.
    pub reads_slots: bool,
    /// RAM that the device's own library holds, of which the ledger sees nothing.
    pub device_overhead: ByteCount,
}

/// How many of the things that circulate do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circulating {
    /// Threads that decode, each with its scratch.
    pub workers: usize,
    /// Slots.
    pub slots: usize,
    /// Finished batches on the device.
    pub outputs: usize,
    /// Read buffers.
    pub chunks: usize,
}

/// Sizes, decided. Everything that the pipeline allocates follows from this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The ceiling that was given.
    pub budget: ByteCount,
    /// Threads that decode and transform.
    pub workers: usize,
    /// Slots: batches of u8 pixels being filled, ready, or in the consumer's hands.
    pub slots: usize,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Finished batches on the device; 0 where the slot itself is handed over.
    pub outputs: usize,
    /// Bytes of one finished batch.
    pub output_bytes: u64,
    /// Read buffers in circulation: chunks being read, waiting, or being decoded. This bounds the read depth.
    pub chunks: usize,
    /// Bytes of one read buffer. A chunk that is larger reserves its bytes when it is admitted.
    pub chunk_bytes: u64,
    /// Threads that read.
    pub read_threads: usize,
    /// Scratch of one worker, its codec's own allocations included.
    pub scratch_bytes: u64,
    /// Encoded samples kept from one epoch to the next, their table included; 0 where that would buy no throughput.
    pub cache_bytes: u64,
    /// Cap of the account for chunks that are larger than a read buffer.
    pub giant_encoded_bytes: u64,
    /// Cap of the jumbo lane: pictures that are larger than a worker's scratch, one at a time.
    pub jumbo_bytes: u64,
    /// What a run under way may shrink to and still get on.
    pub least: Circulating,
    /// The byte table, one row an account.
    pub rows: Vec<Row>,
    /// The least budget that this request can run with.
    pub minimum: ByteCount,
    /// What the knee takes: a larger budget buys no throughput.
    pub knee: ByteCount,
    /// What one more worker would take.
    pub per_worker: ByteCount,
    /// Why there are this many workers.
    pub workers_because: String,
    /// Why there are this many slots.
    pub slots_because: String,
}

/// One line of the byte table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The account in the ledger.
    pub account: &'static str,
    /// What it takes, at most.
    pub bytes: ByteCount,
    /// How that comes about.
    pub because: String,
}

/// A request that cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// A number is out of its range.
    Config(String),
    /// The budget does not hold even the least plan.
    OverBudget {
        /// The least that works.
        needed: ByteCount,
        /// What was given.
        budget: ByteCount,
        /// The byte table of the least plan.
        table: String,
    },
}

/// Code, runtime, allocator slack and thread bookkeeping of a process that runs a loader and nothing else, measured
/// from outside (`docs/BUDGET.md`). Most of it is code, and how much of that is resident is the system's choice: where
/// the page cache holds the program in large folios, as after a copy, some 2 MiB more than as it was linked.
pub const HEADROOM_BASE: ByteCount = ByteCount(15 << 20);
/// What each thread adds to it: the touched part of its stack and its allocator's arena.
pub const HEADROOM_PER_THREAD: ByteCount = ByteCount(96 << 10);

/// A chunk gathers small samples up to this many bytes, so that they share one hand-over between threads.
pub const CHUNK_TARGET_BYTES: u64 = 64 << 10;
/// And up to this many samples, so that a batch still spreads over the workers.
pub const CHUNK_SAMPLES_MAX: usize = 32;
const PAGE_BYTES: u64 = 4096;
/// The share of their time that workers may lose waiting for one that is busy with a large sample; more slots would let
/// them get further ahead.
const GIANT_LOSS: f64 = 0.03;
/// Files up to this size, on average, are worth keeping as stored: to open, read and close one takes some 6 us in the
/// kernel, to decode this many bytes about 110 us. Where reading is less than a twentieth, keeping buys nothing.
const CACHE_MEAN_BYTES_MAX: u64 = 16 << 10;
/// What keeping a sample takes besides its bytes: its entry in the table.
const CACHE_PER_SAMPLE: u64 = 24;
/// What keeping a chunk takes besides its samples: its pages are whole ones, and it has a handle.
const CACHE_PER_CHUNK: u64 = PAGE_BYTES + 128;
/// Labels, ids and marks of one sample in a slot.
const BOOKKEEPING_PER_SAMPLE: u64 = 64;
/// Admit, transfer, governor, the runtime's own and the consumer.
const OTHER_THREADS: usize = 5;
/// More workers, slots or samples than this is a typing error, not a request.
const WORKERS_LIMIT: usize = 1024;
const SLOTS_LIMIT: usize = 4096;
const BATCH_LIMIT: usize = 1 << 20;

/// The part of a plan that is chosen.
#[derive(Clone, Copy, Debug)]
struct Shape {
    workers: usize,
    slots: usize,
    outputs: usize,
    chunks: usize,
    chunk: u64,
    scratch: u64,
    cache: u64,
}

struct Planner<'a> {
    request: &'a Request,
    facts: Facts,
    profile: &'a Profile,
}

impl Plan {
    /// Sizes everything, or refuses.
    ///
    /// # Errors
    /// [`PlanError::Config`] for a number out of its range, [`PlanError::OverBudget`] with the byte table if the budget
    /// is below the least that works.
    pub fn new(request: &Request, facts: Facts, profile: &Profile) -> Result<Plan, PlanError> {
        let planner = Planner { request, facts, profile };
        planner.check()?;
        let least = planner.least();
        let minimum = planner.total(&least);
        if minimum > request.budget {
            let rows = planner.rows(&least);
            return Err(PlanError::OverBudget { needed: minimum, budget: request.budget, table: table(&rows) });
        }
        let knee = planner.grow(least, None);
        let shape = planner.grow(least, Some(request.budget));
        Ok(planner.plan(shape, knee, minimum))
    }

    /// The sum of the byte table: what the plan expects to hold at most, never above the budget.
    #[must_use]
    pub fn total(&self) -> ByteCount {
        self.rows.iter().map(|row| row.bytes).sum()
    }

    /// What may circulate at a level of the governor's: all of it at level 0, half as much at each further one, never
    /// less than the least.
    #[must_use]
    pub fn at_level(&self, level: u32) -> Circulating {
        let half = |all: usize, least: usize| all.checked_shr(level).unwrap_or(0).max(least.min(all));
        Circulating {
            workers: half(self.workers, self.least.workers),
            slots: half(self.slots, self.least.slots),
            outputs: half(self.outputs, self.least.outputs),
            chunks: half(self.chunks, self.least.chunks),
        }
    }

    /// How many levels there are; at the last nothing is left to give up.
    #[must_use]
    pub fn levels(&self) -> u32 {
        let last = (0..usize::BITS).find(|&level| self.at_level(level) == self.at_level(usize::BITS - 1));
        // Small files are kept at level 0 alone, so there is always a level 1 to go to where there are any.
        last.unwrap_or(0).max(u32::from(self.cache_bytes > 0)) + 1
    }

    /// Bytes of what circulates at a level, and of what is kept at it.
    #[must_use]
    pub fn level_bytes(&self, level: u32) -> ByteCount {
        let Circulating { workers, slots, outputs, chunks } = self.at_level(level);
        ByteCount(self.scratch_bytes) * workers as u64
            + ByteCount(self.slot_bytes) * slots as u64
            + ByteCount(self.output_bytes) * if self.outputs_in_ram() { outputs as u64 } else { 0 }
            + ByteCount(self.chunk_bytes) * chunks as u64
            + ByteCount(if level == 0 { self.cache_bytes } else { 0 })
    }

    fn outputs_in_ram(&self) -> bool {
        self.rows.iter().any(|row| row.account == "outputs")
    }

    /// The byte table with its equation, the reasons, the minimum and the knee, for people.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = table(&self.rows);
        let left = self.budget.saturating_sub(self.total());
        text += &format!(
            "{:<16}{:>10}   of {} ({left} not taken: left for files and pictures larger than their buffers)\n\n",
            "sum",
            self.total(),
            self.budget
        );
        text += &format!("workers  {:>4}   {}\n", self.workers, self.workers_because);
        text += &format!("slots    {:>4}   {}\n", self.slots, self.slots_because);
        text += &format!("read     {:>4}   buffers in circulation, {} threads\n\n", self.chunks, self.read_threads);
        if self.outputs > 0 && !self.outputs_in_ram() {
            text += &format!(
                "device   {:>4}   batches in the device's own memory: {} each, and {} of pixels that they are made from\n\n",
                self.outputs,
                ByteCount(self.output_bytes),
                ByteCount(self.slot_bytes)
            );
        }
        text += &format!("minimum {:>10}   the least budget that works: one worker\n", self.minimum);
        text += &format!("knee    {:>10}   more than this buys no throughput\n", self.knee);
        text += &format!("one more worker would take {}\n", self.per_worker);
        text
    }
}

impl Planner<'_> {
    fn check(&self) -> Result<(), PlanError> {
        let request = self.request;
        let bounded = |what: &str, value: usize, limit: usize| match value {
            0 => Err(PlanError::Config(format!("{what} is 0: at least 1 is needed"))),
            n if n > limit => Err(PlanError::Config(format!("{what} is {n}: {limit} is the most"))),
            _ => Ok(()),
        };
        bounded("batch size", request.batch_size, BATCH_LIMIT)?;
        bounded("batches held", request.batches_held, SLOTS_LIMIT)?;
        if let Some(workers) = request.workers_max {
            bounded("workers", workers, WORKERS_LIMIT)?;
        }
        if let Some(prefetch) = request.prefetch_max {
            bounded("prefetch", prefetch, SLOTS_LIMIT)?;
        }
        Ok(())
    }

    /// Whether the slot itself is handed over; otherwise the device makes an output from it.
    fn hands_over_slots(&self) -> bool {
        self.facts.reads_slots && self.request.format.is_identity()
    }

    fn slot_bytes(&self) -> u64 {
        // Slots and outputs are made of whole pages.
        ((self.request.batch_size * self.request.spec.elements()) as u64).next_multiple_of(PAGE_BYTES)
    }

    fn output_bytes(&self) -> u64 {
        let dtype = self.request.format.dtype;
        ((self.request.batch_size * self.request.spec.size_bytes(dtype)) as u64).next_multiple_of(PAGE_BYTES)
    }

    /// The least that works: one worker whose scratch holds the largest picture, and one batch beside those held.
    fn least(&self) -> Shape {
        let held = self.request.batches_held;
        let (slots, outputs) = if self.hands_over_slots() { (held + 1, 0) } else { (1, held) };
        Shape {
            workers: 1,
            slots,
            outputs,
            chunks: 2,
            chunk: CHUNK_TARGET_BYTES.max(self.profile.encoded_p50.0),
            scratch: self.profile.working_max.0,
            cache: 0,
        }
    }

    fn least_circulating(&self) -> Circulating {
        let Shape { workers, slots, outputs, chunks, .. } = self.least();
        Circulating { workers, slots, outputs, chunks }
    }

    /// Buys what raises throughput, most useful first, while the budget lasts.
    fn grow(&self, least: Shape, budget: Option<ByteCount>) -> Shape {
        let fits = |shape: &Shape| budget.is_none_or(|budget| self.total(shape) <= budget);
        let mut shape = least;
        // Room for the common file in every read buffer, so that few have to reserve their own.
        let roomy = Shape { chunks: 4, chunk: shape.chunk.max(self.profile.encoded_p99.0), ..shape };
        if fits(&roomy) {
            shape = roomy;
        }
        // As many read buffers as keep a source busy that wants many reads at once, and two for the worker.
        while shape.chunks < 2 + self.facts.read_threads && fits(&Shape { chunks: shape.chunks + 1, ..shape }) {
            shape.chunks += 1;
        }
        for workers in 2..=self.workers_wanted() {
            let larger = self.with_workers(shape, workers);
            if !fits(&larger) {
                break;
            }
            shape = larger;
        }
        if !self.hands_over_slots() {
            // One output being finished while the consumer works on those it holds.
            let larger = Shape { outputs: self.request.batches_held + 1, ..shape };
            if fits(&larger) {
                shape = larger;
            }
        }
        let (slots, _) = self.slots_wanted(&shape);
        while shape.slots < slots && fits(&Shape { slots: shape.slots + 1, ..shape }) {
            shape.slots += 1;
        }
        let left = budget.map_or(u64::MAX, |budget| budget.saturating_sub(self.total(&shape)).0);
        // Not all of it: a giant larger than any that the profile met must still find room.
        shape.cache = self.cache_wanted().min(left / 2);
        if shape.cache < 2 * self.profile.samples.saturating_mul(CACHE_PER_SAMPLE) {
            // Little more than the table would fit.
            shape.cache = 0;
        }
        shape
    }

    /// Bytes that hold every sample as stored, if reading them again each epoch costs worth mentioning.
    fn cache_wanted(&self) -> u64 {
        let Profile { samples, encoded_total, .. } = *self.profile;
        let small = encoded_total.0 <= samples.saturating_mul(CACHE_MEAN_BYTES_MAX);
        if !small || self.facts.source_in_memory {
            return 0;
        }
        let per_chunk = self.samples_per_chunk().min(self.request.batch_size) as u64;
        // Each batch begins a chunk of its own.
        let chunks = samples.div_ceil(per_chunk) + samples / self.request.batch_size as u64;
        let beside = samples.saturating_mul(CACHE_PER_SAMPLE).saturating_add(chunks.saturating_mul(CACHE_PER_CHUNK));
        encoded_total.0.saturating_add(beside)
    }

    fn with_workers(&self, shape: Shape, workers: usize) -> Shape {
        // One chunk in each worker's hands, one waiting for each, and those being read.
        let chunks = 2 * workers + self.facts.read_threads;
        let large = Shape { workers, chunks, scratch: self.profile.working_max.0, ..shape };
        let common = Shape { scratch: self.profile.working_p99.0, ..large };
        // Scratch for the largest picture in every worker, or for the common one with a jumbo lane: whichever is less.
        if self.total(&common) < self.total(&large) { common } else { large }
    }

    fn workers_wanted(&self) -> usize {
        self.request.workers_max.unwrap_or(self.facts.cores)
    }

    /// Batches that keep the workers of this shape busy, and why.
    fn slots_wanted(&self, shape: &Shape) -> (usize, String) {
        let held = self.request.batches_held;
        let in_slots = if self.hands_over_slots() { held } else { 0 };
        if let Some(prefetch) = self.request.prefetch_max {
            return (in_slots + prefetch, format!("{in_slots} held by the consumer + {prefetch} ahead, as asked"));
        }
        let ahead = shape.chunks * self.samples_per_chunk() + self.samples_past_giants(shape.workers);
        let filling = 1 + ahead.div_ceil(self.request.batch_size).min(SLOTS_LIMIT);
        let why = if in_slots > 0 {
            format!("{in_slots} held by the consumer + {filling} being filled: as many as the samples under way span")
        } else {
            format!("{filling} being filled or copied: as many as the samples under way span")
        };
        (in_slots + filling, why)
    }

    /// How many samples the other workers do while one of them is busy with a large one, as far as waiting for it would
    /// cost them more than [`GIANT_LOSS`] of their time.
    fn samples_past_giants(&self, workers: usize) -> usize {
        if workers < 2 {
            return 0;
        }
        let window = self.profile.window(GIANT_LOSS).0;
        let each = window.checked_div(self.mean_bytes()).unwrap_or(0);
        usize::try_from(each)
            .unwrap_or(usize::MAX)
            .saturating_mul(workers - 1)
            .min(SLOTS_LIMIT * self.request.batch_size)
    }

    fn mean_bytes(&self) -> u64 {
        self.profile.encoded_total.0.checked_div(self.profile.samples).unwrap_or(0).max(1)
    }

    fn samples_per_chunk(&self) -> usize {
        usize::try_from(CHUNK_TARGET_BYTES / self.mean_bytes()).unwrap_or(usize::MAX).clamp(1, CHUNK_SAMPLES_MAX)
    }

    /// What giants need at least: the largest file beyond a read buffer, the largest picture beyond a scratch.
    fn giants(&self, shape: &Shape) -> (u64, u64) {
        let beyond = |largest: ByteCount, common: u64| if largest.0 > common { largest.0 } else { 0 };
        (beyond(self.profile.encoded_max, shape.chunk), beyond(self.profile.working_max, shape.scratch))
    }

    fn headroom(&self, shape: &Shape) -> ByteCount {
        self.facts.device_overhead
            + HEADROOM_BASE
            + HEADROOM_PER_THREAD * (shape.workers + self.facts.read_threads + OTHER_THREADS) as u64
    }

    fn total(&self, shape: &Shape) -> ByteCount {
        self.rows(shape).iter().map(|row| row.bytes).sum()
    }

    fn rows(&self, shape: &Shape) -> Vec<Row> {
        let Shape { workers, slots, outputs, chunks, chunk, scratch, cache } = *shape;
        let (giant_encoded, jumbo) = self.giants(shape);
        let samples = (slots + outputs) as u64 * self.request.batch_size as u64;
        let (batch, spec) = (self.request.batch_size, self.request.spec);
        let one = |bytes: u64| ByteCount(bytes);
        let mut rows = vec![
            Row {
                account: "headroom",
                bytes: self.headroom(shape),
                because: format!(
                    "the process itself, {}and {} threads",
                    match self.facts.device_overhead {
                        ByteCount::ZERO => String::new(),
                        overhead => format!("the device's library ({overhead}) "),
                    },
                    workers + self.facts.read_threads + OTHER_THREADS
                ),
            },
            Row { account: "index", bytes: self.facts.index, because: format!("{} samples", self.profile.samples) },
            Row {
                account: "slots",
                bytes: one(self.slot_bytes()) * slots as u64,
                because: format!("{slots} x {} (batch {batch} x {spec} u8)", one(self.slot_bytes())),
            },
        ];
        if self.facts.reading > ByteCount::ZERO {
            let because = "what the source holds while it is read: decompressors, blocks of samples".to_owned();
            rows.push(Row { account: "reading", bytes: self.facts.reading, because });
        }
        if self.facts.sampling > ByteCount::ZERO {
            let because = "the table that samples are drawn from: weights, classes or shares".to_owned();
            rows.push(Row { account: "sampling", bytes: self.facts.sampling, because });
        }
        if outputs > 0 && self.facts.output_in_ram {
            let OutputFormat { dtype, layout, .. } = self.request.format;
            rows.push(Row {
                account: "outputs",
                bytes: one(self.output_bytes()) * outputs as u64,
                because: format!("{outputs} x {} (batch {batch} x {spec} {dtype}, {layout})", one(self.output_bytes())),
            });
        }
        rows.extend([
            Row {
                account: "bookkeeping",
                bytes: one(BOOKKEEPING_PER_SAMPLE) * samples,
                because: format!("labels, ids and marks: {samples} x {BOOKKEEPING_PER_SAMPLE} B"),
            },
            Row {
                account: "scratch",
                bytes: one(scratch) * workers as u64,
                because: format!("{workers} workers x {}", one(scratch)),
            },
            Row {
                account: "encoded",
                bytes: one(chunk) * chunks as u64,
                because: format!("{chunks} read buffers x {}", one(chunk)),
            },
        ]);
        if cache > 0 {
            let because = if cache < self.cache_wanted() {
                format!("as many of {} small files as fit, as stored, for the epochs to come", self.profile.samples)
            } else {
                format!("{} small files, as stored, for the epochs to come", self.profile.samples)
            };
            rows.push(Row { account: "cache", bytes: one(cache), because });
        }
        if giant_encoded > 0 {
            let because = format!("files over {}, the largest {}", one(chunk), self.profile.encoded_max);
            rows.push(Row { account: "giant files", bytes: one(giant_encoded), because });
        }
        if jumbo > 0 {
            let because = format!("pictures that need over {}, one at a time; only while there is one", one(scratch));
            rows.push(Row { account: "jumbo", bytes: one(jumbo), because });
        }
        rows
    }

    fn plan(&self, shape: Shape, knee: Shape, minimum: ByteCount) -> Plan {
        let request = self.request;
        let left = request.budget.saturating_sub(self.total(&shape)).0;
        let (giant_encoded, jumbo) = self.giants(&shape);
        // What is left is not taken, but may be: by a file or a picture larger than any that the profile met.
        let giants = (giant_encoded + left / 4, jumbo + (left - left / 4));
        let wanted = self.workers_wanted();
        let workers_because = if shape.workers < wanted {
            let short = self.total(&self.with_workers(shape, shape.workers + 1)).saturating_sub(request.budget);
            format!("of {wanted} wanted: one more would pass the budget by {short}")
        } else if request.workers_max.is_some() {
            "as asked".to_owned()
        } else {
            self.facts.cores_because.to_owned()
        };
        let (slots_wanted, mut slots_because) = self.slots_wanted(&shape);
        if shape.slots < slots_wanted {
            slots_because = format!("of {slots_wanted} wanted: one more would pass the budget");
        }
        Plan {
            budget: request.budget,
            workers: shape.workers,
            slots: shape.slots,
            slot_bytes: self.slot_bytes(),
            outputs: shape.outputs,
            output_bytes: self.output_bytes(),
            chunks: shape.chunks,
            chunk_bytes: shape.chunk,
            read_threads: self.facts.read_threads,
            scratch_bytes: shape.scratch,
            cache_bytes: shape.cache,
            giant_encoded_bytes: giants.0,
            jumbo_bytes: giants.1,
            least: self.least_circulating(),
            rows: self.rows(&shape),
            minimum,
            knee: self.total(&knee),
            per_worker: self.total(&self.with_workers(knee, knee.workers + 1)).saturating_sub(self.total(&knee)),
            workers_because,
            slots_because,
        }
    }
}

fn table(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{:<16}{:>10}   {}\n", row.account, row.bytes, row.because)).collect()
}

#[cfg(test)]
mod tests;
