//! Resampling of the rows of a crop to the bytes of a sample, straight into the sample's place in its slot.
//!
//! The filter is a triangle whose support widens with the reduction (antialiased bilinear), applied down the columns
//! and then along the rows, with 8-bit intermediates. Pillow, and torchvision with it, does the same in the other
//! order, so that single values differ by one level.
//!
//! Rows are pulled one by one, from the decoder. Nothing is allocated, and no more rows are kept than the filter
//! covers.

use super::geometry::Geometry;
use super::kernel::Kernel;
use super::kernel::table::GROUP;
use super::passes::{Horizontal, Pass, SampleWriter, StreamedRows, Vertical};
use super::workspace::{ROWS_MAX, Workspace, WorkspaceLayout};
use crate::tensor::{CHANNELS, Orientation, Region, SampleSpec};

/// Misuse of a transform or of the resampler.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TransformError {
    /// The sample's memory has another size than its shape.
    #[error("a sample has {expected_bytes} bytes, but the output has {given_bytes}")]
    OutSize {
        /// Bytes of the shape.
        expected_bytes: usize,
        /// Bytes of the output.
        given_bytes: usize,
    },
    /// The workspace is smaller than this geometry needs.
    #[error("resampling takes a workspace of {needed_bytes} bytes, but it has {given_bytes}")]
    Workspace {
        /// Bytes that suffice.
        needed_bytes: u64,
        /// Bytes of the workspace.
        given_bytes: usize,
    },
    /// A geometry reaches outside the image or the sample.
    #[error(
        "the geometry does not fit an image of {width}x{height} and a sample of {spec}: crop {:?}, source box {:?}, \
         target {:?}",
        geometry.crop, geometry.source_box, geometry.target
    )]
    Geometry {
        /// Geometry that the transform chose.
        geometry: Geometry,
        /// Columns of the image.
        width: u32,
        /// Rows of the image.
        height: u32,
        /// Shape of the sample.
        spec: SampleSpec,
    },
}

/// Resampler: crops, scales, turns and mirrors. Makes one sample, in memory that the caller provides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampler {
    geometry: Geometry,
    orientation: Orientation,
    spec: SampleSpec,
}

impl Resampler {
    /// Resampler of an upright image.
    #[must_use]
    pub fn new(geometry: Geometry, spec: SampleSpec) -> Self {
        Resampler { geometry, orientation: Orientation::UPRIGHT, spec }
    }

    /// Sets the orientation of the stored image. The geometry's crop and source box are those of the stored image
    /// ([`Geometry::stored`]).
    #[must_use]
    pub fn oriented(mut self, orientation: Orientation) -> Self {
        self.orientation = orientation;
        self
    }

    /// Upper bound of the workspace, bytes, for every geometry whose crop lies in rows of `row_pixels` pixels and is at
    /// most `crop_height` rows high. It grows with both, so an image's stored sides give a bound for all of its
    /// geometries.
    #[must_use]
    pub fn working_set(row_pixels: u32, crop_height: u32, spec: SampleSpec, orientation: Orientation) -> u64 {
        let layout = WorkspaceLayout::upper_bound(row_pixels as usize, crop_height as usize, spec, orientation);
        layout.bytes(layout.weights_max())
    }

    /// Makes the sample: writes all bytes of `out`, RGB8, row by row, each once.
    ///
    /// `next_row` writes the next row of the crop into the memory that it is given, whose contents are undefined: it
    /// has `row_pixels` pixels, and the crop begins at pixel `crop_offset`. It is called for the rows of the crop from
    /// the first to the last that is needed.
    ///
    /// # Errors
    /// Errors of `next_row`; `out` may then be partly written. A [`TransformError`] before any row is pulled.
    pub fn apply<E: From<TransformError>>(
        &self,
        row_pixels: u32,
        crop_offset: u32,
        next_row: impl FnMut(&mut [u8]) -> Result<(), E>,
        workspace: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), E> {
        self.apply_with(Kernel::best(), (row_pixels, crop_offset), next_row, workspace, out)
    }

    fn apply_with<E: From<TransformError>>(
        &self,
        kernel: Kernel,
        (row_pixels, crop_offset): (u32, u32),
        next_row: impl FnMut(&mut [u8]) -> Result<(), E>,
        workspace: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), E> {
        let job = Job::new(self, row_pixels, crop_offset, out.len())?;
        let layout = job.layout(row_pixels as usize);
        let given_bytes = workspace.len();
        let needed_bytes = layout.bytes(layout.table_pixels * layout.taps);
        let workspace = layout.split(workspace).ok_or(TransformError::Workspace { needed_bytes, given_bytes })?;
        job.run(kernel, &layout, workspace, next_row, out)
    }
}

