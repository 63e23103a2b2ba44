//! Fixed pool of decompression workspaces.
//!
//! [`DecompressorPool::with`] blocks until a workspace is free. A caller that has one takes no other lock, so this
//! cannot deadlock.

use super::zst::{CONTEXT_BYTES, Decompressor, Frame};
use crate::source::shard_io::ShardIo;
use crate::source::{PageCache, SourceError};
use crate::sync::{Condvar, Mutex, PoisonError, lock};

/// Maximum sizes of the buffers of a workspace, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BufferSizes {
    /// Compressed frame.
    pub(super) frame: u64,
    /// Content of a frame.
    pub(super) content: u64,
    /// Compressed member.
    pub(super) member: u64,
}

impl BufferSizes {
    /// Memory of a workspace: 0 if nothing is compressed.
    fn workspace_bytes(self) -> u64 {
        match self.frame + self.content + self.member {
            0 => 0,
            bytes => bytes + CONTEXT_BYTES,
        }
    }
}

/// A pool of workspaces. It is empty if nothing is compressed.
#[derive(Debug)]
pub(super) struct DecompressorPool {
    workspaces: Vec<Mutex<Workspace>>,
    /// Indices of free workspaces.
    free: Mutex<Vec<usize>>,
    returned: Condvar,
    sizes: BufferSizes,
}

/// Decompressor and buffers of one read.
pub(super) struct Workspace {
    pub(super) decompressor: Decompressor,
    /// A compressed member.
    pub(super) member: Vec<u8>,
    compressed: Vec<u8>,
    /// Content of the last frame: the next sample may be in it too.
    content: Vec<u8>,
    /// Shard and index of the last frame.
    frame: Option<(u32, usize)>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workspace({:?})", self.frame)
    }
}

/// Returns a workspace to the pool when it is dropped, by a panic too.
struct Returning<'a>(&'a DecompressorPool, usize);

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        lock(&self.0.free).push(self.1);
        self.0.returned.notify_one();
    }
}

impl DecompressorPool {
    /// Creates up to `count` workspaces with buffers of these sizes.
    pub(super) fn new(count: usize, sizes: BufferSizes) -> Self {
        let count = if sizes.workspace_bytes() > 0 { count.max(1) } else { 0 };
        let buffer = |bytes: u64| Vec::with_capacity(usize::try_from(bytes).unwrap_or(usize::MAX));
        let workspace = |_| {
            Mutex::new(Workspace {
                decompressor: Decompressor::new(),
                member: buffer(sizes.member),
                compressed: buffer(sizes.frame),
                content: buffer(sizes.content),
                frame: None,
            })
        };
        DecompressorPool {
            workspaces: (0..count).map(workspace).collect(),
            free: Mutex::new((0..count).collect()),
            returned: Condvar::new(),
            sizes,
        }
    }

    /// Number of workspaces.
    pub(super) fn count(&self) -> usize {
        self.workspaces.len()
    }

    /// Memory of all workspaces, bytes.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.count() as u64 * self.sizes.workspace_bytes()
    }

    /// Calls `work` with a workspace, after waiting for a free one.
    ///
    /// # Panics
    /// Panics if the pool is empty.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        assert!(self.count() > 0, "the pool of decompressors is empty");
        let mut free = lock(&self.free);
        let index = loop {
            match free.pop() {
                Some(index) => break index,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let _returning = Returning(self, index);
        work(&mut lock(&self.workspaces[index]))
    }
}

impl Workspace {
    /// Reads a range of a shard's decompressed content. `frames` are the frames of shard `number` and cover the range.
    pub(super) fn read(
        &mut self,
        (io, page_cache): (&dyn ShardIo, PageCache),
        (number, frames): (u32, &[Frame]),
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let mut at = frames.partition_point(|frame| frame.content_start + frame.content_bytes <= offset);
        let mut filled = 0;
        while filled < out.len() {
            let frame = frames[at];
            self.load((io, page_cache), (number, at), frame)?;
            let from = (offset + filled as u64 - frame.content_start) as usize;
            let count = (out.len() - filled).min(self.content.len() - from);
            out[filled..filled + count].copy_from_slice(&self.content[from..from + count]);
            (filled, at) = (filled + count, at + 1);
        }
        Ok(())
    }

    /// Decompresses a frame, unless it is the last one that was.
    fn load(
        &mut self,
        (io, page_cache): (&dyn ShardIo, PageCache),
        key: (u32, usize),
        frame: Frame,
    ) -> Result<(), SourceError> {
        if self.frame == Some(key) {
            return Ok(());
        }
        self.frame = None;
        self.compressed.resize(frame.bytes as usize, 0);
        io.read_at(frame.offset, &mut self.compressed, page_cache)?;
        self.content.resize(frame.content_bytes as usize, 0);
        let failed = |cause| SourceError::damaged(io.path(), Some(frame.offset), cause);
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
    fn concurrent_work_is_limited_to_the_pool() {
        let pool = DecompressorPool::new(3, BufferSizes { member: 10, ..BufferSizes::default() });
        assert_eq!((pool.count(), pool.capacity_bytes()), (3, 3 * (10 + CONTEXT_BYTES)));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.with(|workspace| {
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            workspace.member.resize(10, 0);
                            std::thread::sleep(std::time::Duration::from_micros(20));
                            now.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
            // A panic returns the workspace as well.
            assert!(scope.spawn(|| pool.with(|_| panic!("a panic of this test"))).join().is_err());
        });
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(lock(&pool.free).len(), 3);
    }

    #[test]
    fn the_pool_is_empty_without_compression() {
        let pool = DecompressorPool::new(4, BufferSizes::default());
        assert_eq!((pool.count(), pool.capacity_bytes()), (0, 0));
    }
}
