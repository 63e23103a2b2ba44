//! Owns the reading of one shard from front to back, once: which members are samples, and what is said of each.
//! It must never keep a member's bytes, and what it finds of any one shard has a limit.

use std::collections::HashMap;
use std::io;

use super::super::scan::IMAGE_EXTENSIONS;
use super::index::{Entry, ShardIndex};
use super::label::{self, LABEL_BYTES_MAX, LABEL_EXTENSIONS};
use super::walk::{Forward, Kind, Member, Walk};
use super::zst::{self, FrameHeader};

/// What is read of a picture to see its size; twice as much again if that is not enough, then it stays unknown.
const HEAD_BYTES: usize = 4 << 10;
const LONG_HEAD_BYTES: usize = 64 << 10;
/// Members whose problems are kept; the rest are counted.
const PROBLEMS_MAX: usize = 1000;
/// Classes of one shard; more are captions.
const CLASSES_MAX: usize = 1 << 20;
/// The largest content of a member that is compressed by itself, in bytes: as of any sample.
const CONTENT_BYTES_MAX: u64 = 256 << 20;

/// What has been found so far.
struct Scan {
    found: ShardIndex,
    /// Places of `found.classes`.
    classes: HashMap<String, u32>,
    group: Group,
    head: Vec<u8>,
}

/// Members that share a key and come one after the other: what WebDataset calls a sample.
#[derive(Default)]
struct Group {
    key: Vec<u8>,
    pictures: Vec<Picture>,
    /// The best source of a label so far: its place in the order of belief, and what it said.
    label: Option<(usize, Result<String, String>)>,
}

struct Picture {
    member: Member,
    dimensions: (u32, u32),
    /// Where it is compressed by itself: the bytes that come out.
    content_bytes: Option<u64>,
}

/// Reads a shard whose bytes come from `input`; there are `bytes` of them, if that is known.
///
/// # Errors
/// More classes than there can be.
pub(super) fn scan(input: impl Forward, bytes: Option<u64>) -> Result<ShardIndex, String> {
    let mut walk = Walk::new(input);
    let head = vec![0; LONG_HEAD_BYTES];
    let mut scan = Scan { found: ShardIndex::default(), classes: HashMap::new(), group: Group::default(), head };
    loop {
        match walk.next() {
            Ok(Some(member)) => {
                let end = member.offset.checked_add(member.bytes);
                if bytes.is_some_and(|bytes| end.is_none_or(|end| end > bytes)) {
                    let cause =
                        format!("it has {} bytes, and the shard ends before that: it was cut off", member.bytes);
                    scan.problem(member.header_offset, &member.name, &cause);
                    break;
                }
                scan.take(&mut walk, member)?;
            }
            Ok(None) => break,
            Err(cause) => {
                scan.problem(walk.offset(), b"", &format!("{cause}; what comes after it is lost"));
                break;
            }
        }
    }
    scan.flush()?;
    scan.found.shrink();
    Ok(scan.found)
}

