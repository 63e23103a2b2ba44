//! Owns the two passes over a picture, down its columns and along its rows, and the order in which rows come and go. It
//! must never hold more rows than the filter reaches over, nor write a byte of the sample twice.

use super::Region;
use super::kernel::{BATCH, Kernel, Table};
use super::weights::Axis;
use super::workspace::{ROW_SKEW, ROWS_MAX};
use crate::tensor::{CHANNELS, SampleSpec};

/// What happens to one stored axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pass {
    /// Pixels stay as they are: `count` of them from the `first` stored one. `mirrored` is whether they are seen the other
    /// way round.
    Copy { first: usize, count: usize, mirrored: bool },
    /// Pixels are weighed.
    Scale(Axis),
}

impl Pass {
    /// A window of `span` pixels from `start`, inside `length` stored pixels, becomes `count` pixels.
    pub(super) fn new(start: f64, span: f64, length: u32, count: u32, mirrored: bool) -> Self {
        if span == f64::from(count) && start.fract() == 0.0 {
            return Pass::Copy { first: start as usize, count: count as usize, mirrored };
        }
        Pass::Scale(Axis::new(start, span, length as usize, count as usize, mirrored))
    }

    fn count(&self) -> usize {
        match self {
            Pass::Copy { count, .. } => *count,
            Pass::Scale(axis) => axis.count(),
        }
    }

    /// Whether what comes first of the stored axis comes last in the sample, which may be flipped besides.
    fn turns(&self, flip: bool) -> bool {
        match self {
            Pass::Copy { mirrored, .. } => *mirrored != flip,
            Pass::Scale(axis) => axis.mirrored() != flip,
        }
    }
}

/// The rows of a region, from the first on.
pub(super) trait Rows {
    type Error;

    /// Sees to it that all rows before `end` have come.
    fn advance(&mut self, end: usize) -> Result<(), Self::Error>;

    /// The looked-at columns of a row: one of the last that have come, as many as are kept.
    fn row(&self, at: usize) -> &[u8];
}

/// The rows of a picture in memory, where they lie.
pub(super) struct Lying<'a> {
    data: &'a [u8],
    stride_bytes: usize,
    row_bytes: usize,
}

impl<'a> Lying<'a> {
    /// `data` begins with the first pixel that is looked at.
    pub(super) fn new(data: &'a [u8], stride_bytes: usize, row_bytes: usize) -> Self {
        Lying { data, stride_bytes, row_bytes }
    }
}

impl Rows for Lying<'_> {
    type Error = std::convert::Infallible;

    fn advance(&mut self, _end: usize) -> Result<(), Self::Error> {
        Ok(())
    }

    fn row(&self, at: usize) -> &[u8] {
        &self.data[at * self.stride_bytes..][..self.row_bytes]
    }
}

/// Rows that are pulled one by one into a ring.
pub(super) struct Pulled<'w, F> {
    kept: &'w mut [u8],
    stride_bytes: usize,
    row_bytes: usize,
    /// The bytes of a row that are looked at: the first, and how many.
    columns: (usize, usize),
    come: usize,
    pull: F,
}

impl<'w, F> Pulled<'w, F> {
    /// A ring of as many rows as `kept` holds. `columns` are the first pixel that is looked at, and how many are.
    pub(super) fn new(
        kept: &'w mut [u8],
        stride_bytes: usize,
        row_bytes: usize,
        columns: (usize, usize),
        pull: F,
    ) -> Self {
        let columns = (columns.0 * CHANNELS, columns.1 * CHANNELS);
        Pulled { kept, stride_bytes, row_bytes, columns, come: 0, pull }
    }

    fn place(&self, at: usize) -> usize {
        at % (self.kept.len() / self.stride_bytes) * self.stride_bytes + ROW_SKEW
    }
}

impl<E, F: FnMut(&mut [u8]) -> Result<(), E>> Rows for Pulled<'_, F> {
    type Error = E;

    fn advance(&mut self, end: usize) -> Result<(), E> {
        while self.come < end {
            let place = self.place(self.come);
            (self.pull)(&mut self.kept[place..][..self.row_bytes])?;
            self.come += 1;
        }
        Ok(())
    }

    fn row(&self, at: usize) -> &[u8] {
        debug_assert!(at < self.come && self.come - at <= self.kept.len() / self.stride_bytes);
        &self.kept[self.place(at) + self.columns.0..][..self.columns.1]
    }
}

/// The sample's bytes, of which a part is filled row by row and the rest is black. It is written and never read.
pub(super) struct Sink<'o> {
    out: &'o mut [u8],
    stride_bytes: usize,
    first_row: usize,
    before_bytes: usize,
    row_bytes: usize,
}

impl<'o> Sink<'o> {
    /// Blackens the rows of `out` that are not of the target.
    pub(super) fn new(out: &'o mut [u8], spec: SampleSpec, target: Region) -> Self {
        let stride_bytes = spec.width as usize * CHANNELS;
        let first_row = target.y as usize;
        out[..first_row * stride_bytes].fill(0);
        out[(first_row + target.height as usize) * stride_bytes..].fill(0);
        let (before_bytes, row_bytes) = (target.x as usize * CHANNELS, target.width as usize * CHANNELS);
        Sink { out, stride_bytes, first_row, before_bytes, row_bytes }
    }

