//! The choice of an epoch's samples, and its requirements on the source.

use crate::error::Error;
use crate::sampler::{ClassTable, Mixture, Sampler, SamplerError, WeightTable};
use crate::source::{Concat, Source};
use crate::sync::Arc;

/// Classes without samples that a note names.
const MAX_NAMED_CLASSES: usize = 8;

/// The choice and order of an epoch's samples.
///
/// Every epoch is a pure function of seed and epoch number: resuming costs nothing, and ranks divide the samples
/// without communication.
///
/// With `Weighted`, `Balanced` and `Mixed` a sample may come several times in an epoch, with another random crop each
/// time: the random choices follow from its position in the epoch as well as from its id. They need a source whose
/// samples can be read one by one ([`Source::blocks`] is `None`). `num_samples` is the number of samples of an epoch
/// over all ranks; `None` stands for the number of samples of the source.
///
/// ```
/// use feedstock::Sampling;
///
/// // An epoch of 10,000 samples, of every class equally many.
/// let sampling = Sampling::balanced().num_samples(10_000);
/// // Samples 0 and 2, the latter three times as often.
/// let sampling = Sampling::weighted([1.0, 0.0, 3.0]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Sampling {
    /// Each sample once, by id, as for validation.
    Sequential,
    /// Each sample once, in another order every epoch.
    #[default]
    Shuffled,
    /// Samples drawn with replacement, in proportion to their weights.
    Weighted {
        /// A weight for each sample, by id: 0 (never) or more.
        weights: Arc<[f32]>,
        /// Number of samples of an epoch.
        num_samples: Option<u64>,
    },
    /// Every class equally often: each window of as many positions as there are classes with samples holds one sample
    /// of every class. All samples of a class come before one repeats. A class without samples is left out, with a
    /// note.
    Balanced {
        /// Number of samples of an epoch.
        num_samples: Option<u64>,
    },
    /// The parts of a source in given shares. All samples of a part come before one repeats: small parts repeat, large
    /// ones are not finished.
    Mixed {
        /// The sample after the last one of each part: [`Concat::ends`].
        ends: Arc<[u64]>,
        /// A weight for each part: 0 (never) or more.
        weights: Vec<f64>,
        /// Number of samples of an epoch.
        num_samples: Option<u64>,
    },
}

impl Sampling {
    /// [`Sampling::Weighted`] with as many draws as the source has samples.
    pub fn weighted(weights: impl Into<Arc<[f32]>>) -> Self {
        Sampling::Weighted { weights: weights.into(), num_samples: None }
    }

    /// [`Sampling::Balanced`] with as many draws as the source has samples.
    #[must_use]
    pub fn balanced() -> Self {
        Sampling::Balanced { num_samples: None }
    }

    /// [`Sampling::Mixed`] of the sources of a [`Concat`] with as many draws as it has samples.
    pub fn mixed(of: &Concat, weights: impl Into<Vec<f64>>) -> Self {
        Sampling::Mixed { ends: of.ends().into(), weights: weights.into(), num_samples: None }
    }

    /// Sets the number of samples of an epoch, over all ranks. Has no effect on [`Sequential`](Sampling::Sequential)
    /// and [`Shuffled`](Sampling::Shuffled).
    #[must_use]
    pub fn num_samples(mut self, samples: u64) -> Self {
        match &mut self {
            Sampling::Sequential | Sampling::Shuffled => {}
            Sampling::Weighted { num_samples, .. }
            | Sampling::Balanced { num_samples }
            | Sampling::Mixed { num_samples, .. } => {
                *num_samples = Some(samples);
            }
        }
        self
    }

    /// Number of samples of an epoch, over all ranks.
    pub(super) fn len(&self, source: &dyn Source) -> u64 {
        match self {
            Sampling::Sequential | Sampling::Shuffled => source.len(),
            Sampling::Weighted { num_samples, .. }
            | Sampling::Balanced { num_samples }
            | Sampling::Mixed { num_samples, .. } => num_samples.unwrap_or_else(|| source.len()),
        }
    }

