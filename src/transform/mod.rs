//! Owns what happens to a picture between decoding and its place in the batch: which region is cut out, how it is
//! resampled, whether it is mirrored. It must never allocate pixels of its own, and every random choice comes from the
//! keyed stream it is handed.
//!
//! A [`Transform`] only chooses: it turns a picture's size into a [`Geometry`]. The [`Resampler`] of a worker carries it
//! out. Between the two, a decoder may skip what the geometry does not look at.
//!
//! The transforms here choose as torchvision's do (`torchvision/transforms/transforms.py`), and the resampler gives the
//! pixels that Pillow's antialiased bilinear filter gives, to within one level of 255.
//!
//! ```
//! use feedstock::tensor::ImageView;
//! use feedstock::transform::{RandomResizedCrop, Resampler, Transform};
//! # use feedstock::{SampleId, Seed};
//! # use feedstock::transform::KeyedRng;
//!
//! let picture = vec![128; 500 * 333 * 3];
//! let transform = RandomResizedCrop::new(224).flip(0.5);
//! let mut rng = KeyedRng::new(Seed(17), 0, SampleId(3), 0);
//! let geometry = transform.geometry(500, 333, &mut rng);
//! let mut sample = vec![0; transform.out_spec().elements()];
//! Resampler::new().apply(ImageView::new(&picture, 500, 333), &geometry, transform.out_spec(), &mut sample)?;
//! assert!(sample.iter().all(|&v| v == 128));
//! # Ok::<(), feedstock::transform::TransformError>(())
//! ```

pub use crate::tensor::Region;
use crate::tensor::{Normalize, SIDE_MAX, SampleSpec};
pub use crate::units::KeyedRng;

mod crop;
mod resample;
mod resize;

pub use crop::{RandomCrop, RandomResizedCrop};
pub use resample::{Resampler, TransformError};
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

/// Which part of a picture a sample shows, and where in the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The part of the picture that is looked at. Pixels outside are never read, so they need not be decoded.
    pub region: Region,
    /// What is stretched over the target: left, top, width, height in pixels, relative to the region's corner, fractions
    /// allowed. The filter's support may reach out of the window but not out of the region.
    pub window: [f64; 4],
    /// The part of the sample that the window fills. What is left of the sample is black.
    pub target: Region,
    /// Whether the sample, the black included, is then mirrored left to right.
    pub flip: bool,
}

impl Geometry {
    /// All of `region`, stretched over the whole sample.
    #[must_use]
    pub fn stretch(region: Region, spec: SampleSpec, flip: bool) -> Self {
        let window = [0.0, 0.0, f64::from(region.width), f64::from(region.height)];
        Geometry { region, window, target: Region::whole(spec.width, spec.height), flip }
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
