//! Benchmark of one stage alone: decode, read or transfer, as fast as it goes, and an estimate of what the machine
//! allows at best. A stage takes no shortcut that the loader could not take, and holds no more than the budget.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use feedstock::budget::{AccountKind, Ledger, Reservation};
use feedstock::decode::{Limits, WorkingSet, probe, working_set};
use feedstock::device::{self, Device, Event, SimDevice, SimSpec, Transfer};
use feedstock::host::{HostFacts, process_cpu_time};
use feedstock::plan::{BudgetTooSmall, ENCODED_BYTES_MAX, Row};
use feedstock::rng::Seed;
use feedstock::sampler::Order;
use feedstock::tensor::{DType, OutputFormat, SampleSpec};
use feedstock::{ByteCount, Error, Preprocessor, SampleId, Source};

use super::super::Context;
use super::super::failure::{Failure, print};
use super::super::format::{json, percent};
use super::super::stop::Stop;
use super::super::table::{counted, facts};
use super::{BenchArgs, Mode};

/// Minimum duration of a measurement, after a warm-up of a tenth of it.
const LEAST: Duration = Duration::from_millis(1500);
/// Maximum number and bytes of files that are decoded in a loop.
const FILES_MAX: u64 = 1000;
const FILES_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a copy that measures the speed of memory: more than caches hold.
const COPY_BYTES: usize = 16 << 20;

/// The JSON of a stage alone. Numbers are absent if there is nothing to measure; `note` then has the reason.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StageBench {
    pub(super) mode: String,
    pub(super) workers: u64,
    pub(super) images: u64,
    pub(super) images_per_s: Option<f64>,
    pub(super) bytes_per_s: Option<f64>,
    pub(super) cpu_s_per_image: Option<f64>,
    pub(super) ceiling_images_per_s: Option<f64>,
    /// Meaning of the ceiling: the most that the machine would allow.
    pub(super) ceiling: Option<String>,
    pub(super) share_of_ceiling: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

/// Images and the time that they took.
#[derive(Clone, Copy, Default)]
struct Measured {
    images: u64,
    /// Bytes read, or moved to the device.
    bytes: u64,
    images_per_s: f64,
    /// CPU time of all threads.
    cpu: Duration,
}

pub(super) fn run(args: &BenchArgs, context: &Context) -> Result<(), Failure> {
    let folder = args.loader.open()?;
    let stop = &context.stop;
    let stage = match args.mode {
        Mode::Decode => decode(args, &folder, stop)?,
        Mode::Read => read(args, &folder, stop)?,
        _ => transfer(args, stop)?,
    };
    if stop.is_requested() {
        return Err(Failure::Interrupted);
    }
    print(if args.json { json(&stage) } else { stage.text() })
}

