//! Owns what happens to a picture between decoding and its place in the batch: which region is cut out, how it is
//! resampled, whether it is mirrored. It must never allocate pixels of its own, and every random choice comes from the
//! keyed stream it is handed.
//!
//! A [`Transform`] only chooses: it turns a picture's size into a [`Geometry`]. A [`Resampler`] carries it out, on a
//! picture in memory or row by row while it is decoded. Between the two, a decoder may skip what the geometry does not
//! look at.
//!
//! The transforms here choose as torchvision's do (`torchvision/transforms/transforms.py`), and the resampler gives the
//! pixels that Pillow's antialiased bilinear filter gives, to within one level of 255.
//!
//! ```
//! use feedstock::tensor::{ImageView, Orientation};
//! use feedstock::transform::{RandomResizedCrop, Resampler, Transform};
//! # use feedstock::{SampleId, Seed};
//! # use feedstock::transform::KeyedRng;
//!
//! let picture = vec![128; 500 * 333 * 3];
//! let transform = RandomResizedCrop::new(224).flip(0.5);
//! let mut rng = KeyedRng::new(Seed(17), 0, SampleId(3), 0);
//! let geometry = transform.geometry(500, 333, &mut rng);
//! let mut sample = vec![0; transform.out_spec().elements()];
//! let bytes = Resampler::working_set(500, 333, transform.out_spec(), Orientation::UPRIGHT);
//! let mut workspace = vec![0; bytes as usize];
//! let resampler = Resampler::new(geometry, transform.out_spec());
//! resampler.apply(ImageView::new(&picture, 500, 333), &mut workspace, &mut sample)?;
//! assert!(sample.iter().all(|&v| v == 128));
//! # Ok::<(), feedstock::transform::TransformError>(())
//! ```

pub use crate::tensor::Region;
use crate::tensor::{Normalize, SIDE_MAX, SampleSpec};
pub use crate::units::KeyedRng;

mod crop;
mod geometry;
mod kernel;
mod passes;
mod resample;
mod resize;
mod weights;
mod workspace;

pub use crop::{RandomCrop, RandomResizedCrop};
pub use geometry::Geometry;
pub use resample::{Resampler, RowsError, TransformError};
pub use resize::{Resize, ResizeCenterCrop};

/// Mean and standard deviation of ImageNet's training pictures, as torchvision's recipes use them.
pub const IMAGENET: Normalize = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/// Mean and standard deviation of CIFAR-10's training pictures.
pub const CIFAR10: Normalize = Normalize { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };

/// What a sample of a batch looks like and which part of the picture it shows.
pub trait Transform: Send + Sync + 'static {
    /// Shape of every sample that comes out.
    fn out_spec(&self) -> SampleSpec;

    /// Which part of a picture of `width` x `height` pixels is shown, and how. A pure function of the sizes and the
    /// stream; the sizes are at least 1.
    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry;
}

impl Transform for Box<dyn Transform> {
    fn out_spec(&self) -> SampleSpec {
        (**self).out_spec()
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        (**self).geometry(width, height, rng)
    }
}

/// Panics unless a sample may have such a side.
fn check_side(side: u32) {
    assert!((1..=SIDE_MAX).contains(&side), "a sample's side is 1 to {SIDE_MAX} pixels, not {side}");
}

/// Panics unless `p` is a probability.
fn check_probability(p: f64) {
    assert!((0.0..=1.0).contains(&p), "a probability lies between 0 and 1, not at {p}");
}
