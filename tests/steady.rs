//! Long runs: the resident size does not grow, and no thread is left behind. Each test has the process to itself.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "common/skip.rs"]
mod skip;

use std::io::Cursor;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use feedstock::source::MemorySource;
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, DType, Loader, host};
use image::{ExtendedColorType, ImageEncoder};
use skip::{Missing, skip};

static ALONE: Mutex<()> = Mutex::new(());

fn loader() -> Loader {
    let samples = (0..96u32).map(|i| {
        let (width, height) = (200 + i % 50, 150 + i % 31);
        let pixels: Vec<u8> = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut out = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(Cursor::new(&mut out), 60);
        encoder.write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
        (out, i % 2)
    });
    let source = MemorySource::new(vec!["a".into(), "b".into()], samples.collect()).unwrap();
    Loader::builder(source)
        .transform(RandomResizedCrop::new(128).flip(0.5))
        .batch_size(48)
        .max_workers(2)
        .dtype(DType::F32)
        .ram_budget(ByteCount(256 << 20))
        .build()
        .unwrap()
}

/// Names of the threads of this process that begin with `prefix`.
fn threads_named(prefix: &str) -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .map(|tasks| {
            tasks
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
                .map(|name| name.trim().to_owned())
                .filter(|name| name.starts_with(prefix))
                .collect()
        })
        .unwrap_or_default()
}

#[test]
fn a_hundred_epochs_do_not_grow_the_process() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if host::process_memory().rss == ByteCount(0) {
        skip(&Missing::Privilege("the resident size of a process from this system"));
        return;
    }
    let loader = loader();
    let mut rss = Vec::new();
    for epoch in 0..100 {
        for batch in loader.epoch(epoch) {
            assert_eq!(batch.unwrap().len(), 48);
        }
        rss.push(host::process_memory().rss.0);
    }
    let (first, last) = (rss[50..].iter().min().unwrap(), rss[50..].iter().max().unwrap());
    assert!(*last as f64 <= *first as f64 * 1.02, "the last 50 epochs went from {first} to {last} bytes: {rss:?}");
}

#[test]
fn a_dropped_epoch_ends_its_threads() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let loader = loader();
    for taken in [0, 1, 2] {
        let mut epoch = loader.epoch(0);
        for _ in 0..taken {
            epoch.next().unwrap().unwrap();
        }
        if cfg!(target_os = "linux") {
            assert!(!threads_named("feedstock-").is_empty(), "the test looks at the wrong threads");
        }
        let dropped = Instant::now();
        drop(epoch);
        // A second is promised; the assertion leaves room for a busy machine.
        assert!(dropped.elapsed() < Duration::from_secs(5));
        for stage in ["feedstock-work", "feedstock-tran", "feedstock-admi"] {
            assert_gone(stage);
        }
    }
    drop(loader);
    assert_gone("feedstock-");
}

/// A thread that has been joined is still listed for a moment.
fn assert_gone(prefix: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !threads_named(prefix).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", threads_named(prefix));
        std::thread::sleep(Duration::from_millis(5));
    }
}