/// Decode and transform alone: files in memory, a tight loop on each of as many threads as the plan has workers.
fn decode(args: &BenchArgs, folder: &Arc<dyn Source>, stop: &Stop) -> Result<StageBench, Failure> {
    let budget = args.loader.one()?.0.resolve_here().bytes;
    let ledger = Ledger::new(budget);
    let threads = args.threads(folder)?.0;
    let (files, _held) = files(folder, &ledger, budget)?;
    let largest = files.iter().filter_map(|(_, file)| probe(file, &Limits::default()).ok()).map(|header| {
        let WorkingSet { buffer_bytes, codec_bytes, .. } = working_set(&header, 1);
        let pixel_bytes = u64::from(header.width) * u64::from(header.height) * 3;
        buffer_bytes.max(pixel_bytes).saturating_add(codec_bytes)
    });
    let spec = SampleSpec { height: args.loader.batch.size, width: args.loader.batch.size };
    // As many samples as two slots hold, among all threads: one that overwrites the one before would stay in the cache.
    let slots = (2 * args.loader.batch.batch_size / threads).max(1);
    // The resampler's workspace is smaller than an image.
    let one = largest.max().unwrap_or(0).saturating_mul(2) + (slots * spec.elements()) as u64;
    let _images = hold(&ledger, "images", ByteCount(one.saturating_mul(threads as u64)))?;
    let usable: Vec<_> = {
        let mut preprocessor = Preprocessor::new(args.transform()).options(args.loader.decode.options());
        let mut out = vec![0; spec.elements()];
        let mut good =
            |id: SampleId, file: &[u8]| preprocessor.process_as(file, Seed(args.seed), 0, id, &mut out).is_ok();
        files.iter().filter(|(id, file)| good(*id, file)).collect()
    };
    if usable.is_empty() && !stop.is_requested() {
        let asked = counted(files.len() as u64, "file");
        return Err(Failure::Data(format!("none of {asked} can be decoded: feedstock inspect shows the reasons")));
    }
    let tight = |threads| {
        measure(threads, stop, || {
            let mut preprocessor = Preprocessor::new(args.transform()).options(args.loader.decode.options());
            let mut samples = vec![0; slots * spec.elements()];
            let (mut slot, mut next, mut epoch) = (0, 0, 0);
            let usable = &usable;
            move || {
                let (id, file) = usable[next];
                let out = &mut samples[slot * spec.elements()..][..spec.elements()];
                // These files were decoded once before.
                let _ = preprocessor.process_as(file, Seed(args.seed), epoch, *id, out);
                black_box(out);
                slot = (slot + 1) % slots;
                next = (next + 1) % usable.len();
                epoch += u64::from(next == 0);
                file.len() as u64
            }
        })
    };
    let alone = tight(1);
    let run = if threads == 1 { alone } else { tight(threads) };
    let cores = HostFacts::read().cpus.workers_max().min(threads);
    let ceiling = (alone.images_per_s * cores as f64, format!("{} x one thread alone", counted(cores as u64, "core")));
    Ok(StageBench::new("decode", threads, run, Some(ceiling)))
}

/// Some of the files, in memory.
type Files = (Vec<(SampleId, Vec<u8>)>, Reservation);

fn files(folder: &dyn Source, ledger: &Ledger, budget: ByteCount) -> Result<Files, Failure> {
    let most = (budget.0 / 4).min(FILES_BYTES_MAX);
    let count = folder.len().clamp(1, FILES_MAX);
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for id in (0..count).map(|n| SampleId(n * (folder.len() / count).max(1))) {
        let size = folder.encoded_bytes(id);
        if ids.is_empty() || bytes + size <= most {
            ids.push(id);
            bytes += size;
        }
    }
    let held = hold(ledger, "files", ByteCount(bytes))?;
    let mut files = Vec::new();
    for id in ids {
        let mut file = vec![0; folder.encoded_bytes(id) as usize];
        if folder.read_into(id, &mut file).is_ok() {
            files.push((id, file));
        }
    }
    Ok((files, held))
}

fn hold(ledger: &Ledger, account: &'static str, bytes: ByteCount) -> Result<Reservation, Failure> {
    ledger.fixed_account(AccountKind::Other(account), ledger.limit()).reserve(bytes).map_err(|refused| {
        let needed = ledger.limit() + refused.needed.saturating_sub(refused.available);
        let row = Row::other(account, bytes, "to measure this stage alone");
        Failure::Library(Error::OverBudget(BudgetTooSmall::new(needed, ledger.limit(), vec![row])))
    })
}

/// Reading alone: every file in the order of an epoch, on as many threads as the plan has for reading.
fn read(args: &BenchArgs, folder: &Arc<dyn Source>, stop: &Stop) -> Result<StageBench, Failure> {
    let budget = args.loader.one()?.0.resolve_here().bytes;
    let ledger = Ledger::new(budget);
    let threads = args.threads(folder)?.1;
    let largest = (0..folder.len()).map(|id| folder.encoded_bytes(SampleId(id))).max().unwrap_or(0);
    let largest = largest.min(ENCODED_BYTES_MAX) as usize;
    let _held = hold(&ledger, "read buffers", ByteCount((largest as u64).saturating_mul(threads as u64)))?;
    let order = if args.no_shuffle {
        Order::sequential(folder.len())
    } else {
        Order::shuffled(folder.len(), Seed(args.seed), 0)
    };
    let position = AtomicU64::new(0);
    let run = measure(threads, stop, || {
        let mut buffer = vec![0; largest];
        let (order, position) = (&order, &position);
        move || {
            let id = order.at(position.fetch_add(1, Ordering::Relaxed) % order.len());
            let bytes = folder.encoded_bytes(id);
            let into = buffer.get_mut(..bytes as usize).unwrap_or_default();
            // A file that cannot be read takes time as well.
            let _ = black_box(folder.read_into(id, into));
            into.len() as u64
        }
    });
    let bytes_each = run.bytes as f64 / run.images.max(1) as f64;
    let cores = threads.min(HostFacts::read().cpus.workers_max()) as f64;
    let what = "a copy of as many bytes in memory, by each thread";
    let ceiling = copy_rate(&ledger).map(|rate| (rate * cores / bytes_each.max(1.0), what.to_owned()));
    Ok(StageBench::new("read", threads, run, ceiling))
}

