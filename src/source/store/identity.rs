//! Owns what makes an object the one that was opened: its size, its tag, when it was written.
//! It must never take two objects for one where their store tells them apart.

use std::fmt;

use object_store::ObjectMeta;

/// What an object was when it was opened. An index of an object is worth something as long as this is the same.
///
/// `Display` writes all of it, and texts are equal where identities are: a side index can hold the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its size, bytes.
    pub bytes: u64,
    /// The tag that its store gives this version of it, with its quotes.
    pub etag: Option<String>,
    /// When it was written, seconds since 1970.
    pub modified: Option<i64>,
}

impl Identity {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        // Where a server does not say when, the time is 1970.
        let modified = Some(meta.last_modified.timestamp()).filter(|&seconds| seconds != 0);
        Identity { bytes: meta.size, etag: meta.e_tag.clone().filter(|tag| !tag.is_empty()), modified }
    }

    /// Whether an answer may be of this object. A tag decides where both have one: servers that share the work may
    /// have written the same bytes at different times.
    pub(super) fn agrees_with(&self, found: &Identity) -> bool {
        let dated = match (&self.etag, &found.etag) {
            (Some(opened), Some(found)) => strong(opened) == strong(found),
            _ => match (self.modified, found.modified) {
                (Some(opened), Some(found)) => opened == found,
                _ => true,
            },
        };
        self.bytes == found.bytes && dated
    }

    /// The tag, where a server can be asked for nothing but this version by it: a weak one never matches.
    pub(super) fn to_match(&self) -> Option<String> {
        self.etag.clone().filter(|tag| !tag.starts_with("W/"))
    }
}

/// A tag without its mark of weakness: the same file is served with and without it, by whether it was compressed.
fn strong(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        if let Some(etag) = &self.etag {
            write!(f, ", tag {etag}")?;
        }
        if let Some(modified) = self.modified {
            write!(f, ", written at {modified}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(bytes: u64, etag: Option<&str>, modified: Option<i64>) -> Identity {
        Identity { bytes, etag: etag.map(str::to_owned), modified }
    }

    #[test]
    fn a_tag_decides_and_then_a_time() {
        let opened = identity(10, Some("\"a\""), Some(5));
        assert!(opened.agrees_with(&identity(10, Some("\"a\""), Some(6))));
        assert!(opened.agrees_with(&identity(10, Some("W/\"a\""), None)));
        assert!(opened.agrees_with(&identity(10, None, Some(5))));
        for other in
            [identity(11, Some("\"a\""), Some(5)), identity(10, Some("\"b\""), Some(5)), identity(10, None, Some(6))]
        {
            assert!(!opened.agrees_with(&other), "{other}");
        }
        assert!(identity(10, None, None).agrees_with(&opened));
    }

    #[test]
    fn a_weak_tag_is_not_asked_for() {
        assert_eq!(identity(1, Some("\"a\""), None).to_match().as_deref(), Some("\"a\""));
        assert_eq!(identity(1, Some("W/\"a\""), None).to_match(), None);
    }
}
