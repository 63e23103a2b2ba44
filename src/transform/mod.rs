//! Transforms of an image between decoding and its place in the batch: crop, resize, flip.
//!
//! A [`Transform`] chooses a [`Geometry`] from an image's size and a keyed random stream. The resampler then makes the
//! sample from the rows of the crop while they are decoded; pixels outside the crop need not be decoded.
//!
//! The transforms here choose as torchvision's do (`torchvision/transforms/transforms.py`), and the resampler gives the
//! pixels of Pillow's antialiased bilinear filter, to within one level of 255.
//!
//! ```
//! use feedstock::transform::{KeyedRng, RandomResizedCrop, Transform};
//! use feedstock::rng::Seed;
//! use feedstock::SampleId;
//!
//! let transform = RandomResizedCrop::new(224).flip(0.5);
//! let mut rng = KeyedRng::new(Seed(17), 0, SampleId(3), 0);
//! let geometry = transform.geometry(500, 333, &mut rng);
//! assert!(geometry.crop.fits(500, 333));
//! ```

mod crop;
mod geometry;
mod kernel;
mod passes;
mod resample;
mod resize;
mod weights;
mod workspace;

pub use crop::{RandomCrop, RandomResizedCrop};
pub use geometry::{Geometry, Transform};
#[doc(hidden)]
pub use resample::Resampler;
pub use resample::TransformError;
pub use resize::{Resize, ResizeCenterCrop};

pub use crate::rng::KeyedRng;
use crate::tensor::Normalize;
pub use crate::tensor::Region;

/// Mean and standard deviation of ImageNet's training images, as in torchvision's recipes.
pub const IMAGENET: Normalize = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/// Mean and standard deviation of CIFAR-10's training images.
pub const CIFAR10: Normalize = Normalize { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };
