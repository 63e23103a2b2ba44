//! Weights of the horizontal pass, and the sizes that all kernels agree on.

/// Bytes that may be read after the last pixel of a row that is resampled horizontally; their values do not matter.
pub(in crate::transform) const ROW_SLACK_BYTES: usize = 16;

/// Bytes that may be written after the last pixel of a resampled row: three pixels of padding, and a register's rest.
pub(in crate::transform) const OUT_SLACK_BYTES: usize = 16;

/// Rows that are resampled horizontally together.
pub(in crate::transform) const BATCH: usize = 4;

/// Pixels along a row that are made together.
pub(in crate::transform) const GROUP: usize = 4;

/// Weights along a row: for each output pixel, `taps` (an even number) and their first input pixel. The number of
/// pixels is padded to whole groups; the output of the padding does not matter.
#[derive(Clone, Copy, Debug)]
pub(in crate::transform) struct Table<'a> {
    pub(in crate::transform) starts: &'a [u32],
    pub(in crate::transform) weights: &'a [i16],
    pub(in crate::transform) taps: usize,
    pub(in crate::transform) precision: u32,
}
