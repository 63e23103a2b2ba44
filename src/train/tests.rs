//! The training loop on generated data: three classes, each with another bright channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use burn::data::dataloader::{self, DataLoader, DataLoaderIterator};
use burn::module::{AutodiffModule, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use super::freeze::shapes;
use super::step::{StepKind, StepOutput, forward_backward};
use super::*;
use crate::adapt::burn::{EpochCounter, ImageBatch, LoadFailure};
use crate::rng::{KeyedRng, Seed};
use crate::{ByteCount, SampleId, State};

const SIDE: usize = 16;
const ITEMS: usize = 42;
const BATCH: usize = 8;

/// Generated data. Each epoch has its own order and noise.
#[derive(Clone)]
struct Generated {
    epochs: EpochCounter,
    failure: LoadFailure,
    /// Number of batches of an epoch after which it fails; 0 never fails.
    fails_after: usize,
    /// Images in a batch.
    batch: usize,
    /// Number of batches over all epochs after which it fails.
    batches_max: usize,
    given: Arc<AtomicUsize>,
    /// Factor on the pixels.
    scale: f64,
}

impl Default for Generated {
    fn default() -> Self {
        Generated {
            epochs: EpochCounter::default(),
            failure: LoadFailure::default(),
            fails_after: 0,
            batch: BATCH,
            batches_max: usize::MAX,
            given: Arc::default(),
            scale: 1.0,
        }
    }
}

impl Generated {
    fn batch<B: Backend>(&self, epoch: u64, ids: &[u64], device: &B::Device) -> ImageBatch<B> {
        let mut pixels = Vec::new();
        for &id in ids {
            let mut rng = KeyedRng::new(Seed(1), epoch, SampleId(id), 0);
            for channel in 0..3 {
                let level = if channel == id % 3 { 1.0 } else { 0.0 };
                pixels.extend((0..SIDE * SIDE).map(|_| (self.scale * (level + rng.range(-1.0, 1.0))) as f32));
            }
        }
        let labels: Vec<i64> = ids.iter().map(|id| (id % 3) as i64).collect();
        ImageBatch {
            images: Tensor::from_data(TensorData::new(pixels, [ids.len(), 3, SIDE, SIDE]), device),
            labels: Tensor::from_data(TensorData::new(labels, [ids.len()]), device),
        }
    }
}

struct Batches<B: Backend>(std::vec::IntoIter<ImageBatch<B>>);

impl<B: Backend> Iterator for Batches<B> {
    type Item = ImageBatch<B>;
    fn next(&mut self) -> Option<ImageBatch<B>> {
        self.0.next()
    }
}

impl<B: Backend> DataLoaderIterator<ImageBatch<B>> for Batches<B> {
    fn progress(&self) -> dataloader::Progress {
        dataloader::Progress::new(0, ITEMS)
    }
}

impl<B: Backend> DataLoader<B, ImageBatch<B>> for Generated {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ImageBatch<B>> + 'a> {
        let State { epoch, batch } = self.epochs.take();
        let mut ids: Vec<u64> = (0..ITEMS as u64).collect();
        let mut rng = KeyedRng::new(Seed(2), epoch, SampleId(0), 0);
        for last in (1..ITEMS).rev() {
            ids.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let device = B::Device::default();
        let mut batches: Vec<_> =
            ids.chunks(self.batch).skip(batch as usize).map(|ids| self.batch(epoch, ids, &device)).collect();
        let before = self.given.fetch_add(batches.len(), Ordering::Relaxed);
        if before.saturating_add(batches.len()) > self.batches_max {
            batches.truncate(self.batches_max.saturating_sub(before));
            self.failure.put(crate::Error::WorkerDied);
        }
        if self.fails_after > 0 {
            batches.truncate(self.fails_after);
            self.failure.put(crate::Error::WorkerDied);
        }
        Box::new(Batches(batches.into_iter()))
    }

    fn num_items(&self) -> usize {
        ITEMS
    }

    fn to_device(&self, _: &B::Device) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        Arc::new(self.clone())
    }

    fn slice(&self, _: usize, _: usize) -> Arc<dyn DataLoader<B, ImageBatch<B>>> {
        Arc::new(self.clone())
    }
}

