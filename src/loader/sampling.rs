//! Owns the ways in which a loader can choose the samples of an epoch, and what each needs of the source.
//! It must never know the order itself: that is the sampler's.

use crate::error::Error;
use crate::sampler::{Classes, Mix, SamplerError, Scheme, Weights};
use crate::source::{Concat, Source};
use crate::sync::Arc;

/// Classes without samples that a note names before it says "and so on".
const NOTE_NAMES_MAX: usize = 8;

/// How the samples of an epoch are chosen.
///
/// Whatever it is, the epoch is a pure function of seed and epoch: resuming costs nothing, and ranks share its places
/// without a word between them.
///
/// With `Weighted`, `Balanced` and `Mixed` a sample may come several times in an epoch. Each time it is cut anew: there,
/// what is random about a sample follows from its place in the epoch as well as from its id. They need a source whose
/// samples can be read one by one ([`Source::blocks`] is `None`). `draws` is how many samples an epoch has, over all
/// ranks; `None`: as many as the source.
///
/// ```
/// use feedstock::Sampling;
///
/// // An epoch of 10,000 samples, of every class equally many.
/// let sampling = Sampling::balanced().draws(10_000);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Sampling {
    /// Each sample once, by id, as validation wants them.
    ById,
    /// Each sample once, in another order each epoch.
    #[default]
    Shuffled,
    /// With replacement, each sample as often as its weight says beside the others'.
    Weighted {
        /// A weight for each sample, by id: from 0 (never) up.
        weights: Arc<[f32]>,
        /// Samples of an epoch.
        draws: Option<u64>,
    },
    /// Every class equally often: of each stretch of places, as many as there are classes with samples, each holds one
    /// sample of every class. Of a class, all samples come before one of them comes again. A class without samples is left
    /// out, and a note says so.
    Balanced {
        /// Samples of an epoch.
        draws: Option<u64>,
    },
    /// The parts of a source in given shares. Of a part, all samples come before one of them comes again: small parts
    /// repeat, large ones are not finished.
    Mixed {
        /// For each part, the sample after its last: [`Concat::ends`].
        ends: Arc<[u64]>,
        /// A weight for each part: from 0 (never) up.
        weights: Vec<f64>,
        /// Samples of an epoch.
        draws: Option<u64>,
    },
}

impl Sampling {
    /// [`Sampling::Weighted`], as many draws as samples.
    pub fn weighted(weights: impl Into<Arc<[f32]>>) -> Self {
        Sampling::Weighted { weights: weights.into(), draws: None }
    }

    /// [`Sampling::Balanced`], as many draws as samples.
    #[must_use]
    pub fn balanced() -> Self {
        Sampling::Balanced { draws: None }
    }

    /// [`Sampling::Mixed`] of the sources that were put together, as many draws as samples.
    pub fn mixed(of: &Concat, weights: impl Into<Vec<f64>>) -> Self {
        Sampling::Mixed { ends: of.ends().into(), weights: weights.into(), draws: None }
    }

    /// The same with so many samples an epoch. [`ById`](Sampling::ById) and [`Shuffled`](Sampling::Shuffled) have as many as
    /// the source, and stay as they are.
    #[must_use]
    pub fn draws(mut self, samples: u64) -> Self {
        match &mut self {
            Sampling::ById | Sampling::Shuffled => {}
            Sampling::Weighted { draws, .. } | Sampling::Balanced { draws } | Sampling::Mixed { draws, .. } => {
                *draws = Some(samples);
            }
        }
        self
    }

    /// Samples of an epoch, over all ranks.
    pub(super) fn len(&self, source: &dyn Source) -> u64 {
        match self {
            Sampling::ById | Sampling::Shuffled => source.len(),
            Sampling::Weighted { draws, .. } | Sampling::Balanced { draws } | Sampling::Mixed { draws, .. } => {
                draws.unwrap_or_else(|| source.len())
            }
        }
    }

