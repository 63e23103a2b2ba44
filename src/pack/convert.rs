//! Conversion of one sample: read, probed, and converted as the settings say, with memory reserved before each step.
//! The result does not depend on concurrent work: the same sample gives the same bytes.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::iter::Peekable;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::budget::PackBudget;
use super::error::PackError;
use super::settings::Treatment;
use crate::budget::{Account, Reservation, WaitError};
use crate::decode::{Format, Header, Limits, probe};
use crate::plan::ENCODED_BYTES_MAX;
use crate::source::{SampleRead, Source};
use crate::tensor::{CHANNELS, Orientation, SIDE_MAX};
use crate::transform::{Resize, ResizeCenterCrop};
use crate::{ByteCount, Preprocessor, SampleId};

/// Maximum number of samples that a worker reads by one call.
const READ_TOGETHER_MAX: usize = 64;

/// Sample as stored with its memory reservation, or the reason for which there is none.
pub(super) struct StoredSample {
    pub(super) id: SampleId,
    pub(super) read: Result<(Vec<u8>, Reservation), SampleFailure>,
}

/// Sample as packed.
pub(super) struct PackedSample {
    pub(super) bytes: Vec<u8>,
    pub(super) extension: &'static str,
    _held: Reservation,
}

/// Reason for which a sample is not packed.
pub(super) enum SampleFailure {
    /// The sample is unusable; the run goes on. Stage and cause.
    Skipped(String),
    /// The run was stopped.
    Stopped,
    /// The run cannot go on.
    Fatal(PackError),
}

/// Reader and converter of samples for one worker.
pub(super) struct Converter<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) treatment: Treatment,
    pub(super) budget: &'a PackBudget,
    pub(super) stopped: &'a (dyn Fn() -> bool + Sync),
}

