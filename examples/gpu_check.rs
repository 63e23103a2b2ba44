//! Checks the CUDA path on a real GPU: correct batches, the speed of copies and conversions beside that of the card,
//! overlap of copies and compute, and constant memory. `scripts/gpu-check` runs it.
//!
//! ```text
//! gpu_check [--device N] [--quick] [--json FILE]
//! ```
//!
//! `--quick` does a little of everything, for tools that make each call a hundred times slower. The table goes to
//! standard output, as Markdown. The exit code is 1 for an error (a figure below its target is none) and 2 without a
//! GPU.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to its user")]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedstock::device::{CudaDevice, Device, DeviceMemory, Event, HostMemory, Transfer, TransferEvents, convert_into};
use feedstock::source::MemorySource;
use feedstock::tensor::{Normalize, OutputFormat, SampleSpec};
use feedstock::transform::{IMAGENET, RandomCrop};
use feedstock::{ByteCount, DType, Layout, Loader};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BYTES: OutputFormat = OutputFormat { dtype: DType::U8, layout: Layout::Nhwc, normalize: None };

/// A line of the table.
struct Row {
    what: String,
    seen: String,
    hoped: &'static str,
    json: (&'static str, Value),
}

struct Check {
    device: Arc<CudaDevice>,
    quick: bool,
    rows: Vec<Row>,
    state: u64,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut number, mut quick, mut json) = (0, false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--device" => number = arguments.next().and_then(|number| number.parse().ok()).unwrap_or(0),
            "--json" => json = arguments.next(),
            other => {
                eprintln!("'{other}' is not known: gpu_check [--device N] [--quick] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let device = match CudaDevice::open(number) {
        Ok(device) => Arc::new(device),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    // Seeded by the clock: each run looks at other pixels.
    let state = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64) | 1;
    let mut check = Check { device, quick, rows: Vec::new(), state };
    match check.all() {
        Ok(()) => {}
        Err(error) => {
            eprintln!("FAILED: {error}");
            return ExitCode::FAILURE;
        }
    }
    println!("| what | seen | hoped for |\n|---|---|---|");
    for Row { what, seen, hoped, .. } in &check.rows {
        println!("| {what} | {seen} | {hoped} |");
    }
    if let Some(path) = json {
        let object: serde_json::Map<_, _> =
            check.rows.into_iter().map(|row| (row.json.0.to_owned(), row.json.1)).collect();
        if let Err(error) = std::fs::write(&path, Value::Object(object).to_string() + "\n") {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

impl Check {
    fn all(&mut self) -> Result<()> {
        self.card()?;
        self.correctness()?;
        self.copies()?;
        self.kernels()?;
        self.overlap()?;
        self.epochs()
    }

    fn row(&mut self, what: impl Into<String>, seen: String, hoped: &'static str, name: &'static str, value: Value) {
        self.rows.push(Row { what: what.into(), seen, hoped, json: (name, value) });
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn pixels(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.random() >> 24) as u8).collect()
    }

    fn slot(&self, pixels: &[u8]) -> Result<Arc<HostMemory>> {
        let mut slot = self.device.host_memory(pixels.len())?;
        slot.as_mut_slice().copy_from_slice(pixels);
        Ok(Arc::new(slot))
    }

    fn card(&mut self) -> Result<()> {
        let facts = self.device.facts()?;
        let kind = if self.device.is_write_combined() { "write-combined" } else { "plain" };
        self.row("card", facts.model.clone(), "", "card", json!(facts.model));
        self.row("driver made for CUDA", facts.driver.clone(), "", "driver", json!(facts.driver));
        self.row("page-locked slots are", kind.to_owned(), "", "slots", json!(kind));
        Ok(())
    }

    /// Checks every output format on fresh random pixels of many sizes against the CPU's result.
    fn correctness(&mut self) -> Result<()> {
        let rounds = if self.quick { 10 } else { 80 };
        let mut batches = 0u64;
        for round in 0..rounds {
            let side = |draw: u64| 1 + (draw % if round % 4 == 0 { 230 } else { 40 }) as u32;
            let spec = SampleSpec { height: side(self.random()), width: side(self.random()) };
            let samples = 1 + (self.random() % 9) as usize;
            let pixels = self.pixels(samples * spec.elements());
            let slot = self.slot(&pixels)?;
            for format in formats() {
                let mut to = self.device.memory(samples * spec.size_bytes(format.dtype), pixels.len())?;
                let (from, after) = (slot.clone(), Event::done());
                let events = self.device.enqueue_batch(Transfer { from, samples, spec, format, to: &mut to, after })?;
                let mut seen = vec![0; to.len()];
                self.device.read_back(&to, &events.ready, &mut seen)?;
                let mut right = vec![0; to.len()];
                convert_into(&pixels, spec, &format, &mut right);
                if seen != right {
                    return Err(format!("a batch is wrong: {samples} x {spec}, {format:?}").into());
                }
                batches += 1;
            }
        }
        self.row(
            "batches equal to the CPU's, bit for bit",
            format!("{batches} of {batches}"),
            "all",
            "right",
            json!(batches),
        );
        Ok(())
    }

    /// Transfers batches one after another through a small ring, as the loader does. Returns their events, in order.
    fn transfer_many(
        &self,
        samples: usize,
        spec: SampleSpec,
        format: OutputFormat,
        count: usize,
    ) -> Result<Vec<TransferEvents>> {
        let len = samples * spec.elements();
        let copied = if format == BYTES { 0 } else { len };
        let slots = [self.slot(&vec![7; len])?, self.slot(&vec![9; len])?];
        let mut ring: Vec<(DeviceMemory, Event)> = Vec::new();
        for _ in 0..3 {
            ring.push((self.device.memory(samples * spec.size_bytes(format.dtype), copied)?, Event::done()));
        }
        let mut fed: Vec<TransferEvents> = Vec::new();
        for batch in 0..count {
            let (mut to, after) = ring.remove(0);
            let from = slots[batch % 2].clone();
            let one = self.device.enqueue_batch(Transfer { from, samples, spec, format, to: &mut to, after })?;
            ring.push((to, one.ready.clone()));
            fed.push(one);
        }
        if let Some(last) = fed.last() {
            last.ready.wait()?;
        }
        Ok(fed)
    }

    /// Copies back to back, beside the best that the card does from page-locked memory.
    fn copies(&mut self) -> Result<()> {
        let spec = SampleSpec { height: 224, width: 224 };
        let (samples, count) = if self.quick { (8, 4) } else { (64, 60) };
        let len = samples * spec.elements();
        let rates = self.device.transfer_rates(len)?;
        let best = rates.write_combined.unwrap_or(0.0).max(rates.pinned);
        let mut seen = Vec::new();
        for format in [BYTES, OutputFormat { dtype: DType::F32, layout: Layout::Nchw, normalize: Some(IMAGENET) }] {
            let fed = self.transfer_many(samples, spec, format, count)?;
            let took = self.device.elapsed(&fed[0].slot_free, &fed[count - 1].slot_free)?;
            seen.push(((count - 1) * len) as f64 / took.as_secs_f64().max(1e-9));
        }
        let rate = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
        let share = |rate: f64| format!("{} ({:.1} % of the best)", self::gigabytes(rate), 100.0 * rate / best);
        self.row(
            format!("one copy of {} from page-locked memory", ByteCount(len as u64)),
            rate(rates.pinned),
            "",
            "pinned",
            json!(rates.pinned),
        );
        self.row(
            "the same, write-combined",
            rates.write_combined.map_or("none".to_owned(), rate),
            "",
            "write_combined",
            json!(rates.write_combined),
        );
        self.row("the same, pageable", rate(rates.pageable), "", "pageable", json!(rates.pageable));
        self.row("batches of bytes, back to back", share(seen[0]), "95 %", "copy", json!(seen[0]));
        self.row("batches converted to f32, back to back", share(seen[1]), "95 %", "copy_and_convert", json!(seen[1]));
        Ok(())
    }

    /// Memory traffic of each kernel, beside a plain copy of as much.
    fn kernels(&mut self) -> Result<()> {
        let spec = SampleSpec { height: 224, width: 224 };
        let (samples, count) = if self.quick { (8, 3) } else { (256, 12) };
        let mut table = Vec::new();
        for format in formats().into_iter().filter(|format| *format != BYTES) {
            let moved = samples * (spec.elements() + spec.size_bytes(format.dtype));
            let mut best = Duration::MAX;
            for _ in 0..count {
                // One at a time, so that no work is queued before the kernel.
                let fed = self.transfer_many(samples, spec, format, 1)?;
                best = best.min(self.device.elapsed(&fed[0].slot_free, &fed[0].ready)?);
            }
            let rate = moved as f64 / best.as_secs_f64().max(1e-9);
            // A copy of half of it reads and writes as much.
            let ceiling = 2.0 * self.device.transfer_rates(moved / 2)?.on_device;
            table.push((format, rate, ceiling));
        }
        let all: Vec<Value> = table
            .iter()
            .map(|(format, rate, ceiling)| {
                json!({
                    "dtype": format.dtype.to_string(), "layout": format.layout.to_string(),
                    "normalized": format.normalize.is_some(), "bytes_per_s": rate, "ceiling": ceiling,
                })
            })
            .collect();
        for (format, rate, ceiling) in
            table.iter().filter(|(format, ..)| format.normalize == Some(IMAGENET) || format.dtype == DType::U8)
        {
            self.row(
                format!("converting {samples} x {spec} to {} {}", format.dtype, format.layout),
                format!("{} ({:.1} % of a plain copy)", gigabytes(*rate), 100.0 * rate / ceiling),
                "85 %",
                "convert",
                json!(all),
            );
        }
        Ok(())
    }

    /// A consumer that is slower than the copies: the compute stream never waits, and the host does little.
    fn overlap(&mut self) -> Result<()> {
        let spec = SampleSpec { height: 224, width: 224 };
        let format = OutputFormat { dtype: DType::Bf16, layout: Layout::Nchw, normalize: Some(IMAGENET) };
        let (samples, count, step) = if self.quick { (8, 5, 2) } else { (64, 200, 5) };
        let step = Duration::from_millis(step);
        let len = samples * spec.elements();
        let slots = [self.slot(&vec![7; len])?, self.slot(&vec![9; len])?];
        let mut ring = Vec::new();
        for _ in 0..3 {
            ring.push((self.device.memory(samples * spec.size_bytes(format.dtype), len)?, Event::done()));
        }
        let (mut on_host, mut events, mut free) = (Vec::new(), Vec::new(), [Event::done(), Event::done()]);
        for batch in 0..count {
            let (mut to, after) = ring.remove(0);
            // A worker waits for this before it writes the slot.
            free[batch % 2].wait()?;
            let began = Instant::now();
            let from = slots[batch % 2].clone();
            let fed = self.device.enqueue_batch(Transfer { from, samples, spec, format, to: &mut to, after })?;
            let end = self.device.step(&to, &fed.ready, Some(step))?;
            let released = self.device.release(&to)?;
            on_host.push(began.elapsed());
            free[batch % 2] = fed.slot_free.clone();
            events.push((fed, end));
            ring.push((to, released));
        }
        let (first, last) = (events[0].1.clone(), events[count - 1].1.clone());
        let took = self.device.elapsed(&first, &last)?;
        let busy = step.as_secs_f64() * (count - 1) as f64;
        let idle = 1.0 - busy / took.as_secs_f64().max(1e-9);
        on_host.sort_unstable();
        let (median, worst) = (on_host[count / 2], on_host[count * 99 / 100]);
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        // Copies that ended while the step of the batch before them was under way.
        let inside = events
            .windows(2)
            .filter(|pair| {
                self.device.elapsed(&pair[1].0.slot_free, &pair[0].1).is_ok_and(|ahead| ahead > Duration::ZERO)
            })
            .count();
        self.row(
            format!("compute stream idle beside steps of {} ms", step.as_millis()),
            format!("{:.2} %", 100.0 * idle.max(0.0)),
            "under 1 %",
            "idle_share",
            json!(idle),
        );
        self.row(
            "copies that ended inside the step before",
            format!("{inside} of {}", count - 1),
            "all",
            "overlapped",
            json!(inside),
        );
        self.row(
            "the host's part of a batch, median and 99 %",
            format!("{:.0} us, {:.0} us", micros(median), micros(worst)),
            "under 50 us",
            "hand_over_us",
            json!([micros(median), micros(worst)]),
        );
        for (fed, end) in events.iter().skip(2).take(4) {
            let at = |event: &Event| self.device.elapsed(&first, event).map(|time| time.as_secs_f64() * 1e3);
            eprintln!(
                "copied at {:.3} ms, ready {:.3} ms, its step over {:.3} ms",
                at(&fed.slot_free)?,
                at(&fed.ready)?,
                at(end)?
            );
        }
        Ok(())
    }

    /// Epochs over a tiny set: device memory is that of the ring, and constant.
    fn epochs(&mut self) -> Result<()> {
        let epochs = if self.quick { 20 } else { 1000 };
        let image = |n: u32| -> Result<Vec<u8>> {
            let mut bytes = std::io::Cursor::new(Vec::new());
            let pixels =
                image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 7 + n) as u8, (y * 5) as u8, n as u8]));
            pixels.write_to(&mut bytes, image::ImageFormat::Jpeg)?;
            Ok(bytes.into_inner())
        };
        let samples: Vec<_> = (0..64).map(|n| Ok((image(n)?, n % 2))).collect::<Result<_>>()?;
        let source = MemorySource::new(vec!["a".to_owned(), "b".to_owned()], samples)?;
        let device: Arc<dyn Device> = self.device.clone();
        let before = self.device.held();
        let loader = Loader::builder(source)
            .transform(RandomCrop::new(32).padding(4).flip(0.5))
            .batch_size(16)
            .ram_budget(ByteCount(1 << 30))
            .dtype(DType::F32)
            .normalize(IMAGENET)
            .device(device)
            .build()?;
        let plan = loader.plan();
        let entry = CudaDevice::memory_bytes(plan.output_bytes as usize, plan.slot_bytes as usize);
        let expected = ByteCount(plan.outputs as u64 * entry as u64);
        let mut seen = Vec::new();
        for epoch in 0..epochs {
            for batch in loader.epoch(epoch) {
                let batch = batch?;
                let Some(memory) = batch.device_memory() else { return Err("a batch without device memory".into()) };
                self.device.step(memory, batch.ready(), None)?;
            }
            if epoch % (epochs / 10) == 0 {
                seen.push(self.device.held().saturating_sub(before));
            }
        }
        if seen.iter().any(|held| *held != expected) {
            return Err(format!("the loader's device memory should be {expected}, and was {seen:?}").into());
        }
        let free = self.device.memory_info()?.0;
        self.row(
            format!("device memory over {epochs} epochs of 4 batches"),
            format!("{expected}, flat ({free} free)"),
            "ring depth x entry",
            "device_memory",
            json!(expected.0),
        );
        Ok(())
    }
}

fn gigabytes(rate: f64) -> String {
    format!("{:.1} GB/s", rate / 1e9)
}

/// Every combination of dtype, layout and normalization.
fn formats() -> Vec<OutputFormat> {
    let odd = Normalize { mean: [0.1, 0.5, 0.9], std: [0.3, 0.7, 1.9] };
    let mut all = Vec::new();
    for layout in [Layout::Nhwc, Layout::Nchw] {
        all.push(OutputFormat { dtype: DType::U8, layout, normalize: None });
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for normalize in [None, Some(IMAGENET), Some(odd)] {
                all.push(OutputFormat { dtype, layout, normalize });
            }
        }
    }
    all
}
