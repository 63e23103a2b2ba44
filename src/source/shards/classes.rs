//! Classes of all shards, and the lists of classes beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::index::ShardIndex;
use super::source::Shard;
use crate::source::SourceError;

/// Largest label.
const LABEL_MAX: u32 = 1 << 20;
/// Maximum size of a list of classes beside shards, bytes.
const LIST_BYTES_MAX: u64 = 256 << 20;
/// Lists of classes, in order of preference.
const MANIFEST: &str = "manifest.json";
const CLASS_LIST: &str = "classes.txt";

/// Names of the classes, and the labels of the classes that shards name.
pub(super) struct Classes {
    pub(super) names: Vec<String>,
    /// All classes in the shards are numbers, which are the labels.
    is_numeric: bool,
}

impl Classes {
    /// Determines the classes of shards: those listed beside the first shard, or all that the shards name.
    pub(super) fn of(shards: &[Shard], indices: &[ShardIndex]) -> Result<Self, SourceError> {
        let all: BTreeSet<&str> = indices.iter().flat_map(|index| &index.classes).map(String::as_str).collect();
        let is_numeric = all.iter().all(|class| parse_label(class).is_some());
        let names = match (read_class_list(shards)?, is_numeric) {
            (Some(names), _) => names,
            (None, false) => all.into_iter().map(str::to_owned).collect(),
            (None, true) => {
                let count = all.iter().filter_map(|class| parse_label(class)).max().map_or(0, |max| max + 1);
                (0..count).map(|label| label.to_string()).collect()
            }
        };
        Ok(Classes { names, is_numeric })
    }

    /// Label of each class of a shard.
    pub(super) fn labels(&self, classes: &[String], shard: &Path) -> Result<Vec<u32>, SourceError> {
        let by_name: BTreeMap<&str, u32> =
            if self.is_numeric { BTreeMap::new() } else { self.names.iter().map(String::as_str).zip(0..).collect() };
        let label = |class: &String| {
            let label = if self.is_numeric { parse_label(class) } else { by_name.get(class.as_str()).copied() };
            label.filter(|&label| (label as usize) < self.names.len()).ok_or_else(|| {
                let listed = self.names.len();
                let cause = format!(
                    "a sample has class '{class}', which is none of the {listed} listed beside the shards: complete \
                     the list ({MANIFEST} or {CLASS_LIST})"
                );
                SourceError::unusable(shard, None, cause)
            })
        };
        classes.iter().map(label).collect()
    }
}

fn parse_label(class: &str) -> Option<u32> {
    let digits = class.bytes().all(|byte| byte.is_ascii_digit());
    class.parse().ok().filter(|&label| digits && label < LABEL_MAX)
}

/// Reads the list of classes beside the first shard. `None` only if there is none: an error of storage, a damaged list
/// or a list that is too large must not change the labels.
fn read_class_list(shards: &[Shard]) -> Result<Option<Vec<String>>, SourceError> {
    let Some(Shard { io, .. }) = shards.first() else { return Ok(None) };
    let damaged = |name, cause: String| SourceError::damaged(&io.path().with_file_name(name), None, cause);
    if let Some(manifest) = io.read_sibling(MANIFEST, LIST_BYTES_MAX)? {
        let failed = |error| damaged(MANIFEST, format!("it is not JSON ({error}): repair it, or move it away"));
        let manifest: Value = serde_json::from_slice(&manifest).map_err(failed)?;
        // Other programs have manifests too; without `classes` it is one of theirs.
        if let Some(classes) = manifest.get("classes") {
            let names =
                classes.as_array().and_then(|all| all.iter().map(|one| one.as_str().map(str::to_owned)).collect());
            let cause = "its `classes` are not a list of names: repair it, or move it away";
            return names.ok_or_else(|| damaged(MANIFEST, cause.to_owned())).map(Some);
        }
    }
    let Some(list) = io.read_sibling(CLASS_LIST, LIST_BYTES_MAX)? else { return Ok(None) };
    let failed = |error| damaged(CLASS_LIST, format!("it is not UTF-8 ({error}): repair it, or move it away"));
    let text = std::str::from_utf8(&list).map_err(failed)?;
    Ok(Some(text.lines().map(str::to_owned).collect()))
}
