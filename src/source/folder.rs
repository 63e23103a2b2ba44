//! Owns the image folder: one folder for each class, images in them at any depth, read by plain system calls.
//! It must never decode, and it keeps no file open between two reads, only the root.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, fadvise, fstat, openat};
use rustix::io::{Errno, read, retry_on_intr};

use super::error::counted;
use super::index::Index;
use super::scan::{Scan, Unreadable, open_directory, scan, special_kind};
use super::{Source, SourceError};
use crate::sync::{AtomicBool, Ordering};
use crate::units::SampleId;

/// Scanning threads where nobody asks for a number: as many as there are cores, and at least this many, for a network
/// file system answers several questions as fast as one.
const SCAN_THREADS_MIN: usize = 4;

/// Classes that a note names before it says "and so on".
const NOTE_NAMES_MAX: usize = 8;

/// A folder of class folders, as torchvision's `ImageFolder` reads it.
///
/// ```text
/// train/cat/1.jpg
/// train/cat/tabby/2.JPEG
/// train/dog/3.png
/// ```
///
/// * Each folder directly below the root is a class. Classes are sorted by name, bytewise; the place in that order is
///   the label. A class folder without images stays a class, so that labels do not shift, and is named in [`notes`].
/// * Each file with an image extension ([`IMAGE_EXTENSIONS`], any case) at any depth below a class folder is a sample.
///   In a class, samples are sorted by the path of their folder, then by name, bytewise: torchvision's order.
/// * Symbolic links to files and folders are followed; one that leads back to a folder above itself is not, and is
///   reported.
/// * Names that begin with a dot are passed over, unlike in torchvision: `.ipynb_checkpoints` is no class and macOS's
///   `._1.jpg` no image. Their number is in [`notes`].
/// * What might be a sample or hold some and cannot be read (a folder without permission, a dangling link, a FIFO called
///   `1.jpg`) is listed in [`unreadable`]. Whether a file may be opened and holds an image shows when it is read; an
///   empty file is a sample that no decoder will accept.
///
/// Names may be any bytes. Where they are shown as text, bytes that are not UTF-8 are written `\xFF`.
///
/// The index takes about 11 bytes a sample for names such as ImageNet's; in a tree with a folder for each image, about 40
/// bytes and the length of the path.
///
/// # Example
/// ```no_run
/// use feedstock::SampleId;
/// use feedstock::source::{ImageFolder, Source};
///
/// let folder = ImageFolder::open("train")?;
/// println!("{} images in {} classes", folder.len(), folder.classes().len());
/// for entry in folder.unreadable() {
///     eprintln!("{entry}");
/// }
/// let first = SampleId(0);
/// let mut bytes = vec![0; folder.encoded_bytes(first) as usize];
/// folder.read_into(first, &mut bytes)?;
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
///
/// [`notes`]: Source::notes
/// [`unreadable`]: Source::unreadable
/// [`IMAGE_EXTENSIONS`]: super::IMAGE_EXTENSIONS
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    root_fd: OwnedFd,
    classes: Vec<String>,
    index: Index,
    unreadable: Vec<Unreadable>,
    unreadable_count: u64,
    notes: Vec<String>,
    /// Whether the page cache is given back after each read.
    forget_pages: AtomicBool,
}

impl ImageFolder {
    /// Scans a folder and indexes what it finds.
    ///
    /// # Errors
    /// * [`SourceError::Io`] where the root cannot be opened or listed.
    /// * [`SourceError::NotAFolder`], [`SourceError::NoClasses`], [`SourceError::NoImages`] where it is no folder of
    ///   class folders.
    /// * [`SourceError::TooManyFolders`] past 16,777,216 folders.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, SourceError> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::open_with_threads(root, NonZeroUsize::MIN.saturating_add(cores.max(SCAN_THREADS_MIN) - 1))
    }

    /// Scans with so many threads (64 at most); the result is the same with any number. A folder on a busy network file
    /// system gains from more of them than there are cores.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_threads(root: impl AsRef<Path>, threads: NonZeroUsize) -> Result<Self, SourceError> {
        let root = root.as_ref().to_path_buf();
        let root_fd = open_directory(CWD, &root).map_err(|errno| match errno {
            Errno::NOTDIR => SourceError::NotAFolder { path: root.clone() },
            errno => SourceError::Io { doing: "open", path: root.clone(), source: errno.into() },
        })?;
        let found = scan(&root, root_fd.as_fd(), threads)?;
        if found.classes.is_empty() {
            let (loose_image_count, unreadable) = (found.loose_image_count, found.unreadable.into_iter().next());
            return Err(SourceError::NoClasses { path: root, loose_image_count, unreadable });
        }
        if found.index.len() == 0 {
            return Err(SourceError::NoImages {
                path: root,
                class_count: found.classes.len(),
                other_file_count: found.other_file_count,
                unreadable: found.unreadable.into_iter().next(),
            });
        }
        let classes: Vec<String> = found.classes.iter().map(|name| readable(name)).collect();
        let notes = notes(&classes, &found);
        let Scan { index, unreadable, unreadable_count, .. } = found;
        let forget_pages = AtomicBool::new(false);
        Ok(ImageFolder { root, root_fd, classes, index, unreadable, unreadable_count, notes, forget_pages })
    }

    /// The folder, as it was given to [`open`](Self::open).
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a sample's file, below [`root`](Self::root).
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn path(&self, id: SampleId) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.relative_path(id)))
    }

    fn relative_path(&self, id: SampleId) -> Vec<u8> {
        // Room for a class folder and the longest name, so that paths of the usual depth grow no further.
        let mut path = Vec::with_capacity(512);
        self.index.push_path(id, &mut path);
        path
    }

    fn io_error(&self, doing: &'static str, id: SampleId, errno: Errno) -> SourceError {
        SourceError::Io { doing, path: self.path(id), source: errno.into() }
    }
}

