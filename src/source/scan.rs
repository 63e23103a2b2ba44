//! Scan of a folder of class folders: lists directories and reads sizes, and opens no image.
//!
//! Directories are the unit of work, shared by several threads through one queue. The findings are sorted afterwards,
//! so that the result does not depend on the threads.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use crossbeam_channel::{Sender, unbounded};
use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use super::extensions::has_extension;
use super::index::{ClassDirectory, DirectoryIndex, Index, NAME_BYTES_MAX};
use super::{IMAGE_EXTENSIONS, SourceError, Unreadable};
use crate::sync::{Arc, AtomicU64, Ordering, STACK_BYTES};

/// Maximum number of folders in one scan. Real data has far fewer; symbolic links can multiply each other (twenty-four
/// folders, each with two links to the next, have this many paths).
const FOLDER_COUNT_MAX: u64 = 1 << 24;

/// Maximum number of unreadable entries that are listed; the rest are counted.
const UNREADABLE_LISTED_MAX: usize = 1000;

/// Maximum number of threads: more of them only wait for each other in the kernel.
const THREADS_MAX: usize = 64;

/// Result of a scan.
#[derive(Debug)]
pub(super) struct Scan {
    /// Names of the class folders, in byte order.
    pub(super) classes: Vec<Vec<u8>>,
    pub(super) index: Index,
    /// Sorted by path; the first [`UNREADABLE_LISTED_MAX`].
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) unreadable_count: u64,
    /// Number of images directly in the root.
    pub(super) loose_image_count: u64,
    /// Number of folders and images whose names begin with a dot.
    pub(super) hidden_count: u64,
    /// Number of files without an image extension.
    pub(super) other_file_count: u64,
}

/// Scans the folder `root`, which is open as `root_fd`.
pub(super) fn scan(root: &Path, root_fd: BorrowedFd<'_>, threads: NonZeroUsize) -> Result<Scan, SourceError> {
    scan_at_most(root, root_fd, threads, FOLDER_COUNT_MAX)
}

/// Scans like [`scan`], with a limit for tests.
pub(super) fn scan_at_most(
    root: &Path,
    root_fd: BorrowedFd<'_>,
    threads: NonZeroUsize,
    folder_count_max: u64,
) -> Result<Scan, SourceError> {
    let failed = |errno: Errno| SourceError::io("list", root, errno);
    let mut total = Findings::default();
    let mut listing = Listing::default();
    let mut dir = Dir::read_from(root_fd).map_err(failed)?;
    let ancestors = Arc::new(Ancestors::new(&fstat(root_fd).map_err(failed)?, None));
    total.list(&mut dir, b"", &mut listing).map_err(failed)?;
    let loose_image_count = listing.images.len() as u64;
    let mut classes = listing.folders;
    classes.sort_unstable();

    // Only jobs hold senders, so the queue closes when the last job is done, even by a panic. The queue is unbounded
    // because its consumers also produce; `folder_count_max` bounds its contents.
    let (sender, jobs) = unbounded();
    let walk = FolderWalk { root: root_fd, folder_count: AtomicU64::new(0), folder_count_max };
    for (class, name) in classes.iter().enumerate() {
        walk.submit(&sender, class as u32, name.clone(), &ancestors);
    }
    drop(sender);
    let work = |mut findings: Findings| {
        jobs.iter().for_each(|job| walk.run(&job, &mut findings));
        findings
    };
    let mut total = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.get().min(THREADS_MAX))
            .map_while(|number| {
                let builder = thread::Builder::new().name(format!("feed-scan-{number}")).stack_size(STACK_BYTES);
                // If the system grants no more threads, the existing ones do the work.
                builder.spawn_scoped(scope, || work(Findings::default())).ok()
            })
            .collect();
        let own = work(total);
        helpers
            .into_iter()
            .map(|helper| helper.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .fold(own, Findings::merge)
    });

    if walk.is_past_limit() {
        return Err(SourceError::TooManyFolders { path: root.into(), folder_count_max });
    }
    total.directories.sort_unstable_by(|a, b| (a.class, &a.path).cmp(&(b.class, &b.path)));
    let mut unreadable = total.unreadable.into_sorted_vec();
    unreadable.iter_mut().for_each(|entry| entry.path = root.join(&entry.path));
    Ok(Scan {
        index: Index::assemble(total.directories, classes.len()),
        classes,
        unreadable,
        unreadable_count: total.unreadable_count,
        loose_image_count,
        hidden_count: total.hidden_count,
        other_file_count: total.other_file_count,
    })
}

