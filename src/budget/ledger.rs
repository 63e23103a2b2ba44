//! Owns who holds which bytes: one `Ledger`, its named `Account`s, and the `Reservation`s that are taken from them.
//! It must never allocate what it accounts for, and never let the sum of what is held pass the limit.
//!
//! One lock guards every number, so a snapshot is always consistent: the accounts add up to what is held, and what is
//! held is at most the limit. The pipeline reserves by the chunk of samples, not by the sample, so the lock is cold.

use std::fmt;

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::units::ByteCount;

/// The one book in which every payload byte of a loader stands.
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
    book: Mutex<Book>,
    freed: Condvar,
}

#[derive(Default)]
struct Book {
    held: u64,
    peak: u64,
    /// Held by accounts whose reservations outlive any wait, so nobody should wait for these bytes.
    fixed: u64,
    /// Waits under way: with none, giving bytes back costs no system call.
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

/// A named holder of bytes.
#[derive(Clone)]
pub struct Account {
    shared: Arc<Shared>,
    index: usize,
}

/// Bytes that are held until this is dropped. It can be split, shrunk, and grown within its account.
#[must_use = "a reservation that is dropped at once holds nothing"]
pub struct Reservation {
    account: Account,
    bytes: u64,
}

/// A request that the ledger refused, and who holds the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverBudget {
    /// The account that asked.
    pub account: AccountKind,
    /// What it asked for.
    pub needed: ByteCount,
    /// What was left at that moment; for a wait that could never end, what would be left if all that moves came back.
    pub available: ByteCount,
    /// The limit that stands in the way: the account's cap or the ledger's limit.
    pub limit: ByteCount,
    /// The largest holders at that moment, largest first, three at most.
    pub holders: Vec<(AccountKind, ByteCount)>,
}

/// Why a wait for bytes ended without them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// No release could ever make room.
    OverBudget(OverBudget),
    /// The wait was called off.
    Cancelled,
}

/// What one account holds and has held at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountReport {
    /// The account.
    pub kind: AccountKind,
    /// What it may hold at most.
    pub cap: ByteCount,
    /// Held now.
    pub held: ByteCount,
    /// Held at most, ever.
    pub peak: ByteCount,
}

/// One consistent look at a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerReport {
    /// What may be held at most.
    pub limit: ByteCount,
    /// Held now, all accounts together.
    pub held: ByteCount,
    /// Held at most, ever.
    pub peak: ByteCount,
    /// By account, in the order in which the accounts were opened.
    pub accounts: Vec<AccountReport>,
}

impl Ledger {
    /// An empty ledger that lets at most `limit` be held.
    #[must_use]
    pub fn new(limit: ByteCount) -> Self {
        Ledger { shared: Arc::new(Shared { limit: limit.0, book: Mutex::new(Book::default()), freed: Condvar::new() }) }
    }

    /// Opens an account for reservations that come and go. It may hold at most `cap`: where the caps of all accounts
    /// add up to no more than the limit, each can be used to the full whatever the others do.
    #[must_use]
    pub fn account(&self, kind: AccountKind, cap: ByteCount) -> Account {
        self.open(kind, cap, false)
    }

    /// Opens an account for reservations that stay as long as the loader does.
    #[must_use]
    pub fn fixed_account(&self, kind: AccountKind, cap: ByteCount) -> Account {
        self.open(kind, cap, true)
    }

    fn open(&self, kind: AccountKind, cap: ByteCount, fixed: bool) -> Account {
        let mut book = self.shared.lock();
        book.accounts.push(Entry { kind, fixed, cap: cap.0, held: 0, peak: 0 });
        Account { shared: self.shared.clone(), index: book.accounts.len() - 1 }
    }

    /// What may be held at most.
    #[must_use]
    pub fn limit(&self) -> ByteCount {
        ByteCount(self.shared.limit)
    }

    /// What is held now.
    #[must_use]
    pub fn held(&self) -> ByteCount {
        ByteCount(self.shared.lock().held)
    }

