//! Owns what becomes of one sample: read, looked at, and treated as the settings say, each step within RAM that was
//! reserved before. It must never choose anything by what else is under way: the same sample gives the same bytes.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::iter::Peekable;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::budget::Accounts;
use super::{PackError, Treatment};
use crate::budget::{Account, Reservation, WaitError};
use crate::decode::{Format, Header, Limits, probe};
use crate::plan::ENCODED_BYTES_MAX;
use crate::source::{SampleRead, Source};
use crate::tensor::{CHANNELS, Orientation, SIDE_MAX};
use crate::transform::{Resize, ResizeCenterCrop};
use crate::{ByteCount, Preprocessor, SampleId};

/// Levels of compression: those above look back further than a reader should have to remember, those below compress nothing.
pub(super) const LEVELS: (i32, i32) = (-50, 19);

/// Samples that a worker reads together, at most.
const TOGETHER_MAX: usize = 64;

/// A sample as it is stored, and the RAM that it takes; or why there is none.
pub(super) struct Stored {
    pub(super) id: SampleId,
    pub(super) read: Result<(Vec<u8>, Reservation), Unpacked>,
}

/// A sample as it is packed.
pub(super) struct Packed {
    pub(super) bytes: Vec<u8>,
    pub(super) extension: &'static str,
    _held: Reservation,
}

/// Why a sample is not packed.
pub(super) enum Unpacked {
    /// It cannot be used; the run goes on.
    Bad(String),
    /// The run was called off.
    Stopped,
    /// The run cannot go on.
    Failed(PackError),
}

/// Treats samples, from any number of threads.
pub(super) struct Treater<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) treatment: Treatment,
    pub(super) accounts: &'a Accounts,
    pub(super) stopped: &'a (dyn Fn() -> bool + Sync),
}

