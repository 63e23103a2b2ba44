//! Owns the sizes: how many workers, slots and buffers a loader runs with, decided before anything is allocated, and
//! the table that explains them. Pure arithmetic over a request, the machine's facts and the data's profile.
//! It must never allocate payload, read the clock, or ask the machine anything itself.
//!
//! The byte equation, whose terms are the accounts of the ledger:
//!
//! ```text
//! budget >= headroom + index + slots x slot + outputs x output + workers x scratch
//!         + chunks x chunk + cache + giant files (as stored) + giant pictures (the jumbo lane)
//! ```
//!
//! The plan starts from the least that works (one worker), then buys what raises throughput, most useful first, while
//! the budget lasts, and stops at the knee: what lies beyond buys nothing and is not taken.

mod profile;

pub use profile::{ENCODED_BYTES_MAX, Profile, Survey};

use crate::tensor::{Finish, SampleSpec};
use crate::units::ByteCount;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Samples in a batch.
    pub batch_size: usize,
    /// Shape of a sample.
    pub spec: SampleSpec,
    /// The last steps on the device.
    pub finish: Finish,
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
    /// Whether the source's samples lie in RAM already.
    pub source_in_memory: bool,
    /// Whether finished batches lie in RAM (a CPU, or a simulated device) or in memory of the device's own.
    pub output_in_ram: bool,
    /// Whether the consumer can read slots where they are, so that a batch which needs no finish is one.
    pub reads_slots: bool,
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
/// from outside (`docs/BUDGET.md`).
pub const HEADROOM_BASE: ByteCount = ByteCount(8 << 20);
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
/// Read threads: local files are in the page cache or behind a queue that four requests keep busy.
const READ_THREADS: usize = 2;
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
        let in_ram = self.rows.iter().any(|row| row.account == "outputs");
        ByteCount(self.scratch_bytes) * workers as u64
            + ByteCount(self.slot_bytes) * slots as u64
            + ByteCount(self.output_bytes) * if in_ram { outputs as u64 } else { 0 }
            + ByteCount(self.chunk_bytes) * chunks as u64
            + ByteCount(if level == 0 { self.cache_bytes } else { 0 })
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
        self.facts.reads_slots && self.request.finish.is_identity()
    }

    fn slot_bytes(&self) -> u64 {
        // Slots and outputs are made of whole pages.
        ((self.request.batch_size * self.request.spec.elements()) as u64).next_multiple_of(PAGE_BYTES)
    }

    fn output_bytes(&self) -> u64 {
        let dtype = self.request.finish.dtype;
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
        let chunks = 2 * workers + READ_THREADS;
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

    fn headroom(shape: &Shape) -> ByteCount {
        HEADROOM_BASE + HEADROOM_PER_THREAD * (shape.workers + READ_THREADS + OTHER_THREADS) as u64
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
                bytes: Self::headroom(shape),
                because: format!("the process itself, and {} threads", workers + READ_THREADS + OTHER_THREADS),
            },
            Row { account: "index", bytes: self.facts.index, because: format!("{} samples", self.profile.samples) },
            Row {
                account: "slots",
                bytes: one(self.slot_bytes()) * slots as u64,
                because: format!("{slots} x {} (batch {batch} x {spec} u8)", one(self.slot_bytes())),
            },
        ];
        if outputs > 0 && self.facts.output_in_ram {
            let Finish { dtype, layout, .. } = self.request.finish;
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
            read_threads: READ_THREADS,
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
mod tests {
    use super::*;
    use crate::tensor::{DType, Layout};
    use proptest::prelude::*;

    fn photographs() -> Profile {
        Profile {
            samples: 1_281_167,
            encoded_total: ByteCount(1_281_167 * 110_000),
            encoded_p50: ByteCount(104 << 10),
            encoded_p99: ByteCount(350 << 10),
            encoded_max: ByteCount(15 << 20),
            encoded_spread: vec![(ByteCount(110_000), 1_281_167)],
            headers: 320,
            headers_bad: 0,
            working_p50: ByteCount(1 << 20),
            working_p99: ByteCount(4 << 20),
            working_max: ByteCount(30 << 20),
        }
    }

    fn request(budget: u64) -> Request {
        Request {
            batch_size: 64,
            spec: SampleSpec { height: 224, width: 224 },
            finish: Finish { dtype: DType::U8, layout: Layout::Nhwc, normalize: None },
            workers_max: None,
            prefetch_max: None,
            batches_held: 1,
            budget: ByteCount(budget),
        }
    }

    const FACTS: Facts = Facts {
        cores: 8,
        cores_because: "all",
        index: ByteCount(13 << 20),
        source_in_memory: false,
        output_in_ram: true,
        reads_slots: true,
    };

    #[test]
    fn more_than_the_knee_is_not_taken() {
        let ample = Plan::new(&request(64 << 30), FACTS, &photographs()).unwrap();
        assert_eq!((ample.workers, ample.outputs), (8, 0));
        assert_eq!(ample.total(), ample.knee);
        let knee = Plan::new(&request(ample.knee.0), FACTS, &photographs()).unwrap();
        assert_eq!((knee.workers, knee.slots, knee.total()), (ample.workers, ample.slots, ample.total()));
        // What is left over is there for giants, and for nothing else.
        assert!(ample.jumbo_bytes > 40 << 30);
    }

    #[test]
    fn workers_have_a_scratch_for_the_common_picture_and_share_a_lane_for_giants() {
        let plan = Plan::new(&request(1 << 30), FACTS, &photographs()).unwrap();
        assert_eq!(plan.scratch_bytes, 4 << 20);
        assert!(plan.jumbo_bytes >= 30 << 20);
        let least = Plan::new(&request(plan.minimum.0), FACTS, &photographs()).unwrap();
        assert_eq!((least.workers, least.slots, least.scratch_bytes), (1, 2, 30 << 20));
        assert_eq!(least.total(), least.minimum);
    }

    #[test]
    fn small_files_are_kept_as_far_as_the_budget_goes_and_large_ones_are_not() {
        let small = Profile { encoded_total: ByteCount(50_000 * 900), samples: 50_000, ..photographs() };
        let cache = |budget: u64, facts: Facts, profile: &Profile| {
            Plan::new(&request(budget), facts, profile).unwrap().cache_bytes
        };
        let all = cache(1 << 30, FACTS, &small);
        assert!((50_000 * 900..50_000 * 1200).contains(&all), "{all}");
        let knee = Plan::new(&request(1 << 30), FACTS, &small).unwrap().knee;
        let without = knee.0 - all;
        assert_eq!(cache(without + all, FACTS, &small), all / 2, "half of what is left stays free for giants");
        assert_eq!(cache(without + (1 << 20), FACTS, &small), 0, "a table with next to nothing in it");
        assert_eq!(cache(1 << 30, Facts { source_in_memory: true, ..FACTS }, &small), 0);
        assert_eq!(cache(64 << 30, FACTS, &photographs()), 0);
    }

    #[test]
    fn a_budget_one_byte_short_is_refused_with_the_table() {
        let minimum = Plan::new(&request(1 << 30), FACTS, &photographs()).unwrap().minimum;
        match Plan::new(&request(minimum.0 - 1), FACTS, &photographs()) {
            Err(PlanError::OverBudget { needed, table, .. }) => {
                assert_eq!(needed, minimum);
                assert!(table.contains("slots") && table.contains("2 x 9.19 MiB"), "{table}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_output_of_another_type_is_made_beside_the_slots() {
        let finish = Finish { dtype: DType::F32, layout: Layout::Nchw, normalize: None };
        let plan = Plan::new(&Request { finish, ..request(1 << 30) }, FACTS, &photographs()).unwrap();
        assert_eq!((plan.outputs, plan.output_bytes), (2, 4 * plan.slot_bytes));
        // On a device with memory of its own the outputs are not the ledger's.
        let there = Facts { output_in_ram: false, reads_slots: false, ..FACTS };
        let plan = Plan::new(&Request { finish, ..request(1 << 30) }, there, &photographs()).unwrap();
        assert_eq!(plan.outputs, 2);
        assert!(plan.rows.iter().all(|row| row.account != "outputs"));
    }

    #[test]
    fn the_explanation_names_every_account_and_its_reason() {
        let plan = Plan::new(&request(1 << 30), FACTS, &photographs()).unwrap();
        let (text, minimum) = (plan.explain(), plan.minimum.to_string());
        for words in
            ["headroom", "scratch", "encoded", "giant files", "workers", "slots", "knee", "one more worker", &minimum]
        {
            assert!(text.contains(words), "{words} in\n{text}");
        }
    }

    fn profile() -> impl Strategy<Value = Profile> {
        let sizes = || (0u64..1 << 20, 0u64..1 << 20, 0u64..1 << 26);
        (1u64..1 << 40, sizes(), sizes()).prop_map(|(samples, (e, f, g), (w, x, y))| Profile {
            samples,
            encoded_total: ByteCount(samples.saturating_mul(e)),
            encoded_p50: ByteCount(e),
            encoded_p99: ByteCount(e + f),
            encoded_max: ByteCount(e + f + g),
            encoded_spread: vec![
                (ByteCount(e), samples / 2),
                (ByteCount(e + f), samples / 3),
                (ByteCount(e + f + g), 1),
            ],
            headers: 1,
            headers_bad: 0,
            working_p50: ByteCount(w),
            working_p99: ByteCount(w + x),
            working_max: ByteCount(w + x + y),
        })
    }

    prop_compose! {
        fn any_request()(
            batch_size in 1usize..600, height in 1u32..300, width in 1u32..300,
            dtype in prop_oneof![Just(DType::U8), Just(DType::F32), Just(DType::Bf16)],
            layout in prop_oneof![Just(Layout::Nhwc), Just(Layout::Nchw)],
            workers_max in prop::option::of(1usize..40), prefetch_max in prop::option::of(1usize..9),
            batches_held in 1usize..4, budget in 0u64..1 << 31,
        ) -> Request {
            let finish = Finish { dtype, layout, normalize: None };
            let spec = SampleSpec { height, width };
            Request { batch_size, spec, finish, workers_max, prefetch_max, batches_held, budget: ByteCount(budget) }
        }
    }

    proptest! {
        #[test]
        fn a_plan_is_refused_or_adds_up(
            request in any_request(), profile in profile(), cores in 1usize..20,
            output_in_ram: bool, reads_slots: bool, source_in_memory: bool,
        ) {
            let reads_slots = reads_slots && output_in_ram;
            let facts = Facts { cores, cores_because: "all", index: ByteCount(1 << 20), source_in_memory, output_in_ram, reads_slots };
            match Plan::new(&request, facts, &profile) {
                Ok(plan) => {
                    prop_assert!(plan.total() <= request.budget);
                    prop_assert!(plan.minimum <= plan.total() || plan.minimum <= request.budget);
                    prop_assert!(plan.workers >= 1 && plan.workers <= request.workers_max.unwrap_or(cores));
                    // Every account can be used to its cap whatever the others do.
                    let giants = |account| plan.rows.iter().find(|row| row.account == account).map_or(0, |row| row.bytes.0);
                    let fixed = plan.total().0 - giants("giant files") - giants("jumbo");
                    prop_assert!(fixed + plan.giant_encoded_bytes + plan.jumbo_bytes <= request.budget.0);
                    prop_assert!(plan.cache_bytes == 0 || !source_in_memory);
                    // The largest file and the largest picture that are known can be let in.
                    let fits = |largest: ByteCount, common: u64, giant: u64| largest.0 <= common.max(giant);
                    prop_assert!(fits(profile.encoded_max, plan.chunk_bytes, plan.giant_encoded_bytes));
                    prop_assert!(fits(profile.working_max, plan.scratch_bytes, plan.jumbo_bytes));
                    // Every level is smaller than the one before, and the last is the least.
                    for level in 1..plan.levels() {
                        prop_assert!(plan.level_bytes(level) <= plan.level_bytes(level - 1), "{level} {plan:?}");
                    }
                    let last = plan.at_level(plan.levels() - 1);
                    prop_assert_eq!(last.workers, 1);
                    prop_assert!(last.slots >= plan.least.slots.min(plan.slots) && last.slots >= 1);
                    // The consumer's batches and one more.
                    let handed = if plan.outputs == 0 { plan.slots - 1 } else { plan.outputs };
                    prop_assert!(handed >= request.batches_held && plan.slots >= 1);
                    // More budget never buys less.
                    let more = Request { budget: ByteCount(request.budget.0 * 2), ..request.clone() };
                    let more = Plan::new(&more, facts, &profile).expect("what fits in less fits in more");
                    prop_assert!(more.workers >= plan.workers && more.minimum == plan.minimum);
                }
                Err(PlanError::OverBudget { needed, budget, .. }) => {
                    prop_assert!(needed > budget);
                    let enough = Request { budget: needed, ..request.clone() };
                    prop_assert!(Plan::new(&enough, facts, &profile).is_ok(), "the minimum is enough");
                }
                Err(PlanError::Config(what)) => prop_assert!(false, "{}", what),
            }
        }
    }
}
