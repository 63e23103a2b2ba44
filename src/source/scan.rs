//! Owns the walk over a folder of class folders: which files are samples, in which order, and what could not be read.
//! It must never open an image: it lists directories and asks for sizes.
//!
//! Directories are the unit of work, shared by a handful of threads through one queue; what they find is sorted
//! afterwards, so that the result does not depend on who found it.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Sender, unbounded};
use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};

use super::SourceError;
use super::index::{ClassDirectory, DirectoryIndex, Index, NAME_BYTES_MAX};
use crate::sync::{Arc, AtomicU64, Ordering, STACK_BYTES};

/// Extensions of the files that are samples, in lower case; any case matches.
pub const IMAGE_EXTENSIONS: [&str; 17] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "pnm", "pbm", "pgm", "ppm", "pam", "qoi",
    "tga",
];

/// Folders that one scan follows. Real data has far fewer; what gets here is symbolic links that multiply each other
/// (twenty-four folders, each with two links to the next, make this many paths).
const FOLDER_COUNT_MAX: u64 = 1 << 24;

/// Unreadable entries that are kept by path; the rest is only counted.
const UNREADABLE_LISTED_MAX: usize = 1000;

/// More threads than this only wait for each other in the kernel.
const THREADS_MAX: usize = 64;

/// Something below the root that might be or hold a sample, and could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreadable {
    /// Which entry.
    pub path: PathBuf,
    /// Why it could not be read.
    pub cause: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.cause)
    }
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    /// Names of the class folders, sorted bytewise.
    pub(super) classes: Vec<Vec<u8>>,
    pub(super) index: Index,
    /// Sorted by path; the first [`UNREADABLE_LISTED_MAX`].
    pub(super) unreadable: Vec<Unreadable>,
    pub(super) unreadable_count: u64,
    /// Images directly in the root.
    pub(super) loose_image_count: u64,
    /// Folders and images whose names begin with a dot.
    pub(super) hidden_count: u64,
    /// Files without an image extension.
    pub(super) other_file_count: u64,
}

/// Walks the folder `root`, which is open as `root_fd`.
pub(super) fn scan(root: &Path, root_fd: BorrowedFd<'_>, threads: NonZeroUsize) -> Result<Scan, SourceError> {
    scan_at_most(root, root_fd, threads, FOLDER_COUNT_MAX)
}

/// As `scan`, with a limit that a test can reach.
pub(super) fn scan_at_most(
    root: &Path,
    root_fd: BorrowedFd<'_>,
    threads: NonZeroUsize,
    folder_count_max: u64,
) -> Result<Scan, SourceError> {
    let refused = |errno: Errno| SourceError::Io { doing: "list", path: root.into(), source: errno.into() };
    let mut total = Findings::default();
    let mut listing = Listing::default();
    let mut dir = Dir::read_from(root_fd).map_err(refused)?;
    let above = Arc::new(Above::new(&fstat(root_fd).map_err(refused)?, None));
    total.list(&mut dir, b"", &mut listing).map_err(refused)?;
    let loose_image_count = listing.images.len() as u64;
    let mut classes = listing.folders;
    classes.sort_unstable();

    // Only jobs hold senders, so the queue closes by itself when the last job is done, even if that was a panic. It has
    // no bound of its own: whoever takes from it also puts into it, and `folder_count_max` bounds all of it.
    let (sender, jobs) = unbounded();
    let walk = Walk { root: root_fd, folder_count: AtomicU64::new(0), folder_count_max };
    for (class, name) in classes.iter().enumerate() {
        walk.submit(&sender, class as u32, name.clone(), &above);
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
                // Where the system grants no more threads, those that there are do the work.
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
    total.directories.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
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

/// What a file is, where it is no regular one.
pub(super) fn special_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "no regular file",
    }
}

/// A directory to be listed.
struct Job {
    class: u32,
    /// Relative to the root.
    path: Vec<u8>,
    above: Arc<Above>,
    /// For the directories in it.
    jobs: Sender<Job>,
}

/// A directory on the way from the root: what tells a symbolic link that leads back.
struct Above {
    identity: (u64, u64),
    above: Option<Arc<Above>>,
}

impl Above {
    fn new(stat: &Stat, above: Option<Arc<Above>>) -> Self {
        Above { identity: (stat.st_dev, stat.st_ino), above }
    }

    fn leads_through(&self, identity: (u64, u64)) -> bool {
        let mut at = Some(self);
        while let Some(here) = at {
            if here.identity == identity {
                return true;
            }
            at = here.above.as_deref();
        }
        false
    }
}

