//! Owns the arithmetic of requests: reads are cut where they are too large for one, and neighbours are asked for
//! together. It must never read.

use std::ops::Range;

/// Memory for a part of an object, all or some of what a read wants.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// The number of the read.
    pub(super) read: usize,
    /// Where in the object that which belongs into it begins.
    pub(super) offset: u64,
    pub(super) out: &'a mut [u8],
}

impl Piece<'_> {
    fn end(&self) -> u64 {
        self.offset + self.out.len() as u64
    }
}

/// The pieces of some reads, none larger than a request, by offset. Empty reads vanish.
pub(super) fn cut<'a>(reads: impl Iterator<Item = Piece<'a>>, bytes_max: u64) -> Vec<Piece<'a>> {
    let step = usize::try_from(bytes_max).unwrap_or(usize::MAX).max(1);
    let mut pieces = Vec::new();
    for Piece { read, mut offset, out } in reads {
        for out in out.chunks_mut(step) {
            let bytes = out.len() as u64;
            pieces.push(Piece { read, offset, out });
            offset += bytes;
        }
    }
    pieces.sort_by_key(|piece| piece.offset);
    pieces
}

/// Parts pieces that are in order into requests: each takes in the next piece while what lies between is small and the
/// whole not too large. Pieces that overlap are not asked for together.
pub(super) fn join<'a>(pieces: Vec<Piece<'a>>, gap_bytes: u64, bytes_max: u64) -> Vec<Scatter<'a>> {
    let mut joined: Vec<Scatter<'a>> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last)
                if piece.offset.checked_sub(last.range().end).is_some_and(|gap| gap <= gap_bytes)
                    && piece.end() - last.range().start <= bytes_max =>
            {
                last.pieces.push(piece);
            }
            _ => joined.push(Scatter::of(piece)),
        }
    }
    joined
}

/// The memory that one request fills: pieces in order that do not overlap. What lies between them goes nowhere.
#[derive(Debug)]
pub(super) struct Scatter<'a> {
    pieces: Vec<Piece<'a>>,
}

impl<'a> Scatter<'a> {
    pub(super) fn of(piece: Piece<'a>) -> Self {
        Scatter { pieces: vec![piece] }
    }

    pub(super) fn range(&self) -> Range<u64> {
        let start = self.pieces.first().map_or(0, |piece| piece.offset);
        let end = self.pieces.last().map_or(0, Piece::end);
        start..end
    }

    /// The numbers of the reads that it fills some of.
    pub(super) fn reads(&self) -> impl Iterator<Item = usize> {
        self.pieces.iter().map(|piece| piece.read)
    }
}

/// Where bytes of an object are put as they arrive.
pub(super) trait Sink: Send {
    fn put(&mut self, offset: u64, bytes: &[u8]);
}

impl Sink for Scatter<'_> {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let first = self.pieces.partition_point(|piece| piece.end() <= offset);
        for piece in &mut self.pieces[first..] {
            if piece.offset >= end {
                return;
            }
            let (from, to) = (offset.max(piece.offset), end.min(piece.end()));
            let source = &bytes[(from - offset) as usize..(to - offset) as usize];
            piece.out[(from - piece.offset) as usize..(to - piece.offset) as usize].copy_from_slice(source);
        }
    }
}

/// Memory for a whole range.
pub(super) struct Whole {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Sink for Whole {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = (offset - self.start) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(reads: &[(u64, usize)]) -> Vec<(u64, Vec<u8>)> {
        reads.iter().map(|&(at, bytes)| (at, vec![0xEE; bytes])).collect()
    }

    fn requests(memory: &mut [(u64, Vec<u8>)], gap: u64, max: u64) -> Vec<Scatter<'_>> {
        let pieces = memory.iter_mut().enumerate();
        let pieces = pieces.map(|(read, (offset, out))| Piece { read, offset: *offset, out });
        join(cut(pieces, max), gap, max)
    }

    fn plan(reads: &[(u64, usize)], gap: u64, max: u64) -> Vec<Range<u64>> {
        requests(&mut memory(reads), gap, max).iter().map(Scatter::range).collect()
    }

    #[test]
    fn neighbours_are_joined_up_to_a_gap_and_a_size() {
        let joined = plan(&[(0, 10), (10, 10), (25, 5)], 5, 100);
        assert_eq!((joined.len(), joined[0].clone()), (1, 0..30));
        assert_eq!(plan(&[(25, 5), (0, 10), (10, 10)], 4, 100), [0..20, 25..30]);
        assert_eq!(plan(&[(0, 10), (10, 10), (20, 10)], 5, 20), [0..20, 20..30]);
        assert_eq!(plan(&[(5, 25)], 0, 10), [5..15, 15..25, 25..30]);
        assert_eq!(plan(&[(0, 10), (5, 10)], 5, 100), [0..10, 5..15], "an overlap");
        assert_eq!(plan(&[(7, 0)], 5, 100), [] as [Range<u64>; 0]);
    }

    proptest! {
        #[test]
        fn every_byte_lands_where_it_belongs(
            reads in prop::collection::vec((0u64..900, 0usize..100), 0..20),
            gap in 0u64..50, max in 1u64..300, step in 1usize..70,
        ) {
            let object: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
            let mut memory = memory(&reads);
            let mut of_read = vec![0; reads.len()];
            for mut scatter in requests(&mut memory, gap, max) {
                let range = scatter.range();
                scatter.reads().for_each(|read| of_read[read] += 1);
                prop_assert!(range.end - range.start <= max && !range.is_empty());
                let mut at = range.start;
                for frame in object[range.start as usize..range.end as usize].chunks(step) {
                    scatter.put(at, frame);
                    at += frame.len() as u64;
                }
            }
            for ((at, out), of_read) in memory.iter().zip(of_read) {
                prop_assert_eq!(out, &object[*at as usize..*at as usize + out.len()]);
                prop_assert_eq!(of_read, out.len().div_ceil(max as usize));
            }
        }
    }
}
