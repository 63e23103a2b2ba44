//! Scan of one shard from its beginning to its end: finds samples, and their labels and dimensions.
//!
//! It keeps the first bytes of one member, and its lists of classes and problems have limits.

use std::collections::HashMap;
use std::io;

use super::index::{Entry, ShardIndex};
use super::label::{LABEL_BYTES_MAX, LABEL_EXTENSIONS, parse_label};
use super::tar_reader::{Member, MemberKind, TarReader};
use super::zst::{self, FrameHeader};
use crate::source::IMAGE_EXTENSIONS;
use crate::source::path::readable;
use crate::source::skip_read::SkipRead;

/// Bytes read of an image for its dimensions, at first and if these do not suffice.
const HEAD_BYTES: usize = 4 << 10;
const LONG_HEAD_BYTES: usize = 64 << 10;
/// Maximum number of problems that are listed; the rest are counted.
const PROBLEMS_MAX: usize = 1000;
/// Maximum number of classes of one shard: more are captions.
const CLASSES_MAX: usize = 1 << 20;
/// Maximum content of a compressed member, bytes: the limit of any sample.
const CONTENT_BYTES_MAX: u64 = 256 << 20;

/// State of a scan.
struct Scanner {
    found: ShardIndex,
    /// Index of each class in `found.classes`.
    classes: HashMap<String, u32>,
    group: SampleGroup,
    head: Vec<u8>,
}

/// Consecutive members with the same key: a sample of WebDataset.
#[derive(Default)]
struct SampleGroup {
    key: Vec<u8>,
    images: Vec<ImageMember>,
    /// Best label so far: the index of its extension in [`LABEL_EXTENSIONS`], and the class or the error.
    label: Option<(usize, Result<String, String>)>,
}

struct ImageMember {
    member: Member,
    dimensions: (u32, u32),
    /// Decompressed size of a compressed member.
    content_bytes: Option<u64>,
}

/// Scans a shard. `bytes` is the size of the tar, if it is known.
///
/// # Errors
/// More than [`CLASSES_MAX`] classes.
pub(super) fn scan(input: impl SkipRead, bytes: Option<u64>) -> Result<ShardIndex, String> {
    let mut reader = TarReader::new(input);
    let head = vec![0; LONG_HEAD_BYTES];
    let mut scan =
        Scanner { found: ShardIndex::default(), classes: HashMap::new(), group: SampleGroup::default(), head };
    loop {
        match reader.next() {
            Ok(Some(member)) => {
                let end = member.offset.checked_add(member.bytes);
                if bytes.is_some_and(|bytes| end.is_none_or(|end| end > bytes)) {
                    let cause = format!(
                        "it has {} bytes, and the shard ends before that: the shard is truncated",
                        member.bytes
                    );
                    scan.problem(member.header_offset, &member.name, &cause);
                    break;
                }
                scan.add(&mut reader, member)?;
            }
            Ok(None) => break,
            Err(cause) => {
                scan.problem(reader.offset(), b"", &format!("{cause}; the members after it are lost"));
                break;
            }
        }
    }
    scan.flush()?;
    scan.found.shrink();
    Ok(scan.found)
}

impl Scanner {
    fn add(&mut self, reader: &mut TarReader<impl SkipRead>, member: Member) -> Result<(), String> {
        let base_start = member.name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let base = &member.name[base_start..];
        if base.starts_with(b".") || base.is_empty() || member.kind == MemberKind::Other {
            return Ok(());
        }
        let Some(dot) = base.iter().position(|&byte| byte == b'.') else { return Ok(()) };
        let extension = String::from_utf8_lossy(&base[dot + 1..]).to_ascii_lowercase();
        let key = &member.name[..base_start + dot];
        if key != self.group.key {
            let key = key.to_vec();
            self.flush()?;
            self.group.key = key;
        }
        let plain = extension.strip_suffix(".zst");
        let last = plain.unwrap_or(&extension).rsplit('.').next().unwrap_or_default();
        if IMAGE_EXTENSIONS.contains(&last) {
            match member.kind {
                MemberKind::File => {
                    let (offset, name) = (member.header_offset, member.name.clone());
                    match self.read_image_head(reader, member, plain.is_some()) {
                        Ok(image) => self.group.images.push(image),
                        Err(cause) => self.problem(offset, &name, &cause),
                    }
                }
                MemberKind::Sparse => {
                    let cause = "sparse files are not supported: write the tar without --sparse";
                    self.problem(member.header_offset, &member.name, cause);
                }
                _ => {
                    let cause = "links are not followed: write the tar with --dereference";
                    self.problem(member.header_offset, &member.name, cause);
                }
            }
        } else if let Some(rank) = LABEL_EXTENSIONS.iter().position(|known| *known == extension)
            && member.kind == MemberKind::File
            && self.group.label.as_ref().is_none_or(|(best, class)| rank < *best || class.is_err())
        {
            let class = self.read_label(reader, &member, LABEL_EXTENSIONS[rank]);
            // A class from a lower rank is better than an error from a higher one.
            if class.is_ok() || self.group.label.is_none() {
                self.group.label = Some((rank, class));
            }
        }
        Ok(())
    }