fn data(generated: &Generated) -> TrainData<Cpu> {
    let validation = Generated { batch: generated.batch, ..Generated::default() };
    TrainData::new(
        Arc::new(generated.clone()),
        Some(Arc::new(validation)),
        generated.epochs.clone(),
        generated.failure.clone(),
    )
}

fn config(epochs: u64) -> TrainConfig {
    let mut config = TrainConfig::new(ModelKind::Small, 3, SIDE as u32);
    config.model.width = 4;
    config.epochs = epochs;
    config.schedule.peak = 0.05;
    config
}

fn run(config: &TrainConfig) -> Result<Outcome<Cpu>, TrainError> {
    train(config, &data(&Generated::default()), TrainContext::new(Default::default()), &AtomicBool::new(false), |_| ())
}

/// Scores of a model, as bits.
fn bits(model: &Network<Cpu>) -> Vec<u32> {
    let images =
        Generated::default().batch::<<Cpu as AutodiffBackend>::InnerBackend>(9, &[0, 1, 2, 3], &Default::default());
    let scores = model.valid().forward(images.images, Pass::Evaluate).into_data();
    scores.iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn both_optimizers_learn_the_classes() {
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let peak = if optimizer == OptimizerKind::Sgd { 0.05 } else { 5e-3 };
        let mut config = config(6).optimizer(optimizer);
        config.schedule.peak = peak;
        let outcome = run(&config).expect("trained");
        let [first, .., last] = &outcome.report.epochs[..] else { panic!("six epochs") };
        assert!(last.training.loss < first.training.loss, "{optimizer}: {first:?} {last:?}");
        let score = last.validation.expect("validated");
        assert_eq!(score.images, ITEMS as u64);
        assert!(score.accuracy > 0.9, "{optimizer}: {score:?}");
        assert_eq!(last.training.images, ITEMS as u64);
        assert_eq!((last.training.step, last.training.steps), (6, 6));
        assert!(!outcome.report.interrupted);
    }
}

#[test]
fn weights_follow_from_the_seed() {
    let first = bits(&run(&config(2)).expect("trained").model);
    assert_eq!(first, bits(&run(&config(2)).expect("trained").model));
    let other = TrainConfig { seed: Seed(1), ..config(2) };
    assert_ne!(first, bits(&run(&other).expect("trained").model));
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let path = folder.path().join(format!("{optimizer}.ckpt"));
        let config = TrainConfig { checkpoint: Some(path.clone()), ..config(4).optimizer(optimizer) };
        let whole = run(&config).expect("trained");
        assert_eq!(checkpoint::inspect(&path).expect("a checkpoint").epochs_done, 4);

        let stop = AtomicBool::new(false);
        let stopped =
            train(&config, &data(&Generated::default()), TrainContext::new(Default::default()), &stop, |event| {
                if matches!(event, TrainEvent::Epoch(done) if done.training.epoch == 1) {
                    stop.store(true, Ordering::Relaxed);
                }
            })
            .expect("stopped");
        assert!(stopped.report.interrupted);
        assert_eq!(stopped.report.epochs.len(), 2);

        let resumed = run(&TrainConfig { resume: true, ..config }).expect("resumed");
        assert_eq!(bits(&whole.model), bits(&resumed.model), "{optimizer}");
        // Weights are the same to the bit. What is reported of the loss is a sum over threads, whose order is not
        // theirs.
        assert_eq!(resumed.report.epochs.len(), 2);
        for (whole, resumed) in whole.report.epochs[2..].iter().zip(&resumed.report.epochs) {
            let (whole, resumed) = (whole.training.loss, resumed.training.loss);
            assert!((whole - resumed).abs() <= 1e-6 * whole.abs(), "{optimizer}: {whole} {resumed}");
        }
    }
}