impl Scan {
    fn take(&mut self, walk: &mut Walk<impl Forward>, member: Member) -> Result<(), String> {
        let base_start = member.name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let base = &member.name[base_start..];
        if base.starts_with(b".") || base.is_empty() || member.kind == Kind::Other {
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
                Kind::File => {
                    let (offset, name) = (member.header_offset, member.name.clone());
                    match self.picture(walk, member, plain.is_some()) {
                        Ok(picture) => self.group.pictures.push(picture),
                        Err(cause) => self.problem(offset, &name, &cause),
                    }
                }
                Kind::Sparse => {
                    let cause =
                        "a sparse file, whose bytes do not lie in the tar as they are: pack it anew without holes";
                    self.problem(member.header_offset, &member.name, cause);
                }
                _ => {
                    let cause = "a link to another file, whose bytes are not here; links are not followed";
                    self.problem(member.header_offset, &member.name, cause);
                }
            }
        } else if let Some(rank) = LABEL_EXTENSIONS.iter().position(|known| *known == extension)
            && member.kind == Kind::File
            && self.group.label.as_ref().is_none_or(|(best, said)| rank < *best || said.is_err())
        {
            let said = self.label(walk, &member, LABEL_EXTENSIONS[rank]);
            // A worse source that says something is better than a better one that does not.
            if said.is_ok() || self.group.label.is_none() {
                self.group.label = Some((rank, said));
            }
        }
        Ok(())
    }

    fn label(&mut self, walk: &mut Walk<impl Forward>, member: &Member, extension: &str) -> Result<String, String> {
        if member.bytes > LABEL_BYTES_MAX {
            let bytes = member.bytes;
            return Err(format!("its .{extension} has {bytes} bytes; {LABEL_BYTES_MAX} are the most that is read"));
        }
        let mut bytes = vec![0; member.bytes as usize];
        let read = walk.head(member, &mut bytes).map_err(|error| error.to_string())?.len();
        label::read(extension, &bytes[..read])
    }

    /// Looks at the first bytes of a picture.
    fn picture(&mut self, walk: &mut Walk<impl Forward>, member: Member, compressed: bool) -> Result<Picture, String> {
        let said = |error: io::Error| format!("cannot be read: {error}");
        let read = walk.head(&member, &mut self.head[..HEAD_BYTES]).map_err(said)?;
        if compressed {
            let header = FrameHeader::read(read)?;
            let content = header.content_bytes.filter(|&bytes| bytes > 0);
            let content = content.ok_or("its zstd frame does not say how large its content is, or that it is empty")?;
            if content > CONTENT_BYTES_MAX {
                return Err(format!("its content has {content} bytes; {CONTENT_BYTES_MAX} are the most of a sample"));
            }
            let mut picture = [0; 1024];
            let len = zst::head(read, &mut picture);
            return Ok(Picture { member, dimensions: size_of_picture(&picture[..len]), content_bytes: Some(content) });
        }
        let mut dimensions = size_of_picture(read);
        if dimensions == (0, 0) && member.bytes > HEAD_BYTES as u64 {
            dimensions = size_of_picture(walk.head(&member, &mut self.head).map_err(said)?);
        }
        Ok(Picture { member, dimensions, content_bytes: None })
    }

    /// The group is over: its pictures become samples.
    fn flush(&mut self) -> Result<(), String> {
        let Group { pictures, label, .. } = std::mem::take(&mut self.group);
        let by_label = label.is_some();
        let beside = if by_label { pictures.len().saturating_sub(1) } else { 0 };
        self.found.beside_count += beside as u64;
        let label = label.map(|(_, said)| said);
        // With a label, a key is one sample. Without, these are plain files that happen to share the front of their names.
        let count = pictures.len() - beside;
        for picture in pictures.into_iter().take(count) {
            let class = match &label {
                Some(said) => said.clone(),
                None => folder(&picture.member.name),
            };
            match class {
                Ok(class) => self.sample(picture, class)?,
                Err(cause) => self.problem(picture.member.header_offset, &picture.member.name, &cause),
            }
        }
        Ok(())
    }

    fn sample(&mut self, picture: Picture, class: String) -> Result<(), String> {
        let Picture { member, dimensions, content_bytes } = picture;
        let label = match self.classes.get(&class) {
            Some(&label) => label,
            None if self.classes.len() == CLASSES_MAX => {
                return Err(format!(
                    "more than {CLASSES_MAX} different labels: are these captions? A class is a number or a name"
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

/// The class by the folder that a picture lies in.
fn folder(name: &[u8]) -> Result<String, String> {
    let mut parts = name.rsplit(|&byte| byte == b'/').skip(1);
    match parts.next().filter(|folder| !folder.is_empty() && *folder != b"." && *folder != b"..") {
        Some(folder) => Ok(super::super::folder::readable(folder)),
        None => Err("no label: it has no .cls, .json or .txt beside it, and lies in no folder".to_owned()),
    }
}

/// Width and height, or zeros where they cannot be told.
fn size_of_picture(head: &[u8]) -> (u32, u32) {
    let side = |side: usize| u32::try_from(side).ok();
    let size = imagesize::blob_size(head).ok();
    size.and_then(|size| Some((side(size.width)?, side(size.height)?))).unwrap_or_default()
}
