//! Parses PTX as far as a launch needs it: the kernels and their parameters. The kernels themselves are host code that
//! is linked in.

use std::ffi::CString;

use crate::codes::{Code, INVALID_PTX, UNSUPPORTED_PTX_VERSION};

/// The compute capability that the stand-in claims, times ten.
pub const CAPABILITY: u32 = 90;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub bytes: usize,
    /// Marked `.ptr`: an address, whatever it holds.
    pub pointer: bool,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub name: CString,
    pub params: Vec<Param>,
    /// True if it writes memory that others can see.
    pub writes: bool,
}

/// The kernels of a PTX text, for a driver of this version (13000 is CUDA 13.0).
pub fn parse(text: &str, driver: i32) -> Result<Vec<Entry>, Code> {
    let start = text.trim_start();
    if !(start.starts_with("//") || start.starts_with("/*") || start.starts_with(".version")) {
        return Err(INVALID_PTX);
    }
    let text = without_comments(text);
    let version = directive(&text, ".version").and_then(|words| number(words, '.')).ok_or(INVALID_PTX)?;
    if version > newest_version(driver) {
        return Err(UNSUPPORTED_PTX_VERSION);
    }
    let target = directive(&text, ".target").ok_or(INVALID_PTX)?;
    let digits: String = target.trim_start_matches("sm_").chars().take_while(char::is_ascii_digit).collect();
    if digits.parse::<u32>().ok().is_none_or(|capability| capability > CAPABILITY) {
        return Err(INVALID_PTX);
    }
    let mut entries = Vec::new();
    for part in text.split(".visible .entry").skip(1) {
        entries.push(entry(part).ok_or(INVALID_PTX)?);
    }
    Ok(entries)
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes().get(1) {
            Some(b'/') => rest.find('\n').unwrap_or(rest.len()),
            Some(b'*') => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ => {
                out.push('/');
                1
            }
        };
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn directive<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let after = &text[text.find(name)? + name.len()..];
    after.split_whitespace().next()
}

/// Two numbers with a mark between them.
fn number(words: &str, mark: char) -> Option<(u32, u32)> {
    let (major, minor) = words.split_once(mark)?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The newest PTX that a driver knows. It reads older ones, but never a newer one: what a kernel that was compiled with
/// a newer toolkit fails by on a machine with an older driver.
fn newest_version(driver: i32) -> (u32, u32) {
    let (major, minor) = ((driver / 1000).max(0) as u32, (driver % 1000 / 10).max(0) as u32);
    match (major, minor) {
        (..=11, _) => (7, minor),
        (12, 0..=5) => (8, minor),
        (12, 6) => (8, 5),
        (12, _) => (8, minor - 1),
        (major, _) => (major - 4, minor),
    }
}

/// Parses the text after `.visible .entry`: `NAME( .param ..., .param ... ) { ... }`, and all up to the next one.
fn entry(text: &str) -> Option<Entry> {
    let (name, rest) = text.split_once('(')?;
    let (list, body) = rest.split_once(')')?;
    let name = CString::new(name.trim()).ok().filter(|name| !name.is_empty())?;
    let params = list.split(',').map(str::trim).filter(|param| !param.is_empty());
    let params = params.map(param).collect::<Option<_>>()?;
    Some(Entry { name, params, writes: body.split_whitespace().any(writes) })
}

/// Returns true if an instruction stores to memory that is not the thread's or block's own.
fn writes(word: &str) -> bool {
    let stores = ["st.", "atom.", "red."].iter().any(|start| word.starts_with(start));
    stores && ![".shared", ".local", ".param"].iter().any(|space| word.contains(space))
}

/// `.param .u64 .ptr .global .align 1 NAME`, `.param .align 8 .b8 NAME[24]`.
fn param(text: &str) -> Option<Param> {
    let mut words = text.split_whitespace();
    if words.next() != Some(".param") {
        return None;
    }
    let (mut bytes, mut pointer, mut last) = (None, false, "");
    for word in words {
        match word {
            ".ptr" => pointer = true,
            ".pred" => return None,
            _ if word.starts_with('.') => bytes = size_of_type(word).or(bytes),
            _ => last = word,
        }
    }
    let count = match last.split_once('[') {
        Some((_, count)) => count.trim_end_matches(']').parse().ok()?,
        None => 1,
    };
    Some(Param { bytes: bytes? * count, pointer })
}

/// The bytes of `.u64`, `.f32`, `.b8`; `None` for words that are not types, such as `.align` and `.global`.
fn size_of_type(word: &str) -> Option<usize> {
    let bits = [".u", ".s", ".b", ".f"].iter().find_map(|kind| word.strip_prefix(kind))?;
    bits.parse::<usize>().ok().map(|bits| bits / 8)
}
