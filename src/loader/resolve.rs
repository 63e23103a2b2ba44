//! RAM budgets in bytes on the machine at hand.

use crate::budget::RamBudget;
use crate::host::{HostFacts, LocalRanks, MemoryLimit};
use crate::units::ByteCount;

/// A RAM budget in bytes for one process, with the facts it was derived from.
///
/// ```
/// use feedstock::RamBudget;
/// let resolved = RamBudget::Fraction(0.25).resolve_here();
/// assert!(resolved.bytes <= resolved.available);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResolvedBudget {
    /// The budget of this process.
    pub bytes: ByteCount,
    /// The budget as it was given.
    pub asked: RamBudget,
    /// Memory that was available on the machine.
    pub available: ByteCount,
    /// The limit that decides `available`.
    pub limited_by: MemoryLimit,
    /// The processes that share the budget.
    pub local_ranks: LocalRanks,
}

impl RamBudget {
    /// Reads the machine and resolves the budget for this process: shares and `auto` in bytes, divided among the local
    /// ranks.
    #[must_use]
    pub fn resolve_here(self) -> ResolvedBudget {
        self.resolve_on(&HostFacts::read())
    }

    /// Resolves the budget for one process on a machine that has been read already.
    #[must_use]
    pub fn resolve_on(self, host: &HostFacts) -> ResolvedBudget {
        ResolvedBudget {
            bytes: self.resolve(host.memory.available, host.local_ranks.count),
            asked: self,
            available: host.memory.available,
            limited_by: host.memory.limited_by.clone(),
            local_ranks: host.local_ranks.clone(),
        }
    }
}

impl ResolvedBudget {
    /// A sentence on how the budget came about, or on a budget larger than the memory available. `None` if the budget
    /// is a plain number of bytes for one process.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let ResolvedBudget { bytes, asked, available, limited_by, local_ranks } = self;
        let all = *bytes * local_ranks.count as u64;
        let part = match (local_ranks.count, local_ranks.variable) {
            (1, _) => String::new(),
            (ranks, None) => format!("{bytes} for each of {ranks} ranks: "),
            (ranks, Some(variable)) => format!("{bytes} for each of {ranks} ranks ({variable}): "),
        };
        match asked {
            RamBudget::PerProcess(_) => None,
            RamBudget::Bytes(asked) if asked > available => {
                Some(format!("RAM budget {part}{asked}, which is more than the {available} available ({limited_by})"))
            }
            RamBudget::Bytes(_) if local_ranks.count == 1 => None,
            RamBudget::Bytes(asked) => {
                Some(format!("RAM budget {part}{asked} of {available} available ({limited_by})"))
            }
            RamBudget::Fraction(_) => {
                Some(format!("RAM budget {asked}: {part}{all} of {available} available ({limited_by})"))
            }
            RamBudget::Auto => Some(format!(
                "RAM budget auto: {part}{all}, half of {available} available ({limited_by}); the other half is left to \
                 the trainer"
            )),
        }
    }
}
