//! The sampler of a run with its tables: the order of each epoch, and the substitute of a bad sample.

use super::{ClassTable, Mixture, Order, WeightTable};
use crate::blocks::Blocks;
use crate::rng::{KeyedRng, Seed, mix64};
use crate::units::SampleId;

/// Separates the key of a repeated draw from that of a sample: "a visit!" in ASCII.
const VISIT_SALT: u64 = u64::from_be_bytes(*b"a visit!");

/// Attempts to substitute a sample of the same class or part. Later ones take any sample of the run.
const MAX_NEAR_ATTEMPTS: u32 = 16;

/// The choice of an epoch's samples, with the tables that it needs.
#[derive(Clone, Debug)]
pub(crate) enum Sampler {
    Sequential { samples: u64 },
    Shuffled { samples: u64 },
    Blocked(Blocks),
    Weighted { weights: WeightTable, num_samples: u64 },
    Balanced { classes: ClassTable, num_samples: u64 },
    Mixed { mix: Mixture, num_samples: u64 },
}

impl Sampler {
    /// Samples of an epoch, over all ranks.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Sampler::Sequential { samples } | Sampler::Shuffled { samples } => *samples,
            Sampler::Blocked(blocks) => blocks.sample_count(),
            Sampler::Weighted { num_samples, .. }
            | Sampler::Balanced { num_samples, .. }
            | Sampler::Mixed { num_samples, .. } => *num_samples,
        }
    }

    /// The order of an epoch, over all ranks.
    pub(crate) fn order(&self, seed: Seed, epoch: u64) -> Order {
        match self {
            Sampler::Sequential { samples } => Order::sequential(*samples),
            Sampler::Shuffled { samples } => Order::shuffled(*samples, seed, epoch),
            Sampler::Blocked(blocks) => Order::blocked(blocks, seed, epoch),
            Sampler::Weighted { weights, num_samples } => Order::weighted(weights, *num_samples, seed, epoch),
            Sampler::Balanced { classes, num_samples } => Order::balanced(classes, *num_samples, seed, epoch),
            Sampler::Mixed { mix, num_samples } => Order::mixed(mix, *num_samples, seed, epoch),
        }
    }

    /// The seed of a sample's random choices at an index of the whole epoch. A sample that may repeat gets another seed
    /// each time; one that comes once an epoch is identified by its id alone.
    pub(crate) fn seed_at(&self, seed: Seed, index: u64) -> Seed {
        match self {
            Sampler::Sequential { .. } | Sampler::Shuffled { .. } | Sampler::Blocked(_) => seed,
            _ => Seed(mix64(seed.0 ^ mix64(index ^ VISIT_SALT))),
        }
    }

    /// The substitute of a bad sample: one that the run may draw, of the same class or part if the sampler has these.
    /// The caller handles sources with blocks itself.
    pub(crate) fn substitute(
        &self,
        of: SampleId,
        label: u32,
        attempt: u32,
        (seed, epoch): (Seed, u64),
        rng: &mut KeyedRng,
    ) -> SampleId {
        let near = match self {
            Sampler::Sequential { .. } | Sampler::Shuffled { .. } | Sampler::Blocked(_) => {
                return SampleId(rng.below(self.len()));
            }
            Sampler::Weighted { weights, .. } => return weights.draw_other(of, rng),
            Sampler::Balanced { classes, .. } => classes.draw_other(of, label, rng),
            Sampler::Mixed { mix, .. } => mix.draw_other(of, rng),
        };
        let mut anywhere = || self.order(seed, epoch).at(rng.below(self.len()));
        near.filter(|_| attempt <= MAX_NEAR_ATTEMPTS).unwrap_or_else(&mut anywhere)
    }
}