#[test]
fn a_run_stopped_anywhere_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.ckpt");
    let config = TrainConfig {
        checkpoint: Some(path.clone()),
        checkpoint_every: 2,
        accumulate: 2,
        prune: Some(Prune { share: 0.25, after_epochs: 1 }),
        ..config(3)
    };
    let whole = run(&config).expect("trained");
    for (kill, stop_at_step) in [(false, 1), (false, 4), (true, 3), (true, 5), (false, 8)] {
        std::fs::remove_file(&path).ok();
        let stop = AtomicBool::new(false);
        // The loss of the third step of an epoch is not reported in time: count the batches of the loader.
        let generated = Generated { batches_max: 2 * stop_at_step, ..Generated::default() };
        let kept = TrainConfig { checkpoint: Some(path.clone()), ..config.clone() };
        let ended = train(&kept, &data(&generated), TrainContext::new(Default::default()), &stop, |_| ());
        assert!(matches!(ended, Err(TrainError::Data(_))), "{stop_at_step}");
        if !kill {
            // Stopped at the same place, it writes a checkpoint.
            let generated = Generated { batches_max: 0, ..Generated::default() };
            let resume = path.exists();
            let kept = TrainConfig { resume, ..kept };
            let outcome =
                train(&kept, &data(&generated), TrainContext::new(Default::default()), &AtomicBool::new(true), |_| ());
            assert!(outcome.expect("stopped").report.interrupted);
        }
        let resume = path.exists();
        assert!(resume || stop_at_step < 2, "a checkpoint after two steps");
        let resumed = run(&TrainConfig { resume, ..config.clone() }).expect("resumed");
        assert_eq!(bits(&whole.model), bits(&resumed.model), "{kill} {stop_at_step}");
    }
}

#[test]
fn batches_without_a_good_image_count_for_the_position() {
    use crate::source::MemorySource;
    let data = || {
        let png = |n: u32| {
            let mut bytes = Vec::new();
            let image = image::RgbImage::from_pixel(16, 16, image::Rgb([(20 * n) as u8, 90, (255 - 20 * n) as u8]));
            image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).expect("encoded");
            (if n % 4 == 1 { b"not an image".to_vec() } else { bytes }, n % 3)
        };
        let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
        let source = MemorySource::new(classes, (0..12).map(png).collect()).expect("a source");
        let loader = crate::Loader::builder(source)
            .batch_size(1)
            .on_bad_sample(crate::OnBadSample::Mask)
            .max_bad_fraction(1.0)
            .ram_budget(ByteCount(64 << 20))
            .transform(crate::transform::ResizeCenterCrop::new(16, 16))
            .dtype(crate::DType::F32);
        TrainData::<Cpu>::from_loaders(loader.build().expect("a loader"), None, &Default::default())
    };
    let trained = |config: &TrainConfig, stop| {
        train(config, &data(), TrainContext::new(Default::default()), &AtomicBool::new(stop), |_| ()).expect("trained")
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = TrainConfig { checkpoint: Some(folder.path().join("run.ckpt")), ..config(2) };
    let whole = trained(&config, false);
    assert_eq!(whole.report.epochs[0].training.images, 9);
    // Stopped from the start, it takes one step.
    trained(&config, true);
    let resume = TrainConfig { resume: true, ..config };
    for steps in 2..6 {
        trained(&resume, true);
        let info = checkpoint::inspect(&folder.path().join("run.ckpt")).expect("a checkpoint");
        assert_eq!(info.steps, steps);
    }
    assert_eq!(bits(&whole.model), bits(&trained(&resume, false).model));
}

/// Six images, two of each class.
fn six<B: Backend>() -> (Tensor<B, 4>, Tensor<B, 1, Int>) {
    let ImageBatch { images, labels } = Generated::default().batch::<B>(0, &[0, 1, 2, 3, 4, 5], &Default::default());
    (images, labels)
}

fn tiny(kind: ModelKind) -> TrainConfig {
    let mut config = TrainConfig::new(kind, 3, SIDE as u32);
    config.model.width = 6;
    config
}

