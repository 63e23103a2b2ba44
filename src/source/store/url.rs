//! Parser of object URLs: the kind of store, the bucket or host, and the path of the object.

use object_store::path::Path;

use super::error::StoreError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreKind {
    S3,
    Gcs,
    Azure,
    Http,
}

/// Parts of a URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StoreUrl {
    pub(super) kind: StoreKind,
    /// URL up to the path, as shown in messages.
    pub(super) root: String,
    /// Bucket; for HTTP the root with the query that each request carries.
    pub(super) base: String,
    pub(super) path: String,
}

impl StoreUrl {
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        // A query may hold a signature, and the user part a password: messages contain neither.
        let shown = url.split('?').next().unwrap_or(url);
        let shown = if shown.contains('@') && shown.starts_with("http") { "http..." } else { shown };
        let refused = |reason: &str| StoreError::Url { url: shown.to_owned(), reason: reason.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("it has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "s3" | "s3a" => StoreKind::S3,
            "gs" | "gcs" => StoreKind::Gcs,
            "az" | "azure" | "abfs" | "abfss" | "adl" => StoreKind::Azure,
            "http" | "https" => StoreKind::Http,
            other => return Err(refused(&format!("unknown scheme '{other}'"))),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) if kind == StoreKind::Http => (rest, Some(query)),
            _ => (rest, None),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(refused("it has no bucket or host"));
        }
        if kind == StoreKind::Http && host.contains('@') {
            return Err(refused("a user name and a password in a URL are not supported"));
        }
        let path = match kind {
            // Object keys are literal; paths of web URLs are percent-encoded.
            StoreKind::Http => Path::from_url_path(path.trim_start_matches('/')),
            _ => Path::parse(path.trim_end_matches('/')),
        };
        let mut path = path.map_err(|error| refused(&error.to_string()))?.to_string();
        if rest.ends_with('/') && !path.is_empty() {
            path.push('/');
        }
        let root = format!("{scheme}://{host}");
        let base = match (kind, query) {
            (StoreKind::Http, Some(query)) => format!("{root}/?{query}"),
            (StoreKind::Azure | StoreKind::Http, _) => root.clone(),
            (StoreKind::S3 | StoreKind::Gcs, _) => host.to_owned(),
        };
        Ok(StoreUrl { kind, root, base, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_their_parts() {
        let abfs = "abfs://box@me.dfs.core.windows.net";
        let all = [
            ("s3://bucket/a/b c.tar", StoreKind::S3, "s3://bucket", "bucket", "a/b c.tar"),
            ("s3://bucket/a%20b?c", StoreKind::S3, "s3://bucket", "bucket", "a%20b?c"),
            ("s3://bucket/train/", StoreKind::S3, "s3://bucket", "bucket", "train/"),
            ("gs://bucket", StoreKind::Gcs, "gs://bucket", "bucket", ""),
            (&format!("{abfs}/x"), StoreKind::Azure, abfs, abfs, "x"),
            ("az://box/x/y", StoreKind::Azure, "az://box", "az://box", "x/y"),
            ("HTTPS://host:8/a%20b/c?sig=1", StoreKind::Http, "https://host:8", "https://host:8/?sig=1", "a b/c"),
        ];
        for (url, kind, root, base, path) in all {
            let [root, base, path] = [root, base, path].map(str::to_owned);
            assert_eq!(StoreUrl::parse(url).unwrap(), StoreUrl { kind, root, base, path }, "{url}");
        }
    }

    #[test]
    fn invalid_urls_are_refused_without_their_secrets() {
        for (url, reason) in [
            ("/data/train.tar", "no scheme"),
            ("ftp://host/x", "ftp"),
            ("s3:///x", "no bucket"),
            ("s3://bucket/a//b", "a//b"),
            ("https://me:hunter2@host/x", "password"),
            ("file://x/y?sig=hunter2", "file"),
        ] {
            let error = StoreUrl::parse(url).expect_err(url).to_string();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }
}
