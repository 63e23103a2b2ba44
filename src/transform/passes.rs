//! The two passes of resampling: vertical, down the columns of the crop, then horizontal, along each row that it makes.
//!
//! Rows of the image are streamed into a ring of at most [`ROWS_MAX`]. As soon as the last row that a row of the sample
//! depends on has arrived, the vertical pass makes it; where the filter covers more rows than the ring holds, it keeps
//! running sums. The horizontal pass resamples [`BATCH`] rows together and writes each byte of the sample once.

use super::kernel::Kernel;
use super::kernel::table::{BATCH, Table};
use super::weights::Axis;
use super::workspace::{HorizontalBuffers, ROW_SKEW, ROWS_MAX};
use crate::tensor::{CHANNELS, Region, SampleSpec};

/// Operation along one stored axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pass {
    /// Copies `count` stored pixels from `first` on. `mirrored` is true if they are seen in reverse order.
    Copy { first: usize, count: usize, mirrored: bool },
    /// Resamples.
    Scale(Axis),
}

impl Pass {
    /// A source box of `span` pixels from `start`, inside `length` stored pixels, becomes `count` pixels.
    pub(super) fn new(start: f64, span: f64, length: u32, count: u32, mirrored: bool) -> Self {
        if span == f64::from(count) && start.fract() == 0.0 {
            return Pass::Copy { first: start as usize, count: count as usize, mirrored };
        }
        Pass::Scale(Axis::new(start, span, length as usize, count as usize, mirrored))
    }

    fn count(&self) -> usize {
        match self {
            Pass::Copy { count, .. } => *count,
            Pass::Scale(axis) => axis.count,
        }
    }

    /// Returns true if the first stored pixel is the last of the sample, which may be flipped besides.
    fn is_reversed(&self, flip: bool) -> bool {
        match self {
            Pass::Copy { mirrored, .. } => *mirrored != flip,
            Pass::Scale(axis) => axis.mirrored != flip,
        }
    }
}

/// Rows of a crop, pulled one by one into a ring.
pub(super) struct StreamedRows<'w, F> {
    pub(super) ring: &'w mut [u8],
    /// Bytes of the ring per row.
    pub(super) stride_bytes: usize,
    /// Bytes of a row as it is pulled.
    pub(super) row_bytes: usize,
    /// Used columns of a row: the first byte, and the number of bytes.
    pub(super) columns: (usize, usize),
    /// Number of rows pulled so far.
    pub(super) pulled: usize,
    pub(super) next_row: F,
}

impl<E, F: FnMut(&mut [u8]) -> Result<(), E>> StreamedRows<'_, F> {
    fn offset(&self, at: usize) -> usize {
        at % (self.ring.len() / self.stride_bytes) * self.stride_bytes + ROW_SKEW
    }

    /// Pulls all rows before `end`.
    fn advance(&mut self, end: usize) -> Result<(), E> {
        while self.pulled < end {
            let offset = self.offset(self.pulled);
            (self.next_row)(&mut self.ring[offset..][..self.row_bytes])?;
            self.pulled += 1;
        }
        Ok(())
    }

    /// Returns the used columns of a row that is still in the ring.
    fn row(&self, at: usize) -> &[u8] {
        debug_assert!(at < self.pulled && self.pulled - at <= self.ring.len() / self.stride_bytes);
        &self.ring[self.offset(at) + self.columns.0..][..self.columns.1]
    }

    /// Returns the rows from `first` to `end`, and their number, made even by repeating the last.
    fn range(&self, first: usize, end: usize) -> ([&[u8]; ROWS_MAX], usize) {
        let mut rows: [&[u8]; ROWS_MAX] = [&[]; ROWS_MAX];
        for (to, at) in rows.iter_mut().zip(first..end) {
            *to = self.row(at);
        }
        let count = end - first;
        if count % 2 == 1 {
            rows[count] = rows[count - 1];
        }
        (rows, count.next_multiple_of(2))
    }
}

/// Writer of the sample: the target is filled row by row, the rest is black. The sample is never read.
pub(super) struct SampleWriter<'o> {
    out: &'o mut [u8],
    stride_bytes: usize,
    first_row: usize,
    before_bytes: usize,
    row_bytes: usize,
}