    fn read_label(
        &mut self,
        reader: &mut TarReader<impl SkipRead>,
        member: &Member,
        extension: &str,
    ) -> Result<String, String> {
        if member.bytes > LABEL_BYTES_MAX {
            let bytes = member.bytes;
            return Err(format!("its .{extension} has {bytes} bytes, and at most {LABEL_BYTES_MAX} are read"));
        }
        let mut bytes = vec![0; member.bytes as usize];
        let read = reader.head(member, &mut bytes).map_err(|error| error.to_string())?.len();
        parse_label(extension, &bytes[..read])
    }

    /// Reads the first bytes of an image for its dimensions, and for its size if it is compressed.
    fn read_image_head(
        &mut self,
        reader: &mut TarReader<impl SkipRead>,
        member: Member,
        compressed: bool,
    ) -> Result<ImageMember, String> {
        let failed = |error: io::Error| format!("cannot be read: {error}");
        let read = reader.head(&member, &mut self.head[..HEAD_BYTES]).map_err(failed)?;
        if compressed {
            let header = FrameHeader::read(read)?;
            let content = header.content_bytes.filter(|&bytes| bytes > 0);
            let content =
                content.ok_or("its zstd frame has no content size, or is empty: compress it with a known size")?;
            if content > CONTENT_BYTES_MAX {
                return Err(format!("its content has {content} bytes, and a sample has at most {CONTENT_BYTES_MAX}"));
            }
            let mut head = [0; 1024];
            let len = zst::head(read, &mut head);
            return Ok(ImageMember {
                member,
                dimensions: image_dimensions(&head[..len]),
                content_bytes: Some(content),
            });
        }
        let mut dimensions = image_dimensions(read);
        if dimensions == (0, 0) && member.bytes > HEAD_BYTES as u64 {
            dimensions = image_dimensions(reader.head(&member, &mut self.head).map_err(failed)?);
        }
        Ok(ImageMember { member, dimensions, content_bytes: None })
    }

    /// Turns the images of the finished group into samples.
    fn flush(&mut self) -> Result<(), String> {
        let SampleGroup { images, label, .. } = std::mem::take(&mut self.group);
        // With a label, a key is one sample. Without, these are files whose names happen to share their beginning.
        let count = if label.is_some() { images.len().min(1) } else { images.len() };
        self.found.extra_count += (images.len() - count) as u64;
        for image in images.into_iter().take(count) {
            let class = match &label {
                Some((_, class)) => class.clone(),
                None => folder_class(&image.member.name),
            };
            match class {
                Ok(class) => self.sample(image, class)?,
                Err(cause) => self.problem(image.member.header_offset, &image.member.name, &cause),
            }
        }
        Ok(())
    }

    fn sample(&mut self, image: ImageMember, class: String) -> Result<(), String> {
        let ImageMember { member, dimensions, content_bytes } = image;
        let label = match self.classes.get(&class) {
            Some(&label) => label,
            None if self.classes.len() == CLASSES_MAX => {
                return Err(format!(
                    "more than {CLASSES_MAX} different labels: a class is a number or a name, not a caption"
                ));
            }
            None => {
                let label = self.classes.len() as u32;
                self.found.classes.push(class.clone());
                self.classes.insert(class, label);
                label
            }
        };
        self.found.push(&Entry {
            name: &member.name,
            offset: member.offset,
            bytes: member.bytes,
            content_bytes,
            label,
            dimensions,
        });
        Ok(())
    }

    fn problem(&mut self, offset: u64, name: &[u8], cause: &str) {
        self.found.problem_count += 1;
        if self.found.problems.len() < PROBLEMS_MAX {
            self.found.problems.push((offset, name.to_vec(), cause.to_owned()));
        }
    }
}

/// Class of an image: the name of its folder.
fn folder_class(name: &[u8]) -> Result<String, String> {
    let mut parts = name.rsplit(|&byte| byte == b'/').skip(1);
    match parts.next().filter(|folder| !folder.is_empty() && *folder != b"." && *folder != b"..") {
        Some(folder) => Ok(readable(folder)),
        None => Err("no label: add a .cls, .json or .txt with the same key, or put the image in a folder of its class"
            .to_owned()),
    }
}

/// Width and height, or zeros if they cannot be determined.
fn image_dimensions(head: &[u8]) -> (u32, u32) {
    let side = |side: usize| u32::try_from(side).ok();
    let size = imagesize::blob_size(head).ok();
    size.and_then(|size| Some((side(size.width)?, side(size.height)?))).unwrap_or_default()
}
