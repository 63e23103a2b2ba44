//! The adapter on a real loader: every image has one color, which is its number.

use std::io::Cursor;

use ::burn::backend::Flex;

use super::*;
use crate::source::MemorySource;
use crate::tensor::Normalize;
use crate::transform::ResizeCenterCrop;
use crate::{ByteCount, LoaderBuilder, OnBadSample};

const IMAGES: u32 = 11;
const BATCH: usize = 4;

fn png(value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::RgbImage::from_pixel(5, 5, image::Rgb([value as u8; 3]));
    image.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).expect("encoded");
    bytes
}

/// Image `n` has the color `n` and the label `n % 3`; those in `bad` cannot be decoded.
fn builder(bad: &[u32]) -> LoaderBuilder {
    let encoded = |n| if bad.contains(&n) { b"not an image".to_vec() } else { png(n) };
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    let source = MemorySource::new(classes, (0..IMAGES).map(|n| (encoded(n), n % 3)).collect()).expect("a source");
    Loader::builder(source)
        .batch_size(BATCH)
        .ram_budget(ByteCount(64 << 20))
        .transform(ResizeCenterCrop::new(4, 4))
        .dtype(DType::F32)
        .normalize(Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] })
        .max_bad_fraction(1.0)
        .seed(3)
}

fn adapt(builder: LoaderBuilder) -> BurnLoader<Flex> {
    BurnLoader::new(builder.build().expect("a loader"), Default::default())
}

/// Numbers of the images of one epoch, in order, and the sizes of its batches.
fn epoch(loader: &dyn DataLoader<Flex, ImageBatch<Flex>>) -> (Vec<u32>, Vec<usize>) {
    let (mut numbers, mut sizes) = (Vec::new(), Vec::new());
    for ImageBatch { images, labels } in loader.iter() {
        let [size, 3, 4, 4] = images.dims() else { panic!("{:?}", images.dims()) };
        let colors: Vec<f32> = images.into_data().iter().step_by(3 * 4 * 4).collect();
        let labels: Vec<i64> = labels.into_data().iter().collect();
        for (color, label) in colors.iter().zip(labels) {
            assert_eq!(i64::from(color.round() as u32 % 3), label);
            numbers.push(color.round() as u32);
        }
        sizes.push(size);
    }
    (numbers, sizes)
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers
}

#[test]
fn every_iterator_is_the_next_epoch_with_every_image_once() {
    let loader = adapt(builder(&[]));
    assert_eq!(loader.num_items(), IMAGES as usize);
    let (first, sizes) = epoch(&loader);
    assert_eq!(sizes, [4, 4, 3]);
    assert_eq!(sorted(first.clone()), (0..IMAGES).collect::<Vec<_>>());
    let (second, _) = epoch(&loader);
    assert_ne!(first, second);
    assert_eq!(loader.epochs().get(), State { epoch: 2, batch: 0 });
    loader.epochs().set(State { epoch: 0, batch: 0 });
    assert_eq!(epoch(&loader).0, first);
}

#[test]
fn an_epoch_is_resumed_at_any_batch() {
    let loader = adapt(builder(&[]));
    let (whole, _) = epoch(&loader);
    for batch in 0..=4 {
        loader.epochs().set(State { epoch: 0, batch });
        let (rest, sizes) = epoch(&loader);
        assert_eq!(rest, whole[(batch as usize * BATCH).min(whole.len())..], "from batch {batch}");
        assert_eq!(sizes.len(), 3_usize.saturating_sub(batch as usize));
        assert_eq!(loader.epochs().get(), State { epoch: 1, batch: 0 });
    }
}

#[test]
fn another_type_gives_the_same_values() {
    let (expected, _) = epoch(&adapt(builder(&[]).shuffle(false)));
    assert_eq!(expected, (0..IMAGES).collect::<Vec<_>>());
    assert_eq!(epoch(&adapt(builder(&[]).shuffle(false).dtype(DType::Bf16))).0, expected);
    let source = MemorySource::new(vec!["a".to_owned()], vec![(png(7), 0)]).expect("a source");
    let raw = adapt(Loader::builder(source).transform(ResizeCenterCrop::new(4, 4)).ram_budget(ByteCount(64 << 20)));
    let batch = raw.iter().next().expect("a batch");
    assert_eq!(batch.images.into_data().to_vec::<f32>().expect("floats"), [7.0; 48]);
}

#[test]
fn slices_are_parts_of_the_same_order() {
    let loader = adapt(builder(&[]));
    let (whole, _) = epoch(&adapt(builder(&[])));
    for (start, end, expected_sizes) in [(0, 4, &[4][..]), (3, 9, &[1, 4, 1]), (8, 99, &[3]), (5, 5, &[]), (9, 2, &[])]
    {
        let slice = loader.slice(start, end);
        let (numbers, sizes) = epoch(&*slice);
        let last = end.clamp(start, whole.len());
        assert_eq!(numbers, whole[start..last], "{start}..{end}");
        assert_eq!(sizes, expected_sizes);
        assert_eq!(slice.num_items(), last - start);
    }
    let nested = loader.slice(2, 10).slice(1, 4);
    assert_eq!(epoch(&*nested).0, whole[3..6]);
    assert_eq!(epoch(&*loader.to_device(&Default::default())).0, whole);
    assert_eq!(loader.epochs().get().epoch, 0, "derived loaders count for themselves");
}

#[test]
fn progress_is_told_in_samples() {
    let loader = adapt(builder(&[]));
    let mut batches = loader.iter();
    let mut told = Vec::new();
    while batches.next().is_some() {
        let progress = batches.progress();
        told.push((progress.items_processed, progress.items_total));
    }
    assert_eq!(told, [(4, 11), (8, 11), (11, 11)]);
}

#[test]
fn masked_samples_never_reach_the_model() {
    let loader = adapt(builder(&[1, 4, 5, 6, 7]).on_bad_sample(OnBadSample::Mask).shuffle(false));
    let (numbers, sizes) = epoch(&loader);
    assert_eq!(numbers, [0, 2, 3, 8, 9, 10]);
    assert_eq!(sizes, [3, 3], "a batch without a good sample is skipped");
}

#[test]
fn an_error_goes_to_the_hook_and_ends_the_epoch() {
    let failure = LoadFailure::default();
    let kept = failure.clone();
    let loader = adapt(builder(&[6]).on_bad_sample(OnBadSample::Fail).shuffle(false));
    let loader = loader.on_error(move |error| kept.put(error));
    assert_eq!(epoch(&loader).0, [0, 1, 2, 3]);
    assert!(matches!(failure.take(), Some(Error::Sample(_))));
    assert!(failure.take().is_none());
}

#[test]
#[should_panic(expected = "before the end of the epoch")]
fn without_a_hook_an_error_is_a_panic() {
    let _ = epoch(&adapt(builder(&[6]).on_bad_sample(OnBadSample::Fail)));
}

/// Training code that is generic over burn's trait accepts a loader.
#[test]
fn it_is_a_data_loader_of_burn() {
    fn train_with<B: Backend>(data: &Arc<dyn DataLoader<B, ImageBatch<B>>>) -> usize {
        data.iter().map(|batch| batch.labels.dims()[0]).sum()
    }
    let data: Arc<dyn DataLoader<Flex, ImageBatch<Flex>>> = Arc::new(adapt(builder(&[])));
    assert_eq!(train_with(&data), IMAGES as usize);
}
