//! Owns the two passes of a resampling: down the columns as rows arrive, then along each row that this makes, and the way
//! from there into the sample. It must never hold more rows than the filter reaches over, and it writes each byte of a
//! sample once.
//!
//! ```text
//! Rows (lying in memory, or pulled) --Down--> a row between the passes --Along--> Sink: its place in the sample
//! ```

use super::kernel::{BATCH, Kernel, Table};
use super::resample::Pass;
use super::weights::Axis;
use super::workspace::{ROWS_MAX, SUMS};
use crate::tensor::{CHANNELS, Region, SampleSpec};

/// The rows of a region, from the first on.
pub(super) trait Rows {
    type Error;

    /// Sees to it that the rows before `end` are there, or the last [`ROWS_MAX`] of them at most. `end` never sinks.
    fn reach(&mut self, end: usize) -> Result<(), Self::Error>;

    /// A row that is there: the columns that are looked at.
    fn row(&self, at: usize) -> &[u8];
}

/// Rows of a picture in memory.
pub(super) struct Lying<'a> {
    data: &'a [u8],
    stride: usize,
    row_bytes: usize,
}

impl<'a> Lying<'a> {
    /// Rows of `row_bytes` that begin every `stride` bytes of `data`.
    pub(super) fn new(data: &'a [u8], stride: usize, row_bytes: usize) -> Self {
        Lying { data, stride, row_bytes }
    }
}

impl Rows for Lying<'_> {
    type Error = std::convert::Infallible;

    fn reach(&mut self, _end: usize) -> Result<(), Self::Error> {
        Ok(())
    }

    fn row(&self, at: usize) -> &[u8] {
        &self.data[at * self.stride..][..self.row_bytes]
    }
}

/// Rows that a decoder writes when they are asked for. The last few are kept, in turn.
pub(super) struct Pulled<'a, F> {
    kept: &'a mut [u8],
    /// Bytes from one kept row to the next.
    stride: usize,
    /// Bytes of a row as it is pulled, and which of them are looked at.
    row_bytes: usize,
    looked_at: (usize, usize),
    pulled: usize,
    next: F,
}

impl<'a, F> Pulled<'a, F> {
    /// `columns` are the first of those that are looked at, and how many.
    pub(super) fn new(kept: &'a mut [u8], stride: usize, row_bytes: usize, columns: (usize, usize), next: F) -> Self {
        let looked_at = (columns.0 * CHANNELS, columns.1 * CHANNELS);
        Pulled { kept, stride, row_bytes, looked_at, pulled: 0, next }
    }

    fn start(&self, at: usize) -> usize {
        at % (self.kept.len() / self.stride) * self.stride
    }
}

impl<E, F: FnMut(&mut [u8]) -> Result<(), E>> Rows for Pulled<'_, F> {
    type Error = E;

    fn reach(&mut self, end: usize) -> Result<(), E> {
        while self.pulled < end {
            let start = self.start(self.pulled);
            (self.next)(&mut self.kept[start..][..self.row_bytes])?;
            self.pulled += 1;
        }
        Ok(())
    }

    fn row(&self, at: usize) -> &[u8] {
        let (first, bytes) = self.looked_at;
        &self.kept[self.start(at) + first..][..bytes]
    }
}

/// A sample's bytes, of which the target is filled row by row. What is left is black from the beginning.
pub(super) struct Sink<'o> {
    out: &'o mut [u8],
    row_bytes: usize,
    first_row: usize,
    /// Bytes before the target in each of its rows, and bytes of the target.
    before: usize,
    bytes: usize,
}

impl<'o> Sink<'o> {
    /// # Panics
    /// Panics unless `out` is one sample and the target fits it.
    pub(super) fn new(out: &'o mut [u8], spec: SampleSpec, target: Region) -> Self {
        let row_bytes = spec.width as usize * CHANNELS;
        let (first_row, end) = (target.y as usize, (target.y + target.height) as usize);
        out[..first_row * row_bytes].fill(0);
        out[end * row_bytes..].fill(0);
        let (before, bytes) = (target.x as usize * CHANNELS, target.width as usize * CHANNELS);
        Sink { out, row_bytes, first_row, before, bytes }
    }

    /// Writes a row of the target, whose first bytes are `row`'s.
    pub(super) fn put(&mut self, at: usize, row: &[u8]) {
        let out = &mut self.out[(self.first_row + at) * self.row_bytes..][..self.row_bytes];
        let (before, rest) = out.split_at_mut(self.before);
        let (middle, after) = rest.split_at_mut(self.bytes);
        before.fill(0);
        middle.copy_from_slice(&row[..self.bytes]);
        after.fill(0);
    }
}

