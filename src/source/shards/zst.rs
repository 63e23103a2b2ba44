//! Structure of zstd files: frame headers, frames and seek tables (RFC 8878, and zstd's seekable format 0.1); and
//! decompression of single frames. Sizes in a file are checked against limits before they are used.

use std::io::Read;

use zstd::zstd_safe::{DCtx, get_error_name};

/// Maximum window, bytes: the default limit of zstd's own tools.
pub(super) const WINDOW_BYTES_MAX: u64 = 128 << 20;
/// Upper limit of a decompressor's state and tables, without its window, bytes.
pub(super) const CONTEXT_BYTES: u64 = 256 << 10;

const MAGIC: u32 = 0xFD2F_B528;
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184D_2A50..=0x184D_2A5F;
const SEEK_TABLE_FRAME: u32 = 0x184D_2A5E;
const SEEK_TABLE_MAGIC: u32 = 0x8F92_EAB1;
const BLOCK_BYTES_MAX: u64 = 128 << 10;

/// Fills a buffer with the bytes of a file from an offset on.
pub(super) type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), String> + 'a;

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Size of the header, bytes.
    pub(super) header_bytes: u64,
    /// Window, bytes.
    pub(super) window_bytes: u64,
    /// Size of the content, bytes, if the header states it.
    pub(super) content_bytes: Option<u64>,
    has_checksum: bool,
}

/// Maximum size of a header, bytes.
pub(super) const HEADER_BYTES_MAX: usize = 18;

impl FrameHeader {
    /// Parses the header at the beginning of `bytes`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let short = || "truncated zstd frame header".to_owned();
        let number = |at: usize, len: usize| -> Result<u64, String> {
            let mut number = [0; 8];
            number[..len].copy_from_slice(bytes.get(at..at + len).ok_or_else(short)?);
            Ok(u64::from_le_bytes(number))
        };
        if number(0, 4)? != u64::from(MAGIC) {
            return Err("not a zstd frame".to_owned());
        }
        let descriptor = number(4, 1)? as u8;
        let (single, has_checksum) = (descriptor & 0x20 != 0, descriptor & 4 != 0);
        if descriptor & 8 != 0 {
            return Err("unsupported version of the zstd format".to_owned());
        }
        let mut at = 5;
        let mut window_bytes = 0;
        if !single {
            let window = number(at, 1)?;
            let base = 1u64 << (10 + (window >> 3));
            window_bytes = base + base / 8 * (window & 7);
            at += 1;
        }
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        if number(at, dictionary)? != 0 {
            return Err("zstd dictionaries are not supported: compress the shard without one".to_owned());
        }
        at += dictionary;
        let len = [usize::from(single), 2, 4, 8][usize::from(descriptor >> 6)];
        let content = number(at, len)?.checked_add(if len == 2 { 256 } else { 0 });
        at += len;
        let content_bytes = content.filter(|_| len > 0);
        if single {
            window_bytes = content_bytes.unwrap_or(0);
        }
        Ok(FrameHeader { header_bytes: at as u64, window_bytes, content_bytes, has_checksum })
    }
}

/// A frame of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Offset of its content in the decompressed file.
    pub(super) content_start: u64,
    pub(super) content_bytes: u64,
    /// Offset in the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Finds the frames of a file of `bytes` bytes. `None` if a frame does not state the size of its content: such a file
/// can only be read in order.
///
/// # Errors
/// The offset and the damage.
pub(super) fn frames(bytes: u64, read_at: &mut ReadAt<'_>) -> Result<Option<Vec<Frame>>, (u64, String)> {
    let mut frames: Vec<Frame> = Vec::new();
    let (mut offset, mut content_start) = (0, 0u64);
    let mut known = true;
    while offset < bytes {
        let start = offset;
        let failed = |cause: String| (start, cause);
        let mut head = [0; HEADER_BYTES_MAX];
        let len = (bytes - offset).min(HEADER_BYTES_MAX as u64) as usize;
        read_at(offset, &mut head[..len]).map_err(failed)?;
        let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if len >= 8 && SKIPPABLE.contains(&magic) {
            offset += 8 + u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        } else {
            let header = FrameHeader::read(&head[..len]).map_err(failed)?;
            offset = frame_end(offset, header, bytes, read_at).map_err(failed)?;
            match header.content_bytes {
                Some(content_bytes) => {
                    frames.push(Frame { content_start, content_bytes, offset: start, bytes: offset - start });
                    let end = content_start.checked_add(content_bytes);
                    content_start = end.ok_or_else(|| failed(format!("invalid content size {content_bytes}")))?;
                }
                None => known = false,
            }
        }
        if offset > bytes {
            return Err(failed(format!(
                "a zstd frame ends at byte {offset}, and the file has {bytes} bytes: the file is truncated"
            )));
        }
        if !known {
            return Ok(None);
        }
    }
    Ok(Some(frames))
}

