//! The accounting of bytes: a `Ledger`, its named `Account`s, and the `Reservation`s taken from them.
//!
//! One lock guards every number, so a snapshot is always consistent: the accounts add up to the bytes held, which are
//! at most the limit (proven by `the_ledger_always_balances`, and with loom in `tests/loom_ledger.rs`). The pipeline
//! reserves by chunks of samples, so the lock is cold. The ledger accounts for memory and allocates none.

use std::fmt;

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::units::ByteCount;

/// Accounts for every payload byte of a loader. A clone is another handle to the same ledger.
///
/// ```
/// use feedstock::ByteCount;
/// use feedstock::budget::{AccountKind, Ledger};
/// let ledger = Ledger::new(ByteCount(100));
/// let slots = ledger.fixed_account(AccountKind::Slots, ByteCount(100));
/// let held = slots.reserve(ByteCount(60))?;
/// let refused = slots.reserve(ByteCount(50)).expect_err("only 40 are left");
/// assert_eq!(refused.available, ByteCount(40));
/// drop(held);
/// assert_eq!(ledger.held(), ByteCount(0));
/// # Ok::<(), feedstock::budget::OverBudget>(())
/// ```
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

struct Shared {
    limit: u64,
    totals: Mutex<Totals>,
    freed: Condvar,
}

#[derive(Default)]
struct Totals {
    held: u64,
    peak: u64,
    /// Bytes in fixed accounts. They outlive any wait, so no wait counts on them.
    fixed: u64,
    /// Waits in progress. Without any, releasing bytes costs no system call.
    waits: u32,
    accounts: Vec<Entry>,
}

struct Entry {
    kind: AccountKind,
    fixed: bool,
    cap: u64,
    held: u64,
    peak: u64,
}

/// Accounts of a ledger. Their names are stable: they are the keys in JSON and the labels of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AccountKind {
    /// Memory of the process that the ledger does not see: code, stacks, allocator, the device's library.
    Headroom,
    /// Index of the source.
    Index,
    /// Decompressors and blocks that the source holds while it is read.
    Reading,
    /// Table that samples are drawn from.
    Sampling,
    /// Labels, ids and flags of samples in batches.
    Bookkeeping,
    /// Batches of u8 pixels.
    Slots,
    /// Finished batches in RAM.
    Outputs,
    /// Decoders' and resamplers' memory, by worker.
    Scratch,
    /// Read buffers.
    Encoded,
    /// Cache of small files.
    Cache,
    /// Files larger than a read buffer.
    OversizedFiles,
    /// Images larger than a worker's scratch.
    OversizedImages,
    /// An account of another user of a ledger, by its name.
    Other(&'static str),
}

impl AccountKind {
    /// Name of the account.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            AccountKind::Headroom => "headroom",
            AccountKind::Index => "index",
            AccountKind::Reading => "reading",
            AccountKind::Sampling => "sampling",
            AccountKind::Bookkeeping => "bookkeeping",
            AccountKind::Slots => "slots",
            AccountKind::Outputs => "outputs",
            AccountKind::Scratch => "scratch",
            AccountKind::Encoded => "encoded",
            AccountKind::Cache => "cache",
            AccountKind::OversizedFiles => "oversized files",
            AccountKind::OversizedImages => "oversized images",
            AccountKind::Other(name) => name,
        }
    }
}

impl fmt::Display for AccountKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for AccountKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A named holder of bytes in a [`Ledger`].
#[derive(Clone)]
pub struct Account {
    shared: Arc<Shared>,
    index: usize,
}

/// Bytes held until this is dropped. It can be split, shrunk and grown within its account.
#[must_use = "a reservation holds bytes only until it is dropped"]
pub struct Reservation {
    account: Account,
    bytes: u64,
}

/// A request that the ledger refused, with the largest holders.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{account}' needs {needed}, but {available} of the {limit} are left{}", Holders(.holders))]
#[non_exhaustive]
pub struct OverBudget {
    /// The requesting account.
    pub account: AccountKind,
    /// Bytes requested.
    pub needed: ByteCount,
    /// Bytes left. For a wait that could never end: bytes left if every reservation that is not fixed were released.
    pub available: ByteCount,
    /// The limit exceeded: the account's cap or the ledger's limit.
    pub limit: ByteCount,
    /// The largest holders, largest first, three at most.
    pub holders: Vec<(AccountKind, ByteCount)>,
}