/// What becomes of a row.
pub(super) enum Way<'a> {
    /// This many pixels stay as they are, in reverse or not.
    Copy {
        pixels: usize,
        reverse: bool,
    },
    Scale(Table<'a>),
}

impl<'a> Way<'a> {
    /// `flip` is whether rows are mirrored once more than the pass says. `taps` is the axis's number made even; `starts`
    /// and `weights` become the table.
    pub(super) fn new(pass: &Pass, flip: bool, taps: usize, starts: &'a mut [u32], weights: &'a mut [i16]) -> Self {
        match pass {
            Pass::Copy { count, mirrored, .. } => Way::Copy { pixels: *count, reverse: *mirrored != flip },
            Pass::Scale(axis) => Way::Scale(table(axis, flip, taps, starts, weights)),
        }
    }

    fn pixels(&self) -> usize {
        match self {
            Way::Copy { pixels, .. } => *pixels,
            Way::Scale(table) => table.starts.len(),
        }
    }
}

/// The pass along rows. It takes them one by one and makes several at once.
pub(super) struct Along<'a, 'o> {
    kernel: Kernel,
    way: Way<'a>,
    between: &'a mut [u8],
    made: &'a mut [u8],
    /// Where the rows that wait belong.
    places: [usize; BATCH],
    waiting: usize,
    pixels: usize,
    sink: Sink<'o>,
}

impl<'a, 'o> Along<'a, 'o> {
    pub(super) fn new(kernel: Kernel, way: Way<'a>, between: &'a mut [u8], made: &'a mut [u8], sink: Sink<'o>) -> Self {
        let pixels = way.pixels();
        Along { kernel, way, between, made, places: [0; BATCH], waiting: 0, pixels, sink }
    }

    /// Where the next row is to be written before it is [`committed`](Self::commit).
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let stride = self.between.len() / BATCH;
        &mut self.between[self.waiting * stride..][..bytes]
    }

    /// The row in [`room`](Self::room) is there; it belongs in row `place` of the target.
    fn commit(&mut self, place: usize) {
        self.places[self.waiting] = place;
        match self.way {
            Way::Copy { reverse, .. } => {
                // The only row there is.
                Self::copy(
                    self.kernel,
                    reverse,
                    &self.between[..self.pixels * CHANNELS],
                    self.made,
                    &mut self.sink,
                    place,
                );
            }
            Way::Scale(_) => {
                self.waiting += 1;
                if self.waiting == BATCH {
                    self.make();
                }
            }
        }
    }

    /// Takes a row that lies elsewhere.
    fn take(&mut self, row: &[u8], place: usize) {
        if let Way::Copy { reverse, .. } = self.way {
            return Self::copy(self.kernel, reverse, row, self.made, &mut self.sink, place);
        }
        self.room(row.len()).copy_from_slice(row);
        self.commit(place);
    }

    fn copy(kernel: Kernel, reverse: bool, row: &[u8], made: &mut [u8], sink: &mut Sink<'_>, place: usize) {
        if reverse {
            kernel.reverse(row, made);
            sink.put(place, made);
        } else {
            sink.put(place, row);
        }
    }

    /// Makes the rows that wait. Those of an unfilled batch hold whatever they held, and what they give is not used.
    fn make(&mut self) {
        let Way::Scale(table) = self.way else { return };
        if self.waiting == 0 {
            return;
        }
        let (stride, made_stride) = (self.between.len() / BATCH, self.made.len() / BATCH);
        let rows: [&[u8]; BATCH] = std::array::from_fn(|at| &self.between[at * stride..][..stride]);
        let mut left = &mut *self.made;
        let made: [&mut [u8]; BATCH] = std::array::from_fn(|_| {
            let (row, rest) = std::mem::take(&mut left).split_at_mut(made_stride);
            left = rest;
            row
        });
        self.kernel.along(rows, table, made);
        for (at, &place) in self.places[..self.waiting].iter().enumerate() {
            self.sink.put(place, &self.made[at * made_stride..][..self.pixels * CHANNELS]);
        }
        self.waiting = 0;
    }
}

/// Writes where each pixel of a row starts, and its weights, in the order in which they stand in the sample.
fn table<'a>(axis: &Axis, flip: bool, taps: usize, starts: &'a mut [u32], weights: &'a mut [i16]) -> Table<'a> {
    let count = axis.count();
    for (place, (start, weights)) in starts.iter_mut().zip(weights.chunks_exact_mut(taps)).enumerate() {
        let at = if flip { count - 1 - place } else { place };
        let (first, end) = axis.reach(at);
        // A reach that is cut short by the edge starts earlier instead, so that all are equally long and none ends
        // beyond the row.
        let from = first.min(axis.length() - axis.taps());
        let (lead, rest) = weights.split_at_mut(first - from);
        lead.fill(0);
        rest[end - first..].fill(0);
        axis.weights(at, rest);
        *start = from as u32;
    }
    Table { starts, weights, taps, places: axis.places() }
}

