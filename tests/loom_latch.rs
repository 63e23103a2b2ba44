//! Every interleaving of the latch that completes a slot, explored by loom.
//!
//! As in `loom_ledger.rs`, the module is compiled here a second time with loom's primitives.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of the library, as loom sees it"
)]

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[path = "../src/pool/latch.rs"]
mod latch;

use latch::Latch;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Slot {
    parts: [UnsafeCell<u8>; 2],
    latch: Latch<Vec<usize>>,
}

// loom's cell checks every access against every other, which is the point of the test.
#[allow(unsafe_code, reason = "stands in for the slot, which shares its memory in the same way")]
// SAFETY: each part is written by one thread before it is counted, and read after the last is counted.
unsafe impl Sync for Slot {}

#[test]
fn the_waiter_sees_every_part_written() {
    loom::model(|| {
        let slot = Arc::new(Slot { parts: [UnsafeCell::new(0), UnsafeCell::new(0)], latch: Latch::new(2, Vec::new()) });
        let writers: Vec<_> = (0..2)
            .map(|part| {
                let slot = slot.clone();
                thread::spawn(move || {
                    #[allow(unsafe_code, reason = "see Slot")]
                    // SAFETY: this thread alone has this part.
                    slot.parts[part].with_mut(|byte| unsafe { *byte = part as u8 + 1 });
                    slot.latch.done(1, |order| order.push(part));
                })
            })
            .collect();
        let mut order = slot.latch.wait().expect("taken once");
        for part in 0..2 {
            #[allow(unsafe_code, reason = "see Slot")]
            // SAFETY: every part is counted.
            let byte = slot.parts[part].with(|byte| unsafe { *byte });
            assert_eq!(byte, part as u8 + 1);
        }
        order.sort_unstable();
        assert_eq!(order, [0, 1]);
        assert!(slot.latch.is_open());
        assert!(slot.latch.wait().is_none(), "a report is taken once");
        writers.into_iter().for_each(|w| w.join().unwrap());
    });
}
