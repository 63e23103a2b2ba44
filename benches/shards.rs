//! Throughput of the loader over containers and the folder of files from which they were made, with a warm and a cold
//! page cache, interleaved in one run; and the time to index and to open a tar of a million members.
//!
//! `cargo bench --features pack --bench shards` with FEEDSTOCK_IMAGENET set to a folder of class folders. It writes
//! about 5 GB below `target/` and deletes them at the end. It prints the tables of `docs/BENCHMARKS.md`. If it runs as
//! root, a cold cache has no directories and inodes; otherwise only the pages of the files are dropped.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedstock::pack::{Settings, Treatment, pack};
use feedstock::source::{self, Source, TarShards};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, ImageFolder, Loader, SampleId};
use rustix::fs::{Advice, fadvise};

const WORKERS: usize = 2;
const ROUNDS: usize = 3;
/// Copies of each image, so that an epoch takes seconds.
const COPIES: usize = 8;
const MILLION: u64 = 1_000_000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let Some(images) = std::env::var_os("FEEDSTOCK_IMAGENET").map(PathBuf::from) else {
        println!("skipped: FEEDSTOCK_IMAGENET is not set");
        return Ok(());
    };
    let place = tempfile::tempdir_in(if Path::new("target").is_dir() { "target" } else { "." })?;
    containers(&images, place.path())?;
    println!();
    million(place.path())
}

/// Container with the times of its epochs.
struct Container {
    name: &'static str,
    path: PathBuf,
    warm: Vec<Duration>,
    cold: Vec<Duration>,
}

fn containers(images: &Path, place: &Path) -> Result<()> {
    let folder = place.join("files");
    repeat(images, &folder)?;
    let (plain, frames, piece, decoded) =
        (place.join("plain.tar"), place.join("frames.tar.zst"), place.join("piece.tar.zst"), place.join("decoded"));
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&plain)?));
    tar.append_dir_all(".", &folder)?;
    tar.into_inner()?.flush()?;
    let bytes = fs::read(&plain)?;
    let mut out = BufWriter::new(File::create(&frames)?);
    for part in bytes.chunks(1 << 20) {
        out.write_all(&zstd::bulk::compress(part, 1)?)?;
    }
    out.flush()?;
    fs::write(&piece, zstd::stream::encode_all(&bytes[..], 1)?)?;
    drop(bytes);
    let settings =
        Settings { treatment: Treatment::Decoded { size: Some(224), level: DECODED_LEVEL }, ..Settings::default() };
    pack(&ImageFolder::open(&folder)?, &settings, &decoded, |_| (), &|| false)?;

    let container = |name, path| Container { name, path, warm: Vec::new(), cold: Vec::new() };
    let mut all = [
        container("folder of files", folder),
        container("tar", plain),
        container("tar.zst, frames of 1 MiB", frames),
        container("tar.zst, one frame (32 MiB shuffled at a time)", piece),
        container("packed with --decoded --size 224", decoded),
    ];
    let mut samples = 0;
    for one in &all {
        // Creates the index, and reads everything once.
        samples = epoch(&one.path)?.1;
    }
    for _ in 0..ROUNDS {
        for one in &mut all {
            one.warm.push(epoch(&one.path)?.0);
        }
    }
    for _ in 0..ROUNDS {
        for one in &mut all {
            forget(&one.path)?;
            one.cold.push(epoch(&one.path)?.0);
        }
    }
    println!(
        "| container | on disk, MiB | warm, images/s | relative to folder | cold, images/s | relative to folder |"
    );
    println!("|---|---|---|---|---|---|");
    let rate = |times: &[Duration]| samples as f64 / median(times).as_secs_f64();
    let (warm, cold) = (rate(&all[0].warm), rate(&all[0].cold));
    for one in &all {
        let mib = files(&one.path)?.iter().map(|path| path.metadata().map_or(0, |meta| meta.len())).sum::<u64>() >> 20;
        let (own_warm, own_cold) = (rate(&one.warm), rate(&one.cold));
        let (of_warm, of_cold) = (own_warm / warm, own_cold / cold);
        println!("| {} | {mib} | {own_warm:.0} | {of_warm:.2} x | {own_cold:.0} | {of_cold:.2} x |", one.name);
    }
    Ok(())
}

/// Decoded pixels hardly compress, so the level is chosen for decompression speed.
const DECODED_LEVEL: i32 = -50;

/// Copies each image several times.
fn repeat(from: &Path, to: &Path) -> Result<()> {
    let source = ImageFolder::open(from)?;
    for id in (0..source.len()).map(SampleId) {
        let path = source.path(id);
        let class = to.join(&source.classes()[source.label(id) as usize]);
        fs::create_dir_all(&class)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for time in 0..COPIES {
            fs::copy(&path, class.join(format!("{time}-{name}")))?;
        }
    }
    Ok(())
}

/// Time of an epoch without opening, and its number of samples.
fn epoch(path: &Path) -> Result<(Duration, u64)> {
    let source = source::open(path)?;
    let samples = source.len();
    let loader = Loader::builder(source)
        .batch_size(64)
        .max_workers(WORKERS)
        .ram_budget(ByteCount(1 << 30))
        .transform(RandomResizedCrop::new(224).flip(0.5))
        .build()?;
    let since = Instant::now();
    for batch in loader.epoch(0) {
        batch?;
    }
    Ok((since.elapsed(), samples))
}

/// All files at or below a path.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        all.extend(files(&entry?.path())?);
    }
    Ok(all)
}

/// Drops the files at a path from the page cache.
fn forget(path: &Path) -> Result<()> {
    rustix::fs::sync();
    for file in files(path)? {
        fadvise(&File::open(file)?, 0, None, Advice::DontNeed)?;
    }
    // Only root can drop directories and inodes.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    Ok(())
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Scans a tar of a million small images, and opens it again.
fn million(place: &Path) -> Result<()> {
    let path = place.join("million.tar");
    let image = [&b"P6\n16 16\n255\n"[..], &[9; 16 * 16 * 3]].concat();
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(&path)?));
    let mut header = tar::Header::new_gnu();
    header.set_size(image.len() as u64);
    for i in 0..MILLION {
        let name = format!("n{:08}/n{:08}_{}.ppm", i / 1300, i / 1300, i * 17 % 99_991);
        tar.append_data(&mut header, name, &image[..])?;
    }
    tar.into_inner()?.flush()?;
    let timed = || -> Result<(f64, Arc<TarShards>)> {
        let since = Instant::now();
        let source = Arc::new(TarShards::open(&path)?);
        Ok((since.elapsed().as_secs_f64(), source))
    };
    let (scanned, source) = timed()?;
    let per_sample = source.index_bytes() as f64 / source.len() as f64;
    drop(source);
    let mut opened: Vec<f64> = (0..5).map(|_| timed().map(|(seconds, _)| seconds)).collect::<Result<_>>()?;
    opened.sort_unstable_by(f64::total_cmp);
    println!("| tar of a million members | scan, s | open with index, ms | RAM, bytes per sample |");
    println!("|---|---|---|---|");
    println!("| {MILLION} images of 16x16 | {scanned:.2} | {:.0} | {per_sample:.1} |", opened[2] * 1e3);
    Ok(())
}
