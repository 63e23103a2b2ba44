//! Owns the walk over a tar: where each member lies, what it is called and what kind it is, however the tar says so (ustar,
//! GNU, PAX). It must never trust a number in a header, hold more than a header's worth of it, or touch a path that it
//! names.

use std::fs::File;
use std::io::{self, BufReader, Read};

use tar::{Header, PaxExtensions};

/// Headers and data are made of blocks of this many bytes.
const BLOCK: u64 = 512;
/// The longest name that is read, in bytes; longer ones are no names.
const NAME_BYTES_MAX: u64 = 64 << 10;
/// The most PAX records that one member may have, in bytes.
const PAX_BYTES_MAX: u64 = 1 << 20;

/// Bytes that are read front to back.
pub(in super::super) trait Forward: Read {
    /// Passes over bytes. Past the end, the next read says so.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl Forward for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::Error::other("a size past the end of any file"))?;
        self.seek_relative(bytes)
    }
}

impl<T: Forward + ?Sized> Forward for Box<T> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        (**self).skip(bytes)
    }
}

/// One that cannot seek.
pub(in super::super) struct Stream<R>(pub(in super::super) R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl<R: Read> Forward for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink()).map(|_| ())
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// A file with holes, whose bytes do not lie in the tar as they are.
    Sparse,
    /// A link to a file elsewhere.
    Link,
    /// A folder, a device.
    Other,
}

/// A member, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Where its first header begins.
    pub(super) header_offset: u64,
    /// Where its bytes begin.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// A tar that is walked.
pub(super) struct Walk<R> {
    input: R,
    /// Where the input stands.
    at: u64,
    /// Where the next header begins.
    next: u64,
}

/// What stands in front of a member's own header.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
    sparse: bool,
}

impl<R: Forward> Walk<R> {
    pub(super) fn new(input: R) -> Self {
        Walk { input, at: 0, next: 0 }
    }

    /// Where the next header is looked for: after an error, where that happened.
    pub(super) fn offset(&self) -> u64 {
        self.next
    }

    /// The next member, or none at the end.
    ///
    /// # Errors
    /// A damaged or cut header. Nothing after it can be found.
    pub(super) fn next(&mut self) -> Result<Option<Member>, String> {
        let header_offset = self.next;
        let mut ahead = Ahead::default();
        loop {
            let Some(header) = self.header()? else {
                let dangling = ahead.name.is_some() || ahead.bytes.is_some() || ahead.sparse;
                return if dangling { Err("it ends after the long name of a member".to_owned()) } else { Ok(None) };
            };
            let kind = header.entry_type();
            let stated = header.entry_size().map_err(|error| format!("the size of a member is no number: {error}"))?;
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                let max = if kind.is_gnu_longname() { NAME_BYTES_MAX } else { PAX_BYTES_MAX };
                if stated > max {
                    return Err(format!("the name of a member is said to take {stated} bytes, and {max} are the most"));
                }
                let mut record = vec![0; stated as usize];
                self.read(&mut record)?;
                self.pass(stated)?;
                if kind.is_gnu_longname() {
                    while record.last() == Some(&0) {
                        record.pop();
                    }
                    ahead.name = Some(record);
                } else {
                    ahead.take(&record)?;
                }
                continue;
            }
            let bytes = ahead.bytes.unwrap_or(stated);
            let offset = self.next;
            if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
                self.pass(stated)?;
                continue;
            }
            // Links and folders have no bytes, whatever their headers say.
            let has_bytes = !(kind.is_hard_link() || kind.is_symlink() || kind.is_dir());
            let kind = match kind {
                _ if ahead.sparse || kind.is_gnu_sparse() => Kind::Sparse,
                kind if kind.is_file() || kind.is_contiguous() => Kind::File,
                kind if kind.is_hard_link() || kind.is_symlink() => Kind::Link,
                _ => Kind::Other,
            };
            if kind == Kind::Sparse && header.as_gnu().is_some_and(tar::GnuHeader::is_extended) {
                self.pass_sparse_headers()?;
            }
            self.pass(if has_bytes { bytes } else { 0 })?;
            let name = ahead.name.unwrap_or_else(|| header.path_bytes().into_owned());
            return Ok(Some(Member { name, kind, header_offset, offset, bytes: if has_bytes { bytes } else { 0 } }));
        }
    }

    /// Reads the first bytes of the member that came last; fewer where it has no more.
    pub(super) fn head<'a>(&mut self, member: &Member, out: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let wanted = (out.len() as u64).min(member.bytes) as usize;
        let done = self.at.saturating_sub(member.offset) as usize;
        debug_assert!(done <= wanted || wanted == 0, "a head that is asked for again is longer");
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

    /// The next header; none at the two empty blocks that end a tar, or where the file ends.
    fn header(&mut self) -> Result<Option<Header>, String> {
        self.go_on()?;
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK as usize {
            match self.input.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err("it ends within a header".to_owned()),
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
        // The sum of all bytes, those of the sum itself taken as blanks.
        let sum =
            bytes.iter().enumerate().map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
        if header.cksum().ok() != Some(sum) {
            return Err("no header of a member is there (its checksum does not fit)".to_owned());
        }
        self.next += BLOCK;
        Ok(Some(header))
    }

    /// Brings the input to where the next header begins.
    fn go_on(&mut self) -> Result<(), String> {
        let gap = self.next - self.at;
        self.input.skip(gap).map_err(|error| error.to_string())?;
        self.at = self.next;
        Ok(())
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.input.read_exact(out).map_err(|error| format!("it ends within the name of a member: {error}"))?;
        self.at += out.len() as u64;
        Ok(())
    }

    /// The next header is after so many bytes of data.
    fn pass(&mut self, bytes: u64) -> Result<(), String> {
        let padded = bytes.checked_next_multiple_of(BLOCK).and_then(|padded| self.next.checked_add(padded));
        self.next = padded.ok_or_else(|| format!("a member is said to have {bytes} bytes"))?;
        Ok(())
    }

    fn pass_sparse_headers(&mut self) -> Result<(), String> {
        loop {
            self.go_on()?;
            let mut block = [0; BLOCK as usize];
            self.read(&mut block)?;
            self.next += BLOCK;
            // The byte that says whether another such block follows.
            if block[504] == 0 {
                return Ok(());
            }
        }
    }
}