/// Bytes per second of one thread that copies from memory to memory; `None` if the budget is too small for that.
fn copy_rate(ledger: &Ledger) -> Option<f64> {
    let _held = hold(ledger, "copies", ByteCount(2 * COPY_BYTES as u64)).ok()?;
    let (from, mut to) = (vec![1u8; COPY_BYTES], vec![0u8; COPY_BYTES]);
    Some(bytes_per_s(|| {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }))
}

/// Bytes per second of a call that moves [`COPY_BYTES`].
fn bytes_per_s(mut once: impl FnMut()) -> f64 {
    // The first call touches the pages.
    once();
    let (started, mut moved) = (Instant::now(), 0u64);
    while started.elapsed() < LEAST / 10 {
        once();
        moved += COPY_BYTES as u64;
    }
    moved as f64 / started.elapsed().as_secs_f64()
}

/// The transfer to the device alone: one slot after another is copied and formatted.
fn transfer(args: &BenchArgs, stop: &Stop) -> Result<StageBench, Failure> {
    let device = device::open(&args.loader.device)?;
    let budget = args.loader.one()?.0.resolve_here().bytes;
    let format = OutputFormat {
        dtype: args.loader.batch.dtype,
        layout: args.loader.batch.layout,
        normalize: args.normalization(),
    };
    let spec = SampleSpec { height: args.loader.batch.size, width: args.loader.batch.size };
    let samples = args.loader.batch.batch_size;
    if device.reads_slots() && format.is_identity() {
        let note = Some("nothing is transferred: the consumer gets batches of this kind in place".to_owned());
        return Ok(StageBench { mode: "transfer".to_owned(), note, ..StageBench::default() });
    }
    let (slot_bytes, bytes) = (samples * spec.size_bytes(DType::U8), samples * spec.size_bytes(format.dtype));
    let ledger = Ledger::new(budget);
    let in_ram = if device.counts_as_ram() { bytes } else { 0 };
    let _held = hold(&ledger, "batches", ByteCount(2 * (slot_bytes + in_ram) as u64))?;
    let copied_bytes = if format.is_identity() { 0 } else { slot_bytes };
    let mut ways = Vec::new();
    for _ in 0..2 {
        let slot = Arc::new(device.host_memory(slot_bytes)?);
        ways.push((slot, device.memory(bytes, copied_bytes)?, Event::done()));
    }
    let mut failed = Ok(());
    let mut next = 0;
    let mut feed_one = || {
        let (slot, to, done) = &mut ways[next];
        next = 1 - next;
        let fed = done.wait().and_then(|()| {
            let from = slot.clone();
            device.enqueue_batch(Transfer { from, samples, spec, format, to, after: Event::done() })
        });
        match fed {
            Ok(fed) => *done = fed.ready,
            Err(error) => failed = Err(error),
        }
        failed.is_ok()
    };
    let (mut batches, cpu, started) = (0u64, process_cpu_time(), Instant::now());
    while started.elapsed() < LEAST && !stop.is_requested() && feed_one() {
        batches += 1;
    }
    failed?;
    for (_, _, done) in &ways {
        done.wait()?;
    }
    let (took, cpu) = (started.elapsed().as_secs_f64(), process_cpu_time().saturating_sub(cpu));
    let images = batches * samples as u64;
    let crossed = if device.reads_slots() { bytes } else { slot_bytes };
    let run = Measured { images, bytes: batches * crossed as u64, images_per_s: images as f64 / took, cpu };
    let ceiling =
        best_copy(&*device, slot_bytes, &ledger)?.map(|(rate, what)| (rate * samples as f64 / crossed as f64, what));
    Ok(StageBench::new("transfer", 1, run, ceiling))
}

