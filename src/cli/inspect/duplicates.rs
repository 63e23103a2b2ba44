//! Files of equal content, by the 128-bit XXH3 of their bytes.
//!
//! While files arrive, only hashes are kept, within their account; paths are found in a second walk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde_json::{Value, json};

use feedstock::ByteCount;
use feedstock::budget::{Account, Reservation};

use super::super::table::counted;

/// Hashes reserved at a time.
const CHUNK: usize = 4096;
/// Bytes of a chunk, with what merging needs for it.
const CHUNK_BYTES: u64 = (CHUNK * size_of::<Entry>() + 128) as u64;
/// Maximum number of named groups, and of files of each.
const GROUPS_NAMED: usize = 10;
const FILES_NAMED: usize = 4;

/// Hash of a file and its position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) hash: u128,
    /// Position in the walk.
    pub(super) ordinal: u64,
    /// Short hashes of split and class.
    pub(super) marks: (u32, u32),
}

/// Hashes of all files so far, or of as many as the account holds.
pub(super) struct Hashes {
    account: Account,
    /// All but the last are full and sorted.
    chunks: Vec<Chunk>,
    hashed: u64,
    /// Reason why hashing stopped early.
    refused: Option<String>,
}

struct Chunk {
    entries: Vec<Entry>,
    _held: Reservation,
}

/// Files whose content equals another's.
#[derive(Default)]
pub(super) struct Duplicates {
    hashed: u64,
    refused: Option<String>,
    groups: u64,
    /// Files minus groups: the number of removable copies.
    surplus: u64,
    across_classes: u64,
    across_parts: u64,
    /// Most important groups first.
    named: Vec<Group>,
}

/// Files of equal content.
#[derive(Clone)]
struct Group {
    files: u64,
    across_parts: bool,
    across_classes: bool,
    first: Entry,
    /// First few members.
    members: Vec<(u64, String)>,
}

impl Hashes {
    pub(super) fn new(account: Account) -> Self {
        Hashes { account, chunks: Vec::new(), hashed: 0, refused: None }
    }

    pub(super) fn add(&mut self, entry: Entry) {
        if self.refused.is_some() {
            return;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.entries.len() == CHUNK)
            && let Err(refused) = self.open()
        {
            self.refused = Some(refused);
            return;
        }
        let Some(chunk) = self.chunks.last_mut() else { return };
        chunk.entries.push(entry);
        self.hashed += 1;
        if chunk.entries.len() == CHUNK {
            chunk.entries.sort_unstable();
        }
    }

    fn open(&mut self) -> Result<(), String> {
        let held = self
            .account
            .reserve(ByteCount(CHUNK_BYTES))
            .map_err(|refused| format!("the {} for their hashes are full", refused.limit))?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(CHUNK).map_err(|error| error.to_string())?;
        self.chunks.push(Chunk { entries, _held: held });
        Ok(())
    }

    /// Returns the groups of equal hashes.
    pub(super) fn duplicates(&mut self) -> Duplicates {
        if let Some(last) = self.chunks.last_mut() {
            last.entries.sort_unstable();
        }
        let mut found = Duplicates { hashed: self.hashed, refused: self.refused.clone(), ..Duplicates::default() };
        // Merge of the sorted chunks: the smallest entry is on top.
        let mut next: BinaryHeap<Reverse<(Entry, usize, usize)>> = BinaryHeap::with_capacity(self.chunks.len());
        let firsts = self.chunks.iter().enumerate();
        next.extend(firsts.filter_map(|(chunk, held)| Some(Reverse((*held.entries.first()?, chunk, 0)))));
        let mut group: Option<Group> = None;
        while let Some(Reverse((entry, chunk, at))) = next.pop() {
            if let Some(&following) = self.chunks[chunk].entries.get(at + 1) {
                next.push(Reverse((following, chunk, at + 1)));
            }
            match &mut group {
                Some(group) if group.first.hash == entry.hash => group.add(entry),
                _ => found.close(group.replace(Group::of(entry))),
            }
        }
        found.close(group);
        found
    }
}

impl Group {
    fn of(first: Entry) -> Self {
        let members = vec![(first.ordinal, String::new())];
        Group { files: 1, across_parts: false, across_classes: false, first, members }
    }

    fn add(&mut self, entry: Entry) {
        self.files += 1;
        self.across_parts |= entry.marks.0 != self.first.marks.0;
        self.across_classes |= entry.marks.1 != self.first.marks.1;
        if self.members.len() < FILES_NAMED {
            self.members.push((entry.ordinal, String::new()));
        }
    }

    /// Order of importance: leaks between splits first, then larger groups, then earlier ones.
    fn weight(&self) -> impl Ord + use<> {
        (self.across_parts, self.across_classes, self.files, Reverse(self.first.ordinal))
    }
}

impl Duplicates {
    fn close(&mut self, group: Option<Group>) {
        let Some(group) = group.filter(|group| group.files > 1) else { return };
        self.groups += 1;
        self.surplus += group.files - 1;
        self.across_classes += u64::from(group.across_classes);
        self.across_parts += u64::from(group.across_parts);
        let at = self.named.partition_point(|other| other.weight() > group.weight());
        if at < GROUPS_NAMED {
            self.named.insert(at, group);
            self.named.truncate(GROUPS_NAMED);
        }
    }

    /// Returns true if there are groups to name.
    pub(super) fn any(&self) -> bool {
        self.groups > 0
    }