fn output<B: AutodiffBackend>(config: &TrainConfig, checkpointing: Checkpointing) -> (Network<B>, StepOutput<B>)
where
    B::Device: Default,
{
    let device = B::Device::default();
    let model = config.freeze.apply::<B, _>(config.model.init::<B>(Seed(5), &device)).expect("frozen");
    let (images, labels) = six::<B>();
    let kind = StepKind { precision: config.precision, checkpointing, factor: 1.0 };
    let loss = CrossEntropyLossConfig::new().init(&device);
    let output = forward_backward(&model, images, labels, &loss, kind, &mut |_| ());
    (model, output)
}

/// All gradients in the order of the model, and the number of parameters that have one.
fn row<B: AutodiffBackend>(model: &Network<B>, gradients: &mut GradientsParams) -> (Vec<f32>, usize) {
    let count = gradients.len();
    let parts = gradients::flatten(model, gradients);
    (parts.into_iter().flat_map(|part| part.into_data().iter::<f32>().collect::<Vec<_>>()).collect(), count)
}

const KINDS: [ModelKind; 3] = [ModelKind::Small, ModelKind::ResNet18, ModelKind::VitTiny];

#[test]
fn checkpointing_gives_the_same_gradients() {
    for kind in KINDS {
        for freeze in [Freeze::Nothing, "stem,blocks.0".parse().expect("a freeze"), Freeze::Backbone] {
            let config = TrainConfig { freeze, ..tiny(kind) };
            let (model, mut plain) = output::<Cpu>(&config, Checkpointing::None);
            let expected = row(&model, &mut plain.gradients);
            assert!(expected.0.iter().any(|&number| number != 0.0));
            let (model, mut again) = output::<Cpu>(&config, Checkpointing::Blocks);
            assert_eq!(expected, row(&model, &mut again.gradients), "{kind} {}", config.freeze);
            assert_eq!(plain.loss.into_data(), again.loss.into_data());
            let (model, mut balanced) = output::<CpuBalanced>(&config, Checkpointing::Balanced);
            assert_eq!(expected, row(&model, &mut balanced.gradients), "{kind} {}", config.freeze);
        }
    }
}

#[test]
fn recomputed_blocks_update_running_statistics_once() {
    let config = tiny(ModelKind::ResNet18);
    let (plain, _) = output::<Cpu>(&config, Checkpointing::None);
    let (again, _) = output::<Cpu>(&config, Checkpointing::Blocks);
    assert_eq!(bits(&plain), bits(&again));
    let fresh = config.model.init::<Cpu>(Seed(5), &Default::default());
    assert_ne!(bits(&plain), bits(&fresh), "they were updated");
}

#[test]
fn frozen_parameters_have_no_gradient_and_do_not_change() {
    for kind in KINDS {
        let (model, output) =
            output::<Cpu>(&TrainConfig { freeze: Freeze::Backbone, ..tiny(kind) }, Checkpointing::None);
        let in_head = if kind == ModelKind::VitTiny { 4 } else { 2 };
        assert_eq!(output.gradients.len(), in_head, "{kind}");
        drop(model);
    }
    let frozen = TrainConfig { freeze: "stem,blocks".parse().expect("a freeze"), ..config(2) };
    let before = shapes::<Cpu, _>(&frozen.model.init::<Cpu>(frozen.seed, &Default::default()), true).len();
    let outcome = run(&frozen).expect("trained");
    assert_eq!(shapes::<Cpu, _>(&outcome.model, true).len(), 2);
    assert!(before > 10);
    assert_eq!(stem_weights(&outcome.model), stem_weights(&frozen.model.init(frozen.seed, &Default::default())));
    assert_ne!(stem_weights(&run(&config(2)).expect("trained").model), stem_weights(&outcome.model));
}

