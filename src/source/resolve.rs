//! Resolution of a path to a list of shards. It lists folders and does not open files.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::SourceError;
use super::extensions::is_shard;
use super::opener::ShardOpener;
use super::path::{display_name, is_url};
use super::pattern;

/// Resolves a path, pattern or URL to shards. `None` if it is a folder without shards, or does not exist.
pub(super) fn resolve(path: &Path, opener: &ShardOpener) -> Result<Option<Vec<PathBuf>>, SourceError> {
    if let Some(url) = path.to_str().filter(|_| is_url(path)) {
        return resolve_url(url, opener).map(Some);
    }
    if path.is_dir() {
        let shards = list_shards(path)?;
        return Ok((!shards.is_empty()).then_some(shards));
    }
    match path.to_str().filter(|text| pattern::is_pattern(text) && !path.exists()) {
        Some(text) => pattern::expand(text).map(Some),
        None => Ok((path.is_file() || is_shard(path)).then(|| vec![path.into()])),
    }
}

/// Resolves a URL: a pattern, or a prefix that ends in a slash.
fn resolve_url(url: &str, opener: &ShardOpener) -> Result<Vec<PathBuf>, SourceError> {
    if url.ends_with('/') {
        let mut objects = opener.list(url)?;
        objects.retain(|object| is_shard(object));
        return Ok(objects);
    }
    // The query of an HTTP URL is often a signature: it is no part of the pattern, and messages leave it out.
    let is_http = url.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"));
    let (url, query) = url.find('?').filter(|_| is_http).map_or((url, ""), |at| url.split_at(at));
    if url.contains('*') {
        let cause = "'*' matches local files only: write a range such as {0000..0146}, or end the URL with a slash";
        return Err(SourceError::Pattern { pattern: display_name(Path::new(url)), cause: cause.to_owned() });
    }
    let mut shards = pattern::expand(url)?;
    shards.iter_mut().for_each(|shard| shard.as_mut_os_string().push(query));
    Ok(shards)
}

/// Lists the shards directly in a folder, sorted by name.
fn list_shards(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let failed = |error| SourceError::io("list", folder, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if is_shard(&name) && !name.as_bytes().starts_with(b".") {
            found.push(folder.join(name));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::OpenOptions;
    use super::*;

    fn resolve(path: impl AsRef<Path>) -> Result<Option<Vec<PathBuf>>, SourceError> {
        super::resolve(path.as_ref(), &ShardOpener::new(&OpenOptions::new()))
    }

    #[test]
    fn each_shard_of_a_signed_pattern_carries_the_query() {
        assert_eq!(display_name(Path::new("https://host/a.tar?sig=hunter2")), "https://host/a.tar");
        assert_eq!(display_name(Path::new("what?/a.tar")), "what?/a.tar");
        let shards = resolve("https://host/{0..1}.tar?sig=*{h}").unwrap().unwrap();
        assert_eq!(shards, ["https://host/0.tar?sig=*{h}", "https://host/1.tar?sig=*{h}"].map(PathBuf::from));
    }

    #[test]
    fn paths_resolve_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(resolve(folder.path()).unwrap(), None);
        for name in ["b.TAR", "a.tar.zst", ".c.tar", "tar", "a.tar.zst.feedstock-index", "d.jpg"] {
            fs::write(at(name), "").unwrap();
        }
        assert_eq!(resolve(folder.path()).unwrap(), Some(vec![at("a.tar.zst"), at("b.TAR")]));
        let error = resolve(at("[ab]*.{tar,x}")).unwrap_err().to_string();
        assert!(error.contains("matches no shards"), "{error}");
        assert_eq!(resolve(at("{a,b}.{tar.zst,TAR}")).unwrap().map(|all| all.len()), Some(4));
        assert_eq!(resolve(at("missing.tar")).unwrap(), Some(vec![at("missing.tar")]));
        assert_eq!(resolve(at("missing")).unwrap(), None);
    }
}
