//! Owns the making of single samples outside of a loader, with the loader's own code: for inference on one picture, for
//! tools, for measuring what a worker could do at best. It must never keep more memory than its largest picture took.

use crate::decode::{Limits, Options, WorkingSet};
use crate::pool::Shown;
use crate::quarantine::Stage;
use crate::transform::Transform;
use crate::units::{ByteCount, SampleId, Seed};

/// Makes one sample at a time, exactly as a [`Loader`](crate::Loader) with the same transform, options and seed makes it.
///
/// It keeps its memory from picture to picture, so that one that has seen a larger picture allocates nothing.
///
/// ```
/// use feedstock::transform::ResizeCenterCrop;
/// use feedstock::SampleMaker;
///
/// # let encoded = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
/// let mut maker = SampleMaker::new(ResizeCenterCrop::new(256, 224));
/// let mut pixels = vec![0; 224 * 224 * 3]; // u8, height x width x channel
/// maker.make(encoded, &mut pixels)?;
/// assert_eq!(pixels[..3], [255, 128, 0]);
/// # Ok::<(), feedstock::SampleError>(())
/// ```
pub struct SampleMaker {
    transform: Box<dyn Transform>,
    limits: Limits,
    options: Options,
    memory: Vec<u8>,
}

/// Why a sample could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SampleError {
    /// Where it failed.
    pub stage: Stage,
    /// Why, with the numbers.
    pub cause: String,
}

impl std::fmt::Display for SampleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.stage, self.cause)
    }
}

impl std::error::Error for SampleError {}

impl From<(Stage, String)> for SampleError {
    fn from((stage, cause): (Stage, String)) -> Self {
        SampleError { stage, cause }
    }
}

impl SampleMaker {
    /// Samples as this transform cuts them, with default options and limits.
    pub fn new(transform: impl Transform) -> Self {
        SampleMaker {
            transform: Box::new(transform),
            limits: Limits::default(),
            options: Options::default(),
            memory: Vec::new(),
        }
    }

    /// How pictures are decoded. Default: [`Options::default`].
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// How large a picture may be. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// RAM that [`make`](Self::make) takes for this picture besides `encoded` and `out`, at most, bytes: for who keeps a
    /// budget. What it took for an earlier picture is part of it.
    ///
    /// # Errors
    /// [`SampleError`] for what is no picture, and for a too large one.
    pub fn working_set(&self, encoded: &[u8]) -> Result<ByteCount, SampleError> {
        let of = (Seed(0), 0, SampleId(0));
        let shown = Shown::of(encoded, &self.limits, &self.options, &*self.transform, of)?;
        let WorkingSet { pixel_bytes, codec_bytes } = shown.working_set();
        Ok(ByteCount(pixel_bytes.max(self.memory.len() as u64)) + ByteCount(codec_bytes))
    }

    /// Makes a sample of an encoded picture: all of `out`, u8, height x width x channel, as long as the transform's shape
    /// says. A transform that draws numbers draws those of sample 0 in epoch 0 with seed 0.
    ///
    /// # Errors
    /// [`SampleError`] for what is no picture, a damaged or too large one, and an `out` of another length.
    pub fn make(&mut self, encoded: &[u8], out: &mut [u8]) -> Result<(), SampleError> {
        self.make_as(encoded, Seed(0), 0, SampleId(0), out)
    }

    /// As [`make`](Self::make), the sample that a loader with this seed makes of this picture in this epoch.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn make_as(
        &mut self,
        encoded: &[u8],
        seed: Seed,
        epoch: u64,
        id: SampleId,
        out: &mut [u8],
    ) -> Result<(), SampleError> {
        let shown = Shown::of(encoded, &self.limits, &self.options, &*self.transform, (seed, epoch, id))?;
        let WorkingSet { pixel_bytes, .. } = shown.working_set();
        let needed = usize::try_from(pixel_bytes).unwrap_or(usize::MAX);
        if needed > self.memory.len() {
            self.memory = Vec::new();
            let reserved = self.memory.try_reserve_exact(needed);
            reserved.map_err(|_| (Stage::Decode, format!("there is no memory of {needed} bytes")))?;
            self.memory.resize(needed, 0);
        }
        shown.make(encoded, &mut self.memory, out)?;
        Ok(())
    }
}

impl std::fmt::Debug for SampleMaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SampleMaker({}, {:?}, {} bytes)", self.transform.out_spec(), self.options, self.memory.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::RandomResizedCrop;

    #[test]
    fn what_is_no_picture_is_an_error_and_the_next_one_is_made() {
        let mut maker = SampleMaker::new(RandomResizedCrop::new(8));
        let mut out = [7; 8 * 8 * 3];
        let error = maker.make(b"text", &mut out).expect_err("no picture");
        assert_eq!(error.stage, Stage::Probe);
        let mut file = std::io::Cursor::new(Vec::new());
        let grey = image::RgbImage::from_pixel(50, 40, image::Rgb([90; 3]));
        grey.write_to(&mut file, image::ImageFormat::Png).expect("encodes");
        let predicted = maker.working_set(file.get_ref()).expect("a picture");
        assert_eq!(maker.make(file.get_ref(), &mut out), Ok(()));
        assert!((1..=predicted.0).contains(&(maker.memory.len() as u64)), "{} of {predicted}", maker.memory.len());
        assert_eq!(maker.working_set(b"text").expect_err("no picture").stage, Stage::Probe);
        assert_eq!(out, [90; 8 * 8 * 3]);
        let error = maker.make(file.get_ref(), &mut out[1..]).expect_err("short");
        assert_eq!(error.to_string(), "transform: a sample takes 192 bytes, and 191 were given");
    }
}