    /// Writes a row of the target, which nobody did before, and the black at its sides.
    pub(super) fn put(&mut self, row: usize, pixels: &[u8]) {
        let out = &mut self.out[(self.first_row + row) * self.stride_bytes..][..self.stride_bytes];
        let (before, out) = out.split_at_mut(self.before_bytes);
        let (target, after) = out.split_at_mut(self.row_bytes);
        // Hardly any sample has black at its sides, and to fill nothing is a call too.
        if !before.is_empty() {
            before.fill(0);
        }
        target.copy_from_slice(&pixels[..self.row_bytes]);
        if !after.is_empty() {
            after.fill(0);
        }
    }
}

/// The second pass: takes whole rows of the columns that are looked at, makes rows of the sample.
pub(super) struct Along<'w, 'o> {
    kernel: Kernel,
    /// Rows that wait for others to be resampled along with.
    between: &'w mut [u8],
    between_stride: usize,
    /// What was made of them, before it goes to the sample in one piece.
    made: &'w mut [u8],
    made_stride: usize,
    columns_bytes: usize,
    /// None where pixels are copied.
    table: Option<Table<'w>>,
    reversed: bool,
    waiting: usize,
    places: [usize; BATCH],
    sink: Sink<'o>,
}

impl<'w, 'o> Along<'w, 'o> {
    /// `starts` and `weights` are as many as the axis has pixels, `taps` weights for each; `between` and `made` hold
    /// [`BATCH`] rows each. `flip` is whether the sample is flipped along this axis.
    #[allow(clippy::too_many_arguments, reason = "the parts of a workspace, each of which is used here alone")]
    pub(super) fn new(
        kernel: Kernel,
        pass: &Pass,
        (columns, flip): (usize, bool),
        taps: usize,
        starts: &'w mut [u32],
        weights: &'w mut [i16],
        between: &'w mut [u8],
        made: &'w mut [u8],
        sink: Sink<'o>,
    ) -> Self {
        let table = match pass {
            Pass::Copy { .. } => None,
            Pass::Scale(axis) => {
                tabulate(axis, flip, taps, starts, weights);
                Some(Table { starts, weights, taps, places: axis.places() })
            }
        };
        let (between_stride, made_stride) = (between.len() / BATCH, made.len() / BATCH);
        Along {
            kernel,
            between,
            between_stride,
            made,
            made_stride,
            columns_bytes: columns * CHANNELS,
            table,
            reversed: pass.turns(flip),
            waiting: 0,
            places: [0; BATCH],
            sink,
        }
    }

    /// A row that is there already.
    fn take(&mut self, place: usize, row: &[u8]) {
        if self.table.is_some() {
            self.take_with(place, |to| to.copy_from_slice(row));
        } else {
            let made = self.reversed.then_some(&mut self.made[..self.made_stride]);
            copy(self.kernel, row, made, place, &mut self.sink);
        }
    }

    /// A row that `write` writes; `place` is which row of the sample it belongs to.
    fn take_with(&mut self, place: usize, write: impl FnOnce(&mut [u8])) {
        let row = &mut self.between[self.waiting * self.between_stride..][..self.columns_bytes];
        write(row);
        if self.table.is_some() {
            self.places[self.waiting] = place;
            self.waiting += 1;
            if self.waiting == BATCH {
                self.flush();
            }
        } else {
            let made = self.reversed.then_some(&mut self.made[..self.made_stride]);
            copy(self.kernel, row, made, place, &mut self.sink);
        }
    }

    /// Makes rows of the sample of those that wait. Fewer than a batch are made up for by the last, in vain.
    fn flush(&mut self) {
        let Some(table) = self.table.filter(|_| self.waiting > 0) else { return };
        let between = &*self.between;
        let rows =
            std::array::from_fn(|at| &between[at.min(self.waiting - 1) * self.between_stride..][..self.between_stride]);
        let mut made = self.made.chunks_exact_mut(self.made_stride);
        let out: [&mut [u8]; BATCH] = std::array::from_fn(|_| made.next().unwrap_or_default());
        self.kernel.along(rows, table, out);
        for (&place, row) in self.places[..self.waiting].iter().zip(self.made.chunks_exact(self.made_stride)) {
            self.sink.put(place, row);
        }
        self.waiting = 0;
    }
}

/// Puts a row whose pixels are not weighed, turned round in `made` where that is given.
fn copy(kernel: Kernel, row: &[u8], made: Option<&mut [u8]>, place: usize, sink: &mut Sink<'_>) {
    match made {
        Some(made) => {
            kernel.reverse(row, made);
            sink.put(place, made);
        }
        None => sink.put(place, row),
    }
}