/// What all threads of a scan share.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    folder_count: AtomicU64,
    folder_count_max: u64,
}

impl Walk<'_> {
    fn submit(&self, jobs: &Sender<Job>, class: u32, path: Vec<u8>, above: &Arc<Above>) {
        self.folder_count.fetch_add(1, Ordering::Relaxed);
        if !self.is_past_limit() {
            // The receiver outlives every job, so there is always someone to take it.
            let _ = jobs.send(Job { class, path, above: Arc::clone(above), jobs: jobs.clone() });
        }
    }

    fn is_past_limit(&self) -> bool {
        self.folder_count.load(Ordering::Relaxed) > self.folder_count_max
    }

    fn run(&self, job: &Job, findings: &mut Findings) {
        if self.is_past_limit() {
            return;
        }
        if let Err(cause) = self.try_run(job, findings) {
            findings.report(&job.path, cause);
        }
    }

    fn try_run(&self, job: &Job, findings: &mut Findings) -> Result<(), String> {
        let refused = |errno: Errno| format!("cannot list it: {}", std::io::Error::from(errno));
        let fd = open_directory(self.root, Path::new(OsStr::from_bytes(&job.path))).map_err(refused)?;
        let here = Above::new(&fstat(&fd).map_err(refused)?, Some(Arc::clone(&job.above)));
        if job.above.leads_through(here.identity) {
            return Err("a symbolic link that leads back to a folder above it; not followed".into());
        }
        let mut listing = Listing::default();
        let listed = Dir::new(fd).and_then(|mut dir| findings.list(&mut dir, &job.path, &mut listing));

        let here = Arc::new(here);
        for name in &listing.folders {
            self.submit(&job.jobs, job.class, join(&job.path, name), &here);
        }
        if !listing.images.is_empty() {
            let index = listing.into_index();
            findings.directories.push((job.class, job.path.clone(), index));
        }
        listed.map_err(refused)
    }
}

/// The entries of one directory.
#[derive(Default)]
struct Listing {
    folders: Vec<Vec<u8>>,
    /// The names of images, each after a byte that holds its length.
    names: Vec<u8>,
    /// Where each image's name starts in `names`, and its size in bytes.
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

/// What one thread found.
#[derive(Default)]
struct Findings {
    directories: Vec<ClassDirectory>,
    /// The first by path (relative to the root): a heap gives up its last, so the choice depends on no thread.
    unreadable: BinaryHeap<Unreadable>,
    unreadable_count: u64,
    hidden_count: u64,
    other_file_count: u64,
}

impl Findings {
    /// Sorts the entries of a directory into `listing`, and counts the rest.
    fn list(&mut self, dir: &mut Dir, path: &[u8], listing: &mut Listing) -> Result<(), Errno> {
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let is_image = has_image_extension(name);
            if name.starts_with(b".") {
                self.hidden_count += u64::from(is_image || entry.file_type() == FileType::Directory);
                continue;
            }
            match look(dir.fd()?, &entry, is_image) {
                Ok((FileType::Directory, _)) => listing.folders.push(name.to_vec()),
                Ok(_) if !is_image => self.other_file_count += 1,
                Ok((FileType::RegularFile, size_bytes)) if name.len() <= NAME_BYTES_MAX => {
                    listing.add_image(name, size_bytes);
                }
                Ok((FileType::RegularFile, _)) => {
                    let cause = format!("its name has {} bytes; at most {NAME_BYTES_MAX} are supported", name.len());
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
        self.keep(Unreadable { path: OsStr::from_bytes(path).into(), cause });
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

/// What an entry is and its size in bytes, where a link counts as what it leads to. Only what may be an image or a
/// folder is asked for; of the rest the kind in the listing is enough.
fn look(dir: BorrowedFd<'_>, entry: &DirEntry, is_image: bool) -> Result<(FileType, u64), String> {
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
        Err(Errno::NOENT) if listed == FileType::Symlink => Err("a symbolic link that leads nowhere".into()),
        Err(Errno::LOOP) => Err("a symbolic link that leads in a circle".into()),
        Err(errno) => Err(format!("cannot tell what it is: {}", std::io::Error::from(errno))),
    }
}

fn has_image_extension(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    IMAGE_EXTENSIONS.iter().any(|extension| name[dot + 1..].eq_ignore_ascii_case(extension.as_bytes()))
}

/// A path below `path`, which is relative to the root and empty for the root itself.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
