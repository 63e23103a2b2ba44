//! Image folder: one folder for each class, with images at any depth. No file but the root stays open between reads.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, fadvise, fstat, openat};
use rustix::io::{Errno, read, retry_on_intr};

use super::error::{counted, first_names};
use super::index::Index;
use super::path::readable;
use super::scan::{Scan, open_directory, scan, special_kind};
use super::{PageCache, SampleRead, Source, SourceError, Unreadable, heap_size};
use crate::units::SampleId;

/// Minimum number of scanning threads by default. A network file system answers several requests as fast as one.
const SCAN_THREADS_MIN: usize = 4;

/// A folder of class folders, as torchvision's `ImageFolder` reads it.
///
/// ```text
/// train/cat/1.jpg
/// train/cat/tabby/2.JPEG
/// train/dog/3.png
/// ```
///
/// * Each folder directly below the root is a class. Classes are sorted by name, bytewise, and the position in that
///   order is the label. A class folder without images stays a class, so that labels do not shift, and is named in
///   [`notes`].
/// * Each file with an image extension ([`IMAGE_EXTENSIONS`], any case) at any depth below a class folder is a sample.
///   In a class, samples are sorted by the path of their folder, then by name, bytewise: torchvision's order.
/// * Symbolic links to files and folders are followed. A link to a folder above itself is not followed, and is
///   reported.
/// * Names that begin with a dot are skipped, unlike in torchvision: `.ipynb_checkpoints` is not a class and macOS's
///   `._1.jpg` is not an image. Their number is in [`notes`].
/// * Entries that may be or hold samples and cannot be read (a folder without permission, a dangling link, a FIFO named
///   `1.jpg`) are listed in [`unreadable`]. Image files are first opened when they are read: an empty file is a sample
///   that does not decode.
///
/// Names may be any bytes. In text, bytes that are not UTF-8 are written `\xFF`.
///
/// The index takes about 11 bytes a sample for names such as ImageNet's, and about 40 bytes and the length of the path
/// in a tree with a folder for each image.
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
}

impl ImageFolder {
    /// Scans a folder and indexes what it finds.
    ///
    /// # Errors
    /// * [`SourceError::Io`] if the root cannot be opened or listed.
    /// * [`SourceError::NotAFolder`], [`SourceError::NoClasses`], [`SourceError::NoImages`] if it is not a folder of
    ///   class folders with images.
    /// * [`SourceError::TooManyFolders`] beyond 16,777,216 folders.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, SourceError> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::open_with_threads(root, NonZeroUsize::MIN.saturating_add(cores.max(SCAN_THREADS_MIN) - 1))
    }

    /// Scans with `threads` threads, at most 64. The result does not depend on their number. A folder on a busy network
    /// file system gains from more threads than cores.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with_threads(root: impl AsRef<Path>, threads: NonZeroUsize) -> Result<Self, SourceError> {
        let root = root.as_ref().to_path_buf();
        let root_fd = open_directory(CWD, &root).map_err(|errno| match errno {
            Errno::NOTDIR => SourceError::NotAFolder { path: root.clone() },
            errno => SourceError::io("open", &root, errno),
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
        Ok(ImageFolder { root, root_fd, classes, index, unreadable, unreadable_count, notes })
    }

    /// The root, as it was given to [`open`](Self::open).
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a sample's file, which begins with [`root`](Self::root).
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn path(&self, id: SampleId) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.relative_path(id)))
    }

    fn relative_path(&self, id: SampleId) -> Vec<u8> {
        // Enough for a class folder and the longest name, so that paths of the usual depth are allocated once.
        let mut path = Vec::with_capacity(512);
        self.index.push_path(id, &mut path);
        path
    }

    fn io_error(&self, doing: &'static str, id: SampleId, errno: Errno) -> SourceError {
        SourceError::io(doing, self.path(id), errno)
    }

    /// Takes four system calls: open (relative to the root; a descriptor of the class folder would be no faster),
    /// fstat, read, close.
    fn read(&self, id: SampleId, out: &mut [u8], page_cache: PageCache) -> Result<(), SourceError> {
        let indexed_bytes = self.index.size_bytes(id);
        assert_eq!(out.len() as u64, indexed_bytes, "{id} has {indexed_bytes} bytes");
        let file = PATH.with_borrow_mut(|path| {
            path.clear();
            self.index.push_path(id, path);
            open_file(&self.root_fd, path)
        });
        let file = file.map_err(|errno| self.io_error("open", id, errno))?;
        let stat = fstat(&file).map_err(|errno| self.io_error("read the metadata of", id, errno))?;
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
        if page_cache == PageCache::Drop {
            // Advice only: a refusal does no harm.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        Ok(())
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
        readable(self.path(id).as_os_str().as_bytes())
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.read(id, out, PageCache::Keep)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for read in reads {
            read.result = self.read(read.id, read.out, read.page_cache);
        }
    }

    fn title(&self) -> String {
        readable(self.root.as_os_str().as_bytes())
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The first 1000, sorted by path.
    fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    fn unreadable_count(&self) -> u64 {
        self.unreadable_count
    }

    fn index_bytes(&self) -> u64 {
        let lists = heap_size::strings(&self.classes) + heap_size::strings(&self.notes);
        let rest = size_of::<Self>() + self.root.capacity() + lists + heap_size::unreadable(&self.unreadable);
        self.index.heap_bytes() + rest as u64
    }
}

thread_local! {
    /// Path of the file that a thread reads. It is reused, so that reads do not allocate.
    static PATH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn open_file(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    // Without NONBLOCK, a file that was replaced by a FIFO would block this thread.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    retry_on_intr(|| openat(root, OsStr::from_bytes(path), flags, Mode::empty()))
}

fn notes(classes: &[String], found: &Scan) -> Vec<String> {
    let mut notes = Vec::new();
    let empty: Vec<&str> =
        (0..classes.len()).filter(|&i| found.index.class_len(i) == 0).map(|i| &*classes[i]).collect();
    if !empty.is_empty() {
        notes.push(format!(
            "no images in {} of {} classes (which keep their labels): {}",
            empty.len(),
            classes.len(),
            first_names(&empty)
        ));
    }
    if found.loose_image_count > 0 {
        let images = counted(found.loose_image_count, "image");
        notes.push(format!("not used: {images} directly in the root, outside of any class folder"));
    }
    if found.hidden_count > 0 {
        let entries = counted(found.hidden_count, "image or folder name");
        notes.push(format!("skipped: {entries} beginning with a dot"));
    }
    let splits = ["train", "training", "val", "valid", "validation", "test"];
    if classes.iter().all(|class| splits.contains(&class.to_lowercase().as_str())) {
        notes.push(format!("the classes are named {}: give the folder of one split", classes.join(", ")));
    }
    notes
}