/// End of a frame, found by following its blocks.
fn frame_end(start: u64, header: FrameHeader, bytes: u64, read_at: &mut ReadAt<'_>) -> Result<u64, String> {
    let mut at = start + header.header_bytes;
    loop {
        if at + 3 > bytes {
            return Err(format!("a zstd frame is truncated at byte {bytes}"));
        }
        let mut block = [0; 4];
        read_at(at, &mut block[..3])?;
        let block = u64::from(u32::from_le_bytes(block));
        let size = block >> 3;
        if size > BLOCK_BYTES_MAX {
            return Err(format!("invalid zstd block at byte {at}: {size} bytes"));
        }
        // A run-length block stores one byte.
        at += 3 + if block >> 1 & 3 == 1 { 1 } else { size };
        if block & 1 == 1 {
            return Ok(at + if header.has_checksum { 4 } else { 0 });
        }
    }
}

/// Reads the seek table at the end of a file. `None` if there is none, or it does not match the file.
pub(super) fn seek_table(bytes: u64, read_at: &mut ReadAt<'_>) -> Option<Vec<Frame>> {
    let mut footer = [0; 9];
    read_at(bytes.checked_sub(9)?, &mut footer).ok()?;
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (word(&footer[5..]) == SEEK_TABLE_MAGIC).then_some(())?;
    let entry = if footer[4] & 0x80 != 0 { 12 } else { 8 };
    let table_bytes = u64::from(word(&footer)) * entry + 9;
    let start = bytes.checked_sub(table_bytes + 8)?;
    let mut table = vec![0; table_bytes as usize + 8];
    read_at(start, &mut table).ok()?;
    (word(&table) == SEEK_TABLE_FRAME && u64::from(word(&table[4..])) == table_bytes).then_some(())?;
    let (mut offset, mut content_start) = (0, 0);
    let entries = table[8..table_bytes as usize - 1].chunks_exact(entry as usize);
    let frames: Vec<Frame> = entries
        .map(|entry| {
            let (bytes, content_bytes) = (u64::from(word(entry)), u64::from(word(&entry[4..])));
            let frame = Frame { content_start, content_bytes, offset, bytes };
            (offset, content_start) = (offset + bytes, content_start + content_bytes);
            frame
        })
        .collect();
    // The listed frames must be all of the file before the table.
    (offset == start).then(|| frames.into_iter().filter(|frame| frame.content_bytes > 0).collect())
}

