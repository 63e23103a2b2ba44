//! Random requests on random data at random budgets: the plan is refused, or it is kept. The ledger never exceeds the
//! budget, every batch arrives, and batches are the same at every budget.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use feedstock::source::MemorySource;
use feedstock::transform::RandomResizedCrop;
use feedstock::{Batch, ByteCount, DType, Error, Layout, Loader, LoaderBuilder, OnBadSample};
use image::{DynamicImage, ImageFormat, RgbImage};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use xxhash_rust::xxh3::Xxh3;

/// Time after which a batch counts as lost. It takes milliseconds here.
const STALL: Duration = Duration::from_secs(30);
const AMPLE: ByteCount = ByteCount(1 << 40);

/// A request and its data.
#[derive(Clone, Debug)]
struct Case {
    /// Width, height and kind of each sample: JPEG, PNG, a truncated file, not an image.
    samples: Vec<(u32, u32, u8)>,
    batch_size: usize,
    side: u32,
    workers: usize,
    prefetch: Option<usize>,
    /// Batches that the consumer holds at any time.
    held: usize,
    dtype: DType,
    layout: Layout,
    policy: OnBadSample,
    seed: u64,
}

fn sample(&(width, height, kind): &(u32, u32, u8)) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 3) as u8, (x ^ y) as u8]));
    let mut file = Cursor::new(Vec::new());
    let format = if kind.is_multiple_of(2) { ImageFormat::Jpeg } else { ImageFormat::Png };
    DynamicImage::ImageRgb8(image).write_to(&mut file, format).unwrap();
    let mut file = file.into_inner();
    match kind {
        8 => file.truncate(file.len() / 2),
        9 => file = b"not an image".to_vec(),
        _ => {}
    }
    file
}

fn side() -> impl Strategy<Value = u32> {
    // Mostly small, sometimes oversized: file and pixels beyond every common buffer.
    prop_oneof![8 => 1u32..120, 2 => 120u32..500, 1 => 900u32..1500]
}

prop_compose! {
    fn any_case()(
        samples in prop::collection::vec((side(), side(), 0u8..10), 1..40),
        (batch_size, side, workers, held) in (1usize..20, 1u32..80, 1usize..6, 1usize..4),
        prefetch in prop::option::weighted(0.3, 1usize..5),
        dtype in prop::sample::select(vec![DType::U8, DType::F32, DType::Bf16, DType::F16]),
        layout in prop::sample::select(vec![Layout::Nchw, Layout::Nhwc]),
        policy in prop::sample::select(vec![OnBadSample::Substitute, OnBadSample::Mask]),
        seed in any::<u64>(),
    ) -> Case {
        // Bad substitutes count as well, so a set of mostly bad samples ends any run.
        let bad = samples.iter().filter(|(_, _, kind)| *kind >= 8).count();
        let policy = if bad * 4 > samples.len() { OnBadSample::Mask } else { policy };
        Case { samples, batch_size, side, workers, prefetch, held, dtype, layout, policy, seed }
    }
}

impl Case {
    fn builder(&self) -> LoaderBuilder {
        let samples = self.samples.iter().map(|kind| (sample(kind), 0)).collect();
        let builder = Loader::builder(MemorySource::new(vec!["all".to_owned()], samples).unwrap())
            .transform(RandomResizedCrop::new(self.side).flip(0.5))
            .batch_size(self.batch_size)
            .batches_held(self.held)
            .max_workers(self.workers)
            .dtype(self.dtype)
            .layout(self.layout)
            .on_bad_sample(self.policy)
            .max_bad_fraction(1.0)
            .seed(self.seed);
        match self.prefetch {
            Some(batches) => builder.prefetch(batches),
            None => builder,
        }
    }

    /// Runs two epochs at this budget, and returns the digest of all batches.
    ///
    /// # Errors
    /// The refusal of the plan.
    fn run(&self, budget: ByteCount) -> Result<u64, Error> {
        let loader = self.builder().ram_budget(budget).build()?;
        let (done, batches) = mpsc::channel();
        let (consumed, held_max) = (loader.clone(), self.held);
        let consumer = thread::spawn(move || {
            let mut digest = Xxh3::new();
            // Batches of one epoch are still held in the next.
            let mut held: VecDeque<Batch> = VecDeque::new();
            for epoch in 0..2 {
                for batch in consumed.epoch(epoch) {
                    let batch = batch.unwrap();
                    digest.update(batch.bytes().unwrap());
                    batch.ids().iter().for_each(|id| digest.update(&id.0.to_le_bytes()));
                    held.push_back(batch);
                    done.send(()).unwrap();
                    if held.len() >= held_max {
                        held.pop_front();
                    }
                }
            }
            digest.digest()
        });
        let expected = 2 * loader.batches_per_epoch();
        for batch in 0..expected {
            // A panic of the consumer shows at the join.
            if let Err(mpsc::RecvTimeoutError::Timeout) = batches.recv_timeout(STALL) {
                panic!("batch {batch} of {expected} did not come within {STALL:?}; {:?}", loader.stats());
            }
        }
        let digest = consumer.join().unwrap_or_else(|_| panic!("the run failed; {:?}", loader.stats()));
        let memory = loader.stats().memory;
        assert!(memory.limit <= budget && memory.peak <= memory.limit, "{memory:?}");
        Ok(digest)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        // The same cases every time, and no files beside the sources.
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        // A stall takes 30 s to detect.
        max_shrink_iters: 8,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_plan_is_refused_or_kept(case in any_case(), below in 0.0f64..1.0, above in 1.0f64..4.0) {
        let minimum = case.builder().ram_budget(AMPLE).plan().unwrap().minimum;
        let share = |of: f64| ByteCount((minimum.0 as f64 * of) as u64);
        for budget in [ByteCount(0), share(below), ByteCount(minimum.0 - 1)] {
            match case.run(budget) {
                Err(Error::OverBudget(refused)) => prop_assert_eq!(refused.needed, minimum),
                other => prop_assert!(false, "at {budget}, below the minimum of {minimum}: {other:?}"),
            }
        }
        let least = case.run(minimum).unwrap();
        for budget in [ByteCount(minimum.0 + 1), share(above), ByteCount(1 << 30)] {
            prop_assert_eq!(case.run(budget).unwrap(), least, "batches at {} and at the minimum {}", budget, minimum);
        }
    }
}

/// A consumer that holds more batches than announced gets an error, also if they belong to an earlier epoch.
#[test]
fn batches_held_beyond_the_end_of_an_epoch_count() {
    let case = Case {
        samples: vec![(20, 20, 0); 8],
        batch_size: 4,
        side: 8,
        workers: 1,
        prefetch: None,
        held: 2,
        dtype: DType::F32,
        layout: Layout::Nchw,
        policy: OnBadSample::Mask,
        seed: 0,
    };
    let minimum = case.builder().ram_budget(AMPLE).plan().unwrap().minimum;
    let loader = case.builder().ram_budget(minimum).build().unwrap();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let held: Vec<Batch> = loader.epoch(0).map(Result::unwrap).collect();
        let next = loader.epoch(1).next();
        drop(held);
        done.send((next.map(|batch| batch.map(|_| ())), loader.epoch(1).count())).unwrap();
    });
    match ended.recv_timeout(STALL) {
        Ok((Some(Err(Error::BatchesHeld { held: 2 })), 2)) => {}
        other => panic!("{other:?}"),
    }
}
