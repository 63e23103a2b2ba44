//! Errors of sources.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::extensions::IMAGE_EXTENSIONS;
#[cfg(feature = "store")]
use super::store::error::StoreError;
use crate::sync::Arc;

/// An error of a source: the path, the place in it and the numbers.
///
/// `Display` writes the error's own message; the cause, where there is one, is in
/// [`source`](std::error::Error::source).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused an operation.
    #[error("cannot {doing} {}{}", path.display(), io_hint(source))]
    Io {
        /// The operation: "open", "read", "list".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// A file has another size than when it was indexed.
    #[error(
        "{} had {indexed_bytes} bytes when it was indexed and now has {found_bytes}: leave the data alone during a \
         run, or open the source again", path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its size in the index, bytes.
        indexed_bytes: u64,
        /// Its size now, or the part of it that could be read, bytes.
        found_bytes: u64,
    },
    /// A path that was indexed as an image is not a regular file any more.
    #[error(
        "{} was an image file when it was indexed and is {found} now: leave the data alone during a run, or open the \
         source again", path.display()
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// The kind of file that was found: "a folder", "a FIFO".
        found: &'static str,
    },
    /// The root of an image folder is not a folder.
    #[error(
        "{} is not a folder: give the folder that holds the class folders, as in <folder>/<class>/<image>",
        path.display()
    )]
    NotAFolder {
        /// The root.
        path: PathBuf,
    },
    /// The root of an image folder has no class folder.
    #[error(
        "{} has no class folders{}: put the images of each class into a folder, as in <folder>/<class>/<image>{}",
        path.display(), loose_images(*loose_image_count), FirstUnreadable(unreadable)
    )]
    NoClasses {
        /// The root.
        path: PathBuf,
        /// Number of images directly in the root.
        loose_image_count: u64,
        /// The first entry of the root that could not be read, if any.
        unreadable: Option<Unreadable>,
    },
    /// The class folders hold no images.
    #[error(
        "{} has {} with no images in them ({}); images are recognized by their extensions: {}{}",
        path.display(), counted(*class_count as u64, "class folder"), counted(*other_file_count, "other file"),
        IMAGE_EXTENSIONS.join(", "), FirstUnreadable(unreadable)
    )]
    NoImages {
        /// The root.
        path: PathBuf,
        /// Number of class folders.
        class_count: usize,
        /// Number of files without an image extension.
        other_file_count: u64,
        /// The first entry that could not be read, if any.
        unreadable: Option<Unreadable>,
    },
    /// A scan found more folders than it follows.
    #[error(
        "{} leads to more than {folder_count_max} folders: remove symbolic links that multiply each other, or give a \
         folder closer to the images", path.display()
    )]
    TooManyFolders {
        /// The root.
        path: PathBuf,
        /// Limit of the scan.
        folder_count_max: u64,
    },
    /// A pattern that matches no shards.
    #[error("'{pattern}' matches no shards: {cause}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The reason.
        cause: String,
    },
    /// A label without a class.
    #[error(
        "sample {index} has label {label}, but there are {class_count} classes: a label is an index into the list of \
         classes, from 0"
    )]
    LabelOutOfRange {
        /// Index of the sample in the list that was given.
        index: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        class_count: usize,
    },
    /// A read panicked in another thread while this one waited for the same block of samples.
    #[error("the thread that read the block of this sample panicked; its message is in the program's output")]
    BlockPanicked,
    /// Memory that could not be allocated.
    #[error("cannot allocate {bytes} bytes for a block of samples: free memory, or lower the shuffle buffer")]
    OutOfMemory {
        /// Size of the allocation, bytes.
        bytes: usize,
    },
    /// A file, or a part of it, that is damaged.
    #[error("{}: {cause}", At(path, place))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The place in it: "row group 2, row 7", "at byte 512". Empty for the whole file.
        place: String,
        /// The damage, and the remedy.
        cause: String,
    },
    /// A file that is larger than its limit.
    #[error("{} has {bytes} bytes, and at most {bytes_max} are read: make it smaller, or move it away", path.display())]
    TooLarge {
        /// The file or object.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
        /// The limit, bytes.
        bytes_max: u64,
    },
    /// A file that is sound and cannot be used: its format is not supported, it has no samples, or its classes do not
    /// fit those of other files.
    #[error("{}: {cause}", At(path, place))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The place in it: "row group 2, row 7", "at byte 512". Empty for the whole file.
        place: String,
        /// The reason, and the remedy.
        cause: String,
    },
    /// Sources that cannot be joined or divided as requested.
    #[error("{0}")]
    Selection(String),
    /// An error of an object store.
    #[cfg(feature = "store")]
    #[error(transparent)]
    Store(Box<StoreError>),
}