/// Decompressor of single frames, which reuses its state.
pub(super) struct Decompressor(DCtx<'static>);

impl Decompressor {
    pub(super) fn new() -> Self {
        Decompressor(DCtx::create())
    }

    /// Decompresses one frame, whose content must have the length of `out`.
    pub(super) fn frame(&mut self, compressed: &[u8], out: &mut [u8]) -> Result<(), String> {
        let expected = out.len();
        match self.0.decompress(out, compressed) {
            Ok(count) if count == expected => Ok(()),
            Ok(count) => Err(format!("zstd: decompressed to {count} bytes instead of {expected}")),
            Err(code) => Err(format!("zstd: {}", get_error_name(code))),
        }
    }
}

/// Decompresses the beginning of `compressed`, which may be truncated. Returns the number of bytes in `out`.
pub(super) fn head(compressed: &[u8], out: &mut [u8]) -> usize {
    let Ok(mut decoder) = zstd::stream::read::Decoder::with_buffer(compressed) else { return 0 };
    let mut filled = 0;
    while filled < out.len() {
        match decoder.read(&mut out[filled..]) {
            Ok(count @ 1..) => filled += count,
            // Truncated, damaged or at its end: the bytes before count.
            Ok(0) | Err(_) => break,
        }
    }
    filled
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A frame with content size and checksum.
    pub(crate) fn frame(content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(vec![], 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.set_pledged_src_size(Some(content.len() as u64)).unwrap();
        encoder.include_contentsize(true).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// A frame without its content size.
    pub(crate) fn open_frame(content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(vec![], 1).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Independent frames of `each` bytes of content, with a seek table.
    pub(crate) fn seekable(content: &[u8], each: usize) -> Vec<u8> {
        let (mut file, mut table) = (vec![], vec![]);
        for part in content.chunks(each) {
            let frame = frame(part);
            table.extend((frame.len() as u32).to_le_bytes());
            table.extend((part.len() as u32).to_le_bytes());
            file.extend(frame);
        }
        let count = (table.len() / 8) as u32;
        file.extend(SEEK_TABLE_FRAME.to_le_bytes());
        file.extend((table.len() as u32 + 9).to_le_bytes());
        file.extend(table);
        file.extend(count.to_le_bytes());
        file.push(0);
        file.extend(SEEK_TABLE_MAGIC.to_le_bytes());
        file
    }

    fn found(file: &[u8]) -> Result<Option<Vec<Frame>>, (u64, String)> {
        let bytes = file.len() as u64;
        let mut read_at = |at: u64, out: &mut [u8]| {
            let at = at as usize;
            out.copy_from_slice(file.get(at..at + out.len()).ok_or("past the end")?);
            Ok(())
        };
        seek_table(bytes, &mut read_at).map_or_else(|| frames(bytes, &mut read_at), |frames| Ok(Some(frames)))
    }

    fn content() -> Vec<u8> {
        (0..400_000u32).map(|i| (crate::rng::mix64(u64::from(i / 3)) >> 60) as u8).collect()
    }

    #[test]
    fn frames_are_found_with_a_table_and_without() {
        let content = content();
        let seekable = seekable(&content, 150_000);
        let plain: Vec<u8> = content.chunks(150_000).flat_map(frame).collect();
        for file in [&seekable, &plain] {
            let frames = found(file).unwrap().unwrap();
            assert_eq!(frames.iter().map(|frame| frame.content_bytes).collect::<Vec<_>>(), [150_000, 150_000, 100_000]);
            let mut decompressor = Decompressor::new();
            for frame in frames {
                let mut out = vec![0; frame.content_bytes as usize];
                decompressor.frame(&file[frame.offset as usize..][..frame.bytes as usize], &mut out).unwrap();
                assert_eq!(out, content[frame.content_start as usize..][..out.len()]);
            }
        }
        assert_eq!(found(&open_frame(&content)), Ok(None));
        assert_eq!(found(&[]), Ok(Some(vec![])));
    }

    #[test]
    fn headers_match_zstds_encoder() {
        for len in [0, 1, 255, 256, 70_000, 400_000] {
            let content = &content()[..len];
            let compressed = frame(content);
            let header = FrameHeader::read(&compressed).unwrap();
            assert_eq!(header.content_bytes, Some(len as u64));
            assert!(header.has_checksum && header.window_bytes >= (len as u64).min(1));
            let mut out = [0; 100];
            let got = head(&compressed[..compressed.len().min(60_000)], &mut out);
            assert_eq!(out[..got], content[..got]);
            assert_eq!(got, len.min(100));
        }
        assert_eq!(FrameHeader::read(&open_frame(&content())).unwrap().content_bytes, None);
    }

    #[test]
    fn damage_is_reported_with_its_offset() {
        let content = content();
        let file: Vec<u8> = content.chunks(200_000).flat_map(frame).collect();
        let second = found(&file).unwrap().unwrap()[1].offset;
        let (at, cause) = found(&file[..file.len() - 10]).unwrap_err();
        assert_eq!((at, cause.contains("truncated")), (second, true), "{cause}");
        let mut wrong = file.clone();
        wrong[second as usize] ^= 1;
        assert_eq!(found(&wrong), Err((second, "not a zstd frame".to_owned())));
        let first = &mut wrong[..second as usize];
        first[1000] ^= 1;
        let error = Decompressor::new().frame(first, &mut vec![0; 200_000]).unwrap_err();
        assert!(error.starts_with("zstd: "), "{error}");
        let error = Decompressor::new().frame(&file[..second as usize], &mut vec![0; 200_001]).unwrap_err();
        assert_eq!(error, "zstd: decompressed to 200000 bytes instead of 200001");
        let mut table = seekable(&content, 100_000);
        let whole = found(&table).unwrap().unwrap();
        for at in 1..45 {
            let at = table.len() - at;
            table[at] ^= 1;
            // The table is rejected, or a content size is wrong, which shows in decompression.
            let same = |frames: &[Frame]| frames.iter().zip(&whole).all(|(a, b)| a.offset == b.offset);
            match found(&table) {
                Ok(frames) => assert!(same(&frames.unwrap())),
                Err((_, cause)) => assert!(cause.contains("truncated"), "{cause}"),
            }
            table[at] ^= 1;
        }
    }

    proptest! {
        #[test]
        fn arbitrary_damage_does_not_panic(
            at in prop::collection::vec((0usize..100_000, any::<u8>()), 0..8), cut in 0usize..70_000,
        ) {
            let mut file = seekable(&content()[..60_000], 20_000);
            for (at, byte) in at {
                let len = file.len();
                file[at % len] = byte;
            }
            file.truncate(cut.max(1));
            if let Ok(Some(frames)) = found(&file) {
                for frame in frames {
                    prop_assert!(frame.offset + frame.bytes <= file.len() as u64);
                }
            }
            let _ = FrameHeader::read(&file);
            let _ = head(&file, &mut [0; 64]);
        }
    }
}