impl Treater<'_> {
    /// Reads the next sample, and those that follow it with it, where the source is best read like that and there is
    /// room for them at once.
    pub(super) fn read(&self, ids: &mut Peekable<impl Iterator<Item = SampleId>>, stored: &mut VecDeque<Stored>) {
        let Some(id) = ids.next() else { return };
        stored.push_back(Stored { id, read: self.room_for(id) });
        let coalesce_bytes = self.source.io_profile().coalesce_bytes.min(ENCODED_BYTES_MAX);
        let mut bytes = self.source.encoded_bytes(id);
        while stored.back().is_some_and(|last| last.read.is_ok())
            && stored.len() < TOGETHER_MAX
            && let Some(&id) = ids.peek()
        {
            let of_sample = self.source.encoded_bytes(id);
            bytes = bytes.saturating_add(of_sample);
            if bytes > coalesce_bytes {
                break;
            }
            // Only the first is waited for.
            let Ok(held) = self.accounts.samples.reserve(ByteCount(of_sample)) else { break };
            stored.push_back(Stored { id, read: zeroed(of_sample).map(|memory| (memory, held)) });
            ids.next();
        }
        let mut reads: Vec<SampleRead<'_>> = stored
            .iter_mut()
            .filter_map(|Stored { id, read }| Some(SampleRead::new(*id, &mut read.as_mut().ok()?.0)))
            .collect();
        self.source.read_many(&mut reads);
        let done: Vec<_> = reads.into_iter().map(|read| read.result).collect();
        for (stored, done) in stored.iter_mut().filter(|stored| stored.read.is_ok()).zip(done) {
            if let Err(error) = done {
                stored.read = Err(bad("read", &error));
            }
        }
    }

    /// Makes of a sample what the settings say.
    pub(super) fn treat(&self, id: SampleId, (encoded, held): (Vec<u8>, Reservation)) -> Result<Packed, Unpacked> {
        let header = probe(&encoded, &Limits::default()).map_err(|error| bad("probe", &error))?;
        let as_stored = |encoded| Packed { bytes: encoded, extension: extension(header.format), _held: held };
        match self.treatment {
            Treatment::Stored => Ok(as_stored(encoded)),
            Treatment::ShortSide { pixels, quality } => match shrunk(&header, pixels)? {
                None => Ok(as_stored(encoded)),
                Some((width, height)) => {
                    let maker = Preprocessor::new(Resize::exact(height, width));
                    self.encode(id, &encoded, maker, (width, height), quality)
                }
            },
            Treatment::Decoded { size, level } => {
                let (maker, sides) = match size {
                    Some(size) => (Preprocessor::new(ResizeCenterCrop::new(size, size)), (size, size)),
                    None => {
                        let (width, height) = seen(&header);
                        within_side_max(width, height)?;
                        (Preprocessor::new(Resize::exact(height, width)), (width, height))
                    }
                };
                self.compress(id, &encoded, maker, sides, level)
            }
        }
    }

    /// Memory for a sample as it is stored.
    fn room_for(&self, id: SampleId) -> Result<(Vec<u8>, Reservation), Unpacked> {
        let bytes = self.source.encoded_bytes(id);
        if bytes > ENCODED_BYTES_MAX {
            let cause = format!("it has {}; {} is the most", ByteCount(bytes), ByteCount(ENCODED_BYTES_MAX));
            return Err(bad("read", &cause));
        }
        let held = self.reserve(&self.accounts.samples, id, bytes)?;
        Ok((zeroed(bytes)?, held))
    }

    fn encode(
        &self,
        id: SampleId,
        encoded: &[u8],
        mut maker: Preprocessor,
        (width, height): (u32, u32),
        quality: u8,
    ) -> Result<Packed, Unpacked> {
        let pixels_bytes = pixels_bytes((width, height));
        // Even noise of the highest quality stays below twice its pixels.
        let room = 2 * pixels_bytes + (64 << 10);
        let working = maker.working_set(encoded).map_err(|error| Unpacked::Bad(error.to_string()))?;
        // Decoding is over when encoding begins.
        let bytes = ByteCount(working.0.max(room)) + ByteCount(pixels_bytes);
        let mut held = self.reserve(&self.accounts.pictures, id, bytes.0)?;
        let mut pixels = zeroed(pixels_bytes)?;
        maker.process(encoded, &mut pixels).map_err(|error| Unpacked::Bad(error.to_string()))?;
        drop(maker);
        let mut out = Bounded(reserved(room)?);
        let encoded =
            JpegEncoder::new_with_quality(&mut out, quality).encode(&pixels, width, height, ExtendedColorType::Rgb8);
        encoded.map_err(|error| bad("encode", &error))?;
        drop(pixels);
        held.shrink_to(ByteCount(room));
        Ok(Packed { bytes: out.0, extension: "jpg", _held: held })
    }

    fn compress(
        &self,
        id: SampleId,
        encoded: &[u8],
        mut maker: Preprocessor,
        (width, height): (u32, u32),
        level: i32,
    ) -> Result<Packed, Unpacked> {
        let ppm_header = format!("P6\n{width} {height}\n255\n");
        let ppm_bytes = ppm_header.len() as u64 + pixels_bytes((width, height));
        let room = zstd::compress_bound(ppm_bytes as usize) as u64;
        let working = maker.working_set(encoded).map_err(|error| Unpacked::Bad(error.to_string()))?;
        // Decoding is over when compressing begins.
        let working = working.0.max(room + compressor_bytes(ppm_bytes, level));
        let bytes = ByteCount(working) + ByteCount(ppm_bytes);
        let mut held = self.reserve(&self.accounts.pictures, id, bytes.0)?;
        let mut ppm = zeroed(ppm_bytes)?;
        let (head, pixels) = ppm.split_at_mut(ppm_header.len());
        head.copy_from_slice(ppm_header.as_bytes());
        maker.process(encoded, pixels).map_err(|error| Unpacked::Bad(error.to_string()))?;
        drop(maker);
        let compressed = compressed(&ppm, level, reserved(room)?).map_err(|error| bad("compress", &error))?;
        drop(ppm);
        held.shrink_to(ByteCount(room));
        Ok(Packed { bytes: compressed, extension: "ppm.zst", _held: held })
    }

    fn reserve(&self, account: &Account, id: SampleId, bytes: u64) -> Result<Reservation, Unpacked> {
        account.reserve_waiting(ByteCount(bytes), self.stopped).map_err(|error| match error {
            WaitError::Cancelled => Unpacked::Stopped,
            WaitError::OverBudget(_) => Unpacked::Failed(PackError::OverBudget {
                needed: self.accounts.needed(bytes),
                budget: self.accounts.ledger.limit(),
                what: format!("{} takes {} on its way", self.source.name(id), ByteCount(bytes)),
            }),
        })
    }
}

