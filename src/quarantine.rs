//! Owns what is done about a sample that cannot be used, and the record of every one that was met.
//! It must never decide that a sample is bad: the stages do; and its lists are bounded.

use std::collections::BTreeMap;
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

/// One damaged sample that was used as far as it goes, because that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSample {
    /// Which one.
    pub id: SampleId,
    /// What a person would call it: its path.
    pub path: String,
    /// How often the codec met damage and passed over it; where the sample was read several times, the most. With the
    /// feature `turbo` these are libjpeg's warnings, else it is 1.
    pub warnings: u32,
}

impl fmt::Display for DamagedSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.warnings == 1 { "" } else { "s" };
        write!(f, "{}: {} warning{plural}", self.path, self.warnings)
    }
}

/// How many different bad samples are kept by name, and how many damaged ones; beyond it they are only counted.
pub const QUARANTINE_NAMES_MAX: usize = 10_000;

/// Every bad sample that a loader has met, each once, in the order of the batches.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    list: Mutex<List>,
    damaged: Mutex<BTreeMap<u64, DamagedSample>>,
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

    /// Notes a sample that is damaged and used all the same; `path` is asked for a new one only.
    pub(crate) fn note_damage(&self, id: SampleId, warnings: u32, path: impl FnOnce() -> String) {
        let mut damaged = lock(&self.damaged);
        if let Some(known) = damaged.get_mut(&id.0) {
            known.warnings = known.warnings.max(warnings);
        } else if damaged.len() < QUARANTINE_NAMES_MAX {
            damaged.insert(id.0, DamagedSample { id, path: path(), warnings });
        }
    }

    /// Every different damaged sample that was used so far, [`QUARANTINE_NAMES_MAX`] at most, by id: workers come upon
    /// them in any order.
    #[must_use]
    pub(crate) fn damaged(&self) -> Vec<DamagedSample> {
        lock(&self.damaged).values().cloned().collect()
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
    fn damaged_samples_are_named_once_by_id_and_no_more_than_may_be() {
        let quarantine = Quarantine::default();
        for (id, warnings) in [(7, 2), (3, 1), (7, 5), (7, 4)] {
            quarantine.note_damage(SampleId(id), warnings, || format!("{id}.jpg"));
        }
        let texts: Vec<_> = quarantine.damaged().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["3.jpg: 1 warning", "7.jpg: 5 warnings"]);
        for id in 0..QUARANTINE_NAMES_MAX as u64 * 2 {
            quarantine.note_damage(SampleId(id), 1, String::new);
        }
        assert_eq!(quarantine.damaged().len(), QUARANTINE_NAMES_MAX);
    }

    #[test]
    fn policies_parse_and_print() {
        for name in ["fail", "substitute", "mask"] {
            assert_eq!(name.parse::<OnBadSample>().unwrap().to_string(), name);
        }
        assert!("skip".parse::<OnBadSample>().unwrap_err().contains("'skip'"));
    }
}