    /// Whether it can be had of this source, as far as that shows without making a table of its samples.
    pub(super) fn check(&self, source: &dyn Source) -> Result<(), Error> {
        let what = match self {
            Sampling::ById | Sampling::Shuffled => return Ok(()),
            Sampling::Weighted { .. } => "weighted",
            Sampling::Balanced { .. } => "balanced",
            Sampling::Mixed { .. } => "mixed",
        };
        let refuse = |why: String| Err(Error::Config(why));
        if let Some(blocks) = source.blocks() {
            return refuse(format!(
                "{what} sampling goes from anywhere to anywhere, and {} comes in {} blocks that are read whole, so almost \
                 every sample would cost a block: pack the data into shards whose samples can be read one by one, or \
                 shuffle",
                source.title(),
                blocks.count()
            ));
        }
        if self.len(source) == 0 {
            return refuse(format!("{what} sampling with 0 draws: an epoch has at least 1"));
        }
        let samples = source.len();
        let given = match self {
            Sampling::Weighted { weights, .. } => weights.len() as u64,
            Sampling::Mixed { ends, .. } => ends.last().copied().unwrap_or(0),
            _ => samples,
        };
        if given != samples {
            let of = if matches!(self, Sampling::Weighted { .. }) { "weights for" } else { "parts of" };
            return refuse(format!("{what} sampling has {of} {given} samples, and the source has {samples}"));
        }
        Ok(())
    }

    /// RAM of the table that it needs for this source, bytes.
    pub(super) fn table_bytes(&self, source: &dyn Source) -> Result<u64, Error> {
        Ok(match self {
            Sampling::ById | Sampling::Shuffled => 0,
            Sampling::Weighted { weights, .. } => {
                or_refuse(Weights::check(weights.iter().copied()))?;
                Weights::table_bytes(weights.len() as u64)
            }
            Sampling::Balanced { .. } => {
                Classes::table_bytes(source.len(), source.classes().len(), |id| source.label(id))
            }
            Sampling::Mixed { ends, weights, .. } => or_refuse(Mix::new(ends, weights))?.table_bytes(),
        })
    }

    /// Makes its table, and notes what a person should know of it.
    pub(super) fn scheme(&self, source: &dyn Source, notes: &mut Vec<String>) -> Result<Scheme, Error> {
        let (samples, draws) = (source.len(), self.len(source));
        let scheme = match self {
            Sampling::ById => Scheme::ById { samples },
            Sampling::Shuffled => match source.blocks() {
                Some(blocks) => Scheme::Blocked(blocks.clone()),
                None => Scheme::Shuffled { samples },
            },
            Sampling::Weighted { weights, .. } => {
                Scheme::Weighted { weights: or_refuse(Weights::new(weights.iter().copied()))?, draws }
            }
            Sampling::Balanced { .. } => {
                let names = source.classes();
                let classes = or_refuse(Classes::new(samples, names.len(), |id| source.label(id)))?;
                notes.extend(absent(&classes, names));
                Scheme::Balanced { classes, draws }
            }
            Sampling::Mixed { ends, weights, .. } => Scheme::Mixed { mix: or_refuse(Mix::new(ends, weights))?, draws },
        };
        Ok(scheme)
    }
}

fn or_refuse<T>(made: Result<T, SamplerError>) -> Result<T, Error> {
    made.map_err(|error| Error::Config(error.to_string()))
}

fn absent(classes: &Classes, names: &[String]) -> Option<String> {
    let absent: Vec<&str> = classes.absent().map(|label| &*names[label as usize]).collect();
    let more = if absent.len() > NOTE_NAMES_MAX { ", and so on" } else { "" };
    let named = absent[..absent.len().min(NOTE_NAMES_MAX)].join(", ");
    (!absent.is_empty())
        .then(|| format!("{} of {} classes have no samples and no turn: {named}{more}", absent.len(), names.len()))
}
