//! The resampler beside `fast_image_resize`, the fastest other one there is: the same crops of the same made-up pictures
//! on one core, in turn, the best round of each. Both make a whole sample: crop, scale, mirror.
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
use feedstock::tensor::{ImageView, Orientation, SampleSpec};
use feedstock::transform::{Geometry, KeyedRng, RandomCrop, RandomResizedCrop, Region, Resampler, Transform};
use feedstock::{SampleId, Seed};

const ROUNDS: usize = 15;

/// What a worker would do with `fast_image_resize`: one pass at a time into memory that it keeps, then the mirror.
#[derive(Default)]
struct Other {
    resizer: Resizer,
    between: Vec<u8>,
}

impl Other {
    fn apply(&mut self, image: ImageView<'_>, geometry: &Geometry, spec: SampleSpec, out: &mut [u8]) {
        let Geometry { region, target, flip, .. } = *geometry;
        if target != Region::whole(spec.width, spec.height) {
            out.fill(0);
        }
        if (region.width, region.height) == (target.width, target.height) {
            let rows = image.data().chunks_exact(image.width() as usize * 3).skip(region.y as usize);
            let out = out.chunks_exact_mut(spec.width as usize * 3).skip(target.y as usize);
            for (to, from) in out.zip(rows).take(target.height as usize) {
                let bytes = target.width as usize * 3;
                to[target.x as usize * 3..][..bytes].copy_from_slice(&from[region.x as usize * 3..][..bytes]);
            }
        } else {
            let options = |width: u32, height: u32| {
                let filter = ResizeAlg::Convolution(FilterType::Bilinear);
                ResizeOptions::new().resize_alg(filter).use_alpha(false).crop(0.0, 0.0, width.into(), height.into())
            };
            let picture =
                TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.data()).expect("picture");
            let picture = TypedCroppedImage::from_ref(&picture, region.x, region.y, region.width, region.height);
            let picture = picture.expect("region");
            let bytes = (region.width * spec.height * 3) as usize;
            self.between.resize(self.between.len().max(bytes), 0);
            let rows = TypedImage::<U8x3>::from_buffer(region.width, spec.height, &mut self.between[..bytes]);
            let mut rows = rows.expect("rows");
            self.resizer.resize_typed(&picture, &mut rows, &options(region.width, region.height)).expect("down");
            let mut sample = TypedImage::<U8x3>::from_buffer(spec.width, spec.height, out).expect("sample");
            self.resizer.resize_typed(&rows, &mut sample, &options(region.width, spec.height)).expect("along");
        }
        if flip {
            for row in out.chunks_exact_mut(spec.width as usize * 3) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
    }
}

/// Microseconds a sample, the best of the rounds of each.
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
    let image = ImageView::new(&pixels, width, height);
    let geometry =
        |at: usize| transform.geometry(width, height, &mut KeyedRng::new(Seed(17), 0, SampleId(at as u64), 0));
    let geometries: Vec<Geometry> = (0..samples).map(geometry).collect();
    let bytes = Resampler::working_set(width, height, spec, Orientation::UPRIGHT) as usize;
    let (mut workspace, mut row_workspace, mut other) = (vec![0; bytes], vec![0; bytes], Other::default());
    let mut outs: [Vec<u8>; 3] = std::array::from_fn(|_| vec![0; spec.elements()]);
    let [theirs, ours, pulled] = &mut outs;
    let [theirs, ours, pulled] = best(
        samples,
        [
            &mut |at| other.apply(image, &geometries[at], spec, black_box(theirs)),
            &mut |at| {
                let resampler = Resampler::new(geometries[at], spec);
                resampler.apply(image, &mut workspace, black_box(ours)).expect("sample");
            },
            &mut |at| {
                let region = geometries[at].region;
                let mut from = (region.y as usize * width as usize + region.x as usize) * 3;
                let pull = |row: &mut [u8]| {
                    row.copy_from_slice(&pixels[from..][..row.len()]);
                    from += width as usize * 3;
                    Ok::<(), ()>(())
                };
                let resampler = Resampler::new(geometries[at], spec);
                let made = resampler.apply_rows(region.width, 0, pull, &mut row_workspace, black_box(pulled));
                made.expect("sample");
            },
        ],
    );
    println!(
        "| {name} | {theirs:.2} | {ours:.2} | {:.2} | {pulled:.2} | {:.2} | {} |",
        theirs / ours,
        theirs / pulled,
        bytes / 1024
    );
}

fn main() {
    println!(
        "| microseconds a sample | fast_image_resize | in memory | ratio | row by row, copied | ratio | workspace KiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    let imagenet = RandomResizedCrop::new(224).flip(0.5);
    compare("500x375, crop to 224", (500, 375), 200, &imagenet);
    compare("300x250, crop to 224", (300, 250), 200, &imagenet);
    compare("1000x800, crop to 224", (1000, 800), 60, &imagenet);
    compare("4000x3000, crop to 224", (4000, 3000), 12, &imagenet);
    compare("96x96, crop to 64", (96, 96), 2000, &RandomResizedCrop::new(64).flip(0.5));
    compare("32x32, crop to 32", (32, 32), 5000, &RandomResizedCrop::new(32).flip(0.5));
    compare("32x32, padded by 4", (32, 32), 5000, &RandomCrop::new(32).padding(4).flip(0.5));
}