/// Writes the weights of all pixels along a row, in the order of the sample, and nothing for those that are too many.
fn tabulate(axis: &Axis, flip: bool, taps: usize, starts: &mut [u32], weights: &mut [i16]) {
    let count = axis.count();
    let last_start = axis.length().saturating_sub(taps);
    // At once: a call for each pixel's last few weights would take longer than to compute them.
    weights.fill(0);
    starts[count..].fill(0);
    for ((at, start), weights) in starts[..count].iter_mut().enumerate().zip(weights.chunks_exact_mut(taps)) {
        let seen = if flip { count - 1 - at } else { at };
        let (first, end) = axis.weights(seen, weights);
        let used = end - first;
        // Near the end of the row all taps begin early enough to end within it.
        let from = first.min(last_start);
        if from < first {
            weights.copy_within(..used, first - from);
            weights[..first - from].fill(0);
        }
        *start = from as u32;
    }
}

/// The first pass: takes the picture's rows, makes rows for the second.
pub(super) struct Down<'w> {
    pub(super) kernel: Kernel,
    /// Whether the sample is flipped along this axis.
    pub(super) flip: bool,
    /// Where the filter reaches over more than [`ROWS_MAX`] rows: the weights and the sums of the two rows under way.
    pub(super) weights: &'w mut [i16],
    pub(super) sums: &'w mut [i32],
}

impl Down<'_> {
    pub(super) fn run<R: Rows>(self, pass: &Pass, rows: &mut R, along: &mut Along<'_, '_>) -> Result<(), R::Error> {
        let (count, turns) = (pass.count(), pass.turns(self.flip));
        let place = |at: usize| if turns { count - 1 - at } else { at };
        match pass {
            Pass::Copy { first, .. } => {
                for at in 0..count {
                    rows.advance(first + at + 1)?;
                    along.take(place(at), rows.row(first + at));
                }
            }
            Pass::Scale(axis) if axis.taps() <= ROWS_MAX => self.narrow(axis, place, rows, along)?,
            Pass::Scale(axis) => self.wide(axis, place, rows, along)?,
        }
        along.flush();
        Ok(())
    }

    /// All rows that matter for a row of the result are kept, and summed at once.
    fn narrow<R: Rows>(
        self,
        axis: &Axis,
        place: impl Fn(usize) -> usize,
        rows: &mut R,
        along: &mut Along<'_, '_>,
    ) -> Result<(), R::Error> {
        let mut weights = [0; ROWS_MAX];
        for at in 0..axis.count() {
            let (first, end) = axis.weights(axis.seen(at), &mut weights);
            rows.advance(end)?;
            let (rows, count) = gathered(rows, first, end);
            if count > end - first {
                weights[count - 1] = 0;
            }
            along.take_with(place(at), |to| self.kernel.down(&rows[..count], &weights[..count], axis.places(), to));
        }
        Ok(())
    }

    /// Rows come in blocks. Each block is added to the sums of the rows of the result that it matters for, which are made
    /// as soon as their last row has been added.
    fn wide<R: Rows>(
        self,
        axis: &Axis,
        place: impl Fn(usize) -> usize,
        rows: &mut R,
        along: &mut Along<'_, '_>,
    ) -> Result<(), R::Error> {
        let last = axis.reach(axis.seen(axis.count() - 1)).1;
        let (mut block, mut made) = (axis.reach(axis.seen(0)).0, 0);
        let (weights_each, sums_each) = (self.weights.len() / 2, self.sums.len() / 2);
        while made < axis.count() {
            let block_end = last.min(block + ROWS_MAX);
            rows.advance(block_end)?;
            let under_way = made;
            for at in under_way..axis.count() {
                let (first, end) = axis.reach(axis.seen(at));
                if first >= block_end {
                    break;
                }
                // By the time that the next but one begins, this one has ended.
                debug_assert!(at - made < 2);
                let weights = &mut self.weights[at % 2 * weights_each..][..weights_each];
                let sums = &mut self.sums[at % 2 * sums_each..][..sums_each];
                let begins = first >= block;
                if begins {
                    axis.weights(axis.seen(at), weights);
                }
                let (from, to) = (first.max(block), end.min(block_end));
                let (rows, count) = gathered(rows, from, to);
                let mut block_weights = [0; ROWS_MAX];
                block_weights[..to - from].copy_from_slice(&weights[from - first..to - first]);
                self.kernel.gather(&rows[..count], &block_weights[..count], begins, sums);
                if end <= block_end {
                    along.take_with(place(at), |to| self.kernel.settle(sums, axis.places(), to));
                    made = at + 1;
                }
            }
            block = block_end;
        }
        Ok(())
    }
}

/// The rows from `first` to `end`, made even in number by the last once more, and their number.
fn gathered<R: Rows>(rows: &R, first: usize, end: usize) -> ([&[u8]; ROWS_MAX], usize) {
    let mut gathered: [&[u8]; ROWS_MAX] = [&[]; ROWS_MAX];
    for (to, at) in gathered.iter_mut().zip(first..end) {
        *to = rows.row(at);
    }
    let count = end - first;
    if count % 2 == 1 {
        gathered[count] = gathered[count - 1];
    }
    (gathered, count.next_multiple_of(2))
}