    /// Checks the requirements on the source, as far as that needs no table of its samples.
    pub(super) fn check(&self, source: &dyn Source) -> Result<(), Error> {
        let what = match self {
            Sampling::Sequential | Sampling::Shuffled => return Ok(()),
            Sampling::Weighted { .. } => "weighted",
            Sampling::Balanced { .. } => "balanced",
            Sampling::Mixed { .. } => "mixed",
        };
        let refuse = |why: String| Err(Error::Config(why));
        if let Some(blocks) = source.blocks() {
            return refuse(format!(
                "{what} sampling reads in random order, and {} has {} blocks that are read whole, so almost every \
                 sample would cost a block: pack the data into shards whose samples can be read one by one, or shuffle",
                source.title(),
                blocks.count()
            ));
        }
        if self.len(source) == 0 {
            return refuse(format!("{what} sampling with num_samples 0: an epoch has at least 1"));
        }
        let samples = source.len();
        let given = match self {
            Sampling::Weighted { weights, .. } => weights.len() as u64,
            Sampling::Mixed { ends, .. } => ends.last().copied().unwrap_or(0),
            _ => samples,
        };
        if given != samples {
            let of = if matches!(self, Sampling::Weighted { .. }) { "weights for" } else { "parts of" };
            return refuse(format!("{what} sampling has {of} {given} samples, but the source has {samples}"));
        }
        Ok(())
    }

    /// RAM of the table for this source, in bytes.
    pub(super) fn table_bytes(&self, source: &dyn Source) -> Result<u64, Error> {
        Ok(match self {
            Sampling::Sequential | Sampling::Shuffled => 0,
            Sampling::Weighted { weights, .. } => {
                or_refuse(WeightTable::check(weights.iter().copied()))?;
                WeightTable::table_bytes(weights.len() as u64)
            }
            Sampling::Balanced { .. } => {
                ClassTable::table_bytes(source.len(), source.classes().len(), |id| source.label(id))
            }
            Sampling::Mixed { ends, weights, .. } => or_refuse(Mixture::new(ends, weights))?.table_bytes(),
        })
    }

    /// Builds the sampler with its table, and notes classes without samples.
    pub(super) fn sampler(&self, source: &dyn Source, notes: &mut Vec<String>) -> Result<Sampler, Error> {
        let (samples, num_samples) = (source.len(), self.len(source));
        let sampler = match self {
            Sampling::Sequential => Sampler::Sequential { samples },
            Sampling::Shuffled => match source.blocks() {
                Some(blocks) => Sampler::Blocked(blocks.clone()),
                None => Sampler::Shuffled { samples },
            },
            Sampling::Weighted { weights, .. } => {
                Sampler::Weighted { weights: or_refuse(WeightTable::new(weights.iter().copied()))?, num_samples }
            }
            Sampling::Balanced { .. } => {
                let names = source.classes();
                let classes = or_refuse(ClassTable::new(samples, names.len(), |id| source.label(id)))?;
                notes.extend(absent(&classes, names));
                Sampler::Balanced { classes, num_samples }
            }
            Sampling::Mixed { ends, weights, .. } => {
                Sampler::Mixed { mix: or_refuse(Mixture::new(ends, weights))?, num_samples }
            }
        };
        Ok(sampler)
    }
}

fn or_refuse<T>(made: Result<T, SamplerError>) -> Result<T, Error> {
    made.map_err(|error| Error::Config(error.to_string()))
}

fn absent(classes: &ClassTable, names: &[String]) -> Option<String> {
    let absent: Vec<&str> = classes.absent().map(|label| &*names[label as usize]).collect();
    let more = if absent.len() > MAX_NAMED_CLASSES { ", and so on" } else { "" };
    let named = absent[..absent.len().min(MAX_NAMED_CLASSES)].join(", ");
    (!absent.is_empty())
        .then(|| format!("{} of {} classes have no samples and no turn: {named}{more}", absent.len(), names.len()))
}