impl Ahead {
    fn take(&mut self, record: &[u8]) -> Result<(), String> {
        for extension in PaxExtensions::new(record) {
            let extension = extension.map_err(|error| format!("a PAX record is damaged: {error}"))?;
            match extension.key_bytes() {
                b"path" => self.name = Some(extension.value_bytes().to_vec()),
                // The name that a sparse file had, in the newer of the two ways to write one.
                b"GNU.sparse.name" => (self.name, self.sparse) = (Some(extension.value_bytes().to_vec()), true),
                b"size" => {
                    let size = std::str::from_utf8(extension.value_bytes()).ok().and_then(|text| text.parse().ok());
                    self.bytes = Some(size.ok_or_else(|| "a PAX size is no number".to_owned())?);
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
    use proptest::prelude::*;

    fn walk(tar: &[u8]) -> (Vec<Member>, Option<String>) {
        let mut walk = Walk::new(Stream(tar));
        let mut members = vec![];
        loop {
            match walk.next() {
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
    fn members_are_found_where_they_lie() {
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
            // Written by hand: the size is only in the PAX record.
            builder.get_mut().extend_from_slice(header.as_bytes());
            builder.get_mut().extend_from_slice(&data);
            file(builder, "z.jpg", b"last");
        });
        let (members, error) = walk(&tar);
        assert_eq!(error, None);
        let names: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.name).into_owned()).collect();
        assert_eq!(names, ["a.jpg", &long, "empty.cls", "p\u{e4}x.png", "z.jpg"]);
        let bytes = |m: &Member| tar[m.offset as usize..][..m.bytes as usize].to_vec();
        assert_eq!(bytes(&members[0]), b"first");
        assert_eq!(bytes(&members[1]), [7; 700]);
        assert_eq!(bytes(&members[3]), b"pax");
        assert_eq!(bytes(&members[4]), b"last");
        assert!(members.iter().all(|member| member.kind == Kind::File));
    }

    #[test]
    fn what_is_no_plain_file_is_told_apart() {
        let tar = built(|builder| {
            for kind in [tar::EntryType::Directory, tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo]
            {
                let mut header = Header::new_gnu();
                header.set_entry_type(kind);
                // A link that claims bytes has none.
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
        let (members, error) = walk(&tar);
        assert_eq!(error, None);
        let kinds: Vec<Kind> = members.iter().map(|member| member.kind).collect();
        use Kind::{File, Link, Other, Sparse};
        assert_eq!(kinds, [Other, Link, Link, Other, Sparse, Sparse, File]);
        assert_eq!(members[4].name, b"holes.jpg");
        assert_eq!(members[6].name, b"plain.jpg");
    }

    #[test]
    fn damage_is_told_and_what_came_before_it_kept() {
        let tar = built(|builder| (0..3).for_each(|i| file(builder, &format!("{i}.jpg"), &[i; 600])));
        let (members, error) = walk(&tar[..2 * 1536 + 100]);
        assert_eq!((members.len(), error.as_deref()), (2, Some("it ends within a header")));
        let mut damaged = tar;
        damaged[2 * 1536 + 3] ^= 1;
        let (members, error) = walk(&damaged);
        assert_eq!((members.len(), error.unwrap().contains("checksum")), (2, true));
        let (members, error) = walk(b"");
        assert_eq!((members.len(), error), (0, None));
        // A long name that never comes, and one that would fill the memory.
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let (_, error) = walk(header.as_bytes());
        assert!(error.unwrap().contains("1099511627776 bytes, and 65536 are the most"));
        header.set_size(0);
        header.set_cksum();
        assert_eq!(walk(header.as_bytes()).1.as_deref(), Some("it ends after the long name of a member"));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_walk_panic_or_go_on_for_ever(
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
                // With sums that fit, damage reaches what lies behind them.
                for block in tar.chunks_exact_mut(512) {
                    let sum: u32 = block.iter().enumerate().map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let (members, _) = walk(&tar);
            prop_assert!(members.len() <= tar.len() / 512);
        }
    }
}
