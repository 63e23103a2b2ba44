//! Owns what can go wrong with a source, in words that name the path, the numbers and what to do next.
//! It must never know about any single source's inner parts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::scan::{IMAGE_EXTENSIONS, Unreadable};

/// What went wrong with a source, with the path and the numbers.
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// The operating system refused something.
    Io {
        /// What was being done: "open", "read", "list".
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file has another size than when it was indexed.
    Changed {
        /// Which file.
        path: PathBuf,
        /// Its size in the index, bytes.
        indexed_bytes: u64,
        /// Its size now (or as far as it could be read), bytes.
        found_bytes: u64,
    },
    /// Something else stands where an image was indexed.
    NotAFile {
        /// Where.
        path: PathBuf,
        /// What stands there: "a folder", "a FIFO".
        found: &'static str,
    },
    /// The root of an image folder is something else.
    NotAFolder {
        /// Which path.
        path: PathBuf,
    },
    /// The root has no class folder.
    NoClasses {
        /// The root.
        path: PathBuf,
        /// Images that lie directly in it.
        loose_image_count: u64,
        /// The first entry of it that could not be read, if any.
        unreadable: Option<Unreadable>,
    },
    /// There are class folders, but not one image in them.
    NoImages {
        /// The root.
        path: PathBuf,
        /// How many class folders it has.
        class_count: usize,
        /// Files in them whose names have no image extension.
        other_file_count: u64,
        /// The first entry that could not be read, if any.
        unreadable: Option<Unreadable>,
    },
    /// More folders than a scan follows.
    TooManyFolders {
        /// The root.
        path: PathBuf,
        /// How many a scan follows.
        folder_count_max: u64,
    },
    /// A pattern of shards that stands for none.
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A sample's label has no class.
    LabelOutOfRange {
        /// The place of the sample in what was given.
        index: usize,
        /// Its label.
        label: u32,
        /// How many classes there are.
        class_count: usize,
    },
    /// The block that a sample is in could not be read.
    Block {
        /// Why, with the path where there is one.
        cause: String,
    },
    /// A file of samples, or a place in it, cannot be used.
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Where in it: "row group 2, row 7", "at byte 512". Empty: all of it.
        place: String,
        /// What is wrong, and what to do.
        cause: String,
    },
    /// Sources cannot be put together or divided like this: what was asked, and what there is.
    Choice(String),
    /// Something went wrong with an object store.
    #[cfg(feature = "store")]
    Store(Box<super::store::StoreError>),
}

impl SourceError {
    /// Something is wrong with a file, or with what lies at a byte of it.
    pub(super) fn unusable(path: &Path, offset: Option<u64>, cause: impl Into<String>) -> Self {
        let place = offset.map_or(String::new(), |offset| format!("at byte {offset}"));
        SourceError::Unusable { path: path.into(), place, cause: cause.into() }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())?;
                match source.kind() {
                    io::ErrorKind::NotFound => f.write_str("; check the path, and whether it was moved or deleted"),
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; check the permissions of it and of the folders above it")
                    }
                    _ => Ok(()),
                }
            }
            Self::Changed { path, indexed_bytes, found_bytes } => write!(
                f,
                "{} had {indexed_bytes} bytes when it was indexed and now has {found_bytes}: leave the data alone \
                 during a run, or open the source again",
                path.display()
            ),
            Self::NotAFile { path, found } => write!(
                f,
                "{} was an image file when it was indexed and is {found} now: leave the data alone during a run, or \
                 open the source again",
                path.display()
            ),
            Self::NotAFolder { path } => write!(
                f,
                "{} is not a folder: give the folder that holds the class folders, as in <folder>/<class>/<image>",
                path.display()
            ),
            Self::NoClasses { path, loose_image_count: 0, unreadable } => {
                write!(
                    f,
                    "{} has no class folders: it should hold one folder for each class, as in <folder>/<class>/<image>",
                    path.display()
                )?;
                first_unreadable(f, unreadable.as_ref())
            }
            Self::NoClasses { path, loose_image_count, unreadable } => {
                write!(
                    f,
                    "{} has {} directly in it but no class folders: put each class in a folder of its own, as in \
                     <folder>/<class>/<image>",
                    path.display(),
                    counted(*loose_image_count, "image")
                )?;
                first_unreadable(f, unreadable.as_ref())
            }
            Self::NoImages { path, class_count, other_file_count, unreadable } => {
                write!(
                    f,
                    "{} has {} but no image below ({}); images are known by their extensions: {}",
                    path.display(),
                    counted(*class_count as u64, "class folder"),
                    counted(*other_file_count, "other file"),
                    IMAGE_EXTENSIONS.join(", ")
                )?;
                first_unreadable(f, unreadable.as_ref())
            }
            Self::TooManyFolders { path, folder_count_max } => write!(
                f,
                "{} leads to more than {folder_count_max} folders: do symbolic links in it multiply each other? Take \
                 them out, or point closer to the images",
                path.display()
            ),
            Self::Pattern { pattern, cause } => write!(f, "'{pattern}' stands for no shards: {cause}"),
            Self::LabelOutOfRange { index, label, class_count } => write!(
                f,
                "sample {index} has label {label}, but there are {class_count} classes: a label is a place in the \
                 list of classes, from 0"
            ),
            Self::Block { cause } => write!(f, "the block that this sample is in could not be read: {cause}"),
            Self::Unusable { path, place, cause } if place.is_empty() => write!(f, "{}: {cause}", path.display()),
            Self::Unusable { path, place, cause } => write!(f, "{}, {place}: {cause}", path.display()),
            Self::Choice(what) => f.write_str(what),
            #[cfg(feature = "store")]
            Self::Store(error) => error.fmt(f),
        }
    }
}

fn first_unreadable(f: &mut fmt::Formatter<'_>, unreadable: Option<&Unreadable>) -> fmt::Result {
    match unreadable {
        Some(entry) => write!(f, "; something in it could not be read: {entry}"),
        None => Ok(()),
    }
}

/// A number and its noun: "1 image", "2 images".
pub(super) fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The text already carries what the operating system said, so there is no `source()` to print a second time; the
/// `io::Error` itself is a field of [`SourceError::Io`].
impl std::error::Error for SourceError {}
