//! Owns the reading of a store's URL: which kind of store, which one, which object.
//! It must never reach out: that there is such a store shows when it is asked.

use object_store::path::Path;

use super::StoreError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    S3,
    Gcs,
    Azure,
    Http,
}

/// A URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: Kind,
    /// What a person calls the store: the URL up to the path.
    pub(super) root: String,
    /// The bucket, or for HTTP the root with the query that each request carries.
    pub(super) base: String,
    pub(super) path: String,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        // A query may hold a signature, and a name a password: neither is repeated.
        let shown = url.split('?').next().unwrap_or(url);
        let shown = if shown.contains('@') && shown.starts_with("http") { "http..." } else { shown };
        let refused = |reason: &str| StoreError::Url { url: shown.to_owned(), reason: reason.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("it has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "s3" | "s3a" => Kind::S3,
            "gs" | "gcs" => Kind::Gcs,
            "az" | "azure" | "abfs" | "abfss" | "adl" => Kind::Azure,
            "http" | "https" => Kind::Http,
            other => return Err(refused(&format!("{other} is no kind of store that is known"))),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) if kind == Kind::Http => (rest, Some(query)),
            _ => (rest, None),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(refused("it names no bucket or host"));
        }
        if kind == Kind::Http && host.contains('@') {
            return Err(refused("a name and a password in a URL are not sent"));
        }
        let path = match kind {
            // Keys of objects are what is written; in a URL of the web, signs are escaped.
            Kind::Http => Path::from_url_path(path.trim_start_matches('/')),
            _ => Path::parse(path.trim_end_matches('/')),
        };
        let mut path = path.map_err(|error| refused(&error.to_string()))?.to_string();
        if rest.ends_with('/') && !path.is_empty() {
            path.push('/');
        }
        let root = format!("{scheme}://{host}");
        let base = match (kind, query) {
            (Kind::Http, Some(query)) => format!("{root}/?{query}"),
            (Kind::Azure | Kind::Http, _) => root.clone(),
            (Kind::S3 | Kind::Gcs, _) => host.to_owned(),
        };
        Ok(Target { kind, root, base, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (Kind, String, String, String) {
        let Target { kind, root, base, path } = Target::parse(url).unwrap();
        (kind, root, base, path)
    }

    #[test]
    fn urls_come_apart_as_they_are_written() {
        let all = [
            ("s3://bucket/a/b c.tar", Kind::S3, "s3://bucket", "bucket", "a/b c.tar"),
            ("s3://bucket/a%20b?c", Kind::S3, "s3://bucket", "bucket", "a%20b?c"),
            ("s3://bucket/train/", Kind::S3, "s3://bucket", "bucket", "train/"),
            ("gs://bucket", Kind::Gcs, "gs://bucket", "bucket", ""),
            (
                "abfs://box@me.dfs.core.windows.net/x",
                Kind::Azure,
                "abfs://box@me.dfs.core.windows.net",
                "abfs://box@me.dfs.core.windows.net",
                "x",
            ),
            ("az://box/x/y", Kind::Azure, "az://box", "az://box", "x/y"),
            ("HTTPS://host:8/a%20b/c.tar?sig=1", Kind::Http, "https://host:8", "https://host:8/?sig=1", "a b/c.tar"),
        ];
        for (url, kind, root, base, path) in all {
            assert_eq!(parsed(url), (kind, root.to_owned(), base.to_owned(), path.to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_store_is_refused_without_its_secrets() {
        for (url, reason) in [
            ("/data/train.tar", "no scheme"),
            ("ftp://host/x", "ftp"),
            ("s3:///x", "no bucket"),
            ("s3://bucket/a//b", "a//b"),
            ("https://me:hunter2@host/x", "password"),
            ("file://x/y?sig=hunter2", "file"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }
}
