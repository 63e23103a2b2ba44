//! The policy for samples that cannot be used, and the bounded list of those that a loader has met.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::sample_error::{Chain, SampleError, Stage};
use crate::sync::{Arc, Mutex, lock};
use crate::units::{ParseError, SampleId};

/// The policy for a sample that cannot be read or decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OnBadSample {
    /// Ends the epoch with an error that names the sample.
    Fail,
    /// Puts another sample in its place: a pure function of seed, epoch, sample and attempt.
    #[default]
    Substitute,
    /// Fills its place with zeros and marks it as invalid ([`Batch::valid`](crate::Batch::valid)).
    Mask,
}

impl FromStr for OnBadSample {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "fail" => Ok(OnBadSample::Fail),
            "substitute" => Ok(OnBadSample::Substitute),
            "mask" => Ok(OnBadSample::Mask),
            _ => Err(ParseError::unknown("policy for bad samples", text, "fail, substitute or mask")),
        }
    }
}

impl fmt::Display for OnBadSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OnBadSample::Fail => "fail",
            OnBadSample::Substitute => "substitute",
            OnBadSample::Mask => "mask",
        })
    }
}

/// A sample that could not be used. Its cause is the [`SampleError`] that `source()` returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BadSample {
    /// Id of the sample in its source.
    pub id: SampleId,
    /// Path of the sample, or the name that its source gives it.
    pub path: String,
    /// Step that failed.
    pub stage: Stage,
    /// Error with its typed cause.
    pub error: Arc<SampleError>,
}

impl BadSample {
    pub(crate) fn new(id: SampleId, path: String, error: SampleError) -> Self {
        BadSample { id, path, stage: error.stage(), error: Arc::new(error) }
    }

    /// Message of the error and its causes, on one line.
    #[must_use]
    pub fn cause(&self) -> String {
        Chain(&*self.error).to_string()
    }
}

impl fmt::Display for BadSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used ({} failed)", self.path, self.stage)
    }
}

impl std::error::Error for BadSample {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

/// The fields `id`, `path`, `stage`, `code` (see [`SampleErrorKind`](crate::SampleErrorKind)) and `cause`.
#[cfg(feature = "serde")]
impl serde::Serialize for BadSample {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("BadSample", 5)?;
        fields.serialize_field("id", &self.id.0)?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("stage", &self.stage)?;
        fields.serialize_field("code", &self.error.kind())?;
        fields.serialize_field("cause", &self.cause())?;
        fields.end()
    }
}

/// A damaged sample that was used as far as it could be decoded
/// ([`accept_truncated`](crate::LoaderBuilder::accept_truncated)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedSample {
    /// Id of the sample in its source.
    pub id: SampleId,
    /// Path of the sample, or the name that its source gives it.
    pub path: String,
    /// Number of times that the codec met damage and went on; of several reads of one sample, the most. With the
    /// feature `turbo` these are libjpeg's warnings, without it the number is 1.
    pub warnings: u32,
}

impl fmt::Display for DamagedSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.warnings == 1 { "" } else { "s" };
        write!(f, "{}: {} warning{plural}", self.path, self.warnings)
    }
}

/// Maximum number of bad samples that a loader lists, and of damaged ones; further ones are only counted.
pub const BAD_SAMPLE_NAMES_MAX: usize = 10_000;

/// Every bad sample that a loader has met, each once, in the order of the batches.
#[derive(Debug, Default)]
pub(crate) struct BadSampleList {
    list: Mutex<List>,
    damaged: Mutex<BTreeMap<u64, DamagedSample>>,
}

#[derive(Debug, Default)]
struct List {
    samples: Vec<BadSample>,
    events: u64,
}

impl BadSampleList {
    pub(crate) fn add<'a>(&self, bad: impl Iterator<Item = &'a BadSample>) {
        let mut list = lock(&self.list);
        for sample in bad {
            list.events += 1;
            // A linear search: the limit on bad samples ends a run long before this list grows long.
            if list.samples.len() < BAD_SAMPLE_NAMES_MAX && !list.samples.iter().any(|known| known.id == sample.id) {
                list.samples.push(sample.clone());
            }
        }
    }

    /// Every different bad sample so far, at most [`BAD_SAMPLE_NAMES_MAX`].
    pub(crate) fn samples(&self) -> Vec<BadSample> {
        lock(&self.list).samples.clone()
    }

    /// Records a damaged sample that was used; `path` is called for a new one only.
    pub(crate) fn add_damaged(&self, id: SampleId, warnings: u32, path: impl FnOnce() -> String) {
        let mut damaged = lock(&self.damaged);
        if let Some(known) = damaged.get_mut(&id.0) {
            known.warnings = known.warnings.max(warnings);
        } else if damaged.len() < BAD_SAMPLE_NAMES_MAX {
            damaged.insert(id.0, DamagedSample { id, path: path(), warnings });
        }
    }

    /// Every different damaged sample that was used so far, at most [`BAD_SAMPLE_NAMES_MAX`], by id: workers meet them
    /// in any order.
    pub(crate) fn damaged(&self) -> Vec<DamagedSample> {
        lock(&self.damaged).values().cloned().collect()
    }

    /// Number of times that a bad sample was met: the same one counts once an epoch.
    pub(crate) fn events(&self) -> u64 {
        lock(&self.list).events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::DecodeError;

    #[test]
    fn the_list_names_each_sample_once_and_counts_every_event() {
        let list = BadSampleList::default();
        let bad = |id| BadSample::new(SampleId(id), format!("{id}.jpg"), SampleError::Probe(DecodeError::Empty));
        list.add([bad(1), bad(2)].iter());
        list.add([bad(1)].iter());
        assert_eq!(list.samples().iter().map(|b| b.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(list.events(), 3);
        assert_eq!(list.samples()[0].to_string(), "1.jpg cannot be used (probe failed)");
        assert_eq!(list.samples()[0].cause(), DecodeError::Empty.to_string());
    }

    #[test]
    fn damaged_samples_are_listed_once_by_id_up_to_the_limit() {
        let list = BadSampleList::default();
        for (id, warnings) in [(7, 2), (3, 1), (7, 5), (7, 4)] {
            list.add_damaged(SampleId(id), warnings, || format!("{id}.jpg"));
        }
        let texts: Vec<_> = list.damaged().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["3.jpg: 1 warning", "7.jpg: 5 warnings"]);
        for id in 0..BAD_SAMPLE_NAMES_MAX as u64 * 2 {
            list.add_damaged(SampleId(id), 1, String::new);
        }
        assert_eq!(list.damaged().len(), BAD_SAMPLE_NAMES_MAX);
    }

    #[test]
    fn policies_parse_and_print() {
        for name in ["fail", "substitute", "mask"] {
            assert_eq!(name.parse::<OnBadSample>().unwrap().to_string(), name);
        }
        assert!("skip".parse::<OnBadSample>().unwrap_err().to_string().contains("'skip'"));
    }
}
