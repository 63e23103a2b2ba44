//! Compares samples with those of decoding the whole image, cropping and resampling: `Exact` gives nearly the same
//! bits, `Fast` is as close as scaling in the frequency domain allows. The images are made by the tests; with
//! `FEEDSTOCK_IMAGENET` set, those of that folder count too.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a skipped part is reported, and a panic is the report")]

#[path = "common/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};

use feedstock::decode::{Format, Limits, Options, Quality, probe};
use feedstock::rng::Seed;
use feedstock::tensor::{Orientation, SampleSpec};
use feedstock::transform::{Geometry, KeyedRng, RandomResizedCrop, Resampler, Transform, TransformError};
use feedstock::{Preprocessor, SampleId};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use skip::{Missing, skip};

#[path = "common/decoding.rs"]
mod decoding;

use decoding::decode;

/// Takes a given geometry, so that both ways take the same.
struct Fixed(Geometry, SampleSpec);

impl Transform for Fixed {
    fn out_spec(&self) -> SampleSpec {
        self.1
    }

    fn geometry(&self, _width: u32, _height: u32, _rng: &mut KeyedRng) -> Geometry {
        self.0
    }
}

/// Mean PSNR over all samples (identical ones count as 99 dB), the worst, and their number.
#[derive(Default)]
struct Likeness {
    sum: f64,
    worst: Option<f64>,
    count: u32,
}

impl Likeness {
    fn add(&mut self, a: &[u8], b: &[u8]) {
        let squares: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
        let psnr = (10.0 * (255.0 * 255.0 * a.len() as f64 / squares as f64).log10()).min(99.0);
        self.sum += psnr;
        self.worst = Some(self.worst.map_or(psnr, |worst| worst.min(psnr)));
        self.count += 1;
    }

    fn mean(&self, name: &str) -> f64 {
        let mean = self.sum / f64::from(self.count);
        println!("{name}: {} samples, mean {mean:.1} dB, worst {:.1} dB", self.count, self.worst.unwrap_or(0.0));
        mean
    }
}

/// Compares samples of this side; `Fast` counts only where it scales.
fn compare(files: &[Vec<u8>], side: u32) -> (Likeness, Likeness) {
    let transform = RandomResizedCrop::new(side).flip(0.5);
    let spec = transform.out_spec();
    let (mut exact, mut fast) = (Likeness::default(), Likeness::default());
    let mut workspace = Vec::new();
    let [mut expected, mut found] = [(); 2].map(|()| vec![0; spec.elements()]);
    for (at, file) in (0..).zip(files) {
        let header = probe(file, &Limits::default()).expect("header");
        let (width, height) = (header.width, header.height);
        let geometry = transform.geometry(width, height, &mut KeyedRng::new(Seed(5), 0, SampleId(at), 0));
        let whole = decode(file, &header).expect("decodes");
        let needed = Resampler::working_set(width, height, spec, Orientation::UPRIGHT) as usize;
        workspace.resize(needed.max(workspace.len()), 0);
        let mut rows = whole.chunks_exact(width as usize * 3).skip(geometry.crop.y as usize);
        let next_row = |row: &mut [u8]| {
            row.copy_from_slice(rows.next().expect("a row"));
            Ok::<(), TransformError>(())
        };
        let resampler = Resampler::new(geometry, spec);
        resampler.apply(width, geometry.crop.x, next_row, &mut workspace, &mut expected).expect("resamples");
        let mut options = Options::default();
        options.apply_exif_orientation = false;
        let mut add = |quality, likeness: &mut Likeness| {
            options.quality = quality;
            let mut maker = Preprocessor::new(Fixed(geometry, spec)).options(options);
            maker.process(file, &mut found).expect("a good file");
            likeness.add(&expected, &found);
        };
        add(Quality::Exact, &mut exact);
        if geometry.crop.width.min(geometry.crop.height) >= 2 * side {
            add(Quality::Fast, &mut fast);
        }
    }
    (exact, fast)
}

/// A JPEG of slopes, curves and edges with a little grain, as in photos.
fn synthetic(seed: u32, width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let turn = seed as f32;
        let waves = [(7.0, 3.0), (5.0, 11.0), (13.0, 6.0)].map(|(a, b)| ((a * u + b * v + turn) * 3.0).sin() * 50.0);
        let edge = if (u - 0.4).hypot(v - 0.5) < 0.2 + 0.02 * turn.sin() { 60.0 } else { 0.0 };
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ seed).wrapping_mul(2_654_435_761) >> 30;
        image::Rgb(waves.map(|wave| (110.0 + wave + edge + grain as f32).clamp(0.0, 255.0) as u8))
    });
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 90).encode_image(&image).expect("encodes");
    file
}

fn check(name: &str, files: &[Vec<u8>], side: u32) {
    let (exact, fast) = compare(files, side);
    assert!(exact.count > 0 && fast.count > 0, "{name}: {} and {} samples", exact.count, fast.count);
    assert!(exact.mean(&format!("{name}, side {side}, Exact")) > 60.0, "{name}");
    assert!(fast.mean(&format!("{name}, side {side}, Fast where it scales")) > 40.0, "{name}");
}

#[test]
fn synthetic_images_match_the_whole_decoded() {
    let files: Vec<_> = (0..12).map(|seed| synthetic(seed, 1200 + 37 * seed, 900 - 11 * seed)).collect();
    check("synthetic images", &files, 224);
    check("synthetic images", &files, 96);
}

#[test]
fn photos_match_the_whole_decoded() {
    let Some(root) = std::env::var_os("FEEDSTOCK_IMAGENET") else {
        skip(&Missing::Data("the folder that FEEDSTOCK_IMAGENET names"));
        return;
    };
    fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() { collect(&path, paths) } else { paths.push(path) }
        }
    }
    let mut paths = Vec::new();
    collect(Path::new(&root), &mut paths);
    paths.sort();
    let read = paths.iter().filter_map(|path| fs::read(path).ok());
    let files: Vec<_> = read.filter(|file| Format::of(file) == Some(Format::Jpeg)).take(500).collect();
    assert!(!files.is_empty(), "no photos in {}", root.display());
    check("photos", &files, 224);
    check("photos", &files, 96);
}
