//! Owns what circulates: a fixed number of things that are lent out and come back, and the rest that some of them are
//! sent to while memory is short.
//! It must never make a new one, and never lose one: a thing goes home when its borrower lets go of it, however the run
//! around it ends.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::DeviceError;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};

/// What can circulate.
pub(crate) trait Recycle {
    /// Lets go of whatever belongs to the last use.
    fn recycle(&mut self) {}

    /// Gives its memory back to the system, and its reservation to the ledger. Until it is woken nobody has it.
    fn rest(&mut self);

    /// Takes its memory again.
    ///
    /// # Errors
    /// The system or the device has none; the thing goes on resting.
    fn wake(&mut self) -> Result<(), DeviceError>;
}

/// A fixed number of things. As many places as things, so there is always room for the one that comes back.
pub(crate) struct Ring<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    back: Sender<T>,
    free: Receiver<T>,
    things: usize,
    /// How many are to rest.
    resting_target: AtomicUsize,
    resting: Mutex<Vec<T>>,
}

/// A thing of a [`Ring`], in somebody's hands. Forgotten, it is out of circulation, and nothing worse.
pub(crate) struct Lent<T: Recycle> {
    /// `None` only while it goes home.
    thing: Option<T>,
    home: Arc<Shared<T>>,
}

impl<T: Recycle> Ring<T> {
    pub(crate) fn new(things: Vec<T>) -> Self {
        let (back, free) = bounded(things.len());
        let (count, resting_target) = (things.len(), AtomicUsize::new(0));
        let resting = Mutex::new(Vec::with_capacity(count));
        let shared = Shared { back, free, things: count, resting_target, resting };
        things.into_iter().for_each(|thing| shared.send_home(thing));
        Ring { shared: Arc::new(shared) }
    }

    /// Where idle things come from. What is received is to be [`lent`](Ring::lend) at once.
    pub(crate) fn free(&self) -> &Receiver<T> {
        &self.shared.free
    }

    /// Sees to it that the thing comes back.
    pub(crate) fn lend(&self, thing: T) -> Lent<T> {
        Lent { thing: Some(thing), home: self.shared.clone() }
    }

    /// How many circulate, lent or idle.
    pub(crate) fn circulating(&self) -> usize {
        self.shared.things - lock(&self.shared.resting).len()
    }

    /// Lets this many circulate (all of them at most) and the others rest: idle ones at once, lent ones when they come
    /// home. It takes until then for [`circulating`](Ring::circulating) to get there.
    ///
    /// # Errors
    /// There is no memory to wake one; those woken before circulate.
    pub(crate) fn circulate(&self, count: usize) -> Result<(), DeviceError> {
        let Shared { free, things, resting_target, resting, .. } = &*self.shared;
        let target = things.saturating_sub(count);
        resting_target.store(target, Ordering::SeqCst);
        let mut resting = lock(resting);
        while resting.len() > target
            && let Some(mut thing) = resting.pop()
        {
            if let Err(error) = thing.wake() {
                resting.push(thing);
                return Err(error);
            }
            self.shared.send_home(thing);
        }
        while resting.len() < target
            && let Ok(mut thing) = free.try_recv()
        {
            thing.rest();
            resting.push(thing);
        }
        Ok(())
    }
}

impl<T> Shared<T> {
    fn send_home(&self, thing: T) {
        // There is room for each, and `free` lives as long as `self`: this neither fails nor blocks.
        let _ = self.back.send(thing);
    }
}

impl<T: Recycle> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.thing {
            Some(thing) => thing,
            None => unreachable!("it goes home in drop, and not before"),
        }
    }
}

impl<T: Recycle> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.thing {
            Some(thing) => thing,
            None => unreachable!("it goes home in drop, and not before"),
        }
    }
}

impl<T: Recycle> Drop for Lent<T> {
    fn drop(&mut self) {
        let Some(mut thing) = self.thing.take() else { return };
        thing.recycle();
        let Shared { resting_target, resting, .. } = &*self.home;
        if resting_target.load(Ordering::SeqCst) > 0 {
            let mut resting = lock(resting);
            if resting.len() < resting_target.load(Ordering::SeqCst) {
                thing.rest();
                resting.push(thing);
                return;
            }
        }
        self.home.send_home(thing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows whether it has its memory, and may be told that there is none.
    #[derive(Debug)]
    struct Thing {
        awake: bool,
        memory: Arc<AtomicUsize>,
    }

    impl Recycle for Thing {
        fn rest(&mut self) {
            assert!(std::mem::take(&mut self.awake), "it rests already");
            self.memory.fetch_add(1, Ordering::SeqCst);
        }
        fn wake(&mut self) -> Result<(), DeviceError> {
            assert!(!self.awake);
            let took = self.memory.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            self.awake = took.is_ok();
            took.map(drop).map_err(|_| DeviceError::OutOfMemory {
                what: "a thing",
                asked: crate::units::ByteCount(1),
                free: None,
                usage: None,
            })
        }
    }

    fn ring(things: usize) -> (Ring<Thing>, Arc<AtomicUsize>) {
        let memory = Arc::new(AtomicUsize::new(0));
        (Ring::new((0..things).map(|_| Thing { awake: true, memory: memory.clone() }).collect()), memory)
    }

    fn take(ring: &Ring<Thing>) -> Option<Lent<Thing>> {
        ring.free().try_recv().ok().map(|thing| ring.lend(thing))
    }

    #[test]
    fn idle_things_rest_at_once_and_lent_ones_when_they_come_home() {
        let (ring, memory) = ring(4);
        let lent: Vec<_> = (0..3).filter_map(|_| take(&ring)).collect();
        ring.circulate(1).unwrap();
        assert_eq!((ring.circulating(), memory.load(Ordering::SeqCst)), (3, 1));
        assert!(lent.iter().all(|thing| thing.awake), "what is lent keeps its memory");
        drop(lent);
        assert_eq!((ring.circulating(), ring.free().len(), memory.load(Ordering::SeqCst)), (1, 1, 3));
        ring.circulate(3).unwrap();
        assert_eq!((ring.circulating(), ring.free().len(), memory.load(Ordering::SeqCst)), (3, 3, 1));
        assert!((0..3).all(|_| take(&ring).is_some_and(|thing| thing.awake)));
        ring.circulate(usize::MAX).unwrap();
        assert_eq!((ring.circulating(), ring.free().len()), (4, 4));
    }

    #[test]
    fn where_there_is_no_memory_a_thing_goes_on_resting() {
        let (ring, memory) = ring(3);
        ring.circulate(0).unwrap();
        assert_eq!(memory.swap(1, Ordering::SeqCst), 3, "somebody else takes two");
        assert!(ring.circulate(3).is_err());
        assert_eq!((ring.circulating(), ring.free().len()), (1, 1));
        memory.store(2, Ordering::SeqCst);
        ring.circulate(3).unwrap();
        assert_eq!(ring.circulating(), 3);
    }
}