/// A resampling that has been found to be valid.
struct Job {
    vertical: Pass,
    horizontal: Pass,
    /// Used columns of a pulled row: the first, and their number.
    columns: (usize, usize),
    /// True if the sample is mirrored along stored rows, and down stored columns, after it has been turned.
    flips: (bool, bool),
    /// Target, mirrored if the sample is.
    target: Region,
    spec: SampleSpec,
    swaps: bool,
}

impl Job {
    fn new(resampler: &Resampler, row_pixels: u32, crop_offset: u32, out_bytes: usize) -> Result<Self, TransformError> {
        let Resampler { geometry, orientation, spec } = *resampler;
        if out_bytes != spec.elements() {
            return Err(TransformError::OutSize { expected_bytes: spec.elements(), given_bytes: out_bytes });
        }
        let Geometry { crop, mut target, flip, .. } = geometry;
        let fits = Region { x: crop_offset, y: 0, ..crop }.fits(row_pixels, crop.height)
            && target.fits(spec.width, spec.height);
        let Some([left, top, box_width, box_height]) = geometry.clamped_source_box().filter(|_| fits) else {
            return Err(TransformError::Geometry { geometry, width: row_pixels, height: crop.height, spec });
        };
        let (across, down) = orientation.sides(target.width, target.height);
        let horizontal = Pass::new(left, box_width, crop.width, across, orientation.mirrors_columns());
        let vertical = Pass::new(top, box_height, crop.height, down, orientation.mirrors_rows());
        let (first, count) = match horizontal {
            Pass::Copy { first, count, .. } => (first, count),
            Pass::Scale(_) => (0, crop.width as usize),
        };
        if flip {
            target.x = spec.width - target.width - target.x;
        }
        let swaps = orientation.swaps_sides();
        let columns = (crop_offset as usize + first, count);
        Ok(Job { vertical, horizontal, columns, flips: (flip && !swaps, flip && swaps), target, spec, swaps })
    }

    /// Pixels of a row that the horizontal pass makes, and their number.
    fn result_sides(&self) -> (usize, usize) {
        let (width, height) = (self.target.width as usize, self.target.height as usize);
        if self.swaps { (height, width) } else { (width, height) }
    }

    fn layout(&self, row_pixels: usize) -> WorkspaceLayout {
        let (across, down) = self.result_sides();
        let mut layout = WorkspaceLayout { output_pixels: across, row_pixels, ..WorkspaceLayout::default() };
        let mut reach = 1;
        if let Pass::Scale(axis) = &self.vertical {
            reach = axis.taps;
            layout.input_pixels = self.columns.1;
            if reach > ROWS_MAX {
                layout.vertical_taps = reach;
                layout.sums = self.columns.1 * CHANNELS;
            }
        }
        if let Pass::Scale(axis) = &self.horizontal {
            layout.table_pixels = axis.count.next_multiple_of(GROUP);
            layout.taps = axis.taps.next_multiple_of(2);
            layout.input_pixels = self.columns.1;
        }
        layout.ring_rows = reach.min(ROWS_MAX);
        if self.swaps {
            (layout.transposed_pixels, layout.transposed_row_pixels) = (across * down, down);
        }
        layout
    }

    fn run<E>(
        &self,
        kernel: Kernel,
        layout: &WorkspaceLayout,
        workspace: Workspace<'_>,
        next_row: impl FnMut(&mut [u8]) -> Result<(), E>,
        out: &mut [u8],
    ) -> Result<(), E> {
        let Workspace { horizontal, vertical_weights, ring, sums, transposed, transposed_row } = workspace;
        let mut rows = StreamedRows {
            ring,
            stride_bytes: layout.ring_row_bytes(),
            row_bytes: layout.row_pixels * CHANNELS,
            columns: (self.columns.0 * CHANNELS, self.columns.1 * CHANNELS),
            pulled: 0,
            next_row,
        };
        let (across, down) = self.result_sides();
        let (writer, sample) = if self.swaps {
            let (width, height) = (across as u32, down as u32);
            let whole = SampleWriter::new(&mut *transposed, SampleSpec { height, width }, Region::whole(width, height));
            (whole, Some(SampleWriter::new(out, self.spec, self.target)))
        } else {
            (SampleWriter::new(out, self.spec, self.target), None)
        };
        let (flip_columns, flip) = self.flips;
        let mut horizontal =
            Horizontal::new(kernel, &self.horizontal, self.columns.1, flip_columns, horizontal, writer);
        let vertical = Vertical { kernel, flip, weights: vertical_weights, sums };
        vertical.run(&self.vertical, &mut rows, &mut horizontal)?;
        let Some(mut sample) = sample else { return Ok(()) };
        // Each column of the result is a row of the sample.
        let (pixels, _) = transposed.as_chunks::<CHANNELS>();
        for row in 0..across {
            let (to, _) = transposed_row.as_chunks_mut::<CHANNELS>();
            for (to, from) in to.iter_mut().zip(pixels[row..].iter().step_by(across)) {
                *to = *from;
            }
            sample.write(row, transposed_row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