    /// What every account holds, in one consistent look.
    #[must_use]
    pub fn report(&self) -> LedgerReport {
        let book = self.shared.lock();
        LedgerReport {
            limit: self.limit(),
            held: ByteCount(book.held),
            peak: ByteCount(book.peak),
            accounts: book
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

    /// Wakes every wait, so that it asks again whether it has been called off.
    pub fn wake(&self) {
        // Taking the lock orders this after a waiter's last look at its condition: it cannot sleep through the call.
        let _book = self.shared.lock();
        self.shared.freed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

impl Book {
    fn take(&mut self, index: usize, bytes: u64, limit: u64) -> bool {
        let entry = &self.accounts[index];
        if bytes > entry.cap.saturating_sub(entry.held).min(limit - self.held) {
            return false;
        }
        self.held += bytes;
        self.peak = self.peak.max(self.held);
        self.credit(index, bytes);
        true
    }

    /// What this account could take if everything that moves came back: no wait can end with more.
    fn reachable(&self, index: usize, limit: u64) -> u64 {
        let entry = &self.accounts[index];
        let stays = if entry.fixed { entry.held } else { 0 };
        entry.cap.saturating_sub(stays).min(limit - self.fixed)
    }

    fn give_back(&mut self, index: usize, bytes: u64) {
        self.held -= bytes;
        self.debit(index, bytes);
    }

    fn credit(&mut self, index: usize, bytes: u64) {
        let entry = &mut self.accounts[index];
        entry.held += bytes;
        entry.peak = entry.peak.max(entry.held);
        if entry.fixed {
            self.fixed += bytes;
        }
    }

    fn debit(&mut self, index: usize, bytes: u64) {
        let entry = &mut self.accounts[index];
        entry.held -= bytes;
        if entry.fixed {
            self.fixed -= bytes;
        }
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

    /// Takes bytes now, or says why not.
    ///
    /// # Errors
    /// [`OverBudget`] if what is held and what is asked for pass the account's cap or the ledger's limit together.
    pub fn reserve(&self, bytes: ByteCount) -> Result<Reservation, OverBudget> {
        let mut book = self.shared.lock();
        if book.take(self.index, bytes.0, self.shared.limit) {
            Ok(self.holding(bytes.0))
        } else {
            let entry = &book.accounts[self.index];
            let available = entry.cap.saturating_sub(entry.held).min(self.shared.limit - book.held);
            Err(book.refusal(self.index, bytes.0, available, self.shared.limit))
        }
    }

    /// Takes bytes as soon as they are there. Only one place of the pipeline may wait: the one that lets samples in.
    ///
    /// `cancelled` is asked before each sleep; whoever makes it true must call [`Ledger::wake`] afterwards.
    ///
    /// # Errors
    /// [`WaitError::OverBudget`] at once if even an idle pipeline would leave too little, [`WaitError::Cancelled`] if
    /// the wait was called off.
    pub fn reserve_waiting(&self, bytes: ByteCount, cancelled: impl Fn() -> bool) -> Result<Reservation, WaitError> {
        let mut book = self.shared.lock();
        loop {
            if cancelled() {
                return Err(WaitError::Cancelled);
            }
            if book.take(self.index, bytes.0, self.shared.limit) {
                return Ok(self.holding(bytes.0));
            }
            let reachable = book.reachable(self.index, self.shared.limit);
            if bytes.0 > reachable {
                let refusal = book.refusal(self.index, bytes.0, reachable, self.shared.limit);
                return Err(WaitError::OverBudget(refusal));
            }
            book.waits += 1;
            book = self.shared.freed.wait(book).unwrap_or_else(PoisonError::into_inner);
            book.waits -= 1;
        }
    }

    fn holding(&self, bytes: u64) -> Reservation {
        Reservation { account: self.clone(), bytes }
    }
}

impl Reservation {
    /// How much it holds.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.bytes)
    }

    /// Cuts a part off, held by the same account.
    ///
    /// # Panics
    /// Panics if the part is larger than what is held.
    pub fn split(&mut self, bytes: ByteCount) -> Reservation {
        assert!(bytes.0 <= self.bytes, "{} cut from {}", bytes, self.bytes());
        self.bytes -= bytes.0;
        self.account.holding(bytes.0)
    }

    /// Gives back all but `bytes`.
    ///
    /// # Panics
    /// Panics if `bytes` is more than what is held.
    pub fn shrink_to(&mut self, bytes: ByteCount) {
        assert!(bytes.0 <= self.bytes, "{} shrunk to {}", self.bytes(), bytes);
        drop(self.split(ByteCount(self.bytes - bytes.0)));
    }

    /// Takes more bytes from the same account, up to `bytes` in all.
    ///
    /// # Errors
    /// As [`Account::reserve`]; what is held stays held.
    ///
    /// # Panics
    /// Panics if `bytes` is less than what is held.
    pub fn grow_to(&mut self, bytes: ByteCount) -> Result<(), OverBudget> {
        assert!(bytes.0 >= self.bytes, "{} grown to {}", self.bytes(), bytes);
        let mut more = self.account.reserve(ByteCount(bytes.0 - self.bytes))?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut book = self.account.shared.lock();
            book.give_back(self.account.index, self.bytes);
            if book.waits > 0 {
                self.account.shared.freed.notify_all();
            }
        }
    }
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' needs {}, but {} of the {} are left", self.account, self.needed, self.available, self.limit)?;
        let mut separator = "; most is held by ";
        for (name, held) in &self.holders {
            write!(f, "{separator}{name} ({held})")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl std::error::Error for OverBudget {}

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
