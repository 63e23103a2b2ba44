//! Owns the look at the members of one shard: pairs of a picture and its class, in their order, each as it should be.
//! It must never hold more of a member than a header takes.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use super::sample::extension;
use crate::decode::{DecodeError, Limits, probe};
use crate::tensor::CHANNELS;

/// What of a picture is read to find its header; if it is not there, up to [`PICTURE_BYTES_MAX`].
const PREFIX_BYTES: u64 = 72 << 10;
/// More of a picture is not held; a header that lies behind it is not looked for.
const PICTURE_BYTES_MAX: u64 = 16 << 20;
/// The window of the highest level of compression that is used, as a power of two.
const WINDOW_LOG_MAX: u32 = 23;
/// What is read of decompressed pixels at a time.
const STEP_BYTES: usize = 64 << 10;

/// The members of a shard, and where what is wrong with them goes.
pub(super) struct Members<'a> {
    class_count: u64,
    pictures: bool,
    damaged: &'a dyn Fn(String),
    /// The key of a picture whose class is to come.
    open: Option<String>,
}

impl<'a> Members<'a> {
    pub(super) fn new(class_count: u64, pictures: bool, damaged: &'a dyn Fn(String)) -> Self {
        Members { class_count, pictures, damaged, open: None }
    }

    /// Looks at all of them: how many samples there are; none where they cannot all be listed, which has been told
    /// then. Each sample is added to `seen` besides.
    pub(super) fn look_at(mut self, archive: &mut tar::Archive<impl Read>, seen: &AtomicU64) -> Option<u64> {
        let cannot = |error: io::Error| (self.damaged)(format!("its members cannot be listed: {error}"));
        let mut samples = 0;
        // As they lie there: packed shards have no long names, and one that came of damage could be of any length.
        for entry in archive.entries().map_err(cannot).ok()?.raw(true) {
            let listed = entry.and_then(|mut entry| {
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let bytes = entry.size();
                self.look(&name, bytes, &mut entry)
            });
            match listed {
                Ok(true) => {
                    samples += 1;
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(error) => {
                    (self.damaged)(format!("its members cannot be listed: {error}"));
                    return None;
                }
            }
        }
        self.close();
        Some(samples)
    }

    /// Looks at one; whether it completes a sample.
    fn look(&mut self, name: &str, bytes: u64, content: &mut impl Read) -> io::Result<bool> {
        let Some((key, kind)) = name.split_once('.') else {
            (self.damaged)(format!("{name} has no extension"));
            return Ok(false);
        };
        if kind == "cls" {
            let mut text = String::new();
            let is_class = content.take(20).read_to_string(&mut text).is_ok()
                && text.parse().is_ok_and(|class: u64| class < self.class_count);
            if !is_class {
                (self.damaged)(format!("{name} is no place in a list of {} classes", self.class_count));
            }
            let completes = self.open.take_if(|open| open == key).is_some();
            if !completes {
                (self.damaged)(format!("{name} has no picture before it"));
            }
            return Ok(completes);
        }
        self.close();
        self.open = Some(key.to_owned());
        let sound = match kind {
            "ppm.zst" => compressed_picture(content),
            _ if self.pictures => picture(kind, bytes, content)?,
            _ => Ok(()),
        };
        if let Err(cause) = sound {
            (self.damaged)(format!("{name}: {cause}"));
        }
        Ok(false)
    }

    fn close(&mut self) {
        if let Some(key) = self.open.take() {
            (self.damaged)(format!("the picture {key} has no class"));
        }
    }
}

/// Whether a picture's header can be read and is of the kind that its name says.
fn picture(kind: &str, bytes: u64, content: &mut impl Read) -> io::Result<Result<(), String>> {
    let mut start = Vec::new();
    content.take(PREFIX_BYTES).read_to_end(&mut start)?;
    let mut header = probe(&start, &Limits::default());
    if header.is_err() && bytes > PREFIX_BYTES {
        content.take(PICTURE_BYTES_MAX - PREFIX_BYTES).read_to_end(&mut start)?;
        header = probe(&start, &Limits::default());
    }
    Ok(match header {
        Ok(header) if extension(header.format) == kind => Ok(()),
        Ok(header) => Err(format!("it is {}", header.format)),
        Err(DecodeError::TruncatedHeader { .. }) if bytes > PICTURE_BYTES_MAX => Ok(()),
        Err(error) => Err(error.to_string()),
    })
}

/// Whether a frame can be decompressed, its checksum is right, and it is as long as its picture.
fn compressed_picture(content: &mut impl Read) -> Result<(), String> {
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
        None => Err("it is no binary PPM".to_owned()),
    }
}

/// How long a PPM of this header is, with the header.
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
    fn the_length_of_a_ppm_is_in_its_header() {
        assert_eq!(ppm_bytes(b"P6\n12 7\n255\n....."), Some(12 + 252));
        assert_eq!(ppm_bytes(b"P6\n12 7\n255\n\n\n\n"), Some(12 + 252));
        for wrong in [&b"P6\n12 7\n255"[..], b"P5\n12 7\n255\n", b"P6\n12\n255\n", b"P6\n1 1\n65535\n", b""] {
            assert_eq!(ppm_bytes(wrong), None, "{wrong:?}");
        }
    }
}
