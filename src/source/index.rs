//! Compact table of samples: path, size and label of each. It does no I/O.
//!
//! Samples are grouped by directory, and the names of a directory are sorted, so neighbors differ in a digit or two. A
//! name is stored as its difference from the name before it: the number of bytes shared at the front, the number shared
//! at the end, and the bytes between. Every sixteenth name is stored whole, so a lookup decodes at most sixteen.
//!
//! The names of ImageNet (`n01440764/n01440764_10026.JPEG`) take 11 bytes a sample: 4 for the size, half a byte for the
//! table of blocks, the rest for the name. Ten million samples take about 110 MB.

use std::cmp::min;
use std::mem::size_of_val;

use crate::units::SampleId;

/// Names in a block. The first name of a block is stored whole.
const BLOCK: usize = 16;

/// Maximum length of a file name, bytes: the limit of file systems (`NAME_MAX`), which fits into one byte.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Mark in the table of sizes for a size that does not fit into 32 bits and is in `large`.
const LARGE: u32 = u32::MAX;

/// Names and sizes of the samples of one directory.
#[derive(Debug, Default)]
pub(super) struct DirectoryIndex {
    names: Vec<u8>,
    /// Start of each block in `names`.
    blocks: Vec<u64>,
    sizes: Vec<u32>,
    /// Position in this directory, and size, bytes.
    large: Vec<(u64, u64)>,
    /// Name added last.
    last: Vec<u8>,
}

impl DirectoryIndex {
    /// Encodes names of at most [`NAME_BYTES_MAX`] bytes, and sizes in bytes.
    pub(super) fn encode<'a>(entries: impl Iterator<Item = (&'a [u8], u64)>) -> Self {
        let mut encoded = DirectoryIndex::default();
        entries.for_each(|(name, size_bytes)| encoded.push(name, size_bytes));
        encoded.names.shrink_to_fit();
        encoded.last = Vec::new();
        encoded
    }

    /// Adds a name and a size.
    pub(super) fn push(&mut self, name: &[u8], size_bytes: u64) {
        let position = self.sizes.len();
        if position.is_multiple_of(BLOCK) {
            self.blocks.push(self.names.len() as u64);
            self.last.clear();
        }
        let previous = &self.last;
        let shorter = min(name.len(), previous.len());
        let front = (0..shorter).take_while(|&i| name[i] == previous[i]).count();
        let back = (1..=shorter - front).take_while(|&i| name[name.len() - i] == previous[previous.len() - i]).count();
        let middle = &name[front..name.len() - back];
        debug_assert!(name.len() <= NAME_BYTES_MAX);
        self.names.extend([front as u8, back as u8, middle.len() as u8]);
        self.names.extend(middle);
        match u32::try_from(size_bytes) {
            Ok(size) if size != LARGE => self.sizes.push(size),
            _ => {
                self.sizes.push(LARGE);
                self.large.push((position as u64, size_bytes));
            }
        }
        self.last.clear();
        self.last.extend(name);
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.sizes.len()
    }

    /// The tables of the index.
    pub(super) fn parts(&self) -> Parts<'_> {
        (&self.names, &self.blocks, &self.sizes, &self.large)
    }

    /// Creates an index from its tables. `None` if they are inconsistent.
    pub(super) fn from_parts(
        names: Vec<u8>,
        blocks: Vec<u64>,
        sizes: Vec<u32>,
        large: Vec<(u64, u64)>,
    ) -> Option<Self> {
        let mut large_sizes = large.iter();
        let (mut at, mut before) = (0, 0);
        for (position, &size) in sizes.iter().enumerate() {
            if position.is_multiple_of(BLOCK) {
                (*blocks.get(position / BLOCK)? == at as u64).then_some(())?;
                before = 0;
            }
            let &[front, back, middle] = names.get(at..at + 3)? else { return None };
            let (front, back, middle) = (usize::from(front), usize::from(back), usize::from(middle));
            at += 3 + middle;
            (front + back <= before && at <= names.len()).then_some(())?;
            before = front + middle + back;
            (before <= NAME_BYTES_MAX).then_some(())?;
            if size == LARGE {
                large_sizes.next().filter(|(at, _)| *at == position as u64)?;
            }
        }
        let whole = at == names.len() && blocks.len() == sizes.len().div_ceil(BLOCK) && large_sizes.next().is_none();
        whole.then_some(DirectoryIndex { names, blocks, sizes, large, last: Vec::new() })
    }

    /// Size of a sample, bytes.
    pub(super) fn size_bytes(&self, position: usize) -> u64 {
        size_at(&self.sizes, &self.large, position)
    }

    /// Largest size, bytes.
    pub(super) fn largest_bytes(&self) -> u64 {
        (0..self.len()).map(|position| self.size_bytes(position)).max().unwrap_or(0)
    }

    pub(super) fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.blocks.shrink_to_fit();
        self.sizes.shrink_to_fit();
        self.last = Vec::new();
    }
}

