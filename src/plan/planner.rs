//! The arithmetic of planning: from a request, facts and a profile to a plan.
//!
//! The planner starts from the least that works (one worker), then buys what raises throughput, most useful first,
//! while the budget lasts, and stops at the knee: more than that buys nothing and is not taken.

use super::profile::Profile;
use super::request::{Facts, Request};
use super::row::{BudgetTooSmall, Row, RowDetail};
use super::sizes::{Plan, PoolSizes, SlotsReason, WorkersReason};
use crate::budget::AccountKind;
use crate::tensor::{DType, OutputFormat};
use crate::units::ByteCount;

/// Resident size of a small program with a loader in it, without payload and its threads' stacks
/// (`docs/BUDGET.md` says how it was measured).
pub const LIBRARY_OVERHEAD: ByteCount = ByteCount(8 << 20);
/// Addition to it for each thread: the touched part of its stack and its allocator's arena.
pub const OVERHEAD_PER_THREAD: ByteCount = ByteCount(96 << 10);

/// A chunk gathers small samples up to this many bytes, so that they share one hand-over between threads.
pub const CHUNK_TARGET_BYTES: u64 = 64 << 10;
/// And up to this many samples, so that a batch still spreads over the workers.
pub const CHUNK_SAMPLES_MAX: usize = 32;
const PAGE_BYTES: u64 = crate::memory::PAGE_BYTES as u64;
/// The share of their time that workers may lose waiting for one that is busy with a large sample; more slots would let
/// them get further ahead.
const OVERSIZED_LOSS: f64 = 0.03;
/// Files up to this size, on average, are worth keeping as stored: to open, read and close one takes some 6 us in the
/// kernel, to decode this many bytes about 110 us. Where reading is less than a twentieth, keeping buys nothing.
const CACHE_MEAN_BYTES_MAX: u64 = 16 << 10;
/// Cost of keeping a sample besides its bytes: its entry in the table.
const CACHE_PER_SAMPLE: u64 = 24;
/// Cost of keeping a chunk besides its samples: its last page, and a handle.
const CACHE_PER_CHUNK: u64 = PAGE_BYTES + 128;
/// Label, id and flags of one sample in a slot.
const BOOKKEEPING_PER_SAMPLE: u64 = 64;
/// Admit, transfer, governor, the runtime's own and the consumer.
const OTHER_THREADS: usize = 5;
/// More workers, slots or samples than this are a typing error.
pub(crate) const WORKERS_LIMIT: usize = 1024;
pub(crate) const SLOTS_LIMIT: usize = 4096;
pub(crate) const BATCH_LIMIT: usize = 1 << 20;

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
    /// [`BudgetTooSmall`] with the byte table of the least plan.
    pub fn new(request: &Request, facts: Facts, profile: &Profile) -> Result<Plan, BudgetTooSmall> {
        let planner = Planner { request, facts, profile };
        let least = planner.least();
        let minimum = planner.total(&least);
        if minimum > request.budget {
            return Err(BudgetTooSmall::new(minimum, request.budget, planner.rows(&least)));
        }
        let knee = planner.grow(least, None);
        let shape = planner.grow(least, Some(request.budget));
        Ok(planner.plan(shape, knee, minimum))
    }
}

