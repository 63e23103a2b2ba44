//! Throughput of the loader relative to its upper bound: decoding and transforming files in memory in a tight loop, on
//! one core and on as many as there are workers. All are measured in turn in one run. The first epoch, which reads
//! every file, is reported apart from later ones, which find small files cached in RAM.
//!
//! Run `cargo bench --bench loader` with FEEDSTOCK_IMAGENET and FEEDSTOCK_CIFAR set to folders of class folders (CIFAR:
//! the one with train/ in it). It prints the rows of `docs/BENCHMARKS.md`.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use feedstock::rng::Seed;
use feedstock::source::SourceError;
use feedstock::transform::{RandomResizedCrop, Transform};
use feedstock::{ByteCount, DType, ImageFolder, Layout, Loader, Preprocessor, SampleId, Source};

const WORKERS: usize = 2;
const ROUNDS: usize = 5;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Minimum number of samples of an epoch, since each begins with an empty pipeline.
const MIN_EPOCH_SAMPLES: u64 = 4000;

struct Case {
    name: &'static str,
    folder: Option<PathBuf>,
    /// Samples of one tight loop.
    samples: u64,
}

/// A folder repeated several times.
struct Repeated {
    folder: ImageFolder,
    times: u64,
}

impl Repeated {
    fn of(&self, id: SampleId) -> SampleId {
        SampleId(id.0 % self.folder.len())
    }
}

impl Source for Repeated {
    fn len(&self) -> u64 {
        self.folder.len() * self.times
    }
    fn classes(&self) -> &[String] {
        self.folder.classes()
    }
    fn label(&self, id: SampleId) -> u32 {
        self.folder.label(self.of(id))
    }
    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.folder.encoded_bytes(self.of(id))
    }
    fn name(&self, id: SampleId) -> String {
        self.folder.name(self.of(id))
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> std::result::Result<(), SourceError> {
        self.folder.read_into(self.of(id), out)
    }
    fn index_bytes(&self) -> u64 {
        self.folder.index_bytes()
    }
}

fn main() -> Result<()> {
    let folder = |variable: &str, below: &str| std::env::var_os(variable).map(|root| PathBuf::from(root).join(below));
    let cases = [
        Case { name: "ImageNet sample, RandomResizedCrop 224", folder: folder("FEEDSTOCK_IMAGENET", ""), samples: 500 },
        Case { name: "CIFAR-10, RandomResizedCrop 32", folder: folder("FEEDSTOCK_CIFAR", "train"), samples: 20_000 },
    ];
    println!(
        "| data | output | tight loop, one core | tight loop, {WORKERS} cores | loader, {WORKERS} workers | \
         share of {WORKERS} x one core | share of {WORKERS} cores | first epoch | share of {WORKERS} x one core |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for Case { name, folder, samples } in cases {
        let Some(folder) = folder else {
            println!("| {name} | skipped: no data | | | | | | | |");
            continue;
        };
        for (dtype, layout) in [(DType::U8, Layout::Nhwc), (DType::F32, Layout::Nchw)] {
            if name.starts_with("CIFAR") {
                row(name, &folder, samples, || RandomResizedCrop::new(32).flip(0.5), dtype, layout)?;
            } else {
                row(name, &folder, samples, || RandomResizedCrop::new(224).flip(0.5), dtype, layout)?;
            }
        }
    }
    Ok(())
}

fn row<T: Transform>(
    name: &str,
    folder: &PathBuf,
    samples: u64,
    transform: impl Fn() -> T + Sync,
    dtype: DType,
    layout: Layout,
) -> Result<()> {
    let source = ImageFolder::open(folder)?;
    let samples = samples.min(source.len());
    let stride = source.len() / samples;
    let mut files = Vec::new();
    for i in 0..samples {
        let id = SampleId(i * stride);
        let mut bytes = vec![0; source.encoded_bytes(id) as usize];
        source.read_into(id, &mut bytes)?;
        files.push(bytes);
    }
    let times = MIN_EPOCH_SAMPLES.div_ceil(source.len());
    let source = Arc::new(Repeated { folder: source, times });
    let loader = || {
        Loader::builder(source.clone())
            .batch_size(64)
            .ram_budget(ByteCount(1 << 30))
            .transform(transform())
            .dtype(dtype)
            .layout(layout)
            .max_workers(WORKERS)
            .build()
    };
    let (mut tight, mut parallel, mut first, mut fed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let alone = tight_loop(&files, &transform);
        let together: f64 = std::thread::scope(|scope| {
            let loops: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| tight_loop(&files, &transform))).collect();
            loops.into_iter().map(|rate| rate.join().unwrap_or(f64::NAN)).sum()
        });
        let loader = loader()?;
        let fresh = epoch(&loader, 0)?;
        let later = epoch(&loader, 1)?;
        // The first round is a warm-up.
        if round > 0 {
            tight.push(alone);
            parallel.push(together);
            first.push(fresh);
            fed.push(later);
        }
    }
    let share = |part: &[f64], of: &[f64], cores: usize| {
        median(part.iter().zip(of).map(|(part, of)| part / of / cores as f64 * 100.0).collect())
    };
    let (of_one, of_all) = (share(&fed, &tight, WORKERS), share(&fed, &parallel, 1));
    let first_of_one = share(&first, &tight, WORKERS);
    println!(
        "| {name} | {dtype} {layout} | {:.0} | {:.0} | {:.0} | {of_one:.0} % | {of_all:.0} % | {:.0} | \
         {first_of_one:.0} % |",
        median(tight),
        median(parallel),
        median(fed),
        median(first),
    );
    Ok(())
}

/// Images per second of one epoch of the loader.
fn epoch(loader: &Loader, number: u64) -> Result<f64> {
    let (start, mut images) = (Instant::now(), 0);
    for batch in loader.epoch(number) {
        images += batch?.len();
    }
    Ok(images as f64 / start.elapsed().as_secs_f64())
}

/// Images per second of one thread that only decodes and transforms. Every file must be good.
fn tight_loop<T: Transform>(files: &[Vec<u8>], transform: &impl Fn() -> T) -> f64 {
    let mut preprocessor = Preprocessor::new(transform());
    let mut out = vec![0; transform().out_spec().elements()];
    let start = Instant::now();
    for (i, file) in files.iter().enumerate() {
        preprocessor.process_as(file, Seed(0), 0, SampleId(i as u64), &mut out).expect("a good file");
        std::hint::black_box(&out);
    }
    files.len() as f64 / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