impl<'o> SampleWriter<'o> {
    /// Blackens the rows of `out` outside the target.
    pub(super) fn new(out: &'o mut [u8], spec: SampleSpec, target: Region) -> Self {
        let stride_bytes = spec.width as usize * CHANNELS;
        let first_row = target.y as usize;
        out[..first_row * stride_bytes].fill(0);
        out[(first_row + target.height as usize) * stride_bytes..].fill(0);
        let (before_bytes, row_bytes) = (target.x as usize * CHANNELS, target.width as usize * CHANNELS);
        SampleWriter { out, stride_bytes, first_row, before_bytes, row_bytes }
    }

    /// Writes a row of the target, and the black at its sides.
    pub(super) fn write(&mut self, row: usize, pixels: &[u8]) {
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

/// The second pass: takes rows of the used columns, makes rows of the sample.
pub(super) struct Horizontal<'w, 'o> {
    kernel: Kernel,
    /// Rows that wait to be resampled together.
    input: &'w mut [u8],
    input_stride: usize,
    /// Resampled rows, before each goes to the sample in one piece.
    output: &'w mut [u8],
    output_stride: usize,
    columns_bytes: usize,
    /// Weights; `None` if pixels are copied.
    table: Option<Table<'w>>,
    reversed: bool,
    waiting: usize,
    target_rows: [usize; BATCH],
    writer: SampleWriter<'o>,
}

impl<'w, 'o> Horizontal<'w, 'o> {
    /// `columns` is the number of used columns, `flip` true if the sample is flipped along this axis.
    pub(super) fn new(
        kernel: Kernel,
        pass: &Pass,
        columns: usize,
        flip: bool,
        buffers: HorizontalBuffers<'w>,
        writer: SampleWriter<'o>,
    ) -> Self {
        let HorizontalBuffers { taps, starts, weights, input, output } = buffers;
        let table = match pass {
            Pass::Copy { .. } => None,
            Pass::Scale(axis) => {
                tabulate(axis, flip, taps, starts, weights);
                Some(Table { starts, weights, taps, precision: axis.precision })
            }
        };
        let (input_stride, output_stride) = (input.len() / BATCH, output.len() / BATCH);
        Horizontal {
            kernel,
            input,
            input_stride,
            output,
            output_stride,
            columns_bytes: columns * CHANNELS,
            table,
            reversed: pass.is_reversed(flip),
            waiting: 0,
            target_rows: [0; BATCH],
            writer,
        }
    }

    /// Takes a finished row.
    fn push(&mut self, target_row: usize, row: &[u8]) {
        if self.table.is_some() {
            self.push_with(target_row, |to| to.copy_from_slice(row));
        } else {
            let reversed = self.reversed.then_some(&mut self.output[..self.output_stride]);
            copy(self.kernel, row, reversed, target_row, &mut self.writer);
        }
    }

    /// Takes a row that `write` writes.
    fn push_with(&mut self, target_row: usize, write: impl FnOnce(&mut [u8])) {
        let row = &mut self.input[self.waiting * self.input_stride..][..self.columns_bytes];
        write(row);
        if self.table.is_some() {
            self.target_rows[self.waiting] = target_row;
            self.waiting += 1;
            if self.waiting == BATCH {
                self.flush();
            }
        } else {
            let reversed = self.reversed.then_some(&mut self.output[..self.output_stride]);
            copy(self.kernel, row, reversed, target_row, &mut self.writer);
        }
    }

    /// Resamples the waiting rows. A partial batch is padded with its last row, and the extra output is discarded.
    fn flush(&mut self) {
        let Some(table) = self.table.filter(|_| self.waiting > 0) else { return };
        let input = &*self.input;
        let rows =
            std::array::from_fn(|at| &input[at.min(self.waiting - 1) * self.input_stride..][..self.input_stride]);
        let mut output = self.output.chunks_exact_mut(self.output_stride);
        let out: [&mut [u8]; BATCH] = std::array::from_fn(|_| output.next().unwrap_or_default());
        self.kernel.horizontal(rows, table, out);
        for (&row, pixels) in self.target_rows[..self.waiting].iter().zip(self.output.chunks_exact(self.output_stride))
        {
            self.writer.write(row, pixels);
        }
        self.waiting = 0;
    }
}

/// Writes a row without resampling, reversed in the given buffer if there is one.
fn copy(kernel: Kernel, row: &[u8], reversed: Option<&mut [u8]>, target_row: usize, writer: &mut SampleWriter<'_>) {
    match reversed {
        Some(reversed) => {
            kernel.reverse(row, reversed);
            writer.write(target_row, reversed);
        }
        None => writer.write(target_row, row),
    }
}

/// Writes the weights of all pixels along a row, in the order of the sample, and zeros for those that pad the last
/// group.
fn tabulate(axis: &Axis, flip: bool, taps: usize, starts: &mut [u32], weights: &mut [i16]) {
    let count = axis.count;
    let last_start = axis.length.saturating_sub(taps);
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

/// The first pass: takes the image's rows, makes rows for the second.
pub(super) struct Vertical<'w> {
    pub(super) kernel: Kernel,
    /// True if the sample is flipped along this axis.
    pub(super) flip: bool,
    /// Weights and sums of the two rows in progress, where the filter covers more than [`ROWS_MAX`] rows.
    pub(super) weights: &'w mut [i16],
    pub(super) sums: &'w mut [i32],
}

impl Vertical<'_> {
    pub(super) fn run<E, F: FnMut(&mut [u8]) -> Result<(), E>>(
        self,
        pass: &Pass,
        rows: &mut StreamedRows<'_, F>,
        horizontal: &mut Horizontal<'_, '_>,
    ) -> Result<(), E> {
        let (count, reversed) = (pass.count(), pass.is_reversed(self.flip));
        let target_row = |at: usize| if reversed { count - 1 - at } else { at };
        match pass {
            Pass::Copy { first, .. } => {
                for at in 0..count {
                    rows.advance(first + at + 1)?;
                    horizontal.push(target_row(at), rows.row(first + at));
                }
            }
            Pass::Scale(axis) if axis.taps <= ROWS_MAX => self.narrow(axis, target_row, rows, horizontal)?,
            Pass::Scale(axis) => self.wide(axis, target_row, rows, horizontal)?,
        }
        horizontal.flush();
        Ok(())
    }

    /// The ring holds all rows that a row of the result depends on: they are summed at once.
    fn narrow<E, F: FnMut(&mut [u8]) -> Result<(), E>>(
        self,
        axis: &Axis,
        target_row: impl Fn(usize) -> usize,
        rows: &mut StreamedRows<'_, F>,
        horizontal: &mut Horizontal<'_, '_>,
    ) -> Result<(), E> {
        let mut weights = [0; ROWS_MAX];
        for at in 0..axis.count {
            let (first, end) = axis.weights(axis.seen(at), &mut weights);
            rows.advance(end)?;
            let (rows, count) = rows.range(first, end);
            if count > end - first {
                weights[count - 1] = 0;
            }
            horizontal.push_with(target_row(at), |to| {
                self.kernel.vertical(&rows[..count], &weights[..count], axis.precision, to);
            });
        }
        Ok(())
    }

    /// Rows come in blocks. Each block is added to the sums of the rows of the result that depend on it; a row is
    /// rounded as soon as its last row has been added.
    fn wide<E, F: FnMut(&mut [u8]) -> Result<(), E>>(
        self,
        axis: &Axis,
        target_row: impl Fn(usize) -> usize,
        rows: &mut StreamedRows<'_, F>,
        horizontal: &mut Horizontal<'_, '_>,
    ) -> Result<(), E> {
        let last = axis.reach(axis.seen(axis.count - 1)).1;
        let (mut block, mut finished) = (axis.reach(axis.seen(0)).0, 0);
        let (weights_each, sums_each) = (self.weights.len() / 2, self.sums.len() / 2);
        while finished < axis.count {
            let block_end = last.min(block + ROWS_MAX);
            rows.advance(block_end)?;
            let in_progress = finished;
            for at in in_progress..axis.count {
                let (first, end) = axis.reach(axis.seen(at));
                if first >= block_end {
                    break;
                }
                // When the next but one begins, this one has ended.
                debug_assert!(at - finished < 2);
                let weights = &mut self.weights[at % 2 * weights_each..][..weights_each];
                let sums = &mut self.sums[at % 2 * sums_each..][..sums_each];
                let begins = first >= block;
                if begins {
                    axis.weights(axis.seen(at), weights);
                }
                let (from, to) = (first.max(block), end.min(block_end));
                let (rows, count) = rows.range(from, to);
                let mut block_weights = [0; ROWS_MAX];
                block_weights[..to - from].copy_from_slice(&weights[from - first..to - first]);
                self.kernel.accumulate(&rows[..count], &block_weights[..count], begins, sums);
                if end <= block_end {
                    horizontal.push_with(target_row(at), |to| self.kernel.round(sums, axis.precision, to));
                    finished = at + 1;
                }
            }
            block = block_end;
        }
        Ok(())
    }
}
