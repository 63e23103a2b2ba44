//! Owns what is done about a sample that cannot be used, and the record of every one that was met.
//! It must never decide that a sample is bad: the stages do; and its list is bounded.

use std::fmt;
use std::str::FromStr;

use crate::sync::{Mutex, lock};
use crate::units::SampleId;

/// What happens to a sample that cannot be read or decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadSample {
    /// The epoch ends with an error that names the sample.
    Fail,
    /// Another sample takes its place: which one follows from seed, epoch, sample and attempt alone.
    #[default]
    Substitute,
    /// Its place is filled with zeros and marked invalid ([`Batch::valid`](crate::Batch::valid)).
    Mask,
}

impl FromStr for OnBadSample {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(OnBadSample::Fail),
            "substitute" => Ok(OnBadSample::Substitute),
            "mask" => Ok(OnBadSample::Mask),
            _ => Err(format!("'{text}' is no policy for bad samples: use fail, substitute or mask")),
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

/// The step in which a sample turned out to be bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Its working set does not fit into the budget.
    Admit,
    /// Its bytes could not be read.
    Read,
    /// Its header could not be understood, or is beyond the limits.
    Probe,
    /// Its pixels could not be decoded.
    Decode,
    /// Its pixels could not be transformed.
    Transform,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Admit => "admit",
            Stage::Read => "read",
            Stage::Probe => "probe",
            Stage::Decode => "decode",
            Stage::Transform => "transform",
        })
    }
}

/// One sample that could not be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSample {
    /// Which one.
    pub id: SampleId,
    /// What a person would call it: its path.
    pub path: String,
    /// Where it failed.
    pub stage: Stage,
    /// Why, with the numbers.
    pub cause: String,
}

impl fmt::Display for BadSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.path, self.stage, self.cause)
    }
}

/// How many different bad samples are kept by name; beyond it they are only counted.
pub const QUARANTINE_NAMES_MAX: usize = 10_000;

/// Every bad sample that a loader has met, each once, in the order of the batches.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    samples: Vec<BadSample>,
    events: u64,
}

impl Quarantine {
    pub(crate) fn add(&self, bad: &[BadSample]) {
        let mut list = lock(&self.list);
        list.events += bad.len() as u64;
        for sample in bad {
            // A linear look is right here: the cap on bad samples ends a run long before this list grows long.
            if list.samples.len() < QUARANTINE_NAMES_MAX && !list.samples.iter().any(|known| known.id == sample.id) {
                list.samples.push(sample.clone());
            }
        }
    }

    /// Every different bad sample so far, [`QUARANTINE_NAMES_MAX`] at most.
    #[must_use]
    pub(crate) fn samples(&self) -> Vec<BadSample> {
        lock(&self.list).samples.clone()
    }

    /// How often a bad sample was met: the same one counts once an epoch.
    #[must_use]
    pub(crate) fn events(&self) -> u64 {
        lock(&self.list).events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_each_sample_once_and_counts_every_event() {
        let quarantine = Quarantine::default();
        let bad = |id| BadSample {
            id: SampleId(id),
            path: format!("{id}.jpg"),
            stage: Stage::Probe,
            cause: "0 bytes".into(),
        };
        quarantine.add(&[bad(1), bad(2)]);
        quarantine.add(&[bad(1)]);
        assert_eq!(quarantine.samples().iter().map(|b| b.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(quarantine.events(), 3);
        assert_eq!(quarantine.samples()[0].to_string(), "1.jpg (probe): 0 bytes");
    }

    #[test]
    fn policies_parse_and_print() {
        for name in ["fail", "substitute", "mask"] {
            assert_eq!(name.parse::<OnBadSample>().unwrap().to_string(), name);
        }
        assert!("skip".parse::<OnBadSample>().unwrap_err().contains("'skip'"));
    }
}
