//! File name extensions of images and shards.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Extensions of image files, in lower case. Any case matches.
pub const IMAGE_EXTENSIONS: [&str; 17] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "pnm", "pbm", "pgm", "ppm", "pam", "qoi",
    "tga",
];

/// Extensions of files that hold many samples, in lower case. Any case matches.
pub const SHARD_EXTENSIONS: [&str; 4] = ["tar", "tar.zst", "tzst", "parquet"];

/// Returns true if a file name ends in `.` and the extension, in any case.
pub(super) fn has_extension(file: impl AsRef<OsStr>, extension: &str) -> bool {
    let name = file.as_ref().as_bytes();
    name.len()
        .checked_sub(extension.len())
        .is_some_and(|at| name[at..].eq_ignore_ascii_case(extension.as_bytes()) && name[..at].ends_with(b"."))
}

/// Returns true if a file name has one of [`SHARD_EXTENSIONS`].
pub(super) fn is_shard(file: impl AsRef<OsStr>) -> bool {
    SHARD_EXTENSIONS.iter().any(|extension| has_extension(&file, extension))
}