/// Names, starts of their blocks, sizes, and position and size of those beyond 32 bits.
pub(super) type Parts<'a> = (&'a [u8], &'a [u64], &'a [u32], &'a [(u64, u64)]);

/// One directory and its samples.
#[derive(Debug)]
pub(super) struct ClassDirectory {
    pub(super) class: u32,
    /// Path relative to the root.
    pub(super) path: Vec<u8>,
    pub(super) samples: DirectoryIndex,
}

/// Looks up a size in a table of sizes and the list of those beyond 32 bits.
fn size_at(sizes: &[u32], large: &[(u64, u64)], position: usize) -> u64 {
    match sizes[position] {
        LARGE => large[large.partition_point(|&(at, _)| at < position as u64)].1,
        size => u64::from(size),
    }
}

/// One directory of the joined index.
#[derive(Debug, Clone, Copy)]
struct Directory {
    first_sample: u64,
    first_block: u64,
    /// Start of its path, relative to the root, in `paths`. The path ends at the start of the next one.
    path_start: u64,
}

/// Paths, sizes and labels of all samples of a source.
#[derive(Debug)]
pub(super) struct Index {
    len: u64,
    /// Sorted by class, then by path, followed by a sentinel.
    directories: Box<[Directory]>,
    paths: Box<[u8]>,
    blocks: Box<[u64]>,
    names: Box<[u8]>,
    sizes: Box<[u32]>,
    large: Box<[(u64, u64)]>,
    /// End of each class: the id after its last sample.
    class_ends: Box<[u64]>,
}

