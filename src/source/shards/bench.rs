//! Owns the memory that shards are decompressed in: a fixed number of workbenches, each lent to one read at a time.
//! It must never have more of them than it was made with; whoever finds none free waits for a read that waits for nothing.

use std::ops::{Deref, DerefMut};

use super::super::SourceError;
use super::super::medium::Medium;
use super::zst::{CONTEXT_BYTES, Decompressor, Frame};
use crate::sync::{Condvar, Mutex, PoisonError, lock};

/// The most that a workbench has to hold at a time, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The largest frame, as it lies there, and its content.
    pub(super) frame: u64,
    pub(super) content: u64,
    /// The largest member that is compressed by itself, as it lies there.
    pub(super) member: u64,
}

impl Needs {
    fn bytes(self) -> u64 {
        match self.frame + self.content + self.member {
            0 => 0,
            bytes => bytes + CONTEXT_BYTES,
        }
    }
}

/// So many workbenches.
#[derive(Debug)]
pub(super) struct Benches {
    free: Mutex<Vec<Workbench>>,
    returned: Condvar,
    count: usize,
    needs: Needs,
}

/// What one read decompresses with.
pub(super) struct Workbench {
    pub(super) decompressor: Decompressor,
    /// A member that is compressed by itself.
    pub(super) member: Vec<u8>,
    compressed: Vec<u8>,
    /// Of the frame that came last: the next sample may lie in it too.
    content: Vec<u8>,
    frame: Option<(u32, usize)>,
}

impl std::fmt::Debug for Workbench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workbench({:?})", self.frame)
    }
}

/// A workbench, which goes back by itself.
pub(super) struct Lent<'a> {
    /// None only while it goes back.
    bench: Option<Workbench>,
    home: &'a Benches,
}

impl Benches {
    /// As many as reads should be under way at once; none where there is nothing to decompress.
    pub(super) fn new(count: usize, needs: Needs) -> Self {
        let count = if needs.bytes() > 0 { count.max(1) } else { 0 };
        // Pages of these are taken when they are first written to.
        let room = |bytes: u64| Vec::with_capacity(usize::try_from(bytes).unwrap_or(usize::MAX));
        let bench = || Workbench {
            decompressor: Decompressor::new(),
            member: room(needs.member),
            compressed: room(needs.frame),
            content: room(needs.content),
            frame: None,
        };
        Benches { free: Mutex::new((0..count).map(|_| bench()).collect()), returned: Condvar::new(), count, needs }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// What all of them hold, at most.
    pub(super) fn held_bytes(&self) -> u64 {
        self.count as u64 * self.needs.bytes()
    }

    /// # Panics
    /// Panics where there is nothing to decompress.
    pub(super) fn lend(&self) -> Lent<'_> {
        assert!(self.count > 0, "a workbench is asked for, and nothing is compressed");
        let mut free = lock(&self.free);
        loop {
            match free.pop() {
                Some(bench) => return Lent { bench: Some(bench), home: self },
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(bench) = self.bench.take() {
            lock(&self.home.free).push(bench);
            self.home.returned.notify_one();
        }
    }
}

impl Deref for Lent<'_> {
    type Target = Workbench;
    fn deref(&self) -> &Workbench {
        match &self.bench {
            Some(bench) => bench,
            None => unreachable!("it is on its way back"),
        }
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Workbench {
        match &mut self.bench {
            Some(bench) => bench,
            None => unreachable!("it is on its way back"),
        }
    }
}

impl Workbench {
    /// Reads a range of what a shard's frames decompress to. `shard` is its number and its frames, which cover the range.
    pub(super) fn read(
        &mut self,
        medium: &Medium,
        shard: (u32, &[Frame]),
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let (number, frames) = shard;
        let mut at = frames.partition_point(|frame| frame.content_start + frame.content_bytes <= offset);
        let mut filled = 0;
        while filled < out.len() {
            let frame = frames[at];
            self.load(medium, (number, at), frame)?;
            let from = (offset + filled as u64 - frame.content_start) as usize;
            let count = (out.len() - filled).min(self.content.len() - from);
            out[filled..filled + count].copy_from_slice(&self.content[from..from + count]);
            (filled, at) = (filled + count, at + 1);
        }
        Ok(())
    }

    fn load(&mut self, medium: &Medium, key: (u32, usize), frame: Frame) -> Result<(), SourceError> {
        if self.frame == Some(key) {
            return Ok(());
        }
        self.frame = None;
        self.compressed.resize(frame.bytes as usize, 0);
        medium.read_at(frame.offset, &mut self.compressed)?;
        self.content.resize(frame.content_bytes as usize, 0);
        let failed = |cause| SourceError::unusable(medium.path(), Some(frame.offset), cause);
        self.decompressor.frame(&self.compressed, &mut self.content).map_err(failed)?;
        self.frame = Some(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{AtomicUsize, Ordering};

    #[test]
    fn no_more_than_there_are_work_at_once() {
        let benches = Benches::new(3, Needs { member: 10, ..Needs::default() });
        assert_eq!((benches.count(), benches.held_bytes()), (3, 3 * (10 + CONTEXT_BYTES)));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut bench = benches.lend();
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        bench.member.resize(10, 0);
                        std::thread::sleep(std::time::Duration::from_micros(20));
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            // One that panics gives its bench back as well.
            let panicked = scope.spawn(|| {
                let _bench = benches.lend();
                panic!("a fault that this test asked for");
            });
            assert!(panicked.join().is_err());
        });
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(lock(&benches.free).len(), 3);
    }

    #[test]
    fn where_nothing_is_compressed_nothing_is_held() {
        let benches = Benches::new(4, Needs::default());
        assert_eq!((benches.count(), benches.held_bytes()), (0, 0));
    }
}
