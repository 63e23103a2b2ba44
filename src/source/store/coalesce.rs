//! Planning of range requests: reads larger than a request are split, and neighboring reads are merged into one
//! request.

use std::ops::Range;

/// Part of the buffer of one read.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    /// Number of the read.
    pub(super) read: usize,
    /// Offset in the object.
    pub(super) offset: u64,
    pub(super) out: &'a mut [u8],
}

impl Segment<'_> {
    fn end(&self) -> u64 {
        self.offset + self.out.len() as u64
    }
}

/// Splits reads into segments no larger than a request, sorted by offset. Empty reads have no segments.
pub(super) fn split<'a>(reads: impl Iterator<Item = Segment<'a>>, bytes_max: u64) -> Vec<Segment<'a>> {
    let step = usize::try_from(bytes_max).unwrap_or(usize::MAX).max(1);
    let mut segments = Vec::new();
    for Segment { read, mut offset, out } in reads {
        for out in out.chunks_mut(step) {
            let bytes = out.len() as u64;
            segments.push(Segment { read, offset, out });
            offset += bytes;
        }
    }
    segments.sort_by_key(|segment| segment.offset);
    segments
}

/// Merges sorted segments into requests: a segment joins the request before it while the gap between them is at most
/// `gap_bytes` and the request stays within `bytes_max`. Overlapping segments are never merged.
pub(super) fn coalesce<'a>(segments: Vec<Segment<'a>>, gap_bytes: u64, bytes_max: u64) -> Vec<ScatterRead<'a>> {
    let mut requests: Vec<ScatterRead<'a>> = Vec::new();
    for segment in segments {
        match requests.last_mut() {
            Some(last)
                if segment.offset.checked_sub(last.range().end).is_some_and(|gap| gap <= gap_bytes)
                    && segment.end() - last.range().start <= bytes_max =>
            {
                last.segments.push(segment);
            }
            _ => requests.push(segment.into()),
        }
    }
    requests
}

/// Destination of one request: sorted segments that do not overlap. Bytes of the gaps are discarded.
#[derive(Debug)]
pub(super) struct ScatterRead<'a> {
    segments: Vec<Segment<'a>>,
}

impl<'a> From<Segment<'a>> for ScatterRead<'a> {
    fn from(segment: Segment<'a>) -> Self {
        ScatterRead { segments: vec![segment] }
    }
}

impl ScatterRead<'_> {
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |segment| segment.offset);
        let end = self.segments.last().map_or(0, Segment::end);
        start..end
    }

    /// Numbers of the reads that this request is part of.
    pub(super) fn reads(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.read)
    }
}

/// Destination of the bytes of an object as they arrive.
pub(super) trait RangeSink: Send {
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

impl RangeSink for ScatterRead<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let first = self.segments.partition_point(|segment| segment.end() <= offset);
        for segment in &mut self.segments[first..] {
            if segment.offset >= end {
                return;
            }
            let (from, to) = (offset.max(segment.offset), end.min(segment.end()));
            let source = &bytes[(from - offset) as usize..(to - offset) as usize];
            segment.out[(from - segment.offset) as usize..(to - segment.offset) as usize].copy_from_slice(source);
        }
    }
}

/// Buffer for a whole range.
pub(super) struct RangeBuffer {
    start: u64,
    pub(super) bytes: Vec<u8>,
}

impl RangeBuffer {
    pub(super) fn new(range: &Range<u64>) -> Self {
        RangeBuffer { start: range.start, bytes: vec![0; (range.end - range.start) as usize] }
    }
}

impl RangeSink for RangeBuffer {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
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

    fn requests(memory: &mut [(u64, Vec<u8>)], gap: u64, max: u64) -> Vec<ScatterRead<'_>> {
        let reads = memory.iter_mut().enumerate();
        let reads = reads.map(|(read, (offset, out))| Segment { read, offset: *offset, out });
        coalesce(split(reads, max), gap, max)
    }

    fn plan(reads: &[(u64, usize)], gap: u64, max: u64) -> Vec<Range<u64>> {
        requests(&mut memory(reads), gap, max).iter().map(ScatterRead::range).collect()
    }

    #[test]
    fn neighbors_are_merged_up_to_a_gap_and_a_size() {
        let merged = plan(&[(0, 10), (10, 10), (25, 5)], 5, 100);
        assert_eq!((merged.len(), merged[0].clone()), (1, 0..30));
        assert_eq!(plan(&[(25, 5), (0, 10), (10, 10)], 4, 100), [0..20, 25..30]);
        assert_eq!(plan(&[(0, 10), (10, 10), (20, 10)], 5, 20), [0..20, 20..30]);
        assert_eq!(plan(&[(5, 25)], 0, 10), [5..15, 15..25, 25..30]);
        assert_eq!(plan(&[(0, 10), (5, 10)], 5, 100), [0..10, 5..15], "an overlap");
        assert_eq!(plan(&[(7, 0)], 5, 100), [] as [Range<u64>; 0]);
    }

    proptest! {
        #[test]
        fn every_byte_reaches_its_destination(
            reads in prop::collection::vec((0u64..900, 0usize..100), 0..20),
            gap in 0u64..50, max in 1u64..300, step in 1usize..70,
        ) {
            let object: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
            let mut memory = memory(&reads);
            let mut of_read = vec![0; reads.len()];
            for mut request in requests(&mut memory, gap, max) {
                let range = request.range();
                request.reads().for_each(|read| of_read[read] += 1);
                prop_assert!(range.end - range.start <= max && !range.is_empty());
                let mut at = range.start;
                for frame in object[range.start as usize..range.end as usize].chunks(step) {
                    request.write(at, frame);
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
