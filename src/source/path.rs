//! Paths and URLs as text.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns bytes as text. Bytes that are not UTF-8 become `\xFF`, so that names that differ in them still differ.
#[must_use]
pub fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    text
}

/// Returns true if a path is the URL of an object in a store.
pub(super) fn is_url(path: &Path) -> bool {
    path.to_str()
        .and_then(|text| text.split_once("://"))
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Returns a path or URL as text. The query of a URL is left out, since it may be a signature.
pub(super) fn display_name(path: &Path) -> String {
    let text = readable(path.as_os_str().as_bytes());
    match text.split_once('?') {
        Some((front, _)) if is_url(path) => front.to_owned(),
        _ => text,
    }
}