impl Source for ImageFolder {
    fn len(&self) -> u64 {
        self.index.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, id: SampleId) -> u32 {
        self.index.label(id)
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.index.size_bytes(id)
    }

    fn name(&self, id: SampleId) -> String {
        readable(&self.path(id).into_os_string().into_vec())
    }

    /// Four system calls: open (relative to the root; through a descriptor of the class folder it is no faster), fstat,
    /// read, close.
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        let indexed_bytes = self.index.size_bytes(id);
        assert_eq!(out.len() as u64, indexed_bytes, "{id} has {indexed_bytes} bytes");
        let file = PATH.with_borrow_mut(|path| {
            path.clear();
            self.index.push_path(id, path);
            open_file(&self.root_fd, path)
        });
        let file = file.map_err(|errno| self.io_error("open", id, errno))?;
        let stat = fstat(&file).map_err(|errno| self.io_error("look at", id, errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(SourceError::NotAFile { path: self.path(id), found: special_kind(kind) });
        }
        let changed = |found_bytes| SourceError::Changed { path: self.path(id), indexed_bytes, found_bytes };
        let found_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if found_bytes != indexed_bytes {
            return Err(changed(found_bytes));
        }
        let mut filled = 0;
        while filled < out.len() {
            match retry_on_intr(|| read(&file, &mut out[filled..])) {
                Ok(0) => return Err(changed(filled as u64)),
                Ok(count) => filled += count,
                Err(errno) => return Err(self.io_error("read", id, errno)),
            }
        }
        if self.forget_pages.load(Ordering::Relaxed) {
            // Advice: where it is not taken, nothing is wrong.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }

    fn title(&self) -> String {
        readable(self.root.as_os_str().as_bytes())
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Sorted by path; the first 1000.
    fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    fn unreadable_count(&self) -> u64 {
        self.unreadable_count
    }

    fn forget_pages(&self, forget: bool) {
        self.forget_pages.store(forget, Ordering::Relaxed);
    }

    fn index_bytes(&self) -> u64 {
        let strings = |list: &Vec<String>| {
            list.capacity() * size_of::<String>() + list.iter().map(String::capacity).sum::<usize>()
        };
        let unreadable = self.unreadable.capacity() * size_of::<Unreadable>()
            + self.unreadable.iter().map(|entry| entry.path.capacity() + entry.cause.capacity()).sum::<usize>();
        let rest =
            size_of::<Self>() + self.root.capacity() + strings(&self.classes) + strings(&self.notes) + unreadable;
        self.index.heap_bytes() + rest as u64
    }
}

thread_local! {
    /// The path of the file that a thread reads: reading allocates nothing once it has its length.
    static PATH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn open_file(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    // Without NONBLOCK, a file that has become a FIFO since would hold this thread for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    retry_on_intr(|| openat(root, OsStr::from_bytes(path), flags, Mode::empty()))
}

/// Bytes as text; those that are not UTF-8 as `\xFF`, so that names which differ in them still differ.
pub(super) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    text
}

fn notes(classes: &[String], found: &Scan) -> Vec<String> {
    let mut notes = Vec::new();
    let empty: Vec<&str> =
        (0..classes.len()).filter(|&i| found.index.class_len(i) == 0).map(|i| &*classes[i]).collect();
    if !empty.is_empty() {
        let named = empty[..empty.len().min(NOTE_NAMES_MAX)].join(", ");
        let more = if empty.len() > NOTE_NAMES_MAX { ", and so on" } else { "" };
        notes.push(format!(
            "no images in {} of {} classes (which keep their labels): {named}{more}",
            empty.len(),
            classes.len()
        ));
    }
    if found.loose_image_count > 0 {
        let images = counted(found.loose_image_count, "image");
        notes.push(format!("not used: {images} directly in the root, outside of any class folder"));
    }
    if found.hidden_count > 0 {
        let names = counted(found.hidden_count, "name");
        notes.push(format!("passed over: {names} of images and folders with a dot in front"));
    }
    let splits = ["train", "training", "val", "valid", "validation", "test"];
    if classes.iter().all(|class| splits.contains(&class.to_lowercase().as_str())) {
        notes.push(format!("the classes are called {}: should it be a folder in this one?", classes.join(", ")));
    }
    notes
}
