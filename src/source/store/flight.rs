//! Owns the knowledge of which blocks are being fetched, so that readers of one block wait for one request.
//! It must never be waited for without a deadline, and it holds nothing but numbers.

use std::collections::HashMap;

use tokio::sync::watch;

use super::cache::Key;
use crate::sync::{Mutex, lock};

/// The blocks that are being fetched by this store.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, watch::Receiver<()>>>);

/// The right to fetch a block while others wait. It ends when it is dropped.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    key: Key,
    _over: watch::Sender<()>,
}

impl Flights {
    /// The right to fetch a block, or what closes once somebody else has done so, or failed to.
    pub(super) fn begin(&self, key: Key) -> Result<Flight<'_>, watch::Receiver<()>> {
        let mut flights = lock(&self.0);
        match flights.get(&key) {
            Some(over) => Err(over.clone()),
            None => {
                let (sender, receiver) = watch::channel(());
                flights.insert(key, receiver);
                Ok(Flight { flights: self, key, _over: sender })
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        lock(&self.flights.0).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fetches_and_the_others_are_told_when_it_is_over() {
        let (flights, key) = (Flights::default(), Key(1));
        let first = flights.begin(key);
        let mut second = flights.begin(key).err().unwrap();
        assert!(flights.begin(Key(2)).is_ok() && second.has_changed().is_ok());
        drop(first);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(second.changed()).is_err());
        assert!(flights.begin(key).is_ok());
    }
}