    /// Finds the paths of named groups in a second walk over the same files.
    pub(super) fn name(&mut self, paths: impl Iterator<Item = String>) {
        let mut wanted: Vec<&mut (u64, String)> = self.named.iter_mut().flat_map(|group| &mut group.members).collect();
        wanted.sort_unstable_by_key(|member| Reverse(member.0));
        for (ordinal, path) in (0u64..).zip(paths) {
            match wanted.pop_if(|member| member.0 == ordinal) {
                Some(member) => member.1 = path,
                None if wanted.is_empty() => break,
                None => {}
            }
        }
    }

    /// Summary line, and lines that name groups.
    pub(super) fn text(&self) -> (String, String) {
        let mut line = match self.groups {
            0 => "none".to_owned(),
            groups => {
                let files = counted(self.surplus, "file");
                let mut line = format!("{files} too many, in {} of equal content", counted(groups, "group"));
                for (count, between) in [(self.across_parts, "parts of the data"), (self.across_classes, "classes")] {
                    if count > 0 {
                        line += &format!("; {} across {between}, which leaks", counted(count, "group"));
                    }
                }
                line
            }
        };
        if let Some(refused) = &self.refused {
            line += &format!("; among the first {} only: {refused}; raise --ram-budget", counted(self.hashed, "file"));
        }
        let mut lines = Vec::new();
        for group in self.named.iter().filter(|group| group.members.iter().all(|member| !member.1.is_empty())) {
            let across = match (group.across_parts, group.across_classes) {
                (true, _) => ", across parts of the data",
                (_, true) => ", across classes",
                _ => "",
            };
            lines.push(format!("  {}{across}", counted(group.files, "file")));
            lines.extend(group.members.iter().map(|(_, path)| format!("    {path}")));
        }
        if !lines.is_empty() {
            let named = self.named.len() as u64;
            let which =
                if self.groups > named { format!(" ({named} of {} groups)", self.groups) } else { String::new() };
            lines.insert(0, format!("of equal content{which}"));
        }
        (line, lines.join("\n"))
    }

    pub(super) fn json(&self) -> Value {
        let group = |group: &Group| {
            let paths: Value =
                group.members.iter().map(|(_, path)| path.as_str()).filter(|path| !path.is_empty()).collect();
            json!({
                "files": group.files,
                "across_parts": group.across_parts,
                "across_classes": group.across_classes,
                "xxh3_128": format!("{:032x}", group.first.hash),
                "paths": paths,
            })
        };
        json!({
            "files_hashed": self.hashed,
            "stopped": self.refused,
            "groups": self.groups,
            "surplus_files": self.surplus,
            "groups_across_parts": self.across_parts,
            "groups_across_classes": self.across_classes,
            "named": self.named.iter().map(group).collect::<Value>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use feedstock::budget::{AccountKind, Ledger};

    fn hashes(chunks: u64) -> Hashes {
        let bytes = ByteCount(CHUNK_BYTES * chunks);
        Hashes::new(Ledger::new(bytes).account(AccountKind::Other("hashes"), bytes))
    }

    #[test]
    fn groups_are_found_wherever_their_files_are() {
        let mut all = hashes(8);
        // Every hash once, in an order that spreads each group over the chunks, then some again.
        for ordinal in 0..20_000u64 {
            let content = if ordinal >= 19_990 { ordinal - 19_990 } else { ordinal };
            let hash = u128::from(feedstock::rng::mix64(content)) << 64;
            let marks = (u32::from(ordinal == 19_993), u32::from(ordinal >= 19_998));
            all.add(Entry { hash, ordinal, marks });
        }
        let mut found = all.duplicates();
        assert_eq!((found.hashed, found.groups, found.surplus), (20_000, 10, 10));
        assert_eq!((found.across_parts, found.across_classes), (1, 2));
        let firsts: Vec<u64> = found.named.iter().map(|group| group.first.ordinal).collect();
        assert_eq!(firsts, [3, 8, 9, 0, 1, 2, 4, 5, 6, 7]);
        found.name((0..20_000).map(|ordinal| ordinal.to_string()));
        assert_eq!(found.named[1].members, [(8, "8".to_owned()), (19_998, "19998".to_owned())]);
        let (line, names) = found.text();
        assert!(line.starts_with("10 files too many, in 10 groups of equal content; 1 group across parts"), "{line}");
        assert!(
            names.starts_with("of equal content\n  2 files, across parts of the data\n    3\n    19993\n"),
            "{names}"
        );
    }

    #[test]
    fn counting_stops_where_the_budget_does() {
        let mut all = hashes(1);
        (0..5000u64).for_each(|ordinal| all.add(Entry { hash: ordinal.into(), ordinal, marks: (0, 0) }));
        let found = all.duplicates();
        assert_eq!((found.hashed, found.any()), (4096, false));
        let (line, names) = found.text();
        assert!(
            line.starts_with("none; among the first 4096 files only: the 128 KiB for their hashes are full"),
            "{line}"
        );
        assert!(line.ends_with("raise --ram-budget") && names.is_empty(), "{line}");
    }

    #[test]
    fn a_group_without_end_takes_no_more_room() {
        let mut all = hashes(4);
        (0..9000u64).for_each(|ordinal| all.add(Entry { hash: 7, ordinal, marks: (0, 0) }));
        let found = all.duplicates();
        assert_eq!((found.groups, found.surplus, found.named[0].members.len()), (1, 8999, FILES_NAMED));
    }
}