fn stem_weights(model: &Network<Cpu>) -> Vec<f32> {
    struct First(Vec<f32>);
    impl<B: Backend> burn::module::ModuleVisitor<B> for First {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<B, D>>) {
            if self.0.is_empty() {
                self.0 = param.val().into_data().iter().collect();
            }
        }
    }
    let mut first = First(Vec::new());
    model.visit(&mut first);
    first.0
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    // A transformer normalizes each image by itself, so the two differ by rounding only.
    let config = |accumulate| {
        let mut config =
            TrainConfig { accumulate, epochs: 2, ..tiny(ModelKind::VitTiny) }.optimizer(OptimizerKind::Sgd);
        config.schedule.peak = 0.05;
        config
    };
    let trained = |accumulate: u64, batch: usize| {
        let generated = Generated { batch, ..Generated::default() };
        let config = config(accumulate);
        let outcome =
            train(&config, &data(&generated), TrainContext::new(Default::default()), &AtomicBool::new(false), |_| ());
        let outcome = outcome.expect("trained");
        assert_eq!(outcome.report.epochs[0].training.step, ITEMS.div_ceil(batch * accumulate as usize) as u64);
        let images = six::<<Cpu as AutodiffBackend>::InnerBackend>().0;
        outcome.model.valid().forward(images, Pass::Evaluate).into_data().iter::<f32>().collect::<Vec<_>>()
    };
    let whole = trained(1, 12);
    for (accumulate, batch) in [(2, 6), (4, 3), (12, 1)] {
        for (a, b) in whole.iter().zip(trained(accumulate, batch)) {
            assert!((a - b).abs() < 2e-4, "{accumulate} x {batch}: {a} {b}");
        }
    }
}

#[test]
fn half_precision_trains_nearly_the_same() {
    for kind in KINDS {
        let curve = |precision| {
            let mut config = TrainConfig { precision, epochs: 12, ..tiny(kind) };
            // At a rate near divergence, small differences would grow.
            config.schedule.peak = if kind == ModelKind::VitTiny { 2e-3 } else { 0.01 };
            // So would they with statistics over few numbers.
            let generated = Generated { batch: ITEMS, ..Generated::default() };
            let machine = TrainContext::new(Default::default());
            let outcome = train(&config, &data(&generated), machine, &AtomicBool::new(false), |_| ()).expect("trained");
            outcome.report.epochs.iter().map(|epoch| epoch.training.loss).collect::<Vec<_>>()
        };
        let full = curve(Precision::F32);
        for precision in [Precision::Bf16, Precision::F16] {
            let half = curve(precision);
            assert_ne!(full, half, "{kind} {precision} is computed in another type");
            for (a, b) in full.iter().zip(&half) {
                assert!((a - b).abs() < 0.05, "{kind} {precision}: {full:?} {half:?}");
            }
        }
    }
}

#[test]
fn an_overflow_in_f16_costs_one_step() {
    let mut config = TrainConfig { precision: Precision::F16, ..config(3) };
    config.schedule.peak = 0.05;
    // Overflows f16 with the initial loss scale.
    let generated = Generated { scale: 3000.0, ..Generated::default() };
    let outcome =
        train(&config, &data(&generated), TrainContext::new(Default::default()), &AtomicBool::new(false), |_| ());
    let report = outcome.expect("trained").report;
    assert!(report.epochs.iter().all(|epoch| epoch.training.loss.is_finite()));
}

#[test]
fn training_continues_after_pruning() {
    let prune = Some(Prune { share: 0.5, after_epochs: 4 });
    let outcome = run(&TrainConfig { prune, ..config(8) }).expect("trained");
    let pruned = outcome.report.pruned.clone().expect("pruned");
    assert_eq!(pruned.after_epochs, 4);
    assert!(pruned.parameters[1] < pruned.parameters[0] * 4 / 5, "{pruned:?}");
    assert!(pruned.activations[1] < pruned.activations[0] && pruned.peak[1] < pruned.peak[0], "{pruned:?}");
    assert_eq!(pruned.parameters[1], outcome.model.num_params());
    let before = forecast(&config(8), BATCH).expect("predicted").account;
    assert_eq!((pruned.activations[0], pruned.peak[0]), (before.activations, before.peak), "of batches of this run");
    let [before, after] = pruned.scores.expect("validated");
    assert_eq!((before.images, after.images), (ITEMS as u64, ITEMS as u64));
    assert_eq!(Some(before), outcome.report.epochs[3].validation);
    assert!(outcome.report.validation().expect("validated").accuracy > 0.9);
}

