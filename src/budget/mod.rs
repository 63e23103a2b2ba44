//! Budgets as users write them, and the ledger that accounts for every byte a loader holds.
//!
//! [`RamBudget`] and [`CpuBudget`] are parsed values; a [`Ledger`] hands out [`Reservation`]s under named [`Account`]s
//! and never lets their sum exceed its limit. Reading the machine is up to `host`, deciding sizes up to `plan`.

mod ledger;

use std::fmt;
use std::str::FromStr;

pub use ledger::{Account, AccountKind, AccountReport, Ledger, LedgerReport, OverBudget, Reservation, WaitError};

use crate::units::{ByteCount, ParseError, SIZE_FORMS};

/// RAM that a loader may hold: a size, a share of what is available, or `auto`.
///
/// ```
/// use feedstock::{ByteCount, RamBudget};
/// let available = ByteCount(32 << 30);
/// assert_eq!("24G".parse::<RamBudget>()?.resolve(available, 1), ByteCount(24 << 30));
/// assert_eq!("25%".parse::<RamBudget>()?.resolve(available, 1), ByteCount(8 << 30));
/// assert_eq!("auto".parse::<RamBudget>()?.resolve(available, 1), ByteCount(16 << 30));
/// // Four ranks on one machine share the machine's budget.
/// assert_eq!("24G".parse::<RamBudget>()?.resolve(available, 4), ByteCount(6 << 30));
/// # Ok::<(), feedstock::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum RamBudget {
    /// Half of what is available at start; the other half is left to the trainer and the page cache.
    #[default]
    Auto,
    /// This share, in `(0, 1]`, of what is available at start, divided among the local ranks.
    Fraction(f64),
    /// This many bytes, divided among the local ranks.
    Bytes(ByteCount),
    /// This many bytes for the process that builds the loader, not divided among ranks. For programs that divide a
    /// budget between loaders themselves.
    PerProcess(ByteCount),
}

impl RamBudget {
    /// The share of the available memory that [`RamBudget::Auto`] takes.
    pub const AUTO_FRACTION: f64 = 0.5;

    /// Budget in bytes of one of `local_ranks` processes on a machine with this much memory available. All but
    /// [`PerProcess`](RamBudget::PerProcess) budgets are the machine's, so that one command line holds for every rank:
    /// each rank gets an equal part.
    ///
    /// # Panics
    /// Panics if `local_ranks` is 0.
    #[must_use]
    pub fn resolve(self, available: ByteCount, local_ranks: usize) -> ByteCount {
        let share = |fraction: f64| ByteCount((available.0 as f64 * fraction) as u64);
        let all = match self {
            RamBudget::Auto => share(Self::AUTO_FRACTION),
            RamBudget::Fraction(fraction) => share(fraction),
            RamBudget::Bytes(bytes) => bytes,
            RamBudget::PerProcess(bytes) => return bytes,
        };
        ByteCount(all.0 / local_ranks as u64)
    }
}

impl FromStr for RamBudget {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseError::invalid("RAM budget", text, format!("{SIZE_FORMS}; a share such as 60%; or auto"));
        match (keyword_or_share(text), text.trim().parse()) {
            (Some(Share::Auto), _) => Ok(RamBudget::Auto),
            (Some(Share::Fraction(fraction)), _) => Ok(RamBudget::Fraction(fraction)),
            (None, Ok(bytes)) => Ok(RamBudget::Bytes(bytes)),
            (None, Err(_)) => Err(refused()),
        }
    }
}

impl From<ByteCount> for RamBudget {
    fn from(bytes: ByteCount) -> Self {
        RamBudget::Bytes(bytes)
    }
}

impl From<u64> for RamBudget {
    fn from(bytes: u64) -> Self {
        RamBudget::Bytes(ByteCount(bytes))
    }
}

impl TryFrom<&str> for RamBudget {
    type Error = ParseError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for RamBudget {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for RamBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RamBudget::Auto => f.write_str("auto"),
            RamBudget::Fraction(fraction) => write!(f, "{}%", fraction * 100.0),
            RamBudget::Bytes(bytes) | RamBudget::PerProcess(bytes) => bytes.fmt(f),
        }
    }
}

/// Cores that a loader may keep busy: a number, a share of those that the process may use, or `auto`.
///
/// ```
/// use feedstock::CpuBudget;
/// assert_eq!("6".parse::<CpuBudget>()?.resolve(8), 6);
/// assert_eq!("50%".parse::<CpuBudget>()?.resolve(8), 4);
/// assert_eq!("auto".parse::<CpuBudget>()?.resolve(8), 7);
/// # Ok::<(), feedstock::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum CpuBudget {
    /// All but one, which is left to the training thread.
    #[default]
    Auto,
    /// This share, in `(0, 1]`.
    Fraction(f64),
    /// This many.
    Cores(usize),
}

