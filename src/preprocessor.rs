//! Preprocessing of single samples outside of a loader, by the loader's own code: for inference, tools and benchmarks.

use crate::decode::{Limits, Options, WorkingSet};
use crate::preprocess::SamplePlan;
use crate::rng::Seed;
use crate::sample_error::{SampleError, Stage};
use crate::transform::Transform;
use crate::units::{ByteCount, SampleId};

/// Preprocesses one sample at a time, exactly as a [`Loader`](crate::Loader) with the same transform, options and seed.
///
/// It keeps its memory from image to image, so one that has seen a larger image allocates nothing.
///
/// ```
/// use feedstock::transform::ResizeCenterCrop;
/// use feedstock::Preprocessor;
///
/// # let encoded = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\x80\x00\x00\x00\x00,\x00\
/// #     \x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
/// let mut preprocessor = Preprocessor::new(ResizeCenterCrop::new(256, 224));
/// let mut pixels = vec![0; 224 * 224 * 3]; // u8, height x width x channel
/// preprocessor.process(encoded, &mut pixels)?;
/// assert_eq!(pixels[..3], [255, 128, 0]);
/// # Ok::<(), feedstock::SampleError>(())
/// ```
pub struct Preprocessor {
    transform: Box<dyn Transform>,
    limits: Limits,
    options: Options,
    memory: Vec<u8>,
}

impl Preprocessor {
    /// A preprocessor with this transform, default options and default limits.
    pub fn new(transform: impl Transform) -> Self {
        Preprocessor {
            transform: Box::new(transform),
            limits: Limits::default(),
            options: Options::default(),
            memory: Vec::new(),
        }
    }

    /// Sets the decoding options. Default: [`Options::default`].
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Sets the largest image that is admitted. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Upper bound of the RAM, in bytes, that [`process`](Self::process) takes for this image besides `encoded` and
    /// `out`, memory kept from earlier images included.
    ///
    /// # Errors
    /// [`SampleError`] if the header is unknown, damaged, or beyond the limits.
    pub fn working_set(&self, encoded: &[u8]) -> Result<ByteCount, SampleError> {
        let WorkingSet { buffer_bytes, codec_bytes } = self.plan(encoded, (Seed(0), 0, SampleId(0)))?.working_set();
        Ok(ByteCount(buffer_bytes.max(self.memory.len() as u64)) + ByteCount(codec_bytes))
    }

    /// Preprocesses an encoded image into `out`: u8, height x width x channel, of the transform's output size. Random
    /// transforms draw the numbers of sample 0 in epoch 0 with seed 0.
    ///
    /// # Errors
    /// [`SampleError`] if the image is unknown, damaged or too large, or if `out` has another length.
    pub fn process(&mut self, encoded: &[u8], out: &mut [u8]) -> Result<(), SampleError> {
        self.process_as(encoded, Seed(0), 0, SampleId(0), out)
    }

    /// Like [`process`](Self::process), with the random numbers that a loader with this seed draws for this sample in
    /// this epoch.
    ///
    /// # Errors
    /// See [`process`](Self::process).
    pub fn process_as(
        &mut self,
        encoded: &[u8],
        seed: Seed,
        epoch: u64,
        id: SampleId,
        out: &mut [u8],
    ) -> Result<(), SampleError> {
        let plan = self.plan(encoded, (seed, epoch, id))?;
        let needed = plan.working_set().buffer_bytes;
        let len = usize::try_from(needed).unwrap_or(usize::MAX);
        if len > self.memory.len() {
            self.memory = Vec::new();
            let no_memory = |_| SampleError::NoMemory { stage: Stage::Decode, bytes: ByteCount(needed) };
            self.memory.try_reserve_exact(len).map_err(no_memory)?;
            self.memory.resize(len, 0);
        }
        plan.run(encoded, &mut self.memory, out).map(drop)
    }

    fn plan(&self, encoded: &[u8], key: (Seed, u64, SampleId)) -> Result<SamplePlan, SampleError> {
        SamplePlan::new(encoded, &self.limits, &self.options, &*self.transform, key)
    }
}

impl std::fmt::Debug for Preprocessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Preprocessor({}, {:?}, {} bytes)", self.transform.out_spec(), self.options, self.memory.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_error::SampleErrorKind;
    use crate::transform::RandomResizedCrop;

    #[test]
    fn a_bad_image_is_an_error_and_the_next_one_is_processed() {
        let mut preprocessor = Preprocessor::new(RandomResizedCrop::new(8));
        let mut out = [7; 8 * 8 * 3];
        let error = preprocessor.process(b"text", &mut out).expect_err("no image");
        assert_eq!((error.stage(), error.kind()), (Stage::Probe, SampleErrorKind::UnknownFormat));
        let mut file = std::io::Cursor::new(Vec::new());
        let gray = image::RgbImage::from_pixel(50, 40, image::Rgb([90; 3]));
        gray.write_to(&mut file, image::ImageFormat::Png).expect("encodes");
        let predicted = preprocessor.working_set(file.get_ref()).expect("an image");
        preprocessor.process(file.get_ref(), &mut out).expect("an image");
        let taken = preprocessor.memory.len() as u64;
        assert!((1..=predicted.0).contains(&taken), "{taken} of {predicted}");
        assert_eq!(preprocessor.working_set(b"text").expect_err("no image").stage(), Stage::Probe);
        assert_eq!(out, [90; 8 * 8 * 3]);
        let error = preprocessor.process(file.get_ref(), &mut out[1..]).expect_err("short");
        assert_eq!((error.stage(), error.kind()), (Stage::Transform, SampleErrorKind::Transform));
    }
}
