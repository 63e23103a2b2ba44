//! Owns what a run draws from, tables and all: it gives each epoch its order, and a bad sample its substitute.
//! It must never build a table: that is done once, before the run.

use super::{Classes, Mix, Order, Weights};
use crate::blocks::Blocks;
use crate::units::{KeyedRng, SampleId, Seed, mix64};

/// Tells the key of a visit from that of a sample: "a visit!" in ASCII.
const VISIT_SALT: u64 = u64::from_be_bytes(*b"a visit!");

/// After so many bad samples of the same class or part, a substitute may be any that the run draws.
const NEAR_ATTEMPTS_MAX: u32 = 16;

/// How the samples of an epoch are chosen, and how many they are.
#[derive(Clone, Debug)]
pub(crate) enum Scheme {
    ById { samples: u64 },
    Shuffled { samples: u64 },
    Blocked(Blocks),
    Weighted { weights: Weights, draws: u64 },
    Balanced { classes: Classes, draws: u64 },
    Mixed { mix: Mix, draws: u64 },
}

impl Scheme {
    /// Samples of an epoch, over all ranks.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Scheme::ById { samples } | Scheme::Shuffled { samples } => *samples,
            Scheme::Blocked(blocks) => blocks.sample_count(),
            Scheme::Weighted { draws, .. } | Scheme::Balanced { draws, .. } | Scheme::Mixed { draws, .. } => *draws,
        }
    }

    /// The order of an epoch, over all ranks.
    pub(crate) fn order(&self, seed: Seed, epoch: u64) -> Order {
        match self {
            Scheme::ById { samples } => Order::sequential(*samples),
            Scheme::Shuffled { samples } => Order::shuffled(*samples, seed, epoch),
            Scheme::Blocked(blocks) => Order::blocked(blocks, seed, epoch),
            Scheme::Weighted { weights, draws } => Order::weighted(weights, *draws, seed, epoch),
            Scheme::Balanced { classes, draws } => Order::balanced(classes, *draws, seed, epoch),
            Scheme::Mixed { mix, draws } => Order::mixed(mix, *draws, seed, epoch),
        }
    }

    /// The seed of what is random about a sample at a place of the whole epoch. A sample that may come again gets another
    /// one each time; one that comes once an epoch is known by its id alone.
    pub(crate) fn seed_at(&self, seed: Seed, place: u64) -> Seed {
        match self {
            Scheme::ById { .. } | Scheme::Shuffled { .. } | Scheme::Blocked(_) => seed,
            _ => Seed(mix64(seed.0 ^ mix64(place ^ VISIT_SALT))),
        }
    }

    /// The sample that takes the place of a bad one, after so many attempts: one that the run may draw, of the same class
    /// or part where that is the point. (Where samples come in blocks, who asks knows better.)
    pub(crate) fn substitute(
        &self,
        of: SampleId,
        label: u32,
        attempt: u32,
        (seed, epoch): (Seed, u64),
        rng: &mut KeyedRng,
    ) -> SampleId {
        let near = match self {
            Scheme::ById { .. } | Scheme::Shuffled { .. } | Scheme::Blocked(_) => {
                return SampleId(rng.below(self.len()));
            }
            Scheme::Weighted { weights, .. } => return weights.draw_other(of, rng),
            Scheme::Balanced { classes, .. } => classes.draw_other(of, label, rng),
            Scheme::Mixed { mix, .. } => mix.draw_other(of, rng),
        };
        let mut anywhere = || self.order(seed, epoch).at(rng.below(self.len()));
        near.filter(|_| attempt <= NEAR_ATTEMPTS_MAX).unwrap_or_else(&mut anywhere)
    }
}
