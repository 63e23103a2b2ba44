//! Deduplication of block downloads: concurrent readers of one block wait for a single request. Waiters must use a
//! deadline of their own.

use std::collections::HashMap;

use tokio::sync::watch;

use super::cache::BlockKey;
use crate::sync::{Mutex, lock};

/// Blocks that this store is downloading.
#[derive(Default)]
pub(super) struct SingleFlight(Mutex<HashMap<BlockKey, watch::Receiver<()>>>);

/// Exclusive right to download a block. Dropping it wakes the waiters.
pub(super) struct FetchClaim<'a> {
    flights: &'a SingleFlight,
    key: BlockKey,
    _done: watch::Sender<()>,
}

impl SingleFlight {
    /// Claims the download of `key`, or returns a receiver that closes when the download in progress ends.
    pub(super) fn claim(&self, key: BlockKey) -> Result<FetchClaim<'_>, watch::Receiver<()>> {
        let mut flights = lock(&self.0);
        match flights.get(&key) {
            Some(done) => Err(done.clone()),
            None => {
                let (sender, receiver) = watch::channel(());
                flights.insert(key, receiver);
                Ok(FetchClaim { flights: self, key, _done: sender })
            }
        }
    }
}

impl Drop for FetchClaim<'_> {
    fn drop(&mut self) {
        lock(&self.flights.0).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_woken_when_the_claim_ends() {
        let (flights, key) = (SingleFlight::default(), BlockKey(1));
        let first = flights.claim(key);
        let mut second = flights.claim(key).err().unwrap();
        assert!(flights.claim(BlockKey(2)).is_ok() && second.has_changed().is_ok());
        drop(first);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(second.changed()).is_err());
        assert!(flights.claim(key).is_ok());
    }
}
