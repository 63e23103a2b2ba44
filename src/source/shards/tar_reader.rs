//! Sequential reader of tar headers (ustar, GNU, PAX): offset, name and kind of each member.
//!
//! Sizes in headers are checked before they are used, and at most the headers of one member are in memory.

use std::io;

use tar::{Header, PaxExtensions};

use crate::source::skip_read::SkipRead;

/// Size of a block, of which headers and data consist, bytes.
const BLOCK: u64 = 512;
/// Maximum length of a name, bytes.
const NAME_BYTES_MAX: u64 = 64 << 10;
/// Maximum size of the PAX records of one member, bytes.
const PAX_BYTES_MAX: u64 = 1 << 20;

/// Kind of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    /// A file with holes, whose bytes are not contiguous in the tar.
    Sparse,
    /// A link to a file elsewhere.
    Link,
    /// A folder or a device.
    Other,
}

/// A member, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: MemberKind,
    /// Offset of its first header.
    pub(super) header_offset: u64,
    /// Offset of its bytes.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Sequential reader of a tar.
pub(super) struct TarReader<R> {
    input: R,
    /// Position of the input.
    at: u64,
    /// Offset of the next header.
    next: u64,
}

/// Values of extension headers, which precede a member's own header.
#[derive(Default)]
struct PendingHeaders {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
    sparse: bool,
}

