//! Owns the memory that decoded pixels are written to. It must never be larger than what was asked of it, and never
//! abort where the allocator refuses.

use super::DecodeError;

/// A worker's pixels: grows to what is asked, exactly; keeps its memory from image to image; can be shrunk.
///
/// Memory is zeroed once, when it is first taken; what an earlier image left behind is for the decoder to overwrite.
///
/// ```
/// use feedstock::decode::Slab;
/// let mut slab = Slab::new();
/// assert_eq!(slab.prepare(1000).map(|bytes| bytes.len()), Ok(1000));
/// slab.prepare(10).unwrap();
/// assert_eq!(slab.capacity_bytes(), 1000);
/// slab.shrink_to(0);
/// assert_eq!(slab.capacity_bytes(), 0);
/// ```
#[derive(Debug, Default)]
pub struct Slab {
    bytes: Vec<u8>,
}

impl Slab {
    /// A slab that holds nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Slab { bytes: Vec::new() }
    }

    /// Exactly `bytes` bytes, with whatever the last image left in them.
    ///
    /// # Errors
    /// [`DecodeError::OutOfMemory`] where the allocator refuses; the slab is then empty.
    pub fn prepare(&mut self, bytes: usize) -> Result<&mut [u8], DecodeError> {
        if bytes > self.bytes.len() {
            if bytes > self.bytes.capacity() {
                // The old pixels are of no use: giving them back first keeps the peak at the larger of the two.
                self.bytes = Vec::new();
                self.bytes.try_reserve_exact(bytes).map_err(|_| DecodeError::OutOfMemory { bytes: bytes as u64 })?;
            }
            self.bytes.resize(bytes, 0);
        }
        Ok(&mut self.bytes[..bytes])
    }

    /// Bytes that the slab holds of the process's memory.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back all memory above `bytes`; what stays is of no use until the next [`prepare`](Slab::prepare).
    pub fn shrink_to(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
        self.bytes.shrink_to(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_exactly_and_keeps_its_memory() {
        let mut slab = Slab::new();
        for (asked, held) in [(100, 100), (50, 100), (101, 101), (0, 101), (4097, 4097)] {
            assert_eq!(slab.prepare(asked).expect("small").len(), asked);
            assert_eq!(slab.capacity_bytes(), held);
        }
        slab.shrink_to(99);
        assert_eq!(slab.capacity_bytes(), 99);
        assert_eq!(slab.prepare(99).expect("small").len(), 99);
        slab.shrink_to(1 << 20);
        assert_eq!(slab.capacity_bytes(), 99);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut slab = Slab::new();
        let error = slab.prepare(isize::MAX as usize).expect_err("more than there is");
        assert_eq!(error, DecodeError::OutOfMemory { bytes: isize::MAX as u64 });
        assert_eq!(slab.prepare(1).expect("one byte").len(), 1);
    }
}