fn bad(stage: &str, cause: &dyn std::fmt::Display) -> Unpacked {
    Unpacked::Bad(format!("{stage}: {cause}"))
}

pub(super) fn extension(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "jpg",
        Format::Pnm => "ppm",
        other => other.name(),
    }
}

/// Width and height of a picture as it is seen.
fn seen(header: &Header) -> (u32, u32) {
    Orientation::from_exif(header.orientation).sides(header.width, header.height)
}

/// The sides of a picture whose short side becomes `pixels`, the long one rounded down; none where it is no longer now.
fn shrunk(header: &Header, pixels: u32) -> Result<Option<(u32, u32)>, Unpacked> {
    let (width, height) = seen(header);
    let short = width.min(height);
    if short <= pixels {
        return Ok(None);
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(pixels) / u64::from(short)) as u32;
    let (width, height) = (scaled(width), scaled(height));
    within_side_max(width, height)?;
    Ok(Some((width, height)))
}

fn within_side_max(width: u32, height: u32) -> Result<(), Unpacked> {
    if width.max(height) <= SIDE_MAX {
        return Ok(());
    }
    Err(bad("transform", &format!("it would have {width}x{height} pixels, and a side has {SIDE_MAX} at most")))
}

fn pixels_bytes((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height) * CHANNELS as u64
}

/// What the compressor takes for itself, at most, bytes. It looks back as far as there is content, but has tables for
/// no more than its level asks for.
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

/// One frame that says how long its content is and carries a checksum of it.
fn compressed(content: &[u8], level: i32, mut out: Vec<u8>) -> io::Result<Vec<u8>> {
    // A new one each time: what a used one writes may depend on what it has seen.
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.compress_to_buffer(content, &mut out)?;
    Ok(out)
}

fn reserved(bytes: u64) -> Result<Vec<u8>, Unpacked> {
    let mut memory = Vec::new();
    let reserved = usize::try_from(bytes).ok().and_then(|bytes| memory.try_reserve_exact(bytes).ok());
    // No bad sample: what is packed must not depend on what the machine has left.
    let failed = || Unpacked::Failed(PackError::OutOfMemory { bytes: ByteCount(bytes) });
    reserved.ok_or_else(failed).map(|()| memory)
}

fn zeroed(bytes: u64) -> Result<Vec<u8>, Unpacked> {
    let mut memory = reserved(bytes)?;
    memory.resize(bytes as usize, 0);
    Ok(memory)
}

/// Takes no more than there is room for.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0.capacity() - self.0.len() {
            return Err(io::Error::other("it grows to more than twice its pixels"));
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
    fn a_compressor_takes_no_more_than_is_said() {
        for level in [-50, -5, -1].into_iter().chain(1..=LEVELS.1) {
            for bytes in [15, 3 << 10, 150 << 10, 300 << 10, 5 << 20, 20 << 20] {
                // What it holds does not depend on what the content is, and this is quick.
                let content = vec![0; bytes];
                let mut compressor = Compressor::new(level).unwrap();
                compressor.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
                compressor.compress(&content).unwrap();
                let (taken, said) = (compressor.context_mut().sizeof(), compressor_bytes(bytes as u64, level));
                assert!(taken as u64 <= said, "level {level}, {bytes} bytes: {taken} of {said}");
            }
        }
    }

    #[test]
    fn noise_of_the_highest_quality_has_room() {
        let (width, height) = (320, 200);
        let pixels = noise(320 * 200 * 3);
        let mut out = Bounded(Vec::with_capacity(2 * pixels.len()));
        JpegEncoder::new_with_quality(&mut out, 100).encode(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
        assert!(out.0.len() > pixels.len() / 2, "{}", out.0.len());
        let mut small = Bounded(Vec::with_capacity(1000));
        assert!(small.write_all(&[0; 1001]).is_err() && small.write_all(&[0; 1000]).is_ok());
    }

    #[test]
    fn a_frame_says_how_long_its_content_is_and_carries_a_checksum() {
        let content = noise(10_000);
        let mut frame = compressed(&content, 1, Vec::with_capacity(20_000)).unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).ok().flatten(), Some(10_000));
        assert_eq!(zstd::decode_all(&frame[..]).unwrap(), content);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(zstd::decode_all(&frame[..]).is_err());
    }
}
