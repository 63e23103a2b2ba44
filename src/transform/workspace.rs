//! Owns how the memory of a resampling is laid out and how much it takes. It must never allocate, and what earlier
//! samples left in a workspace must not matter.

use bytemuck::Pod;

use super::kernel::{BATCH, GROUP, OUT_SLACK_BYTES, ROW_SLACK_BYTES};
use crate::tensor::{CHANNELS, Orientation, SampleSpec};

/// Rows that are summed at once, and so the most that are kept. Filters that reach over more keep running sums besides.
pub(super) const ROWS_MAX: usize = 16;

/// Running sums that are under way at once: a row of the picture matters for at most two rows of the result, but for the
/// ends of their reach.
pub(super) const SUMS: usize = 2;

/// How far behind a cache line a pulled row begins. libjpeg-turbo writes rows that begin at a vector's alignment past the
/// caches, straight to memory, from where they would have to be read again at once.
pub(super) const ROW_SKEW: usize = 16;

/// Where a part begins: at a cache line.
const ALIGN: usize = 64;

/// What one resampling needs, in elements of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Pixels of the result that are weighed along a row, and the weights of each. None where rows are copied.
    pub(super) table_pixels: usize,
    pub(super) taps: usize,
    /// Weights of a row of the result, where the filter reaches over more rows than are kept.
    pub(super) down_taps: usize,
    /// Rows of the picture that are kept, and their pixels.
    pub(super) kept_rows: usize,
    pub(super) row_pixels: usize,
    /// Running sums of a row, where the filter reaches over more rows than are kept.
    pub(super) sums: usize,
    /// Pixels of a row between the two passes.
    pub(super) between_pixels: usize,
    /// Pixels of a row of the result.
    pub(super) out_pixels: usize,
    /// Pixels of a result that has to be turned on its side, and of a row of it then.
    pub(super) turned_pixels: usize,
    pub(super) turned_row_pixels: usize,
}

/// The memory itself, in parts.
pub(super) struct Parts<'w> {
    pub(super) starts: &'w mut [u32],
    pub(super) weights: &'w mut [i16],
    pub(super) down_weights: &'w mut [i16],
    pub(super) kept: &'w mut [u8],
    pub(super) sums: &'w mut [i32],
    pub(super) between: &'w mut [u8],
    pub(super) out: &'w mut [u8],
    pub(super) turned: &'w mut [u8],
    pub(super) turned_row: &'w mut [u8],
}

impl Needs {
    /// The most that any geometry needs whose region is cut from rows of `row_pixels` and is at most `height` rows high,
    /// with the rows pulled.
    pub(super) fn most(row_pixels: usize, height: usize, spec: SampleSpec, orientation: Orientation) -> Self {
        let (width, down) = orientation.sides(spec.width, spec.height);
        let (width, down) = (width as usize, down as usize);
        Needs {
            table_pixels: width.next_multiple_of(GROUP),
            // The bytes of weights are counted below: their number for each pixel grows as the target shrinks.
            taps: 0,
            down_taps: if height > ROWS_MAX { height } else { 0 },
            kept_rows: height.min(ROWS_MAX),
            row_pixels,
            sums: if height > ROWS_MAX { row_pixels * CHANNELS } else { 0 },
            between_pixels: row_pixels,
            out_pixels: width,
            turned_pixels: if orientation.swaps_sides() { width * down } else { 0 },
            turned_row_pixels: if orientation.swaps_sides() { down } else { 0 },
        }
    }

    /// The most weights along a row that any target up to `table_pixels` wide needs. A pixel of the result has two for
    /// each pixel of the picture that becomes one of the result, or one for each that there is, at least two and up to
    /// two more; and up to three pixels are made up.
    pub(super) fn weights_most(&self) -> usize {
        4 * (self.row_pixels + self.table_pixels)
    }

    fn between_row_bytes(&self) -> usize {
        // An odd number of taps is made even, and may reach a pixel too far, with a weight of nothing.
        if self.between_pixels == 0 { 0 } else { padded((self.between_pixels + 1) * CHANNELS + ROW_SLACK_BYTES) }
    }

    fn out_row_bytes(&self) -> usize {
        if self.out_pixels == 0 { 0 } else { padded(self.out_pixels * CHANNELS + OUT_SLACK_BYTES) }
    }

    /// Bytes of a kept row, and of what separates it from the next.
    pub(super) fn kept_row_bytes(&self) -> usize {
        padded(ROW_SKEW + self.row_pixels * CHANNELS)
    }

    /// Bytes of a workspace, wherever it begins, with room for `weights` weights along a row.
    pub(super) fn bytes(&self, weights: usize) -> u64 {
        let part = |count: usize, size: usize| padded(count * size) as u64;
        part(self.table_pixels, 4)
            + part(weights, 2)
            + part(self.down_part(), 2)
            + part(self.kept_rows * self.kept_row_bytes(), 1)
            + part(SUMS * self.sums, 4)
            + part(BATCH * self.between_row_bytes(), 1)
            + part(BATCH * self.out_row_bytes(), 1)
            + part(self.turned_pixels * CHANNELS, 1)
            + part(self.turned_row_pixels * CHANNELS, 1)
            + (ALIGN as u64 - 1)
    }

    /// Weights of the rows of the result that are under way, each an even number.
    fn down_part(&self) -> usize {
        SUMS * self.down_taps.next_multiple_of(2)
    }

    /// Cuts the parts out of `workspace`; none if it is too small.
    pub(super) fn cut<'w>(&self, workspace: &'w mut [u8]) -> Option<Parts<'w>> {
        let skip = workspace.as_ptr().align_offset(ALIGN);
        let mut rest = workspace.get_mut(skip..)?;
        Some(Parts {
            starts: part(&mut rest, self.table_pixels)?,
            weights: part(&mut rest, self.table_pixels * self.taps)?,
            down_weights: part(&mut rest, self.down_part())?,
            kept: part(&mut rest, self.kept_rows * self.kept_row_bytes())?,
            sums: part(&mut rest, SUMS * self.sums)?,
            between: part(&mut rest, BATCH * self.between_row_bytes())?,
            out: part(&mut rest, BATCH * self.out_row_bytes())?,
            turned: part(&mut rest, self.turned_pixels * CHANNELS)?,
            turned_row: part(&mut rest, self.turned_row_pixels * CHANNELS)?,
        })
    }
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// Takes a part off the front of what is left, which begins at a cache line and does so again afterwards.
fn part<'w, T: Pod>(rest: &mut &'w mut [u8], count: usize) -> Option<&'w mut [T]> {
    let bytes = count * size_of::<T>();
    let (front, back) = std::mem::take(rest).split_at_mut_checked(padded(bytes))?;
    *rest = back;
    bytemuck::try_cast_slice_mut(&mut front[..bytes]).ok()
}
