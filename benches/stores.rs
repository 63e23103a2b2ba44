//! Throughput of the loader over a tar on a web server and the same tar on the disk: with immediate answers, with
//! delayed answers as from a distant store, and with reads that are not coalesced.
//!
//! `cargo bench -p feedstock-store-tests` with FEEDSTOCK_IMAGENET and FEEDSTOCK_CIFAR set to folders of class
//! folders, and nginx installed. It prints the table of `docs/BENCHMARKS.md`. The server and the proxy that delays
//! answers run on the same cores.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

#[path = "../tests/common/faulty_proxy.rs"]
mod faulty_proxy;
#[path = "../tests/common/nginx.rs"]
mod nginx;
#[path = "../tests/common/skip.rs"]
mod skip;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty_proxy::{Fault, FaultyProxy};
use feedstock::source::{IoProfile, OpenOptions, Source, SourceError, open_with};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, Loader, SampleId, Sampling};
use nginx::Nginx;

const WORKERS: usize = 2;
const ROUNDS: usize = 3;
/// Images per measurement, over several epochs.
const IMAGES: u64 = 4000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(imagenet), Some(cifar)) = (folder("FEEDSTOCK_IMAGENET"), folder("FEEDSTOCK_CIFAR")) else {
        println!("skipped: FEEDSTOCK_IMAGENET or FEEDSTOCK_CIFAR is not set");
        return Ok(());
    };
    let (root, scratch) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let Some(server) = Nginx::start(root.path(), scratch.path()) else { return Ok(()) };
    println!(
        "| data | order | delay of answers | disk, images/s | store, images/s | relative to disk | requests per image | \
         without coalescing, images/s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, folder, side) in [("ImageNet", imagenet, 224), ("CIFAR-10", cifar.join("train"), 32)] {
        let tar = root.path().join(format!("{name}.tar"));
        let mut builder = tar::Builder::new(File::create(&tar)?);
        builder.append_dir_all(".", &folder)?;
        builder.into_inner()?;
        for late in [0, 20] {
            let fault = if late == 0 { Fault::Pass } else { Fault::Late(Duration::from_millis(late)) };
            let proxy = FaultyProxy::start(server.address, move |_| fault.clone());
            let url = format!("http://{}/{name}.tar", proxy.address());
            let options = OpenOptions::new().index_folder(scratch.path());
            let (near, far) = (open_with(&tar, &options)?, open_with(Path::new(&url), &options)?);
            let single: Arc<dyn Source> = Arc::new(SingleReads(far.clone()));
            for (order, sampling) in [("shuffled", Sampling::Shuffled), ("as stored", Sampling::Sequential)] {
                let (mut disk, mut store, mut each) = (Vec::new(), Vec::new(), Vec::new());
                let mut requests = 0.0;
                for _ in 0..ROUNDS {
                    let measured = |source: &Arc<dyn Source>| measure(source, side, sampling.clone(), &proxy);
                    disk.push(measured(&near)?.images_per_s);
                    let of_store = measured(&far)?;
                    store.push(of_store.images_per_s);
                    requests = of_store.requests_per_image;
                    each.push(measured(&single)?.images_per_s);
                }
                let [disk, store, each] = [disk, store, each].map(median);
                println!(
                    "| {name} | {order} | {late} ms | {disk:.0} | {store:.0} | {:.2} x | {requests:.2} | {each:.0} |",
                    store / disk
                );
            }
        }
    }
    Ok(())
}

struct Measured {
    images_per_s: f64,
    requests_per_image: f64,
}

fn measure(source: &Arc<dyn Source>, side: u32, sampling: Sampling, proxy: &FaultyProxy) -> Result<Measured> {
    let loader = Loader::builder(source.clone())
        .batch_size(64)
        .max_workers(WORKERS)
        .ram_budget(ByteCount(512 << 20))
        .transform(RandomResizedCrop::new(side))
        .sampling(sampling)
        .build()?;
    let (since, before, mut images) = (Instant::now(), proxy.count(), 0);
    for batch in (0..).flat_map(|epoch| loader.epoch(epoch)) {
        images += batch?.len() as u64;
        if images >= IMAGES {
            break;
        }
    }
    let images = images as f64;
    Ok(Measured {
        images_per_s: images / since.elapsed().as_secs_f64(),
        requests_per_image: (proxy.count() - before) as f64 / images,
    })
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Source whose samples are read one by one.
struct SingleReads(Arc<dyn Source>);

impl Source for SingleReads {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn label(&self, id: SampleId) -> u32 {
        self.0.label(id)
    }
    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.0.encoded_bytes(id)
    }
    fn name(&self, id: SampleId) -> String {
        self.0.name(id)
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> std::result::Result<(), SourceError> {
        self.0.read_into(id, out)
    }
    fn index_bytes(&self) -> u64 {
        self.0.index_bytes()
    }
    fn io_profile(&self) -> IoProfile {
        let mut profile = self.0.io_profile();
        profile.coalesce_bytes = 0;
        profile
    }
}
