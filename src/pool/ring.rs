//! Owns what circulates: a fixed number of things that are lent out and come back.
//! It must never make a new one, and never lose one: a thing goes home when its borrower lets go of it, however the run
//! around it ends.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

/// What can circulate.
pub(crate) trait Recycle {
    /// Lets go of whatever belongs to the last use.
    fn recycle(&mut self) {}
}

/// A fixed number of things. As many places as things, so there is always room for the one that comes back.
pub(crate) struct Ring<T> {
    back: Sender<T>,
    free: Receiver<T>,
}

/// A thing of a [`Ring`], in somebody's hands. Forgotten, it is out of circulation, and nothing worse.
pub(crate) struct Lent<T: Recycle> {
    /// `None` only while it goes home.
    thing: Option<T>,
    back: Sender<T>,
}

impl<T: Recycle> Ring<T> {
    pub(crate) fn new(things: Vec<T>) -> Self {
        let (back, free) = bounded(things.len());
        for thing in things {
            // There is room for each, and `free` lives: this cannot fail.
            let _ = back.send(thing);
        }
        Ring { back, free }
    }

    /// Where idle things come from. What is received is to be [`lent`](Ring::lend) at once.
    pub(crate) fn free(&self) -> &Receiver<T> {
        &self.free
    }

    /// Sees to it that the thing comes back.
    pub(crate) fn lend(&self, thing: T) -> Lent<T> {
        Lent { thing: Some(thing), back: self.back.clone() }
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
        if let Some(mut thing) = self.thing.take() {
            thing.recycle();
            // It fails only when the ring is gone, and the thing goes with it.
            let _ = self.back.send(thing);
        }
    }
}