impl CpuBudget {
    /// Number of workers that keep these cores busy: at least 1.
    #[must_use]
    pub fn resolve(self, usable: usize) -> usize {
        let cores = match self {
            CpuBudget::Auto => usable.saturating_sub(1),
            CpuBudget::Fraction(fraction) => (usable as f64 * fraction) as usize,
            CpuBudget::Cores(cores) => cores,
        };
        cores.max(1)
    }
}

impl FromStr for CpuBudget {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (keyword_or_share(text), text.trim().parse()) {
            (Some(Share::Auto), _) => Ok(CpuBudget::Auto),
            (Some(Share::Fraction(fraction)), _) => Ok(CpuBudget::Fraction(fraction)),
            (None, Ok(cores)) if cores > 0 => Ok(CpuBudget::Cores(cores)),
            _ => Err(ParseError::invalid("CPU budget", text, "a number of cores from 1, a share such as 50%, or auto")),
        }
    }
}

impl fmt::Display for CpuBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuBudget::Auto => f.write_str("auto"),
            CpuBudget::Fraction(fraction) => write!(f, "{}%", fraction * 100.0),
            CpuBudget::Cores(cores) => write!(f, "{cores}"),
        }
    }
}

/// The forms that both budgets have.
enum Share {
    Auto,
    Fraction(f64),
}