impl Converter<'_> {
    /// Reads the next sample, together with following samples if the source reads faster that way and memory is free.
    pub(super) fn read(&self, ids: &mut Peekable<impl Iterator<Item = SampleId>>, stored: &mut VecDeque<StoredSample>) {
        let Some(id) = ids.next() else { return };
        stored.push_back(StoredSample { id, read: self.allocate(id) });
        let coalesce_bytes = self.source.io_profile().coalesce_bytes.min(ENCODED_BYTES_MAX);
        let mut bytes = self.source.encoded_bytes(id);
        while stored.back().is_some_and(|last| last.read.is_ok())
            && stored.len() < READ_TOGETHER_MAX
            && let Some(&id) = ids.peek()
        {
            let of_sample = self.source.encoded_bytes(id);
            bytes = bytes.saturating_add(of_sample);
            if bytes > coalesce_bytes {
                break;
            }
            // Only the first sample waits for memory.
            let Ok(held) = self.budget.samples.reserve(ByteCount(of_sample)) else { break };
            stored.push_back(StoredSample { id, read: zeroed(of_sample).map(|memory| (memory, held)) });
            ids.next();
        }
        let mut reads: Vec<SampleRead<'_>> = stored
            .iter_mut()
            .filter_map(|StoredSample { id, read }| Some(SampleRead::new(*id, &mut read.as_mut().ok()?.0)))
            .collect();
        self.source.read_many(&mut reads);
        let done: Vec<_> = reads.into_iter().map(|read| read.result).collect();
        for (stored, done) in stored.iter_mut().filter(|stored| stored.read.is_ok()).zip(done) {
            if let Err(error) = done {
                stored.read = Err(skipped("read", &describe(&error)));
            }
        }
    }

    /// Converts a sample.
    pub(super) fn convert(
        &self,
        id: SampleId,
        (encoded, held): (Vec<u8>, Reservation),
    ) -> Result<PackedSample, SampleFailure> {
        let header = probe(&encoded, &Limits::default()).map_err(|error| skipped("probe", &describe(&error)))?;
        let unchanged = |encoded| PackedSample { bytes: encoded, extension: extension(header.format), _held: held };
        match self.treatment {
            Treatment::Stored => Ok(unchanged(encoded)),
            Treatment::ShortSide { pixels, quality } => match shrunk_size(&header, pixels)? {
                None => Ok(unchanged(encoded)),
                Some(size) => self.encode_jpeg(id, &encoded, size, quality),
            },
            Treatment::Decoded { size, level } => {
                let (preprocessor, size) = match size {
                    Some(side) => (Preprocessor::new(ResizeCenterCrop::new(side, side)), (side, side)),
                    None => {
                        let (width, height) = upright_size(&header);
                        within_side_max(width, height)?;
                        (Preprocessor::new(Resize::exact(height, width)), (width, height))
                    }
                };
                self.compress(id, &encoded, preprocessor, size, level)
            }
        }
    }

    /// Allocates memory for a sample as stored.
    fn allocate(&self, id: SampleId) -> Result<(Vec<u8>, Reservation), SampleFailure> {
        let bytes = self.source.encoded_bytes(id);
        if bytes > ENCODED_BYTES_MAX {
            let cause = format!("it has {}; the maximum is {}", ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX));
            return Err(skipped("read", &cause));
        }
        let held = self.reserve(&self.budget.samples, id, bytes)?;
        Ok((zeroed(bytes)?, held))
    }

    fn encode_jpeg(
        &self,
        id: SampleId,
        encoded: &[u8],
        (width, height): (u32, u32),
        quality: u8,
    ) -> Result<PackedSample, SampleFailure> {
        // Even noise at the highest quality stays below twice its pixels.
        let room = 2 * pixels_bytes((width, height)) + (64 << 10);
        let preprocessor = Preprocessor::new(Resize::exact(height, width));
        let (pixels, mut held) = self.decode(id, encoded, preprocessor, b"", (width, height), room)?;
        let mut out = BoundedWriter(reserved(room)?);
        JpegEncoder::new_with_quality(&mut out, quality)
            .encode(&pixels, width, height, ExtendedColorType::Rgb8)
            .map_err(|error| skipped("encode", &describe(&error)))?;
        drop(pixels);
        held.shrink_to(ByteCount(room));
        Ok(PackedSample { bytes: out.0, extension: "jpg", _held: held })
    }

    fn compress(
        &self,
        id: SampleId,
        encoded: &[u8],
        preprocessor: Preprocessor,
        (width, height): (u32, u32),
        level: i32,
    ) -> Result<PackedSample, SampleFailure> {
        let header = format!("P6\n{width} {height}\n255\n");
        let ppm_bytes = header.len() as u64 + pixels_bytes((width, height));
        let room = zstd::compress_bound(ppm_bytes as usize) as u64;
        let compressing = room + compressor_bytes(ppm_bytes, level);
        let (ppm, mut held) =
            self.decode(id, encoded, preprocessor, header.as_bytes(), (width, height), compressing)?;
        let bytes = compressed(&ppm, level, reserved(room)?).map_err(|error| skipped("compress", &describe(&error)))?;
        drop(ppm);
        held.shrink_to(ByteCount(room));
        Ok(PackedSample { bytes, extension: "ppm.zst", _held: held })
    }

    /// Decodes a sample to `header` and its pixels. The reservation includes the memory of the next step,
    /// `next_step_bytes`, which begins when decoding is over.
    fn decode(
        &self,
        id: SampleId,
        encoded: &[u8],
        mut preprocessor: Preprocessor,
        header: &[u8],
        size: (u32, u32),
        next_step_bytes: u64,
    ) -> Result<(Vec<u8>, Reservation), SampleFailure> {
        let failed = |error| SampleFailure::Skipped(describe(&error));
        let bytes = header.len() as u64 + pixels_bytes(size);
        let working = preprocessor.working_set(encoded).map_err(failed)?;
        let total = ByteCount(working.0.max(next_step_bytes)) + ByteCount(bytes);
        let held = self.reserve(&self.budget.images, id, total.0)?;
        let mut memory = zeroed(bytes)?;
        let (head, pixels) = memory.split_at_mut(header.len());
        head.copy_from_slice(header);
        preprocessor.process(encoded, pixels).map_err(failed)?;
        Ok((memory, held))
    }

    fn reserve(&self, account: &Account, id: SampleId, bytes: u64) -> Result<Reservation, SampleFailure> {
        account.reserve_waiting(ByteCount(bytes), self.stopped).map_err(|error| match error {
            WaitError::Cancelled => SampleFailure::Stopped,
            WaitError::OverBudget(_) => SampleFailure::Fatal(PackError::OverBudget {
                needed: self.budget.needed(bytes),
                budget: self.budget.ledger.limit(),
                parts: format!("{} takes {}", self.source.name(id), ByteCount(bytes)),
            }),
        })
    }
}

fn skipped(stage: &str, cause: &dyn std::fmt::Display) -> SampleFailure {
    SampleFailure::Skipped(format!("{stage}: {cause}"))
}

/// Message of an error and of its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// File extension of a format.
pub(super) fn extension(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "jpg",
        Format::Pnm => "ppm",
        other => other.name(),
    }
}