/// Opens a directory to list it.
pub(super) fn open_directory(above: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| openat(above, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
}

/// Name of the kind of a file that is not regular.
pub(super) fn special_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "not a regular file",
    }
}

/// A directory to list.
struct DirectoryJob {
    class: u32,
    /// Relative to the root.
    path: Vec<u8>,
    ancestors: Arc<Ancestors>,
    /// Queue for its subdirectories.
    jobs: Sender<DirectoryJob>,
}

/// The directories on the path from the root, by device and inode. They reveal symbolic links that form a loop.
struct Ancestors {
    identity: (u64, u64),
    parent: Option<Arc<Ancestors>>,
}

impl Ancestors {
    fn new(stat: &Stat, parent: Option<Arc<Ancestors>>) -> Self {
        Ancestors { identity: (stat.st_dev, stat.st_ino), parent }
    }

    fn contain(&self, identity: (u64, u64)) -> bool {
        let mut at = Some(self);
        while let Some(here) = at {
            if here.identity == identity {
                return true;
            }
            at = here.parent.as_deref();
        }
        false
    }
}

/// State shared by all threads of a scan.
struct FolderWalk<'a> {
    root: BorrowedFd<'a>,
    folder_count: AtomicU64,
    folder_count_max: u64,
}

impl FolderWalk<'_> {
    fn submit(&self, jobs: &Sender<DirectoryJob>, class: u32, path: Vec<u8>, ancestors: &Arc<Ancestors>) {
        self.folder_count.fetch_add(1, Ordering::Relaxed);
        if !self.is_past_limit() {
            // The receiver outlives every job, so this cannot fail.
            let _ = jobs.send(DirectoryJob { class, path, ancestors: Arc::clone(ancestors), jobs: jobs.clone() });
        }
    }

    fn is_past_limit(&self) -> bool {
        self.folder_count.load(Ordering::Relaxed) > self.folder_count_max
    }

    fn run(&self, job: &DirectoryJob, findings: &mut Findings) {
        if self.is_past_limit() {
            return;
        }
        if let Err(cause) = self.try_run(job, findings) {
            findings.report(&job.path, cause);
        }
    }

    fn try_run(&self, job: &DirectoryJob, findings: &mut Findings) -> Result<(), String> {
        let failed = |errno: Errno| format!("cannot list it: {}", std::io::Error::from(errno));
        let fd = open_directory(self.root, Path::new(OsStr::from_bytes(&job.path))).map_err(failed)?;
        let here = Ancestors::new(&fstat(&fd).map_err(failed)?, Some(Arc::clone(&job.ancestors)));
        if job.ancestors.contain(here.identity) {
            return Err("a symbolic link to a folder above itself; not followed".into());
        }
        let mut listing = Listing::default();
        let listed = Dir::new(fd).and_then(|mut dir| findings.list(&mut dir, &job.path, &mut listing));

        let here = Arc::new(here);
        for name in &listing.folders {
            self.submit(&job.jobs, job.class, join(&job.path, name), &here);
        }
        if !listing.images.is_empty() {
            let (class, path) = (job.class, job.path.clone());
            findings.directories.push(ClassDirectory { class, path, samples: listing.into_index() });
        }
        listed.map_err(failed)
    }
}

/// The entries of one directory.
#[derive(Default)]
struct Listing {
    folders: Vec<Vec<u8>>,
    /// Names of images, each after a byte with its length.
    names: Vec<u8>,
    /// Start of each image's name in `names`, and its size, bytes.
    images: Vec<(u64, u64)>,
}

impl Listing {
    fn add_image(&mut self, name: &[u8], size_bytes: u64) {
        self.images.push((self.names.len() as u64, size_bytes));
        self.names.push(name.len() as u8);
        self.names.extend(name);
    }