/// Parses `auto`, or a percentage over 0 and up to 100.
fn keyword_or_share(text: &str) -> Option<Share> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("auto") {
        return Some(Share::Auto);
    }
    let percent: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
    (percent > 0.0 && percent <= 100.0).then_some(Share::Fraction(percent / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpu_budgets_parse_and_leave_at_least_one_worker() {
        for (text, of_eight, of_one) in [("auto", 7, 1), ("100%", 8, 1), ("30%", 2, 1), ("3", 3, 3), ("1", 1, 1)] {
            let budget: CpuBudget = text.parse().expect(text);
            assert_eq!((budget.resolve(8), budget.resolve(1)), (of_eight, of_one), "{text}");
            assert_eq!(budget.to_string().parse(), Ok(budget));
        }
        for text in ["", "0", "0%", "101%", "-1", "1.5", "many", "4G"] {
            let error = text.parse::<CpuBudget>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("invalid CPU budget '{text}': expected a number of cores")), "{error}");
        }
    }

    #[test]
    fn ram_budgets_parse_with_every_form() {
        assert_eq!("AUTO".parse(), Ok(RamBudget::Auto));
        assert_eq!("60%".parse(), Ok(RamBudget::Fraction(0.6)));
        assert_eq!("2G".parse(), Ok(RamBudget::Bytes(ByteCount(2 << 30))));
        for text in ["12Q", "0%", "101%", "-5%", "%", "", "nan%", "auto%"] {
            let error = text.parse::<RamBudget>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("invalid RAM budget '{text}': expected a number")), "{error}");
        }
        assert_eq!(RamBudget::try_from("2G"), Ok(RamBudget::from(2 << 30)));
        assert_eq!(RamBudget::PerProcess(ByteCount(7)).resolve(ByteCount(100), 2), ByteCount(7));
    }

    #[test]
    fn a_refusal_names_the_bytes_and_the_top_holders() {
        let ledger = Ledger::new(ByteCount(64 << 20));
        let kinds = [AccountKind::Slots, AccountKind::Scratch, AccountKind::Index, AccountKind::Encoded];
        let held: Vec<_> = kinds
            .iter()
            .zip([30u64 << 20, 10 << 20, 5 << 20, 1 << 20])
            .map(|(&kind, bytes)| ledger.account(kind, ledger.limit()).reserve(ByteCount(bytes)).unwrap())
            .collect();
        let refused =
            ledger.account(AccountKind::OversizedImages, ledger.limit()).reserve(ByteCount(40 << 20)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "'oversized images' needs 40.0 MiB, but 18.0 MiB of the 64.0 MiB are left; most is held by \
             slots (30.0 MiB), scratch (10.0 MiB), index (5.00 MiB)"
        );
        drop(held);
        assert_eq!(ledger.held(), ByteCount::ZERO);
        assert_eq!(ledger.report().peak, ByteCount(46 << 20));
    }

    #[test]
    fn a_wait_that_can_never_end_is_refused_at_once() {
        let ledger = Ledger::new(ByteCount(100));
        let _fixed = ledger.fixed_account(AccountKind::Slots, ledger.limit()).reserve(ByteCount(70)).unwrap();
        let _moving = ledger.account(AccountKind::Encoded, ledger.limit()).reserve(ByteCount(20)).unwrap();
        match ledger.account(AccountKind::Encoded, ledger.limit()).reserve_waiting(ByteCount(31), || false) {
            Err(WaitError::OverBudget(refused)) => assert_eq!(refused.available, ByteCount(30)),
            other => panic!("{other:?}"),
        }
        let cancelled = ledger.account(AccountKind::Encoded, ledger.limit()).reserve_waiting(ByteCount(30), || true);
        assert_eq!(cancelled.unwrap_err(), WaitError::Cancelled);
    }

    #[test]
    fn a_cap_binds_before_the_limit() {
        let ledger = Ledger::new(ByteCount(100));
        let encoded = ledger.account(AccountKind::Encoded, ByteCount(30));
        let held = encoded.reserve(ByteCount(25)).unwrap();
        let refused = encoded.reserve(ByteCount(6)).unwrap_err();
        assert_eq!((refused.available, refused.limit), (ByteCount(5), ByteCount(30)));
        match encoded.reserve_waiting(ByteCount(31), || false) {
            Err(WaitError::OverBudget(refused)) => assert_eq!(refused.available, ByteCount(30)),
            other => panic!("{other:?}"),
        }
        drop(held);
        assert!(encoded.reserve(ByteCount(30)).is_ok());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve { account: usize, bytes: u64 },
        Drop { at: usize },
        Split { at: usize, bytes: u64 },
        Shrink { at: usize, bytes: u64 },
        Grow { at: usize, bytes: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3usize, 0..60u64).prop_map(|(account, bytes)| Step::Reserve { account, bytes }),
            (0..8usize).prop_map(|at| Step::Drop { at }),
            (0..8usize, 0..60u64).prop_map(|(at, bytes)| Step::Split { at, bytes }),
            (0..8usize, 0..60u64).prop_map(|(at, bytes)| Step::Shrink { at, bytes }),
            (0..8usize, 0..60u64).prop_map(|(at, bytes)| Step::Grow { at, bytes }),
        ]
    }

    proptest! {
        /// Compares the ledger with a plain list of holders after any sequence of steps.
        #[test]
        fn the_ledger_always_balances(steps in proptest::collection::vec(step(), 0..60)) {
            const LIMIT: u64 = 100;
            let ledger = Ledger::new(ByteCount(LIMIT));
            let caps = [LIMIT, 70, 40];
            let accounts = [
                ledger.fixed_account(AccountKind::Other("a"), ByteCount(caps[0])),
                ledger.account(AccountKind::Other("b"), ByteCount(caps[1])),
                ledger.account(AccountKind::Other("c"), ByteCount(caps[2])),
            ];
            let mut held: Vec<(usize, Reservation)> = Vec::new();
            let mut peak = 0;
            for step in steps {
                let sum_of = |held: &[(usize, Reservation)], account: usize| -> u64 {
                    held.iter().filter(|(a, _)| *a == account).map(|(_, r)| r.bytes().0).sum()
                };
                let total: u64 = held.iter().map(|(_, r)| r.bytes().0).sum();
                match step {
                    Step::Reserve { account, bytes } => {
                        let room = (LIMIT - total).min(caps[account] - sum_of(&held, account));
                        match accounts[account].reserve(ByteCount(bytes)) {
                            Ok(reservation) => {
                                prop_assert!(bytes <= room);
                                held.push((account, reservation));
                            }
                            Err(refused) => {
                                prop_assert!(bytes > room);
                                prop_assert_eq!(refused.available.0, room);
                            }
                        }
                    }
                    Step::Drop { at } if at < held.len() => drop(held.swap_remove(at)),
                    Step::Split { at, bytes } if at < held.len() && bytes <= held[at].1.bytes().0 => {
                        let part = held[at].1.split(ByteCount(bytes));
                        let account = held[at].0;
                        held.push((account, part));
                    }
                    Step::Shrink { at, bytes } if at < held.len() && bytes <= held[at].1.bytes().0 => {
                        held[at].1.shrink_to(ByteCount(bytes));
                    }
                    Step::Grow { at, bytes } if at < held.len() => {
                        let account = held[at].0;
                        let room = (LIMIT - total).min(caps[account] - sum_of(&held, account));
                        let to = ByteCount(held[at].1.bytes().0 + bytes);
                        prop_assert_eq!(held[at].1.grow_to(to).is_ok(), bytes <= room);
                    }
                    _ => {}
                }
                let report = ledger.report();
                let total: u64 = held.iter().map(|(_, r)| r.bytes().0).sum();
                peak = peak.max(total);
                prop_assert_eq!(report.held.0, total);
                prop_assert_eq!(report.peak.0, peak);
                for (index, account) in report.accounts.iter().enumerate() {
                    let sum: u64 = held.iter().filter(|(a, _)| *a == index).map(|(_, r)| r.bytes().0).sum();
                    prop_assert_eq!(account.held.0, sum);
                    prop_assert!(account.peak >= account.held);
                }
            }
            drop(held);
            prop_assert_eq!(ledger.held().0, 0);
        }
    }
}
