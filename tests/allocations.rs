//! Allocations of a run in its steady state: none for a sample, a stated small number for a batch.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::alloc::{GlobalAlloc, Layout as Size, System};
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, DType, ImageFolder, Layout, Loader};
use image::{ImageFormat, RgbImage};

/// Counts every allocation of the process, and those as large as payload.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
static LARGE: AtomicU64 = AtomicU64::new(0);
/// Larger than any list of labels or ids of the batches here.
const LARGE_BYTES: usize = 4096;

#[allow(unsafe_code, reason = "an allocator is made of unsafe calls; this one hands all of them on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, size: Size) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        LARGE.fetch_add(u64::from(size.size() >= LARGE_BYTES), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, size: Size) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts are the process's, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SAMPLES: u32 = 192;

fn folder(root: &Path, format: ImageFormat, extension: &str, (width, height): (u32, u32)) {
    for i in 0..SAMPLES {
        let class = root.join(format!("class-{}", i % 3));
        fs::create_dir_all(&class).unwrap();
        let image = RgbImage::from_fn(width + i % 17, height + i % 13, |x, y| {
            image::Rgb([(x * 7 + i) as u8, (y * 5) as u8, (x ^ y).wrapping_mul(31) as u8])
        });
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        fs::write(class.join(format!("{i:04}.{extension}")), bytes.into_inner()).unwrap();
    }
}

/// Allocations of an epoch in batches of `batch_size`, of all samples or of every second one, after two that warm up;
/// and how many of them were large.
fn measure(root: &Path, batch_size: usize, ranks: u64, output: DType) -> (f64, u64) {
    let loader = Loader::builder(ImageFolder::open(root).unwrap())
        .transform(RandomResizedCrop::new(64).flip(0.5))
        .batch_size(batch_size)
        .shard(0, ranks)
        .max_workers(2)
        .dtype(output)
        .layout(if output == DType::U8 { Layout::Nhwc } else { Layout::Nchw })
        .ram_budget(ByteCount(1 << 30))
        // The governor reads small files of the kernel's, twenty times a second whatever the batches.
        .adapt_to_pressure(false)
        .build()
        .unwrap();
    let run = |epoch| loader.epoch(epoch).map(|batch| batch.unwrap().len() as u64).sum::<u64>();
    const WARM_UP: u64 = 4;
    const EPOCHS: u64 = 8;
    (0..WARM_UP).for_each(|epoch| assert_eq!(run(epoch), u64::from(SAMPLES) / ranks));
    let before = (CALLS.load(Ordering::SeqCst), LARGE.load(Ordering::SeqCst));
    (WARM_UP..WARM_UP + EPOCHS).for_each(|epoch| assert!(run(epoch) > 0));
    let after = (CALLS.load(Ordering::SeqCst), LARGE.load(Ordering::SeqCst));
    ((after.0 - before.0) as f64 / EPOCHS as f64, (after.1 - before.1) / EPOCHS)
}

/// Allocations for each sample, and for each batch; what an epoch takes by itself (threads, channels) is in neither.
fn per_sample_and_batch(root: &Path, output: DType) -> (f64, f64) {
    let samples = f64::from(SAMPLES);
    // As many batches, of twice as many samples.
    let ((twice, _), (once, _)) = (measure(root, 64, 1, output), measure(root, 32, 2, output));
    // As many samples, in eight times as many batches.
    let (often, _) = measure(root, 8, 1, output);
    ((twice - once) / (samples / 2.0), (often - twice) / (samples / 8.0 - samples / 64.0))
}

#[test]
#[cfg_attr(not(feature = "turbo"), ignore = "zune-jpeg allocates for each image")]
fn a_jpeg_takes_nothing_from_the_allocator() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Small files that are cached, and larger ones that are read each time.
    for size in [(40, 30), (500, 375)] {
        let root = tempfile::tempdir().unwrap();
        folder(root.path(), ImageFormat::Jpeg, "jpg", size);
        for output in [DType::U8, DType::F32] {
            let (sample, batch) = per_sample_and_batch(root.path(), output);
            println!("{size:?} {output}: {sample:.3} a sample, {batch:.1} a batch");
            // Threads wait for each other more or less often, which makes up to one in twenty.
            assert!(sample < 0.05, "{sample} allocations a sample");
            assert!(batch < 12.0, "{batch} allocations a batch");
            let (_, large) = measure(root.path(), 64, 1, output);
            assert!(large <= 16, "{large} large allocations an epoch: is payload allocated?");
        }
    }
}

#[test]
fn a_png_takes_a_small_number() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let root = tempfile::tempdir().unwrap();
    folder(root.path(), ImageFormat::Png, "png", (200, 150));
    let (sample, batch) = per_sample_and_batch(root.path(), DType::U8);
    println!("png: {sample:.2} a sample, {batch:.1} a batch");
    assert!(sample < 40.0, "{sample} allocations a sample");
}
