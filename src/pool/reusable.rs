//! Pools of reusable objects: a fixed number of objects that are checked out and return when they are dropped. While
//! memory is short, some of them are inactive: they stay in the pool without their memory.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::budget::Reservation;
use crate::device::DeviceError;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};
use crate::units::ByteCount;

/// An object of a [`Pool`].
pub(crate) trait Reusable {
    /// Drops everything that belongs to the last use.
    fn recycle(&mut self) {}

    /// Gives the object's memory back to the system, and its reservation to the ledger.
    fn release_memory(&mut self);

    /// Takes the object's memory again.
    ///
    /// # Errors
    /// The system or the device has none; the object stays inactive.
    fn reacquire(&mut self) -> Result<(), DeviceError>;
}

/// Takes the reservation of an object that becomes active again: all of `bytes`, or none.
///
/// # Errors
/// [`DeviceError::OutOfMemory`] if others hold what was given back. Caps add up to the budget, so they do not.
pub(super) fn regrow(held: &mut Reservation, bytes: usize) -> Result<(), DeviceError> {
    let asked = ByteCount(bytes as u64);
    held.grow_to(asked.max(held.bytes())).map_err(|refused| DeviceError::OutOfMemory {
        what: "memory that was given back before",
        asked,
        free: Some(refused.available),
        usage: None,
    })
}

/// A fixed number of objects. Its channel has room for all of them, so no return blocks.
pub(crate) struct Pool<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    back: Sender<T>,
    free: Receiver<T>,
    objects: usize,
    /// Number of objects that are to be inactive.
    inactive_target: AtomicUsize,
    inactive: Mutex<Vec<T>>,
}

/// An object that is checked out of its [`Pool`], and returns to it when dropped.
pub(crate) struct Pooled<T: Reusable> {
    /// `None` only while it is dropped.
    object: Option<T>,
    pool: Arc<Shared<T>>,
}

impl<T: Reusable> Pool<T> {
    pub(crate) fn new(objects: Vec<T>) -> Self {
        let (back, free) = bounded(objects.len());
        let (count, inactive_target) = (objects.len(), AtomicUsize::new(0));
        let inactive = Mutex::new(Vec::with_capacity(count));
        let shared = Shared { back, free, objects: count, inactive_target, inactive };
        objects.into_iter().for_each(|object| shared.put_back(object));
        Pool { shared: Arc::new(shared) }
    }

    /// Channel of idle objects. A received object must be passed to [`checkout`](Pool::checkout) at once.
    pub(crate) fn free(&self) -> &Receiver<T> {
        &self.shared.free
    }

    /// Wraps a received object, so that it returns when dropped.
    pub(crate) fn checkout(&self, object: T) -> Pooled<T> {
        Pooled { object: Some(object), pool: self.shared.clone() }
    }

    /// Number of active objects, checked out or idle.
    pub(crate) fn active(&self) -> usize {
        self.shared.objects - lock(&self.shared.inactive).len()
    }

    /// Sets the number of active objects. Idle ones change at once, others when they return, so it takes until then for
    /// [`active`](Pool::active) to reach `count`.
    ///
    /// # Errors
    /// There is no memory for one; those reacquired before it stay active.
    pub(crate) fn set_active(&self, count: usize) -> Result<(), DeviceError> {
        let Shared { free, objects, inactive_target, inactive, .. } = &*self.shared;
        let target = objects.saturating_sub(count);
        inactive_target.store(target, Ordering::SeqCst);
        let mut inactive = lock(inactive);
        while inactive.len() > target
            && let Some(mut object) = inactive.pop()
        {
            if let Err(error) = object.reacquire() {
                inactive.push(object);
                return Err(error);
            }
            self.shared.put_back(object);
        }
        while inactive.len() < target
            && let Ok(mut object) = free.try_recv()
        {
            object.release_memory();
            inactive.push(object);
        }
        Ok(())
    }
}

impl<T> Shared<T> {
    fn put_back(&self, object: T) {
        // There is room for each, and `free` lives as long as `self`: this neither fails nor blocks.
        let _ = self.back.send(object);
    }
}

impl<T: Reusable> Deref for Pooled<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.object {
            Some(object) => object,
            None => unreachable!("taken in drop only"),
        }
    }
}

impl<T: Reusable> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.object {
            Some(object) => object,
            None => unreachable!("taken in drop only"),
        }
    }
}

impl<T: Reusable> Drop for Pooled<T> {
    fn drop(&mut self) {
        let Some(mut object) = self.object.take() else { return };
        object.recycle();
        let Shared { inactive_target, inactive, .. } = &*self.pool;
        if inactive_target.load(Ordering::SeqCst) > 0 {
            let mut inactive = lock(inactive);
            if inactive.len() < inactive_target.load(Ordering::SeqCst) {
                object.release_memory();
                inactive.push(object);
                return;
            }
        }
        self.pool.put_back(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object that takes its memory from a counter.
    #[derive(Debug)]
    struct Object {
        active: bool,
        memory: Arc<AtomicUsize>,
    }

    impl Reusable for Object {
        fn release_memory(&mut self) {
            assert!(std::mem::take(&mut self.active), "it is inactive already");
            self.memory.fetch_add(1, Ordering::SeqCst);
        }
        fn reacquire(&mut self) -> Result<(), DeviceError> {
            assert!(!self.active);
            let took = self.memory.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            self.active = took.is_ok();
            took.map(drop).map_err(|_| DeviceError::OutOfMemory {
                what: "an object",
                asked: ByteCount(1),
                free: None,
                usage: None,
            })
        }
    }

    fn pool(objects: usize) -> (Pool<Object>, Arc<AtomicUsize>) {
        let memory = Arc::new(AtomicUsize::new(0));
        (Pool::new((0..objects).map(|_| Object { active: true, memory: memory.clone() }).collect()), memory)
    }

    fn take(pool: &Pool<Object>) -> Option<Pooled<Object>> {
        pool.free().try_recv().ok().map(|object| pool.checkout(object))
    }

    #[test]
    fn idle_objects_release_memory_at_once_others_on_return() {
        let (pool, memory) = pool(4);
        let held: Vec<_> = (0..3).filter_map(|_| take(&pool)).collect();
        pool.set_active(1).unwrap();
        assert_eq!((pool.active(), memory.load(Ordering::SeqCst)), (3, 1));
        assert!(held.iter().all(|object| object.active), "an object that is checked out keeps its memory");
        drop(held);
        assert_eq!((pool.active(), pool.free().len(), memory.load(Ordering::SeqCst)), (1, 1, 3));
        pool.set_active(3).unwrap();
        assert_eq!((pool.active(), pool.free().len(), memory.load(Ordering::SeqCst)), (3, 3, 1));
        assert!((0..3).all(|_| take(&pool).is_some_and(|object| object.active)));
        pool.set_active(usize::MAX).unwrap();
        assert_eq!((pool.active(), pool.free().len()), (4, 4));
    }

    #[test]
    fn an_object_without_memory_stays_inactive() {
        let (pool, memory) = pool(3);
        pool.set_active(0).unwrap();
        assert_eq!(memory.swap(1, Ordering::SeqCst), 3, "two are taken by others");
        assert!(pool.set_active(3).is_err());
        assert_eq!((pool.active(), pool.free().len()), (1, 1));
        memory.store(2, Ordering::SeqCst);
        pool.set_active(3).unwrap();
        assert_eq!(pool.active(), 3);
    }
}
