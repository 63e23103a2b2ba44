//! Patterns of shards: braces (`train-{0000..0146}.tar`, `{train,val}.tar`) and stars in file names.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::SourceError;
use super::index_file::INDEX_EXTENSION;

/// Maximum number of shards of one pattern.
pub(super) const SHARDS_MAX: usize = 1 << 20;

/// Expands a pattern to paths: braces in their order, stars sorted by name. A text without either is a path.
pub(super) fn expand(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    let refuse = |cause: String| SourceError::Pattern { pattern: pattern.to_owned(), cause };
    let mut paths = Vec::new();
    for text in expand_braces(pattern).map_err(refuse)? {
        if !text.contains('*') {
            paths.push(PathBuf::from(text));
        } else if Path::new(&text).parent().is_some_and(|folder| folder.as_os_str().as_bytes().contains(&b'*')) {
            return Err(refuse("'*' matches file names only, not folders".to_owned()));
        } else {
            paths.extend(match_files(Path::new(&text))?);
        }
    }
    match paths.is_empty() {
        true => Err(refuse("no file name matches".to_owned())),
        false => Ok(paths),
    }
}

/// Returns true if a text has braces or stars.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['{', '*'])
}

/// Expands braces; the first one varies slowest.
fn expand_braces(pattern: &str) -> Result<Vec<String>, String> {
    let mut texts = vec![String::new()];
    let mut rest = pattern;
    while let Some(open) = rest.find('{') {
        let after = &rest[open + 1..];
        let close = after.find(['}', '{']).filter(|&at| after.as_bytes()[at] == b'}');
        let close = close.ok_or_else(|| "a '{' without its '}' (braces do not nest)".to_owned())?;
        let choices = brace_choices(&after[..close])?;
        if texts.len().saturating_mul(choices.len()) > SHARDS_MAX {
            return Err(format!("it has more than {SHARDS_MAX} files"));
        }
        let before = &rest[..open];
        texts = texts.iter().flat_map(|text| choices.iter().map(move |one| format!("{text}{before}{one}"))).collect();
        rest = &after[close + 1..];
    }
    texts.iter_mut().for_each(|text| text.push_str(rest));
    Ok(texts)
}

/// Expands the inside of a brace: `0000..0146` or `a,b,c`.
fn brace_choices(inside: &str) -> Result<Vec<String>, String> {
    let Some((first, last)) = inside.split_once("..") else {
        return match inside.contains(',') {
            true => Ok(inside.split(',').map(str::to_owned).collect()),
            false => {
                Err(format!("'{{{inside}}}' is neither a range such as {{0000..0146}} nor a list such as {{a,b}}"))
            }
        };
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse::<u64>().ok()).flatten();
        number.ok_or_else(|| format!("'{text}' in '{{{inside}}}' is not a number"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if to < from || to - from >= SHARDS_MAX as u64 {
        return Err(format!(
            "'{{{inside}}}' goes from {from} to {to}: expected an ascending range of at most {SHARDS_MAX}"
        ));
    }
    // As in a shell: leading zeros at either end pad all numbers to the same width.
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

/// Lists the files that match a pattern with stars in its file name, sorted.
fn match_files(pattern: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let (folder, name) = (pattern.parent().unwrap_or(Path::new("")), pattern.file_name().unwrap_or_default());
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |error| SourceError::io("list", listed, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(listed).map_err(failed)? {
        let entry = entry.map_err(failed)?.file_name();
        let is_index = entry.as_bytes().ends_with(INDEX_EXTENSION.as_bytes());
        if matches(name.as_bytes(), entry.as_bytes()) && !entry.as_bytes().starts_with(b".") && !is_index {
            found.push(folder.join(entry));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Returns true if a name matches a pattern, in which each star stands for any bytes.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut pieces = pattern.split(|&byte| byte == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        let at = (0..=rest.len().saturating_sub(piece.len())).find(|&at| rest[at..].starts_with(piece));
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pattern: &str) -> Vec<String> {
        expand(pattern).unwrap().iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn braces_expand_as_in_a_shell() {
        assert_eq!(texts("a.tar"), ["a.tar"]);
        assert_eq!(texts("x-{0008..0011}.tar"), ["x-0008.tar", "x-0009.tar", "x-0010.tar", "x-0011.tar"]);
        assert_eq!(texts("{9..11}"), ["9", "10", "11"]);
        assert_eq!(texts("{a,b}/{1..2}.tar"), ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]);
        assert_eq!(texts("{000..000}x"), ["000x"]);
        assert_eq!(texts("{a,}b"), ["ab", "b"]);
    }

    #[test]
    fn bad_patterns_are_refused_with_their_text() {
        for (pattern, cause) in [
            ("x{", "without its '}'"),
            ("{0..{1}", "do not nest"),
            ("{abc}", "neither a range"),
            ("{5..3}", "expected an ascending range"),
            ("{a..c}", "'a' in '{a..c}' is not a number"),
            ("{0..99999999}", "at most 1048576"),
            ("{0..9999}{0..9999}", "more than 1048576"),
            ("no/such*/x.tar", "file names only"),
            ("no-such-name-*.tar", "no file name matches"),
            ("no-such-folder/*.tar", "cannot list no-such-folder"),
        ] {
            let error = expand(pattern).unwrap_err().to_string();
            assert!(error.contains(cause), "{pattern}: {error}");
        }
    }

    #[test]
    fn stars_match_file_names_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["t-2.tar", "t-10.tar", "t-1.tar", "u-1.tar", ".t-0.tar", "t-1.tar.feedstock-index"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let all = texts(&format!("{}/{{t,u}}-*tar*", folder.path().display()));
        let names: Vec<&str> = all.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["t-1.tar", "t-10.tar", "t-2.tar", "u-1.tar"]);
    }

    #[test]
    fn pieces_match_in_order() {
        for (pattern, name, expected) in [
            ("a*b", "ab", true),
            ("a*b", "aXbYb", true),
            ("a*b", "aXbY", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("*x*y*", "1x2y3", true),
            ("*x*y*", "1y2x3", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