impl SourceError {
    /// Creates an error of the operating system: it could not do `doing` ("open", "read") to `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        SourceError::Io { doing, path: path.into(), source: Arc::new(source.into()) }
    }

    /// Returns true if a file or object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            #[cfg(feature = "store")]
            Self::Store(error) => error.is_not_found(),
            _ => false,
        }
    }

    /// Returns true if storage, or the way to it, failed, rather than the data or the request.
    #[must_use]
    pub fn is_io(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            #[cfg(feature = "store")]
            Self::Store(error) => error.is_io(),
            _ => false,
        }
    }

    /// Creates an error for a file, or for a byte offset in it, that is sound and cannot be used.
    pub(super) fn unusable(path: &Path, offset: Option<u64>, cause: impl Into<String>) -> Self {
        SourceError::Unusable { path: path.into(), place: at_byte(offset), cause: cause.into() }
    }

    /// Creates an error for a file, or for a byte offset in it, that is damaged.
    pub(super) fn damaged(path: &Path, offset: Option<u64>, cause: impl Into<String>) -> Self {
        SourceError::Damaged { path: path.into(), place: at_byte(offset), cause: cause.into() }
    }

    /// The message, followed by the messages of all causes.
    pub(crate) fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

#[cfg(feature = "store")]
impl From<StoreError> for SourceError {
    fn from(error: StoreError) -> Self {
        SourceError::Store(Box::new(error))
    }
}

/// A folder entry or shard member that may be or hold a sample and could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Unreadable {
    /// Path of the entry, or of the shard.
    pub path: PathBuf,
    /// Reason, with the place in the shard.
    pub cause: String,
}

impl Unreadable {
    /// Creates an entry.
    pub fn new(path: impl Into<PathBuf>, cause: impl Into<String>) -> Self {
        Unreadable { path: path.into(), cause: cause.into() }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.cause)
    }
}

fn at_byte(offset: Option<u64>) -> String {
    offset.map_or(String::new(), |offset| format!("at byte {offset}"))
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (check the path, and whether it was moved or deleted)",
        io::ErrorKind::PermissionDenied => " (check the permissions of it and of the folders above it)",
        _ => "",
    }
}

fn loose_images(count: u64) -> String {
    if count > 0 { format!(", but {} directly in it", counted(count, "image")) } else { String::new() }
}

/// A path and a place in it, which may be empty.
struct At<'a>(&'a Path, &'a str);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.1.is_empty() { "" } else { ", " };
        write!(f, "{}{separator}{}", self.0.display(), self.1)
    }
}

struct FirstUnreadable<'a>(&'a Option<Unreadable>);

impl fmt::Display for FirstUnreadable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |entry| write!(f, "; an entry in it could not be read: {entry}"))
    }
}

/// A number and its noun: "1 image", "2 images".
pub(super) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Maximum number of names in a message.
const NAMES_MAX: usize = 8;

/// The first eight names of a list, and a mark if there are more.
pub(super) fn first_names<T: AsRef<str>>(names: &[T]) -> String {
    let first: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
    format!("{}{more}", first.join(", "))
}