#[test]
fn a_run_starts_from_the_weights_of_another_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("first.ckpt");
    let first = run(&TrainConfig { checkpoint: Some(path.clone()), ..config(6) }).expect("trained");
    let tuned = TrainConfig { start_from: Some(path), freeze: Freeze::Backbone, ..config(1) };
    let second = run(&tuned).expect("trained");
    assert_eq!(stem_weights(&first.model), stem_weights(&second.model));
    assert!(second.report.epochs[0].training.accuracy > 0.9, "{:?}", second.report);

    let mut other_classes = tuned.clone();
    other_classes.model.classes = 7;
    assert_eq!(stem_weights(&run(&other_classes).expect("another head").model), stem_weights(&first.model));
    let mut wider = tuned;
    wider.model.width = 5;
    let Err(TrainError::Checkpoint { source, .. }) = run(&wider) else { panic!("another network") };
    let text = source.to_string();
    assert!(text.contains("stem") && text.contains('4') && text.contains('5'), "{text}");
}

#[test]
fn a_small_budget_is_refused_with_savings() {
    let predicted = forecast(&config(1), BATCH).expect("predicted").account;
    let fits = TrainConfig { device_budget: Some(predicted.peak), ..config(1) };
    run(&fits).expect("it fits");
    let tight = TrainConfig { device_budget: Some(ByteCount(predicted.peak.0 * 2 / 3)), ..config(1) };
    let Err(TrainError::OutOfMemory(refused)) = run(&tight) else { panic!("it does not fit") };
    assert_eq!((refused.phase, refused.steps, refused.micro_batch), (None, 0, BATCH));
    assert_eq!((refused.asked, refused.account), (predicted.peak, predicted));
    assert!(!refused.savings.is_empty() && refused.savings.is_sorted_by(|a, b| a.saved >= b.saved));
    for saving in &refused.savings {
        assert_eq!(saving.peak.0 + saving.saved.0, predicted.peak.0, "{saving}");
    }
    let said = refused.to_string();
    assert!(said.contains("activations") && said.contains(&refused.savings[0].flag), "{said}");
}

/// Returns the values that it was given.
#[derive(Debug, Default)]
struct Scripted(std::sync::Mutex<Vec<u64>>);

impl MemoryMeter for Scripted {
    fn read(&self) -> MemorySample {
        let mut script = self.0.lock().expect("no panic");
        let bytes = ByteCount(if script.len() > 1 { script.remove(0) } else { script[0] });
        MemorySample { in_use: bytes, peak: bytes }
    }
    fn reset_peak(&self) {}
    fn allocator_stats(&self) -> Option<AllocatorStats> {
        None
    }
}

#[test]
fn exceeding_the_budget_names_the_phase() {
    let budget = Some(ByteCount(1 << 30));
    let config = TrainConfig { device_budget: budget, ..config(1) };
    for (good, phase) in [(2, Phase::Forward), (3, Phase::Backward), (5, Phase::Steady)] {
        // One reading before the model.
        let mut script = vec![0; good];
        script.push(3 << 30);
        let meter: Option<Arc<dyn MemoryMeter>> = Some(Arc::new(Scripted(script.into())));
        let machine = TrainContext { meter, ..TrainContext::<Cpu>::new(Default::default()) };
        let ended = train(&config, &data(&Generated::default()), machine, &AtomicBool::new(false), |_| ());
        let Err(TrainError::OutOfMemory(refused)) = ended else { panic!("over the budget") };
        assert_eq!((refused.phase, refused.asked), (Some(phase), ByteCount(3 << 30)));
        assert_eq!(refused.steps, u64::from(phase == Phase::Steady) * 2);
    }
}