    fn into_index(mut self) -> DirectoryIndex {
        let name = |start: u64| {
            let start = start as usize;
            &self.names[start + 1..][..usize::from(self.names[start])]
        };
        self.images.sort_unstable_by(|a, b| name(a.0).cmp(name(b.0)));
        DirectoryIndex::encode(self.images.iter().map(|&(start, size_bytes)| (name(start), size_bytes)))
    }
}

/// Findings of one thread.
#[derive(Default)]
struct Findings {
    directories: Vec<ClassDirectory>,
    /// The first ones by path (relative to the root). A heap drops its last, so the choice is independent of threads.
    unreadable: BinaryHeap<Unreadable>,
    unreadable_count: u64,
    hidden_count: u64,
    other_file_count: u64,
}

impl Findings {
    /// Adds folders and images of a directory to `listing`, and counts the rest.
    fn list(&mut self, dir: &mut Dir, path: &[u8], listing: &mut Listing) -> Result<(), Errno> {
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name_text = OsStr::from_bytes(name);
            let is_image = IMAGE_EXTENSIONS.iter().any(|extension| has_extension(name_text, extension));
            if name.starts_with(b".") {
                self.hidden_count += u64::from(is_image || entry.file_type() == FileType::Directory);
                continue;
            }
            match kind_and_size(dir.fd()?, &entry, is_image) {
                Ok((FileType::Directory, _)) => listing.folders.push(name.to_vec()),
                Ok(_) if !is_image => self.other_file_count += 1,
                Ok((FileType::RegularFile, size_bytes)) if name.len() <= NAME_BYTES_MAX => {
                    listing.add_image(name, size_bytes);
                }
                Ok((FileType::RegularFile, _)) => {
                    let cause =
                        format!("its name has {} bytes, and at most {NAME_BYTES_MAX} are supported", name.len());
                    self.report(&join(path, name), cause);
                }
                Ok((kind, _)) => {
                    self.report(&join(path, name), format!("not a regular file but {}", special_kind(kind)));
                }
                Err(cause) => self.report(&join(path, name), cause),
            }
        }
        Ok(())
    }

    fn report(&mut self, path: &[u8], cause: String) {
        self.unreadable_count += 1;
        self.keep(Unreadable::new(OsStr::from_bytes(path), cause));
    }

    fn keep(&mut self, entry: Unreadable) {
        self.unreadable.push(entry);
        if self.unreadable.len() > UNREADABLE_LISTED_MAX {
            self.unreadable.pop();
        }
    }

    fn merge(mut self, other: Findings) -> Findings {
        self.directories.extend(other.directories);
        other.unreadable.into_iter().for_each(|entry| self.keep(entry));
        self.unreadable_count += other.unreadable_count;
        self.hidden_count += other.hidden_count;
        self.other_file_count += other.other_file_count;
        self
    }
}

/// Kind and size (bytes) of an entry; links are followed. Only entries that may be images or folders take a system
/// call; for the rest the kind in the listing is enough, and the size is 0.
fn kind_and_size(dir: BorrowedFd<'_>, entry: &DirEntry, is_image: bool) -> Result<(FileType, u64), String> {
    let listed = entry.file_type();
    let is_known = match listed {
        FileType::Symlink | FileType::Unknown => false,
        FileType::RegularFile => !is_image,
        _ => true,
    };
    if is_known {
        return Ok((listed, 0));
    }
    match statat(dir, entry.file_name(), AtFlags::empty()) {
        Ok(stat) => Ok((FileType::from_raw_mode(stat.st_mode), u64::try_from(stat.st_size).unwrap_or(0))),
        Err(Errno::NOENT) if listed == FileType::Symlink => Err("a symbolic link to a missing file".into()),
        Err(Errno::LOOP) => Err("a symbolic link to itself, through others".into()),
        Err(errno) => Err(format!("cannot read its metadata: {}", std::io::Error::from(errno))),
    }
}

/// Joins a name to `path`, which is relative to the root and empty for the root itself.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
