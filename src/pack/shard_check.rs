//! Check of the members of one shard: pairs of an image and its class, in order. Of a member, no more is held than its
//! header needs.

use std::io::{self, Read};

use super::convert::extension;
use crate::decode::{DecodeError, Limits, probe};
use crate::tensor::CHANNELS;

/// Prefix of an image that is read first to find its header.
const PREFIX_BYTES: u64 = 72 << 10;
/// Maximum prefix of an image that is read; a header behind it is not looked for.
const IMAGE_BYTES_MAX: u64 = 16 << 20;
/// Window size of the highest compression level in use, as a power of two.
const WINDOW_LOG_MAX: u32 = 23;
/// Size of the buffer for decompressed pixels.
const STEP_BYTES: usize = 64 << 10;

/// Checker of the members of a shard. Problems are passed to `damaged`.
pub(super) struct ShardChecker<'a> {
    class_count: u64,
    check_images: bool,
    damaged: &'a dyn Fn(String),
    /// Key of an image whose class has not been read yet.
    open: Option<String>,
}

impl<'a> ShardChecker<'a> {
    pub(super) fn new(class_count: u64, check_images: bool, damaged: &'a dyn Fn(String)) -> Self {
        ShardChecker { class_count, check_images, damaged, open: None }
    }

    /// Checks all members. Returns the number of samples, or `None` if the members cannot be listed, which is reported
    /// as a problem.
    pub(super) fn check(mut self, archive: &mut tar::Archive<impl Read>) -> Option<u64> {
        let mut samples = 0;
        let mut members = || -> io::Result<()> {
            // Raw entries: packed shards have no long names, and a damaged one could have any length.
            for entry in archive.entries()?.raw(true) {
                let mut entry = entry?;
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let bytes = entry.size();
                samples += u64::from(self.check_member(&name, bytes, &mut entry)?);
            }
            Ok(())
        };
        if let Err(error) = members() {
            (self.damaged)(format!("its members cannot be listed: {error}"));
            return None;
        }
        self.close();
        Some(samples)
    }

    /// Checks a member. Returns true if it completes a sample.
    fn check_member(&mut self, name: &str, bytes: u64, content: &mut impl Read) -> io::Result<bool> {
        let Some((key, extension)) = name.split_once('.') else {
            (self.damaged)(format!("{name} has no extension"));
            return Ok(false);
        };
        if extension == "cls" {
            let mut text = String::new();
            let is_class = content.take(20).read_to_string(&mut text).is_ok()
                && text.parse().is_ok_and(|class: u64| class < self.class_count);
            if !is_class {
                (self.damaged)(format!("{name} is not an index into a list of {} classes", self.class_count));
            }
            let completes = self.open.take_if(|open| open == key).is_some();
            if !completes {
                (self.damaged)(format!("{name} does not follow its image"));
            }
            return Ok(completes);
        }
        self.close();
        self.open = Some(key.to_owned());
        let checked = match extension {
            "ppm.zst" => check_compressed(content),
            _ if self.check_images => check_image(extension, bytes, content)?,
            _ => Ok(()),
        };
        if let Err(cause) = checked {
            (self.damaged)(format!("{name}: {cause}"));
        }
        Ok(false)
    }

    fn close(&mut self) {
        if let Some(key) = self.open.take() {
            (self.damaged)(format!("the image {key} has no class"));
        }
    }
}

/// Checks that an image's header can be parsed, and that its format is that of its extension.
fn check_image(expected: &str, bytes: u64, content: &mut impl Read) -> io::Result<Result<(), String>> {
    let mut start = Vec::new();
    content.take(PREFIX_BYTES).read_to_end(&mut start)?;
    let mut header = probe(&start, &Limits::default());
    if header.is_err() && bytes > PREFIX_BYTES {
        content.take(IMAGE_BYTES_MAX - PREFIX_BYTES).read_to_end(&mut start)?;
        header = probe(&start, &Limits::default());
    }
    Ok(match header {
        Ok(header) if extension(header.format) == expected => Ok(()),
        Ok(header) => Err(format!("it is {}", header.format)),
        Err(DecodeError::TruncatedHeader { .. }) if bytes > IMAGE_BYTES_MAX => Ok(()),
        Err(error) => Err(error.to_string()),
    })
}

/// Checks that a frame can be decompressed, that its checksum is right, and that it has the size of its image.
fn check_compressed(content: &mut impl Read) -> Result<(), String> {
    let cannot = |error: io::Error| format!("it cannot be decompressed: {error}");
    let mut frame = zstd::stream::read::Decoder::new(content).map_err(cannot)?;
    frame.window_log_max(WINDOW_LOG_MAX).map_err(cannot)?;
    let (mut step, mut head, mut bytes) = (vec![0; STEP_BYTES], Vec::new(), 0u64);
    loop {
        let read = match frame.read(&mut step) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(cannot(error)),
        };
        let wanted = 32usize.saturating_sub(head.len()).min(read);
        head.extend_from_slice(&step[..wanted]);
        bytes += read as u64;
    }
    match ppm_bytes(&head) {
        Some(expected) if expected == bytes => Ok(()),
        Some(expected) => Err(format!("it has {bytes} bytes decompressed, and its header says {expected}")),
        None => Err("it is not a binary PPM".to_owned()),
    }
}

/// Size of a PPM with this header, including the header.
fn ppm_bytes(head: &[u8]) -> Option<u64> {
    let mut lines = head.splitn(4, |&byte| byte == b'\n');
    let (magic, sides, white) = (lines.next()?, lines.next()?, lines.next()?);
    let header_bytes = (magic.len() + sides.len() + white.len() + 3) as u64;
    let (width, height) = std::str::from_utf8(sides).ok()?.split_once(' ')?;
    let (width, height): (u32, u32) = (width.parse().ok()?, height.parse().ok()?);
    let pixels = u64::from(width).checked_mul(u64::from(height))?.checked_mul(CHANNELS as u64)?;
    (magic == b"P6" && white == b"255" && lines.next().is_some()).then(|| header_bytes.saturating_add(pixels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_ppm_follows_from_its_header() {
        assert_eq!(ppm_bytes(b"P6\n12 7\n255\n....."), Some(12 + 252));
        assert_eq!(ppm_bytes(b"P6\n12 7\n255\n\n\n\n"), Some(12 + 252));
        for wrong in [&b"P6\n12 7\n255"[..], b"P5\n12 7\n255\n", b"P6\n12\n255\n", b"P6\n1 1\n65535\n", b""] {
            assert_eq!(ppm_bytes(wrong), None, "{wrong:?}");
        }
    }
}