impl<R: SkipRead> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        TarReader { input, at: 0, next: 0 }
    }

    /// Offset of the next header, or of an error.
    pub(super) fn offset(&self) -> u64 {
        self.next
    }

    /// Reads the headers of the next member. `None` at the end.
    ///
    /// # Errors
    /// A damaged or truncated header. The members after it cannot be found.
    pub(super) fn next(&mut self) -> Result<Option<Member>, String> {
        let header_offset = self.next;
        let mut pending = PendingHeaders::default();
        loop {
            let Some(header) = self.header()? else {
                let dangling = pending.name.is_some() || pending.bytes.is_some() || pending.sparse;
                return if dangling {
                    Err("the tar ends after the long name of a member".to_owned())
                } else {
                    Ok(None)
                };
            };
            let kind = header.entry_type();
            let stated = header.entry_size().map_err(|error| format!("invalid size of a member: {error}"))?;
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                let max = if kind.is_gnu_longname() { NAME_BYTES_MAX } else { PAX_BYTES_MAX };
                if stated > max {
                    return Err(format!("the name of a member has {stated} bytes, and at most {max} are supported"));
                }
                let mut record = vec![0; stated as usize];
                self.read(&mut record)?;
                self.advance(stated)?;
                if kind.is_gnu_longname() {
                    while record.last() == Some(&0) {
                        record.pop();
                    }
                    pending.name = Some(record);
                } else {
                    pending.take(&record)?;
                }
                continue;
            }
            let bytes = pending.bytes.unwrap_or(stated);
            let offset = self.next;
            if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
                self.advance(stated)?;
                continue;
            }
            // Links and folders have no bytes; their headers may state a size.
            let has_bytes = !(kind.is_hard_link() || kind.is_symlink() || kind.is_dir());
            let kind = match kind {
                _ if pending.sparse || kind.is_gnu_sparse() => MemberKind::Sparse,
                kind if kind.is_file() || kind.is_contiguous() => MemberKind::File,
                kind if kind.is_hard_link() || kind.is_symlink() => MemberKind::Link,
                _ => MemberKind::Other,
            };
            if kind == MemberKind::Sparse && header.as_gnu().is_some_and(tar::GnuHeader::is_extended) {
                self.skip_sparse_headers()?;
            }
            self.advance(if has_bytes { bytes } else { 0 })?;
            let name = pending.name.unwrap_or_else(|| header.path_bytes().into_owned());
            return Ok(Some(Member { name, kind, header_offset, offset, bytes: if has_bytes { bytes } else { 0 } }));
        }
    }

    /// Reads the first bytes of the last member; fewer if it is shorter. A second call may ask for more bytes.
    pub(super) fn head<'a>(&mut self, member: &Member, out: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let wanted = (out.len() as u64).min(member.bytes) as usize;
        let done = self.at.saturating_sub(member.offset) as usize;
        debug_assert!(done <= wanted || wanted == 0, "the second head of a member is longer");
        let mut filled = done.min(wanted);
        while filled < wanted {
            match self.input.read(&mut out[filled..wanted]) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&out[..filled])
    }

    /// Reads the next header. `None` at an empty block, which ends a tar, or at the end of the file.
    fn header(&mut self) -> Result<Option<Header>, String> {
        self.seek_to_next()?;
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK as usize {
            match self.input.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err("the tar ends within a header".to_owned()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        self.at += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The sum of all bytes, with those of the checksum itself as spaces.
        let sum =
            bytes.iter().enumerate().map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
        if header.cksum().ok() != Some(sum) {
            return Err("not a tar header (wrong checksum)".to_owned());
        }
        self.next += BLOCK;
        Ok(Some(header))
    }

    /// Skips to the next header.
    fn seek_to_next(&mut self) -> Result<(), String> {
        let gap = self.next - self.at;
        self.input.skip(gap).map_err(|error| error.to_string())?;
        self.at = self.next;
        Ok(())
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.input.read_exact(out).map_err(|error| format!("the tar ends within the name of a member: {error}"))?;
        self.at += out.len() as u64;
        Ok(())
    }

    /// Moves the offset of the next header past `bytes` bytes of data.
    fn advance(&mut self, bytes: u64) -> Result<(), String> {
        let padded = bytes.checked_next_multiple_of(BLOCK).and_then(|padded| self.next.checked_add(padded));
        self.next = padded.ok_or_else(|| format!("invalid size of a member: {bytes} bytes"))?;
        Ok(())
    }

    fn skip_sparse_headers(&mut self) -> Result<(), String> {
        loop {
            self.seek_to_next()?;
            let mut block = [0; BLOCK as usize];
            self.read(&mut block)?;
            self.next += BLOCK;
            // This byte is 0 in the last such block.
            if block[504] == 0 {
                return Ok(());
            }
        }
    }
}

impl PendingHeaders {
    fn take(&mut self, record: &[u8]) -> Result<(), String> {
        for extension in PaxExtensions::new(record) {
            let extension = extension.map_err(|error| format!("damaged PAX record: {error}"))?;
            match extension.key_bytes() {
                b"path" => self.name = Some(extension.value_bytes().to_vec()),
                // The original name of a sparse file in PAX format.
                b"GNU.sparse.name" => (self.name, self.sparse) = (Some(extension.value_bytes().to_vec()), true),
                b"size" => {
                    let size = std::str::from_utf8(extension.value_bytes()).ok().and_then(|text| text.parse().ok());
                    self.bytes = Some(size.ok_or_else(|| "invalid PAX size".to_owned())?);
                }
                key => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::skip_read::NoSeek;
    use proptest::prelude::*;

    fn read_members(tar: &[u8]) -> (Vec<Member>, Option<String>) {
        let mut reader = TarReader::new(NoSeek(tar));
        let mut members = vec![];
        loop {
            match reader.next() {
                Ok(Some(member)) => members.push(member),
                Ok(None) => return (members, None),
                Err(error) => return (members, Some(error)),
            }
        }
    }

    fn built(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(vec![]);
        add(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }

    #[test]
    fn members_have_their_offsets() {
        let long = format!("{}/{}.jpg", "d".repeat(150), "n".repeat(200));
        let tar = built(|builder| {
            file(builder, "a.jpg", b"first");
            file(builder, &long, &[7; 700]);
            file(builder, "empty.cls", b"");
            builder.append_pax_extensions([("path", "p\u{e4}x.png".as_bytes()), ("size", b"3")]).unwrap();
            let mut header = Header::new_ustar();
            header.set_size(0);
            header.set_path("short").unwrap();
            header.set_cksum();
            let mut data = [0u8; 512];
            data[..3].copy_from_slice(b"pax");
            // By hand: the size is only in the PAX record.
            builder.get_mut().extend_from_slice(header.as_bytes());
            builder.get_mut().extend_from_slice(&data);
            file(builder, "z.jpg", b"last");
        });
        let (members, error) = read_members(&tar);
        assert_eq!(error, None);
        let names: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.name).into_owned()).collect();
        assert_eq!(names, ["a.jpg", &long, "empty.cls", "p\u{e4}x.png", "z.jpg"]);
        let bytes = |m: &Member| tar[m.offset as usize..][..m.bytes as usize].to_vec();
        assert_eq!(bytes(&members[0]), b"first");
        assert_eq!(bytes(&members[1]), [7; 700]);
        assert_eq!(bytes(&members[3]), b"pax");
        assert_eq!(bytes(&members[4]), b"last");
        assert!(members.iter().all(|member| member.kind == MemberKind::File));
    }

    #[test]
    fn kinds_of_members_are_distinguished() {
        let tar = built(|builder| {
            for kind in [tar::EntryType::Directory, tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo]
            {
                let mut header = Header::new_gnu();
                header.set_entry_type(kind);
                // A link with a stated size has no bytes.
                header.set_size(if kind == tar::EntryType::Fifo { 0 } else { 5000 });
                header.set_path("x").unwrap();
                header.set_link_name("../../etc/passwd").unwrap();
                header.set_cksum();
                builder.get_mut().extend_from_slice(header.as_bytes());
            }
            builder
                .append_pax_extensions([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.name", b"holes.jpg")])
                .unwrap();
            file(builder, "GNUSparseFile.1/holes.jpg", b"map");
            let mut header = Header::new_gnu();
            header.set_entry_type(tar::EntryType::GNUSparse);
            header.set_size(3);
            header.set_path("old-holes.jpg").unwrap();
            header.as_gnu_mut().unwrap().isextended = [1];
            header.set_cksum();
            builder.get_mut().extend_from_slice(header.as_bytes());
            builder.get_mut().extend_from_slice(&[0; 512]);
            builder.get_mut().extend_from_slice(&[9; 512]);
            file(builder, "plain.jpg", b"1");
        });
        let (members, error) = read_members(&tar);
        assert_eq!(error, None);
        let kinds: Vec<MemberKind> = members.iter().map(|member| member.kind).collect();
        use MemberKind::{File, Link, Other, Sparse};
        assert_eq!(kinds, [Other, Link, Link, Other, Sparse, Sparse, File]);
        assert_eq!(members[4].name, b"holes.jpg");
        assert_eq!(members[6].name, b"plain.jpg");
    }

    #[test]
    fn members_before_damage_are_kept() {
        let tar = built(|builder| (0..3).for_each(|i| file(builder, &format!("{i}.jpg"), &[i; 600])));
        let (members, error) = read_members(&tar[..2 * 1536 + 100]);
        assert_eq!((members.len(), error.as_deref()), (2, Some("the tar ends within a header")));
        let mut damaged = tar;
        damaged[2 * 1536 + 3] ^= 1;
        let (members, error) = read_members(&damaged);
        assert_eq!((members.len(), error.unwrap().contains("checksum")), (2, true));
        let (members, error) = read_members(b"");
        assert_eq!((members.len(), error), (0, None));
        // A long name without a member, and one that exceeds memory.
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let (_, error) = read_members(header.as_bytes());
        assert!(error.unwrap().contains("1099511627776 bytes, and at most 65536 are supported"));
        header.set_size(0);
        header.set_cksum();
        assert_eq!(read_members(header.as_bytes()).1.as_deref(), Some("the tar ends after the long name of a member"));
    }

    proptest! {
        #[test]
        fn arbitrary_damage_neither_panics_nor_loops(
            damage in prop::collection::vec((0usize..6000, any::<u8>()), 0..20), cut in 0usize..6000, fix: bool,
        ) {
            let mut tar = built(|builder| {
                file(builder, &"n".repeat(300), b"x");
                file(builder, "b.jpg", &[1; 900]);
                file(builder, "c.jpg", &[2; 100]);
            });
            for (at, byte) in damage {
                let len = tar.len();
                tar[at % len] = byte;
            }
            tar.truncate(cut.max(512));
            if fix {
                // With valid checksums, damage reaches the code behind them.
                for block in tar.chunks_exact_mut(512) {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let (members, _) = read_members(&tar);
            prop_assert!(members.len() <= tar.len() / 512);
        }
    }
}
