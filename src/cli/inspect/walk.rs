//! Owns the walk: which files are looked at, in order. It must never open a file, nor follow links in a circle.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use feedstock::source::IMAGE_EXTENSIONS;

/// Folders within folders; deeper ones are reported.
const DEPTH_MAX: usize = 256;

/// A file to look at, or what is wrong with a path.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) problem: Option<String>,
}

/// Files in the order of the paths given, folders sorted by name.
pub(super) struct Walk {
    /// What is still to come, last first.
    todo: Vec<Step>,
    /// The folders that lead to where the walk is, by device and inode.
    above: Vec<(u64, u64)>,
}

enum Step {
    Named(PathBuf),
    Below(PathBuf),
    Leave,
}

impl Walk {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        Walk { todo: paths.iter().rev().cloned().map(Step::Named).collect(), above: Vec::new() }
    }

    /// Puts a folder's entries on the list, or says why not.
    fn enter(&mut self, folder: &Path, place: (u64, u64)) -> Result<(), String> {
        if self.above.contains(&place) {
            return Err("a link that leads back to a folder above itself".to_owned());
        }
        if self.above.len() >= DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} folders deep"));
        }
        let said = |error: std::io::Error| format!("cannot be listed: {error}");
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(said)? {
            let name = entry.map_err(said)?.file_name();
            if !name.as_bytes().starts_with(b".") {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.above.push(place);
        self.todo.push(Step::Leave);
        self.todo.extend(names.into_iter().map(|name| Step::Below(folder.join(name))));
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let (path, named) = match self.todo.pop()? {
                Step::Named(path) => (path, true),
                Step::Below(path) => (path, false),
                Step::Leave => {
                    self.above.pop();
                    continue;
                }
            };
            let wanted = named || has_image_extension(&path);
            let problem = match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => match self.enter(&path, (meta.dev(), meta.ino())) {
                    Ok(()) => continue,
                    Err(problem) => Some(problem),
                },
                Ok(_) if wanted => None,
                Err(error) if wanted => Some(format!("cannot be looked at: {error}")),
                _ => continue,
            };
            return Some(Found { path, problem });
        }
    }
}

fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let walk = Walk::new(&[root.to_owned(), root.join("notes.txt"), root.join("missing")]);
        let found: Vec<(String, bool)> = walk
            .map(|found| (found.path.strip_prefix(root).unwrap().display().to_string(), found.problem.is_some()))
            .collect();
        let found: Vec<(&str, bool)> = found.iter().map(|(path, bad)| (path.as_str(), *bad)).collect();
        assert_eq!(
            found,
            [
                ("a.jpeg", false),
                ("b/2.PNG", false),
                ("b/c/1.jpg", false),
                ("b/dangling.jpg", true),
                ("b/up", true),
                ("z.gif", false),
                ("notes.txt", false),
                ("missing", true),
            ]
        );
    }
}
