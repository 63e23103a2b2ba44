//! Walk over the given files and folders, in order. Link cycles are detected, and names are held within an account.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use feedstock::ByteCount;
use feedstock::budget::{Account, Reservation};
use feedstock::source::IMAGE_EXTENSIONS;

/// Maximum folder depth; deeper folders are reported.
const DEPTH_MAX: usize = 256;
/// Overhead of a name: its record, in a vector that doubles, and the allocator's rounding.
const NAME_BYTES: u64 = 96;
/// Bytes reserved at a time, for many names.
const NAMES_STEP: u64 = 16 << 10;

/// A file to inspect, or the error of a path.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Index of the given path that contains it.
    pub(super) root: usize,
    pub(super) problem: Option<String>,
}

/// Iterator over files in the order of the given paths, folders sorted by name.
pub(super) struct Walk<'a> {
    /// Remaining given paths.
    roots: std::iter::Enumerate<std::slice::Iter<'a, PathBuf>>,
    root: usize,
    /// Folders from the root to the current one.
    levels: Vec<Level>,
    names: Account,
}

/// An open folder.
struct Level {
    folder: PathBuf,
    /// Device and inode.
    place: (u64, u64),
    /// Remaining entries in reverse order.
    entries: Vec<Entry>,
    _held: Reservation,
}

struct Entry {
    name: OsString,
    /// True if the listing says that it is a file, which saves a `stat`.
    file: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(paths: &'a [PathBuf], names: Account) -> Self {
        Walk { roots: paths.iter().enumerate(), root: 0, levels: Vec::new(), names }
    }

    /// Enters a folder.
    ///
    /// # Errors
    /// The reason as text if it cannot be listed or is entered already.
    fn enter(&mut self, folder: &Path, place: (u64, u64)) -> Result<(), String> {
        if self.levels.iter().any(|level| level.place == place) {
            return Err("a link that leads back to a folder above itself".to_owned());
        }
        if self.levels.len() >= DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} folders deep"));
        }
        let said = |error: std::io::Error| format!("cannot be listed: {error}");
        let full = |refused| format!("cannot be listed: {refused}; raise --ram-budget");
        let mut held = self.names.reserve(ByteCount::ZERO).map_err(full)?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(said)? {
            let entry = entry.map_err(said)?;
            let name = entry.file_name();
            let file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if name.as_bytes().starts_with(b".") || (file && !has_image_extension(&name)) {
                continue;
            }
            bytes += NAME_BYTES + name.len() as u64;
            if bytes > held.bytes().0 {
                held.grow_to(ByteCount(bytes.next_multiple_of(NAMES_STEP))).map_err(full)?;
            }
            entries.push(Entry { name, file });
        }
        entries.sort_unstable_by(|a, b| b.name.cmp(&a.name));
        self.levels.push(Level { folder: folder.to_owned(), place, entries, _held: held });
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let (path, named, file) = match self.levels.last_mut() {
                Some(level) => match level.entries.pop() {
                    Some(Entry { name, file }) => (level.folder.join(name), false, file),
                    None => {
                        self.levels.pop();
                        continue;
                    }
                },
                None => {
                    let (root, path) = self.roots.next()?;
                    self.root = root;
                    (path.clone(), true, false)
                }
            };
            let root = self.root;
            if file {
                return Some(Found { path, root, problem: None });
            }
            let wanted = named || path.file_name().is_some_and(has_image_extension);
            let problem = match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => match self.enter(&path, (meta.dev(), meta.ino())) {
                    Ok(()) => continue,
                    Err(problem) => Some(problem),
                },
                Ok(_) if wanted => None,
                Err(error) if wanted => Some(format!("cannot be looked at: {error}")),
                _ => continue,
            };
            return Some(Found { path, root, problem });
        }
    }
}

fn has_image_extension(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use feedstock::budget::{AccountKind, Ledger};

    fn account(bytes: u64) -> Account {
        Ledger::new(ByteCount(bytes)).account(AccountKind::Other("names"), ByteCount(bytes))
    }

    #[test]
    fn folders_are_walked_in_order_and_links_in_no_circle() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["b/2.PNG", "b/c/1.jpg", "a.jpeg", "z.gif", "notes.txt", ".hidden.jpg", "b/no_extension"] {
            fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("b/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("b/dangling.jpg")).unwrap();
        let paths = [root.to_owned(), root.join("notes.txt"), root.join("missing")];
        let found: Vec<(usize, String, bool)> = Walk::new(&paths, account(1 << 20))
            .map(|found| {
                let below = found.path.strip_prefix(root).unwrap().display().to_string();
                (found.root, below, found.problem.is_some())
            })
            .collect();
        let found: Vec<(usize, &str, bool)> =
            found.iter().map(|(root, path, bad)| (*root, path.as_str(), *bad)).collect();
        assert_eq!(
            found,
            [
                (0, "a.jpeg", false),
                (0, "b/2.PNG", false),
                (0, "b/c/1.jpg", false),
                (0, "b/dangling.jpg", true),
                (0, "b/up", true),
                (0, "z.gif", false),
                (1, "notes.txt", false),
                (2, "missing", true),
            ]
        );
    }

    #[test]
    fn a_folder_of_more_names_than_there_is_room_for_is_told_of() {
        let place = tempfile::tempdir().unwrap();
        for number in 0..300 {
            fs::write(place.path().join(format!("{number}.jpg")), "").unwrap();
        }
        let paths = [place.path().to_owned()];
        let names = account(NAMES_STEP);
        let found: Vec<Found> = Walk::new(&paths, names).collect();
        assert_eq!(found.len(), 1);
        let problem = found[0].problem.as_deref().unwrap_or_default();
        assert!(problem.contains("'names' needs") && problem.contains("raise --ram-budget"), "{problem}");
        assert_eq!(Walk::new(&paths, account(1 << 20)).count(), 300);
    }
}