impl Index {
    /// Joins directories, which are sorted by class and path.
    pub(super) fn assemble(mut directories: Vec<ClassDirectory>, class_count: usize) -> Self {
        debug_assert!(directories.is_sorted_by(|a, b| (a.class, &a.path) < (b.class, &b.path)));
        if directories.len() == 1
            && let Some(ClassDirectory { class, path, samples: part }) = directories.pop()
        {
            // A single directory is moved, not copied.
            let len = part.sizes.len() as u64;
            let ends = |other: usize| if other >= class as usize { len } else { 0 };
            let (first_block, path_start) = (part.blocks.len() as u64, path.len() as u64);
            let first = Directory { first_sample: 0, first_block: 0, path_start: 0 };
            return Index {
                len,
                directories: Box::new([first, Directory { first_sample: len, first_block, path_start }]),
                paths: path.into(),
                blocks: part.blocks.into(),
                names: part.names.into(),
                sizes: part.sizes.into(),
                large: part.large.into(),
                class_ends: (0..class_count).map(ends).collect(),
            };
        }
        let total =
            |count: &dyn Fn(&DirectoryIndex) -> usize| directories.iter().map(|d| count(&d.samples)).sum::<usize>();
        let mut names = Vec::with_capacity(total(&|d| d.names.len()));
        let mut blocks = Vec::with_capacity(total(&|d| d.blocks.len()));
        let mut sizes: Vec<u32> = Vec::with_capacity(total(&|d| d.sizes.len()));
        let mut large = Vec::with_capacity(total(&|d| d.large.len()));
        let mut paths = Vec::with_capacity(directories.iter().map(|d| d.path.len()).sum());
        let mut table = Vec::with_capacity(directories.len() + 1);
        let mut class_ends = vec![0; class_count];

        // Each part is dropped after it is copied, so that the peak stays near one index, not two.
        for ClassDirectory { class, path, samples: part } in directories {
            let (first_sample, names_start) = (sizes.len() as u64, names.len() as u64);
            table.push(Directory { first_sample, first_block: blocks.len() as u64, path_start: paths.len() as u64 });
            paths.extend(path);
            blocks.extend(part.blocks.iter().map(|start| names_start + start));
            large.extend(part.large.iter().map(|&(place, size)| (first_sample + place, size)));
            names.extend(part.names);
            sizes.extend(part.sizes);
            class_ends[class as usize] = sizes.len() as u64;
        }
        // A class without samples ends where its predecessor ends.
        let mut end = 0;
        for class_end in &mut class_ends {
            end = end.max(*class_end);
            *class_end = end;
        }
        let len = sizes.len() as u64;
        table.push(Directory { first_sample: len, first_block: blocks.len() as u64, path_start: paths.len() as u64 });
        Index {
            len,
            directories: table.into(),
            paths: paths.into(),
            blocks: blocks.into(),
            names: names.into(),
            sizes: sizes.into(),
            large: large.into(),
            class_ends: class_ends.into(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Number of samples of a class.
    pub(super) fn class_len(&self, class: usize) -> u64 {
        self.class_ends[class] - class.checked_sub(1).map_or(0, |before| self.class_ends[before])
    }

    pub(super) fn label(&self, id: SampleId) -> u32 {
        self.check(id);
        self.class_ends.partition_point(|&end| end <= id.0) as u32
    }

    /// Size of a sample when it was indexed, bytes.
    pub(super) fn size_bytes(&self, id: SampleId) -> u64 {
        self.check(id);
        size_at(&self.sizes, &self.large, id.0 as usize)
    }

    /// Appends the sample's path, relative to the root, to `path`.
    pub(super) fn push_path(&self, id: SampleId, path: &mut Vec<u8>) {
        self.check(id);
        let after = self.directories.partition_point(|directory| directory.first_sample <= id.0);
        let (directory, next) = (self.directories[after - 1], self.directories[after]);
        path.extend(&self.paths[directory.path_start as usize..next.path_start as usize]);
        path.push(b'/');

        let place = (id.0 - directory.first_sample) as usize;
        let mut at = self.blocks[directory.first_block as usize + place / BLOCK] as usize;
        let name_start = path.len();
        for _ in 0..=place % BLOCK {
            let [front, back, middle] = [self.names[at], self.names[at + 1], self.names[at + 2]].map(usize::from);
            at += 3;
            // The shared front stays in place and the shared end is moved; nothing is allocated.
            let (old_end, middle_start) = (path.len(), name_start + front);
            let new_end = middle_start + middle + back;
            path.resize(old_end.max(new_end), 0);
            path.copy_within(old_end - back..old_end, middle_start + middle);
            path[middle_start..middle_start + middle].copy_from_slice(&self.names[at..at + middle]);
            path.truncate(new_end);
            at += middle;
        }
    }

    /// Heap memory, bytes. Boxed slices have no spare capacity.
    pub(super) fn heap_bytes(&self) -> u64 {
        let bytes = size_of_val(&*self.directories)
            + size_of_val(&*self.paths)
            + size_of_val(&*self.blocks)
            + size_of_val(&*self.names)
            + size_of_val(&*self.sizes)
            + size_of_val(&*self.large)
            + size_of_val(&*self.class_ends);
        bytes as u64
    }

    fn check(&self, id: SampleId) {
        assert!(id.0 < self.len, "{id} is outside of an index of {} samples", self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn path(index: &Index, id: u64) -> Vec<u8> {
        let mut path = b"kept:".to_vec();
        index.push_path(SampleId(id), &mut path);
        path.split_off(5)
    }

    /// Class, path, and the names and sizes of its files.
    type Listed<'a> = (u32, &'a str, Vec<(Vec<u8>, u64)>);

    fn assemble(directories: &[Listed<'_>], class_count: usize) -> Index {
        let encode = |names: &[(Vec<u8>, u64)]| DirectoryIndex::encode(names.iter().map(|(n, size)| (&n[..], *size)));
        let directory = |(class, path, names): &Listed<'_>| ClassDirectory {
            class: *class,
            path: path.as_bytes().to_vec(),
            samples: encode(names),
        };
        Index::assemble(directories.iter().map(directory).collect(), class_count)
    }

    #[test]
    fn a_million_names_of_imagenet_take_eleven_bytes_each() {
        // 1000 classes; in each 1000 numbers, drawn with gaps as in the real set.
        let classes: Vec<String> = (0..1000).map(|class| format!("n{:08}", 1_440_764 + class * 10_007)).collect();
        let names: Vec<Vec<(Vec<u8>, u64)>> = classes
            .iter()
            .map(|class| {
                let number = |i: u64| i * 17 + (i * i) % 13;
                let mut names: Vec<_> =
                    (0..1000).map(|i| (format!("{class}_{}.JPEG", number(i)).into_bytes(), 110_000 + i)).collect();
                names.sort();
                names
            })
            .collect();
        let directories: Vec<_> =
            classes.iter().zip(&names).enumerate().map(|(i, (c, n))| (i as u32, c.as_str(), n.clone())).collect();
        let index = assemble(&directories, 1000);

        assert_eq!(index.len(), 1_000_000);
        for (id, (class, (name, size))) in names
            .iter()
            .enumerate()
            .flat_map(|(class, names)| names.iter().map(move |n| (class, n)))
            .enumerate()
            .step_by(7)
        {
            let expected = [classes[class].as_bytes(), b"/", name].concat();
            assert_eq!(path(&index, id as u64), expected);
            assert_eq!(index.size_bytes(SampleId(id as u64)), *size);
            assert_eq!(index.label(SampleId(id as u64)), class as u32);
        }
        let per_sample = index.heap_bytes() as f64 / index.len() as f64;
        println!("{per_sample:.2} bytes a sample");
        // The documentation says 11; the limit is 40 (ten million in 400 MB).
        assert!((10.0..11.5).contains(&per_sample), "{per_sample}");
    }

    #[test]
    fn dissimilar_names_stay_within_the_limit() {
        // File names of 28 bytes that share nothing but the extension: the worst case of the documented limit.
        let mut state = 1u64;
        let mut names: Vec<(Vec<u8>, u64)> = (0..100_000)
            .map(|_| {
                state = crate::rng::mix64(state);
                let high = crate::rng::mix64(state ^ 99) as u32;
                (format!("{state:016x}{:07x}.JPEG", high >> 4).into_bytes(), 1)
            })
            .collect();
        names.sort();
        names.dedup();
        let index = assemble(&[(0, "n01440764", names)], 1);
        let per_sample = index.heap_bytes() as f64 / index.len() as f64;
        println!("{per_sample:.2} bytes a sample");
        assert!(per_sample < 40.0, "{per_sample}");
    }

    #[test]
    fn sizes_past_32_bits_are_kept() {
        let sizes = [0, 1, u64::from(u32::MAX) - 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 7, u64::MAX];
        let names = |tag: &str| (0..7).map(|i| (format!("{tag}{i}").into_bytes(), sizes[i])).collect::<Vec<_>>();
        let index = assemble(&[(0, "a", names("x")), (1, "b", names("y"))], 2);
        for id in 0..14 {
            assert_eq!(index.size_bytes(SampleId(id)), sizes[id as usize % 7]);
        }
    }

    #[test]
    fn classes_without_samples_keep_their_place() {
        let one = |name: &str| vec![(name.as_bytes().to_vec(), 1)];
        let index = assemble(&[(1, "b", one("x")), (1, "b/c", one("y")), (3, "d", one("z"))], 5);
        let labels: Vec<u32> = (0..3).map(|id| index.label(SampleId(id))).collect();
        assert_eq!(labels, [1, 1, 3]);
        assert_eq!((0..5).map(|class| index.class_len(class)).collect::<Vec<_>>(), [0, 2, 0, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "sample 1 is outside of an index of 1 samples")]
    fn an_id_past_the_end_panics() {
        let index = assemble(&[(0, "a", vec![(b"x".to_vec(), 1)])], 1);
        index.label(SampleId(1));
    }

    proptest! {
        #[test]
        fn every_path_and_size_comes_back(
            // Few letters, so that names share fronts and ends, and those overlap.
            tree in prop::collection::vec(
                prop::collection::btree_map(
                    "[ab.]{1,9}|[a-z]{250,255}",
                    any::<u32>().prop_map(|size| u64::from(size) * 3),
                    1..70,
                ),
                1..6,
            )
        ) {
            let names: Vec<String> = (0..tree.len()).map(|i| format!("d{i}")).collect();
            let to_bytes = |files: &BTreeMap<String, u64>| -> Vec<(Vec<u8>, u64)> {
                files.iter().map(|(name, size)| (name.clone().into_bytes(), *size)).collect()
            };
            let directories: Vec<_> =
                tree.iter().enumerate().map(|(i, files)| (i as u32, names[i].as_str(), to_bytes(files))).collect();
            let index = assemble(&directories, tree.len());
            let mut id = 0;
            for (class, directory, files) in &directories {
                for (name, size) in files {
                    prop_assert_eq!(path(&index, id), [directory.as_bytes(), b"/", name].concat());
                    prop_assert_eq!(index.size_bytes(SampleId(id)), *size);
                    prop_assert_eq!(index.label(SampleId(id)), *class);
                    id += 1;
                }
            }
            prop_assert_eq!(index.len(), id);
        }
    }
}
