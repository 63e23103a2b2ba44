//! The ledger under every thread interleaving, with loom.
//!
//! The module under test is compiled a second time here, with loom's primitives as `crate::sync`, so neither a build
//! flag nor a second copy of the dependencies is needed.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "a module of the library, compiled against loom"
)]

mod sync {
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

mod units {
    pub use feedstock::ByteCount;
}

#[path = "../src/budget/ledger.rs"]
mod ledger;

use ledger::{AccountKind, Ledger, WaitError};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use units::ByteCount;

#[test]
fn concurrent_reservations_never_exceed_the_limit() {
    loom::model(|| {
        let ledger = Ledger::new(ByteCount(10));
        let account = ledger.account(AccountKind::Encoded, ledger.limit());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let account = account.clone();
                thread::spawn(move || account.reserve(ByteCount(6)).map(|held| held.bytes()))
            })
            .collect();
        let granted = threads.into_iter().map(|t| t.join().unwrap()).filter(Result::is_ok).count();
        // Each releases its bytes before it ends, so one or both succeed, but never at the same time.
        assert!(granted >= 1);
        let report = ledger.report();
        assert_eq!(report.held, ByteCount(0));
        assert_eq!(report.peak, ByteCount(6));
    });
}

#[test]
fn a_release_always_wakes_the_waiter() {
    loom::model(|| {
        let ledger = Ledger::new(ByteCount(10));
        let account = ledger.account(AccountKind::Encoded, ledger.limit());
        let mut held = account.reserve(ByteCount(10)).unwrap();
        let other = held.split(ByteCount(4));
        let releaser = thread::spawn(move || drop(held));
        let releaser2 = thread::spawn(move || drop(other));
        let waited = account.reserve_waiting(ByteCount(7), || false).unwrap();
        assert_eq!(waited.bytes(), ByteCount(7));
        releaser.join().unwrap();
        releaser2.join().unwrap();
        drop(waited);
        assert_eq!(ledger.held(), ByteCount(0));
    });
}

#[test]
fn a_cancelled_wait_always_ends() {
    loom::model(|| {
        let ledger = Ledger::new(ByteCount(10));
        let account = ledger.account(AccountKind::Encoded, ledger.limit());
        let _held = account.reserve(ByteCount(10)).unwrap();
        let cancelled = Arc::new(AtomicBool::new(false));
        let canceller = {
            let cancelled = cancelled.clone();
            thread::spawn(move || {
                cancelled.store(true, Ordering::Release);
                ledger.wake();
            })
        };
        let waited = account.reserve_waiting(ByteCount(1), || cancelled.load(Ordering::Acquire));
        assert_eq!(waited.unwrap_err(), WaitError::Cancelled);
        canceller.join().unwrap();
    });
}

#[test]
fn a_report_during_growth_adds_up() {
    loom::model(|| {
        let ledger = Ledger::new(ByteCount(10));
        let account = ledger.account(AccountKind::Scratch, ledger.limit());
        let mut held = account.reserve(ByteCount(5)).unwrap();
        let grower = thread::spawn(move || {
            held.grow_to(ByteCount(8)).unwrap();
            held
        });
        let seen = ledger.report();
        assert!([5, 8].contains(&seen.held.0));
        assert_eq!(seen.accounts.iter().map(|a| a.held).sum::<ByteCount>(), seen.held);
        drop(grower.join().unwrap());
        assert_eq!(ledger.held(), ByteCount(0));
    });
}
