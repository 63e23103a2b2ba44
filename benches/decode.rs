//! What one core makes of encoded images: decoding alone, resampling alone, and both, in a tight loop over files in
//! memory. The pipeline is measured against these numbers.
//!
//! `FEEDSTOCK_IMAGENET` and `FEEDSTOCK_CIFAR` name folders of files (searched two levels deep); where there are none,
//! pictures of the same sizes are made up.
//!
//! ```text
//! cargo bench --no-default-features --bench decode
//! ```

use std::fs;
use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;

use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use feedstock::decode::{Limits, Slab, decode_into, probe};
use feedstock::tensor::ImageView;
use feedstock::transform::{KeyedRng, RandomCrop, RandomResizedCrop, Resampler, ResizeCenterCrop, Transform};
use feedstock::{SampleId, Seed};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageReader, RgbImage, imageops};

/// Files of a folder, in order, at most `most`; made-up ones of `width` x `height` where there is no such folder.
fn files(variable: &str, otherwise: &str, most: usize, (width, height): (u32, u32)) -> Vec<Vec<u8>> {
    fn collect(folder: &Path, deeper: usize, most: usize, found: &mut Vec<Vec<u8>>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if found.len() == most {
                return;
            }
            if path.is_dir() && deeper > 0 {
                collect(&path, deeper - 1, most, found);
            } else if let Ok(bytes) = fs::read(&path)
                && probe(&bytes, &Limits::default()).is_ok()
            {
                found.push(bytes);
            }
        }
    }
    let mut found = Vec::new();
    let folder = std::env::var(variable).unwrap_or_else(|_| otherwise.to_owned());
    collect(Path::new(&folder), 2, most, &mut found);
    if found.is_empty() {
        found.extend((0..50).map(|seed| made_up(seed, width, height)));
    }
    found
}

fn made_up(seed: u32, width: u32, height: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ seed).wrapping_mul(2_654_435_761) >> 27;
        image::Rgb([x / 3, y / 2 + seed, (x + y) / 4].map(|v| (v + grain) as u8))
    });
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 90).encode_image(&picture).expect("encodes");
    file
}

fn run<T>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, files: &[T], mut each: impl FnMut(usize, &T)) {
    group.throughput(Throughput::Elements(files.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| files.iter().enumerate().for_each(|(at, file)| each(at, file)));
    });
}

fn rng(at: usize) -> KeyedRng {
    KeyedRng::new(Seed(17), 0, SampleId(at as u64), 0)
}

/// Decodes and transforms as a worker does, with memory that it keeps.
fn feed(transform: &impl Transform) -> impl FnMut(usize, &Vec<u8>) {
    let mut slab = Slab::new();
    let mut resampler = Resampler::new();
    let spec = transform.out_spec();
    let mut out = vec![0; spec.elements()];
    move |at, file| {
        let header = probe(file, &Limits::default()).expect("header");
        let geometry = transform.geometry(header.width, header.height, &mut rng(at));
        let picture = decode_into(file, &header, &mut slab).expect("picture");
        resampler.apply(picture, &geometry, spec, &mut out).expect("sample");
        black_box(&out);
    }
}

fn imagenet(criterion: &mut Criterion) {
    let files = files("FEEDSTOCK_IMAGENET", "../shared/datasets/imagenet-sample-500", 100, (500, 375));
    let mut group = criterion.benchmark_group("imagenet");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let train = RandomResizedCrop::new(224).flip(0.5);
    run(&mut group, "probe", &files, |_, file| {
        black_box(probe(file, &Limits::default()).expect("header"));
    });
    let mut slab = Slab::new();
    run(&mut group, "decode", &files, |_, file| {
        let header = probe(file, &Limits::default()).expect("header");
        black_box(decode_into(file, &header, &mut slab).expect("picture"));
    });
    run(&mut group, "decode, random resized crop", &files, feed(&train));
    run(&mut group, "decode, resize and centre crop", &files, feed(&ResizeCenterCrop::new(256, 224)));
    let pictures: Vec<_> = files.iter().map(|file| rgb(file)).collect();
    let (spec, mut resampler) = (train.out_spec(), Resampler::new());
    let mut out = vec![0; spec.elements()];
    run(&mut group, "random resized crop", &pictures, |at, picture| {
        let geometry = train.geometry(picture.width(), picture.height(), &mut rng(at));
        let view = ImageView::new(picture.as_raw(), picture.width(), picture.height());
        resampler.apply(view, &geometry, spec, &mut out).expect("sample");
        black_box(&out);
    });
    run(&mut group, "the image crate: decode, crop, resize, flip", &files, |at, file| {
        let picture = rgb(file);
        let geometry = train.geometry(picture.width(), picture.height(), &mut rng(at));
        let region = geometry.region;
        let crop = imageops::crop_imm(&picture, region.x, region.y, region.width, region.height).to_image();
        let mut sample = imageops::resize(&crop, 224, 224, imageops::FilterType::Triangle);
        if geometry.flip {
            imageops::flip_horizontal_in_place(&mut sample);
        }
        black_box(&sample);
    });
    group.finish();
}

fn rgb(file: &[u8]) -> RgbImage {
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format().expect("format");
    reader.decode().expect("picture").into_rgb8()
}

fn cifar(criterion: &mut Criterion) {
    let files = files("FEEDSTOCK_CIFAR", "", 2000, (32, 32));
    let mut group = criterion.benchmark_group("cifar");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    run(&mut group, "decode, random crop", &files, feed(&RandomCrop::new(32).padding(4).flip(0.5)));
    run(&mut group, "the image crate: decode", &files, |_, file| {
        black_box(rgb(file));
    });
    group.finish();
}

criterion_group!(benches, imagenet, cifar);
criterion_main!(benches);
