//! Compares the resampler with `fast_image_resize`: the same crops of the same synthetic images on one core, in turn,
//! the best round of each. Both make a whole sample: crop, scale, mirror. Rows are copied to the resampler one by one,
//! as a decoder delivers them.
//!
//! ```text
//! cargo bench --no-default-features --bench resample
//! ```

#![allow(clippy::print_stdout, reason = "it prints its table")]

use std::hint::black_box;
use std::time::Instant;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use feedstock::SampleId;
use feedstock::rng::Seed;
use feedstock::tensor::{Orientation, SampleSpec};
use feedstock::transform::{
    Geometry, KeyedRng, RandomCrop, RandomResizedCrop, Region, Resampler, Transform, TransformError,
};

const ROUNDS: usize = 15;

/// A worker's steps with `fast_image_resize`: one pass at a time into reused memory, then the mirror.
#[derive(Default)]
struct FastImageResize {
    resizer: Resizer,
    intermediate: Vec<u8>,
}

impl FastImageResize {
    fn apply(
        &mut self,
        pixels: &[u8],
        (width, height): (u32, u32),
        geometry: &Geometry,
        spec: SampleSpec,
        out: &mut [u8],
    ) {
        let Geometry { crop, target, flip, .. } = *geometry;
        if target != Region::whole(spec.width, spec.height) {
            out.fill(0);
        }
        if (crop.width, crop.height) == (target.width, target.height) {
            let rows = pixels.chunks_exact(width as usize * 3).skip(crop.y as usize);
            let out = out.chunks_exact_mut(spec.width as usize * 3).skip(target.y as usize);
            for (to, from) in out.zip(rows).take(target.height as usize) {
                let bytes = target.width as usize * 3;
                to[target.x as usize * 3..][..bytes].copy_from_slice(&from[crop.x as usize * 3..][..bytes]);
            }
        } else {
            let options = |width: u32, height: u32| {
                let filter = ResizeAlg::Convolution(FilterType::Bilinear);
                ResizeOptions::new().resize_alg(filter).use_alpha(false).crop(0.0, 0.0, width.into(), height.into())
            };
            let image = TypedImageRef::<U8x3>::from_buffer(width, height, pixels).expect("image");
            let image = TypedCroppedImage::from_ref(&image, crop.x, crop.y, crop.width, crop.height).expect("crop");
            let bytes = (crop.width * spec.height * 3) as usize;
            self.intermediate.resize(self.intermediate.len().max(bytes), 0);
            let rows = TypedImage::<U8x3>::from_buffer(crop.width, spec.height, &mut self.intermediate[..bytes]);
            let mut rows = rows.expect("rows");
            self.resizer.resize_typed(&image, &mut rows, &options(crop.width, crop.height)).expect("vertical");
            let mut sample = TypedImage::<U8x3>::from_buffer(spec.width, spec.height, out).expect("sample");
            self.resizer.resize_typed(&rows, &mut sample, &options(crop.width, spec.height)).expect("horizontal");
        }
        if flip {
            for row in out.chunks_exact_mut(spec.width as usize * 3) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
    }
}

/// Microseconds per sample, the best round of each.
fn best<const N: usize>(samples: usize, mut runs: [&mut dyn FnMut(usize); N]) -> [f64; N] {
    let mut best = [f64::MAX; N];
    for _ in 0..ROUNDS {
        for (best, run) in best.iter_mut().zip(&mut runs) {
            let start = Instant::now();
            (0..samples).for_each(&mut **run);
            *best = best.min(start.elapsed().as_secs_f64() * 1e6 / samples as f64);
        }
    }
    best
}

fn compare(name: &str, (width, height): (u32, u32), samples: usize, transform: &impl Transform) {
    let spec = transform.out_spec();
    let bytes = u64::from(width) * u64::from(height) * 3;
    let pixels: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let geometry =
        |at: usize| transform.geometry(width, height, &mut KeyedRng::new(Seed(17), 0, SampleId(at as u64), 0));
    let geometries: Vec<Geometry> = (0..samples).map(geometry).collect();
    let bytes = Resampler::working_set(width, height, spec, Orientation::UPRIGHT) as usize;
    let (mut workspace, mut other) = (vec![0; bytes], FastImageResize::default());
    let [mut theirs, mut ours] = [(); 2].map(|()| vec![0; spec.elements()]);
    let [theirs, ours] = best(
        samples,
        [&mut |at| other.apply(&pixels, (width, height), &geometries[at], spec, black_box(&mut theirs)), &mut |at| {
            let crop = geometries[at].crop;
            let mut from = (crop.y as usize * width as usize + crop.x as usize) * 3;
            let next_row = |row: &mut [u8]| {
                row.copy_from_slice(&pixels[from..][..row.len()]);
                from += width as usize * 3;
                Ok::<(), TransformError>(())
            };
            let resampler = Resampler::new(geometries[at], spec);
            resampler.apply(crop.width, 0, next_row, &mut workspace, black_box(&mut ours)).expect("sample");
        }],
    );
    println!("| {name} | {theirs:.2} | {ours:.2} | {:.2} | {} |", theirs / ours, bytes / 1024);
}

fn main() {
    println!("| microseconds per sample | fast_image_resize | feedstock | ratio | workspace KiB |");
    println!("|---|---|---|---|---|");
    let imagenet = RandomResizedCrop::new(224).flip(0.5);
    compare("500x375, crop to 224", (500, 375), 200, &imagenet);
    compare("300x250, crop to 224", (300, 250), 200, &imagenet);
    compare("1000x800, crop to 224", (1000, 800), 60, &imagenet);
    compare("4000x3000, crop to 224", (4000, 3000), 12, &imagenet);
    compare("96x96, crop to 64", (96, 96), 2000, &RandomResizedCrop::new(64).flip(0.5));
    compare("32x32, crop to 32", (32, 32), 5000, &RandomResizedCrop::new(32).flip(0.5));
    compare("32x32, padded by 4", (32, 32), 5000, &RandomCrop::new(32).padding(4).flip(0.5));
}