/// The list of the largest holders in an error message.
struct Holders<'a>(&'a [(AccountKind, ByteCount)]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "; most is held by ";
        for (name, held) in self.0 {
            write!(f, "{separator}{name} ({held})")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The end of a wait without bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// No release could ever make room.
    #[error(transparent)]
    OverBudget(OverBudget),
    /// The wait was cancelled.
    #[error("the wait for bytes was cancelled")]
    Cancelled,
}

/// Bytes held by one account, now and at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct AccountReport {
    /// The account.
    pub kind: AccountKind,
    /// Maximum that it may hold.
    pub cap: ByteCount,
    /// Bytes held now.
    pub held: ByteCount,
    /// Maximum held so far.
    pub peak: ByteCount,
}

/// A consistent snapshot of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LedgerReport {
    /// Maximum that may be held.
    pub limit: ByteCount,
    /// Bytes held now by all accounts.
    pub held: ByteCount,
    /// Maximum held so far.
    pub peak: ByteCount,
    /// The accounts, in the order in which they were opened.
    pub accounts: Vec<AccountReport>,
}

impl Ledger {
    /// Creates an empty ledger with a limit.
    #[must_use]
    pub fn new(limit: ByteCount) -> Self {
        Ledger {
            shared: Arc::new(Shared { limit: limit.0, totals: Mutex::new(Totals::default()), freed: Condvar::new() }),
        }
    }

    /// Opens an account for temporary reservations, of at most `cap` in all. If the caps of all accounts add up to no
    /// more than the limit, each account can be filled whatever the others hold.
    #[must_use]
    pub fn account(&self, kind: AccountKind, cap: ByteCount) -> Account {
        self.open(kind, cap, false)
    }

    /// Opens an account for reservations that live as long as the loader.
    #[must_use]
    pub fn fixed_account(&self, kind: AccountKind, cap: ByteCount) -> Account {
        self.open(kind, cap, true)
    }

    fn open(&self, kind: AccountKind, cap: ByteCount, fixed: bool) -> Account {
        let mut totals = self.shared.lock();
        totals.accounts.push(Entry { kind, fixed, cap: cap.0, held: 0, peak: 0 });
        Account { shared: self.shared.clone(), index: totals.accounts.len() - 1 }
    }

    /// Maximum that may be held.
    #[must_use]
    pub fn limit(&self) -> ByteCount {
        ByteCount(self.shared.limit)
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        ByteCount(self.shared.lock().held)
    }

    /// A consistent snapshot of all accounts.
    #[must_use]
    pub fn report(&self) -> LedgerReport {
        let totals = self.shared.lock();
        LedgerReport {
            limit: self.limit(),
            held: ByteCount(totals.held),
            peak: ByteCount(totals.peak),
            accounts: totals
                .accounts
                .iter()
                .map(|entry| AccountReport {
                    kind: entry.kind,
                    cap: ByteCount(entry.cap),
                    held: ByteCount(entry.held),
                    peak: ByteCount(entry.peak),
                })
                .collect(),
        }
    }

    /// Wakes every wait, so that it checks for cancellation.
    pub fn wake(&self) {
        // Taking the lock orders this after a waiter's last check of its condition: it cannot sleep through the call.
        let _totals = self.shared.lock();
        self.shared.freed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Totals> {
        lock(&self.totals)
    }
}

impl Totals {
    fn take(&mut self, index: usize, bytes: u64, limit: u64) -> bool {
        let entry = &mut self.accounts[index];
        if bytes > entry.cap.saturating_sub(entry.held).min(limit - self.held) {
            return false;
        }
        entry.held += bytes;
        entry.peak = entry.peak.max(entry.held);
        self.fixed += if entry.fixed { bytes } else { 0 };
        self.held += bytes;
        self.peak = self.peak.max(self.held);
        true
    }

    fn release(&mut self, index: usize, bytes: u64) {
        let entry = &mut self.accounts[index];
        entry.held -= bytes;
        self.fixed -= if entry.fixed { bytes } else { 0 };
        self.held -= bytes;
    }

    /// Bytes that the account could take if every reservation that is not fixed were released.
    fn reachable(&self, index: usize, limit: u64) -> u64 {
        let entry = &self.accounts[index];
        let stays = if entry.fixed { entry.held } else { 0 };
        entry.cap.saturating_sub(stays).min(limit - self.fixed)
    }