/// The pass down columns.
pub(super) struct Down<'a> {
    pub(super) kernel: Kernel,
    pub(super) weights: &'a mut [i16],
    pub(super) sums: &'a mut [i32],
    /// Rows of the result.
    pub(super) count: usize,
    /// Whether they are mirrored once more than the pass says.
    pub(super) flip: bool,
}

impl Down<'_> {
    /// Makes all rows and hands each on as soon as it is made.
    pub(super) fn run<R: Rows>(mut self, pass: &Pass, rows: &mut R, along: &mut Along<'_, '_>) -> Result<(), R::Error> {
        match pass {
            Pass::Copy { first, .. } => {
                for at in 0..self.count {
                    rows.reach(first + at + 1)?;
                    along.take(rows.row(first + at), pass.place(at, self.count, self.flip));
                }
            }
            Pass::Scale(axis) if axis.taps() <= ROWS_MAX => self.at_once(axis, pass, rows, along)?,
            Pass::Scale(axis) => self.running(axis, pass, rows, along)?,
        }
        along.make();
        Ok(())
    }

    /// Each row of the result out of rows that are all there.
    fn at_once<R: Rows>(
        &mut self,
        axis: &Axis,
        pass: &Pass,
        rows: &mut R,
        along: &mut Along<'_, '_>,
    ) -> Result<(), R::Error> {
        for at in 0..self.count {
            let (first, end) = axis.weights(seen(axis, at), self.weights);
            rows.reach(end)?;
            let mut list = [&[] as &[u8]; ROWS_MAX];
            let count = listed(rows, first, end, self.weights, &mut list);
            let room = along.room(list[0].len());
            self.kernel.down(&list[..count], &self.weights[..count], axis.places(), room);
            along.commit(pass.place(at, self.count, self.flip));
        }
        Ok(())
    }

    /// A filter that reaches over more rows than are kept: a block of rows after the other is added to the sums of those
    /// rows of the result that it matters for. These are two, and at the very ends of their reach a third, whose sum
    /// begins when the first one's is done.
    fn running<R: Rows>(
        &mut self,
        axis: &Axis,
        pass: &Pass,
        rows: &mut R,
        along: &mut Along<'_, '_>,
    ) -> Result<(), R::Error> {
        let (taps, sums_each) = (self.weights.len() / SUMS, self.sums.len() / SUMS);
        // The first result that is not made, and the one after the last whose weights are there.
        let (mut oldest, mut weighed) = (0, 0);
        let mut block = axis.reach(seen(axis, 0)).0;
        while oldest < self.count {
            let last_end = axis.reach(seen(axis, self.count - 1)).1;
            let block_end = (block + ROWS_MAX).min(last_end);
            rows.reach(block_end)?;
            let under_way = oldest..self.count;
            for at in under_way {
                let (first, end) = axis.reach(seen(axis, at));
                if first >= block_end {
                    break;
                }
                let weights = &mut self.weights[at % SUMS * taps..][..taps];
                if at == weighed {
                    axis.weights(seen(axis, at), weights);
                    weighed += 1;
                }
                let (from, to) = (first.max(block), end.min(block_end));
                let sums = &mut self.sums[at % SUMS * sums_each..][..sums_each];
                if from < to {
                    let mut part = [0; ROWS_MAX];
                    part[..to - from].copy_from_slice(&weights[from - first..to - first]);
                    let mut list = [&[] as &[u8]; ROWS_MAX];
                    let count = listed(rows, from, to, &mut part, &mut list);
                    self.kernel.gather(&list[..count], &part[..count], from == first, sums);
                }
                if end <= block_end {
                    self.kernel.settle(sums, axis.places(), along.room(sums_each));
                    along.commit(pass.place(at, self.count, self.flip));
                    oldest = at + 1;
                }
            }
            block = block_end;
        }
        Ok(())
    }
}

/// Which pixel of the result, counted as seen, is the `at`th in stored order.
fn seen(axis: &Axis, at: usize) -> usize {
    if axis.mirrored() { axis.count() - 1 - at } else { at }
}

/// Lists rows `first..end`, and one of them again with no weight where their number is odd. Returns how many there are.
fn listed<'r, R: Rows>(
    rows: &'r R,
    first: usize,
    end: usize,
    weights: &mut [i16],
    list: &mut [&'r [u8]; ROWS_MAX],
) -> usize {
    let count = end - first;
    for (entry, at) in list.iter_mut().zip(first..end) {
        *entry = rows.row(at);
    }
    if count.is_multiple_of(2) {
        return count;
    }
    list[count] = list[0];
    weights[count] = 0;
    count + 1
}