/// Width and height after the orientation is applied.
fn upright_size(header: &Header) -> (u32, u32) {
    Orientation::from_exif(header.orientation).sides(header.width, header.height)
}

/// Width and height of an image with a short side of `pixels`, the long side rounded down. `None` if the short side is
/// that short already.
fn shrunk_size(header: &Header, pixels: u32) -> Result<Option<(u32, u32)>, SampleFailure> {
    let (width, height) = upright_size(header);
    let short = width.min(height);
    if short <= pixels {
        return Ok(None);
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(pixels) / u64::from(short)) as u32;
    let (width, height) = (scaled(width), scaled(height));
    within_side_max(width, height)?;
    Ok(Some((width, height)))
}

fn within_side_max(width: u32, height: u32) -> Result<(), SampleFailure> {
    if width.max(height) <= SIDE_MAX {
        return Ok(());
    }
    Err(skipped("transform", &format!("it would have {width}x{height} pixels; the maximum side is {SIDE_MAX}")))
}

fn pixels_bytes((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height) * CHANNELS as u64
}

/// Maximum memory of the compressor, bytes. Its window is as large as the content, and its tables are limited by the
/// level.
fn compressor_bytes(content_bytes: u64, level: i32) -> u64 {
    const FIXED: u64 = 3 << 20;
    let of_level = match level {
        ..=3 => 1 << 20,
        4..=8 => 8 << 20,
        9..=11 => 32 << 20,
        12..=18 => 80 << 20,
        _ => 96 << 20,
    };
    let of_content = content_bytes.max(1 << 10).next_power_of_two().saturating_mul(18);
    FIXED + of_level.min(of_content)
}

/// Compresses to one frame with content size and checksum.
fn compressed(content: &[u8], level: i32, mut out: Vec<u8>) -> io::Result<Vec<u8>> {
    // A new compressor each time: the output of a reused one may depend on earlier content.
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.compress_to_buffer(content, &mut out)?;
    Ok(out)
}

fn reserved(bytes: u64) -> Result<Vec<u8>, SampleFailure> {
    let mut memory = Vec::new();
    let reserved = usize::try_from(bytes).ok().and_then(|bytes| memory.try_reserve_exact(bytes).ok());
    // Not a bad sample: the packed set must not depend on the free memory of the machine.
    let failed = || SampleFailure::Fatal(PackError::OutOfMemory { bytes: ByteCount(bytes) });
    reserved.ok_or_else(failed).map(|()| memory)
}

fn zeroed(bytes: u64) -> Result<Vec<u8>, SampleFailure> {
    let mut memory = reserved(bytes)?;
    memory.resize(bytes as usize, 0);
    Ok(memory)
}

/// Writer into a vector that never reallocates.
struct BoundedWriter(Vec<u8>);

impl Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0.capacity() - self.0.len() {
            return Err(io::Error::other("the JPEG is larger than twice its pixels"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::settings::LEVELS;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn compressor_memory_is_within_the_estimate() {
        for level in [-50, -5, -1].into_iter().chain(1..=LEVELS.1) {
            for bytes in [15, 3 << 10, 150 << 10, 300 << 10, 5 << 20, 20 << 20] {
                // Its memory does not depend on the content, and zeros compress quickly.
                let content = vec![0; bytes];
                let mut compressor = Compressor::new(level).unwrap();
                compressor.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
                compressor.compress(&content).unwrap();
                let (used, estimate) = (compressor.context_mut().sizeof(), compressor_bytes(bytes as u64, level));
                assert!(used as u64 <= estimate, "level {level}, {bytes} bytes: {used} of {estimate}");
            }
        }
    }

    #[test]
    fn jpeg_of_noise_fits_into_its_buffer() {
        let (width, height) = (320, 200);
        let pixels = noise(320 * 200 * 3);
        let mut out = BoundedWriter(Vec::with_capacity(2 * pixels.len()));
        JpegEncoder::new_with_quality(&mut out, 100).encode(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
        assert!(out.0.len() > pixels.len() / 2, "{}", out.0.len());
        let mut small = BoundedWriter(Vec::with_capacity(1000));
        assert!(small.write_all(&[0; 1001]).is_err() && small.write_all(&[0; 1000]).is_ok());
    }

    #[test]
    fn frames_have_a_content_size_and_a_checksum() {
        let content = noise(10_000);
        let mut frame = compressed(&content, 1, Vec::with_capacity(20_000)).unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).ok().flatten(), Some(10_000));
        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), content);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(zstd::decode_all(&frame[..]).is_err());
    }
}
