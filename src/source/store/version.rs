//! Version of an object: size, ETag and time of the last change. Two versions of an object compare as different
//! wherever the store distinguishes them.

use std::fmt;

/// Version of an object when it was opened. An index of the object is valid while its version is the same.
///
/// `Display` writes all fields, and texts are equal if versions are: a side index can store the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ObjectVersion {
    /// Size, bytes.
    pub bytes: u64,
    /// ETag, with its quotes.
    pub etag: Option<String>,
    /// Time of the last change, seconds since 1970.
    pub modified: Option<i64>,
}

impl ObjectVersion {
    pub(super) fn of(meta: &object_store::ObjectMeta) -> Self {
        // The client reports 1970 if the server sends no time.
        let modified = Some(meta.last_modified.timestamp()).filter(|&seconds| seconds != 0);
        ObjectVersion { bytes: meta.size, etag: meta.e_tag.clone().filter(|tag| !tag.is_empty()), modified }
    }

    /// Returns true if an answer with the version `found` may be part of this object. ETags take precedence over times:
    /// servers behind one load balancer may have written the same bytes at different times.
    pub(super) fn matches(&self, found: &ObjectVersion) -> bool {
        let same = match (&self.etag, &found.etag) {
            (Some(opened), Some(found)) => strong(opened) == strong(found),
            _ => self.modified.zip(found.modified).is_none_or(|(opened, found)| opened == found),
        };
        self.bytes == found.bytes && same
    }

    /// ETag for an `If-Match` header. Weak tags never match there, so they are left out.
    pub(super) fn if_match(&self) -> Option<String> {
        self.etag.clone().filter(|tag| !tag.starts_with("W/"))
    }
}

/// ETag without its weakness mark: servers send one file with and without it, depending on compression.
fn strong(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

impl fmt::Display for ObjectVersion {
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

    fn version(bytes: u64, etag: Option<&str>, modified: Option<i64>) -> ObjectVersion {
        ObjectVersion { bytes, etag: etag.map(str::to_owned), modified }
    }

    #[test]
    fn etags_take_precedence_over_times() {
        let opened = version(10, Some("\"a\""), Some(5));
        assert!(opened.matches(&version(10, Some("\"a\""), Some(6))));
        assert!(opened.matches(&version(10, Some("W/\"a\""), None)));
        assert!(opened.matches(&version(10, None, Some(5))));
        for other in
            [version(11, Some("\"a\""), Some(5)), version(10, Some("\"b\""), Some(5)), version(10, None, Some(6))]
        {
            assert!(!opened.matches(&other), "{other}");
        }
        assert!(version(10, None, None).matches(&opened));
    }

    #[test]
    fn weak_etags_are_not_sent() {
        assert_eq!(version(1, Some("\"a\""), None).if_match().as_deref(), Some("\"a\""));
        assert_eq!(version(1, Some("W/\"a\""), None).if_match(), None);
    }
}