impl Planner<'_> {
    /// Returns true if the slot itself is the batch; otherwise the device makes an output from it.
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

    /// The least that works: one worker whose scratch holds the largest image, and one batch beside those held.
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

    /// Buys what raises throughput, most useful first, while the budget lasts.
    fn grow(&self, least: Shape, budget: Option<ByteCount>) -> Shape {
        let fits = |shape: &Shape| budget.is_none_or(|budget| self.total(shape) <= budget);
        let mut shape = least;
        // Read buffers for the common file, so that few have to reserve their own.
        let roomy = Shape { chunks: 4, chunk: shape.chunk.max(self.profile.encoded_p99.0), ..shape };
        if fits(&roomy) {
            shape = roomy;
        }
        // As many read buffers as keep a source busy that takes many reads at once, and two for the worker.
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
        // Half of it: a file or an image larger than any in the profile still has to find room.
        shape.cache = self.cache_wanted().min(left / 2);
        if shape.cache < 2 * self.profile.samples.saturating_mul(CACHE_PER_SAMPLE) {
            // Little more than the table would fit.
            shape.cache = 0;
        }
        shape
    }

    /// Bytes that hold every sample as stored; 0 if reading them again each epoch costs next to nothing.
    fn cache_wanted(&self) -> u64 {
        let Profile { samples, encoded_total, .. } = *self.profile;
        let small = encoded_total.0 <= samples.saturating_mul(CACHE_MEAN_BYTES_MAX);
        if !small || self.facts.source_in_memory {
            return 0;
        }
        let per_chunk = self.samples_per_chunk().min(self.request.batch_size) as u64;
        // Each batch begins a chunk of its own.
        let chunks = samples.div_ceil(per_chunk) + samples / self.request.batch_size as u64;
        let extra = samples.saturating_mul(CACHE_PER_SAMPLE).saturating_add(chunks.saturating_mul(CACHE_PER_CHUNK));
        encoded_total.0.saturating_add(extra)
    }

    fn with_workers(&self, shape: Shape, workers: usize) -> Shape {
        // One chunk in each worker's hands, one waiting for each, and those being read.
        let chunks = 2 * workers + self.facts.read_threads;
        let large = Shape { workers, chunks, scratch: self.profile.working_max.0, ..shape };
        let common = Shape { scratch: self.profile.working_p99.0, ..large };
        // Scratch for the largest image in every worker, or for the common one and one shared for oversized images:
        // whichever is less.
        if self.total(&common) < self.total(&large) { common } else { large }
    }

    fn workers_wanted(&self) -> usize {
        self.request.workers_max.unwrap_or(self.facts.cores)
    }

    /// Number of slots that keeps the workers of this shape busy, and the reason.
    fn slots_wanted(&self, shape: &Shape) -> (usize, SlotsReason) {
        let held = if self.hands_over_slots() { self.request.batches_held } else { 0 };
        if let Some(ahead) = self.request.prefetch_max {
            return (held + ahead, SlotsReason::Requested { held, ahead });
        }
        let ahead = shape.chunks * self.samples_per_chunk() + self.samples_past_large(shape.workers);
        let filling = 1 + ahead.div_ceil(self.request.batch_size).min(SLOTS_LIMIT);
        (held + filling, SlotsReason::InFlight { held, filling })
    }

    /// Samples that the other workers process while one of them is busy with a large one, as far as waiting for it
    /// would cost them more than [`OVERSIZED_LOSS`] of their time.
    fn samples_past_large(&self, workers: usize) -> usize {
        if workers < 2 {
            return 0;
        }
        let lookahead = self.profile.lookahead(OVERSIZED_LOSS).0;
        let each = lookahead.checked_div(self.mean_bytes()).unwrap_or(0);
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

    /// The largest file if it is beyond a read buffer, and the largest working set if it is beyond a scratch; else 0.
    fn oversized(&self, shape: &Shape) -> (u64, u64) {
        let beyond = |largest: ByteCount, common: u64| if largest.0 > common { largest.0 } else { 0 };
        (beyond(self.profile.encoded_max, shape.chunk), beyond(self.profile.working_max, shape.scratch))
    }

    fn total(&self, shape: &Shape) -> ByteCount {
        self.rows(shape).iter().map(Row::bytes).sum()
    }

    fn rows(&self, shape: &Shape) -> Vec<Row> {
        let Shape { workers, slots, outputs, chunks, chunk, scratch, cache } = *shape;
        let Request { batch_size, spec, format: OutputFormat { dtype, layout, .. }, .. } = *self.request;
        let Facts { process_overhead, device_overhead: device, index, reading, sampling, .. } = self.facts;
        let samples = self.profile.samples;
        let threads = workers + self.facts.read_threads + OTHER_THREADS;
        let headroom = device + process_overhead + OVERHEAD_PER_THREAD * threads as u64;
        let (oversized_file, oversized_image) = self.oversized(shape);
        let many = |account, count, each: u64, detail| Row { account, count, each: ByteCount(each), detail };
        let batches = |dtype, layout| RowDetail::Batches { batch_size, spec, dtype, layout };
        let in_batches = (slots + outputs) * batch_size;
        let files = RowDetail::OversizedFiles { over: ByteCount(chunk), largest: self.profile.encoded_max };
        let images = RowDetail::OversizedImages { over: ByteCount(scratch) };
        let cached = RowDetail::Cache { samples, all: cache >= self.cache_wanted() };
        let outputs = if self.facts.output_in_ram { outputs } else { 0 };
        let rows = [
            Some(Row::one(AccountKind::Headroom, headroom, RowDetail::Process { device, threads })),
            Some(Row::one(AccountKind::Index, index, RowDetail::Samples(samples))),
            Some(many(AccountKind::Slots, slots, self.slot_bytes(), batches(DType::U8, None))),
            (reading.0 > 0).then(|| Row::one(AccountKind::Reading, reading, RowDetail::Reading)),
            (sampling.0 > 0).then(|| Row::one(AccountKind::Sampling, sampling, RowDetail::Sampling)),
            (outputs > 0)
                .then(|| many(AccountKind::Outputs, outputs, self.output_bytes(), batches(dtype, Some(layout)))),
            Some(many(AccountKind::Bookkeeping, in_batches, BOOKKEEPING_PER_SAMPLE, RowDetail::PerSample)),
            Some(many(AccountKind::Scratch, workers, scratch, RowDetail::Workers)),
            Some(many(AccountKind::Encoded, chunks, chunk, RowDetail::ReadBuffers)),
            (cache > 0).then(|| many(AccountKind::Cache, 1, cache, cached)),
            (oversized_file > 0).then(|| many(AccountKind::OversizedFiles, 1, oversized_file, files)),
            (oversized_image > 0).then(|| many(AccountKind::OversizedImages, 1, oversized_image, images)),
        ];
        rows.into_iter().flatten().collect()
    }

    fn plan(&self, shape: Shape, knee: Shape, minimum: ByteCount) -> Plan {
        let request = self.request;
        let left = request.budget.saturating_sub(self.total(&shape)).0;
        // The rest of the budget is not taken. A file or an image larger than any in the profile may use it.
        let (oversized_file, oversized_image) = self.oversized(&shape);
        let wanted = self.workers_wanted();
        let workers_reason = if shape.workers < wanted {
            let one_more = self.total(&self.with_workers(shape, shape.workers + 1));
            WorkersReason::Budget { wanted, short: one_more.saturating_sub(request.budget) }
        } else if request.workers_max.is_some() {
            WorkersReason::Requested
        } else {
            WorkersReason::Cores(self.facts.cores_reason)
        };
        let slots_reason = match self.slots_wanted(&shape) {
            (wanted, _) if shape.slots < wanted => SlotsReason::Budget { wanted },
            (_, reason) => reason,
        };
        let Shape { workers, slots, outputs, chunks, .. } = self.least();
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
            oversized_file_bytes: oversized_file + left / 4,
            oversized_image_bytes: oversized_image + (left - left / 4),
            least: PoolSizes { workers, slots, outputs, chunks },
            rows: self.rows(&shape),
            minimum,
            knee: self.total(&knee),
            per_worker: self.total(&self.with_workers(knee, knee.workers + 1)).saturating_sub(self.total(&knee)),
            workers_reason,
            slots_reason,
        }
    }
}
