//! Layout and size of the memory for one resampling. Contents of an earlier sample do not matter.

use bytemuck::Pod;

use super::kernel::table::{BATCH, GROUP, OUT_SLACK_BYTES, ROW_SLACK_BYTES};
use crate::tensor::{CHANNELS, Orientation, SampleSpec};

/// Rows of the image that are kept, and summed at once. Wider filters keep running sums besides.
pub(super) const ROWS_MAX: usize = 16;

/// Running sums at a time: a row of the image matters for at most two rows of the result, but for the ends of their
/// reach.
const SUMS: usize = 2;

/// Offset of a pulled row from a cache line. libjpeg-turbo writes rows that begin at a vector's alignment past the
/// caches, straight to memory, from where they would have to be read again at once.
pub(super) const ROW_SKEW: usize = 16;

/// Alignment of each part: a cache line.
const ALIGN: usize = 64;

/// Sizes of one resampling, in elements of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WorkspaceLayout {
    /// Pixels of a row of the result that are resampled, and weights of each. 0 where rows are copied.
    pub(super) table_pixels: usize,
    pub(super) taps: usize,
    /// Weights of a row of the result, where the filter covers more rows than are kept.
    pub(super) vertical_taps: usize,
    /// Rows of the image that are kept, and their pixels.
    pub(super) ring_rows: usize,
    pub(super) row_pixels: usize,
    /// Running sums of a row, where the filter covers more rows than are kept.
    pub(super) sums: usize,
    /// Pixels of a row between the two passes.
    pub(super) input_pixels: usize,
    /// Pixels of a row of the result.
    pub(super) output_pixels: usize,
    /// Pixels of a result that has to be transposed, and of a row of it then.
    pub(super) transposed_pixels: usize,
    pub(super) transposed_row_pixels: usize,
}

/// Buffers of the horizontal pass: a table of weights, and [`BATCH`] rows before and after it.
pub(super) struct HorizontalBuffers<'w> {
    /// Weights per pixel.
    pub(super) taps: usize,
    /// First input pixel of each output pixel.
    pub(super) starts: &'w mut [u32],
    pub(super) weights: &'w mut [i16],
    pub(super) input: &'w mut [u8],
    pub(super) output: &'w mut [u8],
}

/// Parts of the memory.
pub(super) struct Workspace<'w> {
    pub(super) horizontal: HorizontalBuffers<'w>,
    pub(super) vertical_weights: &'w mut [i16],
    pub(super) ring: &'w mut [u8],
    pub(super) sums: &'w mut [i32],
    pub(super) transposed: &'w mut [u8],
    pub(super) transposed_row: &'w mut [u8],
}

impl WorkspaceLayout {
    /// Upper bound for every geometry whose crop lies in rows of `row_pixels` and is at most `height` rows high.
    pub(super) fn upper_bound(row_pixels: usize, height: usize, spec: SampleSpec, orientation: Orientation) -> Self {
        let (width, down) = orientation.sides(spec.width, spec.height);
        let (width, down) = (width as usize, down as usize);
        WorkspaceLayout {
            table_pixels: width.next_multiple_of(GROUP),
            // `weights_max` counts the weights: their number per pixel grows as the target shrinks.
            taps: 0,
            vertical_taps: if height > ROWS_MAX { height } else { 0 },
            ring_rows: height.min(ROWS_MAX),
            row_pixels,
            sums: if height > ROWS_MAX { row_pixels * CHANNELS } else { 0 },
            input_pixels: row_pixels,
            output_pixels: width,
            transposed_pixels: if orientation.swaps_sides() { width * down } else { 0 },
            transposed_row_pixels: if orientation.swaps_sides() { down } else { 0 },
        }
    }

    /// Upper bound of the weights along a row for any target up to `table_pixels` wide. An output pixel has two weights
    /// for each input pixel that it covers, at least two and up to two more; and up to three pixels are padding.
    pub(super) fn weights_max(&self) -> usize {
        4 * (self.row_pixels + self.table_pixels)
    }

    fn input_row_bytes(&self) -> usize {
        // An odd number of taps is made even, and may reach a pixel too far, with a weight of 0.
        if self.input_pixels == 0 { 0 } else { padded((self.input_pixels + 1) * CHANNELS + ROW_SLACK_BYTES) }
    }

    fn output_row_bytes(&self) -> usize {
        if self.output_pixels == 0 { 0 } else { padded(self.output_pixels * CHANNELS + OUT_SLACK_BYTES) }
    }

    /// Bytes of a kept row and its padding.
    pub(super) fn ring_row_bytes(&self) -> usize {
        padded(ROW_SKEW + self.row_pixels * CHANNELS)
    }

    /// Size of a workspace at any address, with `weights` weights along a row, bytes.
    pub(super) fn bytes(&self, weights: usize) -> u64 {
        let part = |count: usize, size: usize| padded(count * size) as u64;
        part(self.table_pixels, 4)
            + part(weights, 2)
            + part(self.vertical_weights(), 2)
            + part(self.ring_rows * self.ring_row_bytes(), 1)
            + part(SUMS * self.sums, 4)
            + part(BATCH * self.input_row_bytes(), 1)
            + part(BATCH * self.output_row_bytes(), 1)
            + part(self.transposed_pixels * CHANNELS, 1)
            + part(self.transposed_row_pixels * CHANNELS, 1)
            + (ALIGN as u64 - 1)
    }

    /// Weights of the rows of the result in progress, an even number each.
    fn vertical_weights(&self) -> usize {
        SUMS * self.vertical_taps.next_multiple_of(2)
    }

    /// Splits `workspace` into its parts. Returns `None` if it is too small.
    pub(super) fn split<'w>(&self, workspace: &'w mut [u8]) -> Option<Workspace<'w>> {
        let skip = workspace.as_ptr().align_offset(ALIGN);
        let mut rest = workspace.get_mut(skip..)?;
        let starts = part(&mut rest, self.table_pixels)?;
        let weights = part(&mut rest, self.table_pixels * self.taps)?;
        let vertical_weights = part(&mut rest, self.vertical_weights())?;
        let ring = part(&mut rest, self.ring_rows * self.ring_row_bytes())?;
        let sums = part(&mut rest, SUMS * self.sums)?;
        let input = part(&mut rest, BATCH * self.input_row_bytes())?;
        let output = part(&mut rest, BATCH * self.output_row_bytes())?;
        let horizontal = HorizontalBuffers { taps: self.taps, starts, weights, input, output };
        let transposed = part(&mut rest, self.transposed_pixels * CHANNELS)?;
        let transposed_row = part(&mut rest, self.transposed_row_pixels * CHANNELS)?;
        Some(Workspace { horizontal, vertical_weights, ring, sums, transposed, transposed_row })
    }
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// Splits a part off the front of `rest`, which begins at a cache line and does so again afterwards.
fn part<'w, T: Pod>(rest: &mut &'w mut [u8], count: usize) -> Option<&'w mut [T]> {
    let bytes = count * size_of::<T>();
    let (front, back) = std::mem::take(rest).split_at_mut_checked(padded(bytes))?;
    *rest = back;
    bytemuck::try_cast_slice_mut(&mut front[..bytes]).ok()
}