    fn refusal(&self, index: usize, needed: u64, available: u64, limit: u64) -> OverBudget {
        let entry = &self.accounts[index];
        let mut holders: Vec<_> =
            self.accounts.iter().filter(|e| e.held > 0).map(|e| (e.kind, ByteCount(e.held))).collect();
        holders.sort_by_key(|&(_, held)| std::cmp::Reverse(held));
        holders.truncate(3);
        OverBudget {
            account: entry.kind,
            needed: ByteCount(needed),
            available: ByteCount(available),
            limit: ByteCount(limit.min(entry.cap)),
            holders,
        }
    }
}

impl Account {
    /// The account's kind.
    #[must_use]
    pub fn kind(&self) -> AccountKind {
        self.shared.lock().accounts[self.index].kind
    }

    /// Reserves bytes now.
    ///
    /// # Errors
    /// [`OverBudget`] if the reservation would exceed the account's cap or the ledger's limit.
    pub fn reserve(&self, bytes: ByteCount) -> Result<Reservation, OverBudget> {
        let mut totals = self.shared.lock();
        if totals.take(self.index, bytes.0, self.shared.limit) {
            Ok(self.holding(bytes.0))
        } else {
            let entry = &totals.accounts[self.index];
            let available = entry.cap.saturating_sub(entry.held).min(self.shared.limit - totals.held);
            Err(totals.refusal(self.index, bytes.0, available, self.shared.limit))
        }
    }

    /// Reserves bytes as soon as they are available. Only admission may wait, or the pipeline could deadlock.
    ///
    /// `cancelled` is checked before each sleep; the thread that makes it true must call [`Ledger::wake`] afterwards.
    ///
    /// # Errors
    /// [`WaitError::OverBudget`] at once if even an idle pipeline would leave too little, [`WaitError::Cancelled`] if
    /// the wait was cancelled.
    pub fn reserve_waiting(&self, bytes: ByteCount, cancelled: impl Fn() -> bool) -> Result<Reservation, WaitError> {
        let mut totals = self.shared.lock();
        loop {
            if cancelled() {
                return Err(WaitError::Cancelled);
            }
            if totals.take(self.index, bytes.0, self.shared.limit) {
                return Ok(self.holding(bytes.0));
            }
            let reachable = totals.reachable(self.index, self.shared.limit);
            if bytes.0 > reachable {
                let refusal = totals.refusal(self.index, bytes.0, reachable, self.shared.limit);
                return Err(WaitError::OverBudget(refusal));
            }
            totals.waits += 1;
            totals = self.shared.freed.wait(totals).unwrap_or_else(PoisonError::into_inner);
            totals.waits -= 1;
        }
    }

    fn holding(&self, bytes: u64) -> Reservation {
        Reservation { account: self.clone(), bytes }
    }
}

impl Reservation {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.bytes)
    }

    /// Splits `bytes` off into a reservation of the same account.
    ///
    /// # Panics
    /// Panics if `bytes` is more than it holds.
    pub fn split(&mut self, bytes: ByteCount) -> Reservation {
        assert!(bytes.0 <= self.bytes, "split {} off {}", bytes, self.bytes());
        self.bytes -= bytes.0;
        self.account.holding(bytes.0)
    }

    /// Releases all but `bytes`.
    ///
    /// # Panics
    /// Panics if `bytes` is more than it holds.
    pub fn shrink_to(&mut self, bytes: ByteCount) {
        assert!(bytes.0 <= self.bytes, "shrink {} to {}", self.bytes(), bytes);
        drop(self.split(ByteCount(self.bytes - bytes.0)));
    }

    /// Reserves more bytes of the same account, up to `bytes` in all.
    ///
    /// # Errors
    /// The same as [`Account::reserve`]; the bytes held so far stay reserved.
    ///
    /// # Panics
    /// Panics if `bytes` is less than it holds.
    pub fn grow_to(&mut self, bytes: ByteCount) -> Result<(), OverBudget> {
        assert!(bytes.0 >= self.bytes, "grow {} to {}", self.bytes(), bytes);
        let mut more = self.account.reserve(ByteCount(bytes.0 - self.bytes))?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut totals = self.account.shared.lock();
            totals.release(self.account.index, self.bytes);
            if totals.waits > 0 {
                self.account.shared.freed.notify_all();
            }
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({})", self.kind())
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({}, {})", self.account.kind(), self.bytes())
    }
}