#[test]
fn the_largest_batch_within_a_budget_is_found() {
    let config = tiny(ModelKind::ResNet18);
    let least = forecast(&TrainConfig { accumulate: 48, ..config.clone() }, 1).expect("predicted").account.peak;
    let most = forecast(&config, 48).expect("predicted").account.peak;
    let within = |budget| micro_batch_within(&config, 48, ByteCount(budget)).expect("predicted");
    assert_eq!(within(most.0).map(|found| found.micro_batch), Some(48));
    assert_eq!(within(least.0).map(|found| found.micro_batch), Some(1));
    assert_eq!(within(least.0 - 1), None);
    let middle = within(least.0.midpoint(most.0)).expect("some fit");
    assert!(middle.micro_batch > 1 && middle.micro_batch < 48 && 48 % middle.micro_batch == 0, "{middle:?}");
    assert!(middle.account.peak.0 <= least.0.midpoint(most.0));
}

#[test]
fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.ckpt");
    let written = TrainConfig { checkpoint: Some(path.clone()), ..config(1) };
    run(&written).expect("trained");
    let resume = TrainConfig { resume: true, epochs: 2, ..written };

    let other = resume.clone().optimizer(OptimizerKind::AdamW);
    let error = run(&other).expect_err("another optimizer");
    assert!(error.to_string().ends_with("run.ckpt'"), "{error}");
    let TrainError::Checkpoint { source: CheckpointError::OtherRun { theirs, ours }, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(theirs == "small-width4-classes3-side16-sgd" && ours.ends_with("adamw"), "{error:?}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains(theirs) && !error.to_string().contains(&cause), "{error}: {cause}");

    let whole = std::fs::read(&path).expect("read");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() - 9], &flipped] {
        std::fs::write(&path, damaged).expect("written");
        assert!(matches!(run(&resume), Err(TrainError::Checkpoint { .. })));
    }
}

#[test]
fn an_epoch_that_ends_early_is_an_error_unless_stopped() {
    let generated = Generated { fails_after: 2, ..Generated::default() };
    let error =
        train(&config(1), &data(&generated), TrainContext::new(Default::default()), &AtomicBool::new(false), |_| ());
    assert!(matches!(error, Err(TrainError::Data(crate::Error::WorkerDied))));
    let outcome =
        train(&config(1), &data(&generated), TrainContext::new(Default::default()), &AtomicBool::new(true), |_| ())
            .expect("stopped");
    assert!(outcome.report.interrupted && outcome.report.epochs.is_empty());
}

#[test]
fn a_learning_rate_that_is_too_high_is_reported() {
    let mut config = config(8);
    config.schedule.peak = 1e30;
    let error = run(&config).expect_err("diverges");
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
}

#[test]
fn every_network_accepts_its_images() {
    let device = Default::default();
    for (kind, width, side) in [
        (ModelKind::Small, 4, 32),
        (ModelKind::Large, 4, 224),
        (ModelKind::ResNet18, 4, 32),
        (ModelKind::ResNet18, 4, 128),
        (ModelKind::VitTiny, 6, 32),
        (ModelKind::VitTiny, 6, 112),
    ] {
        let config = NetworkConfig { width, ..NetworkConfig::new(kind, 5, side) };
        config.check().expect("in range");
        let model = config.init::<Cpu>(Seed(0), &device);
        let scores = model.forward(Tensor::zeros([2, 3, side as usize, side as usize], &device), Pass::Train);
        assert_eq!(scores.dims(), [2, 5], "{kind} at {side}");
    }
    assert!(ModelKind::for_side(224) == ModelKind::Large && ModelKind::for_side(32) == ModelKind::Small);
}

#[test]
fn networks_have_the_published_number_of_parameters() {
    // torchvision's resnet18 has 11,689,512 parameters for 1000 classes, and timm's vit_tiny_patch16_224 5,717,416, of
    // which 192 are the class token and 192 its position.
    let device = Default::default();
    let parameters = |kind| NetworkConfig::new(kind, 1000, 224).init_blank::<Cpu>(&device).num_params();
    assert_eq!(parameters(ModelKind::ResNet18), 11_689_512 + 2 * 4800, "with the running statistics of 4800 channels");
    assert_eq!(parameters(ModelKind::VitTiny), 5_717_416 - 2 * 192);
}