/// Highest copy rate of this device in bytes per second, and its meaning; `None` if the budget is too small to measure
/// it.
fn best_copy(device: &dyn Device, len: usize, ledger: &Ledger) -> Result<Option<(f64, String)>, Failure> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.downcast_ref::<feedstock::device::CudaDevice>() {
        // Page-locked memory of both kinds, and pageable memory.
        let Ok(_held) = hold(ledger, "copies", ByteCount(3 * len as u64)) else { return Ok(None) };
        let rate = gpu.transfer_rates(len)?.pinned;
        return Ok(Some((rate, "a copy from page-locked memory, alone".to_owned())));
    }
    let _ = len;
    if device.downcast_ref::<SimDevice>().is_some() {
        let spec = device.name().parse::<SimSpec>().map_err(Error::from)?;
        return Ok(Some((spec.h2d_bytes_per_s as f64, "the simulated bus".to_owned())));
    }
    let Ok(_held) = hold(ledger, "copies", ByteCount(COPY_BYTES as u64)) else { return Ok(None) };
    let mut to = vec![0u8; COPY_BYTES];
    let rate = bytes_per_s(|| {
        to.fill(black_box(1));
        black_box(&mut to);
    });
    Ok(Some((rate, "filling as many bytes in memory".to_owned())))
}

/// Runs `work` in a loop on each thread. Each call processes one image and returns its bytes.
fn measure<W: FnMut() -> u64 + Send>(threads: usize, stop: &Stop, work: impl Fn() -> W + Sync) -> Measured {
    let one = || {
        let mut work = work();
        let warm = Instant::now();
        while warm.elapsed() < LEAST / 10 && !stop.is_requested() {
            work();
        }
        let (started, mut images, mut bytes) = (Instant::now(), 0u64, 0u64);
        while started.elapsed() < LEAST && !stop.is_requested() {
            bytes += work();
            images += 1;
        }
        (images, bytes, images as f64 / started.elapsed().as_secs_f64())
    };
    let cpu = process_cpu_time();
    let all: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    // The CPU time includes the warm-up, in proportion.
    let counted = LEAST.as_secs_f64() / (LEAST + LEAST / 10).as_secs_f64();
    let cpu = process_cpu_time().saturating_sub(cpu).mul_f64(counted);
    let sum = |of: fn(&(u64, u64, f64)) -> u64| all.iter().map(of).sum();
    let images_per_s = all.iter().map(|(_, _, rate)| rate).sum();
    Measured { images: sum(|one| one.0), bytes: sum(|one| one.1), images_per_s, cpu }
}

impl StageBench {
    /// `ceiling`: images per second that the machine would allow at most, and the meaning of that number.
    fn new(mode: &str, threads: usize, run: Measured, ceiling: Option<(f64, String)>) -> Self {
        let Measured { images, bytes, images_per_s, cpu } = run;
        let each = images.max(1) as f64;
        let (ceiling_images_per_s, ceiling) = ceiling.unzip();
        StageBench {
            mode: mode.to_owned(),
            workers: threads as u64,
            images,
            images_per_s: Some(images_per_s),
            bytes_per_s: Some(images_per_s * bytes as f64 / each),
            cpu_s_per_image: Some(cpu.as_secs_f64() / each),
            ceiling_images_per_s,
            ceiling,
            share_of_ceiling: ceiling_images_per_s.map(|ceiling| images_per_s / ceiling),
            note: None,
        }
    }

    fn text(&self) -> String {
        if let Some(note) = &self.note {
            return note.clone();
        }
        let number = Option::unwrap_or_default;
        let (speed, bytes) = (number(self.images_per_s), ByteCount(number(self.bytes_per_s) as u64));
        let mut lines = vec![
            ("stage", format!("{}, {}", self.mode, counted(self.workers, "thread"))),
            ("speed", format!("{speed:.0} images/s, {bytes}/s ({})", counted(self.images, "image"))),
            ("CPU", format!("{:.1} us an image", number(self.cpu_s_per_image) * 1e6)),
        ];
        if let (Some(most), Some(what), Some(share)) = (self.ceiling_images_per_s, &self.ceiling, self.share_of_ceiling)
        {
            lines.push(("ceiling", format!("{most:.0} images/s: {what}; {} of it is reached", percent(share))));
        }
        facts(&lines)
    }
}
