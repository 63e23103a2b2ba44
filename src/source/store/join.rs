//! Owns the arithmetic of requests: reads are cut where they are too large for one, and neighbours are asked for
//! together. It must never read.

use std::ops::Range;

/// Memory, and the offset in the object of what belongs into it.
pub(super) type Piece<'a> = (u64, &'a mut [u8]);

/// The pieces of some reads, none larger than a request, by offset. Empty reads vanish.
pub(super) fn cut<'a>(reads: &'a mut [(u64, &mut [u8])], bytes_max: u64) -> Vec<Piece<'a>> {
    let step = usize::try_from(bytes_max).unwrap_or(usize::MAX).max(1);
    let mut pieces = Vec::with_capacity(reads.len());
    for (offset, out) in reads.iter_mut() {
        let mut at = *offset;
        for piece in out.chunks_mut(step) {
            let bytes = piece.len() as u64;
            pieces.push((at, piece));
            at += bytes;
        }
    }
    pieces.sort_by_key(|(offset, _)| *offset);
    pieces
}

/// Parts pieces that are in order into requests: each takes in the next piece while what lies between is small and the
/// whole not too large. Pieces that overlap are not asked for together.
pub(super) fn join<'a>(pieces: Vec<Piece<'a>>, gap_bytes: u64, bytes_max: u64) -> Vec<Scatter<'a>> {
    let mut joined: Vec<Scatter<'a>> = Vec::new();
    for piece in pieces {
        let end = piece.0 + piece.1.len() as u64;
        match joined.last_mut() {
            Some(last)
                if piece.0.checked_sub(last.range().end).is_some_and(|gap| gap <= gap_bytes)
                    && end - last.range().start <= bytes_max =>
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
        let start = self.pieces.first().map_or(0, |piece| piece.0);
        let end = self.pieces.last().map_or(0, |piece| piece.0 + piece.1.len() as u64);
        start..end
    }
}

/// Where bytes of an object are put as they arrive.
pub(super) trait Sink: Send {
    fn put(&mut self, offset: u64, bytes: &[u8]);
}

impl Sink for Scatter<'_> {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let first = self.pieces.partition_point(|(at, piece)| at + piece.len() as u64 <= offset);
        for (at, piece) in &mut self.pieces[first..] {
            if *at >= end {
                return;
            }
            let (from, to) = (offset.max(*at), end.min(*at + piece.len() as u64));
            let source = &bytes[(from - offset) as usize..(to - offset) as usize];
            piece[(from - *at) as usize..(to - *at) as usize].copy_from_slice(source);
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

    fn plan(reads: &[(u64, usize)], gap: u64, max: u64) -> Vec<Range<u64>> {
        let mut memory: Vec<(u64, Vec<u8>)> = reads.iter().map(|&(at, bytes)| (at, vec![0; bytes])).collect();
        let mut reads: Vec<(u64, &mut [u8])> = memory.iter_mut().map(|(at, out)| (*at, out.as_mut_slice())).collect();
        join(cut(&mut reads, max), gap, max).iter().map(Scatter::range).collect()
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
            let mut memory: Vec<(u64, Vec<u8>)> = reads.iter().map(|&(at, n)| (at, vec![0xEE; n])).collect();
            let outs = memory.iter_mut().map(|(at, out)| (*at, out.as_mut_slice()));
            let mut outs: Vec<(u64, &mut [u8])> = outs.collect();
            for mut scatter in join(cut(&mut outs, max), gap, max) {
                let range = scatter.range();
                prop_assert!(range.end - range.start <= max && !range.is_empty());
                let mut at = range.start;
                for frame in object[range.start as usize..range.end as usize].chunks(step) {
                    scatter.put(at, frame);
                    at += frame.len() as u64;
                }
            }
            for (at, out) in &memory {
                prop_assert_eq!(out, &object[*at as usize..*at as usize + out.len()]);
            }
        }
    }
}
