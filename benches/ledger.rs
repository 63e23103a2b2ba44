//! Cost of one reservation and its release, alone and with contention.
//!
//! `cargo bench --bench ledger`
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use feedstock::ByteCount;
use feedstock::budget::{AccountKind, Ledger};

fn reserve_and_drop(c: &mut Criterion) {
    let ledger = Ledger::new(ByteCount(1 << 30));
    let account = ledger.account(AccountKind::Encoded, ledger.limit());
    c.bench_function("reserve and drop, alone", |b| b.iter(|| account.reserve(ByteCount(4096))));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = ledger.account(AccountKind::OversizedImages, ledger.limit());
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop(std::hint::black_box(other.reserve(ByteCount(4096))));
            }
        });
        c.bench_function("reserve and drop, beside another thread", |b| b.iter(|| account.reserve(ByteCount(4096))));
        stop.store(true, Ordering::Relaxed);
    });
}

criterion_group!(benches, reserve_and_drop);
criterion_main!(benches);
