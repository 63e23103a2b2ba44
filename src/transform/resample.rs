//! Owns resampling: from the rows of a picture to the bytes of a sample, straight into the sample's place in its slot.
//! It must never allocate, never look outside a geometry's region, and never read what it wrote to the sample.
//!
//! The filter is a triangle whose support widens with the reduction (antialiased bilinear), applied down the columns and
//! then along the rows, with 8-bit intermediates. Pillow, and torchvision with it, does the same in the other order, so
//! that single values differ by one level.
//!
//! Rows come one by one, from a decoder or from a picture in memory. As soon as the last row that a row of the sample
//! looks at is there, it is made; of the picture no more is kept than the filter reaches over.

use std::convert::Infallible;
use std::fmt;

use super::kernel::{GROUP, Kernel};
use super::passes::{Along, Down, Lying, Pass, Pulled, Rows, Sink};
use super::workspace::{Needs, Parts, ROWS_MAX};
use super::{Geometry, Region};
use crate::tensor::{CHANNELS, ImageView, Orientation, SampleSpec};

/// Why a sample could not be made. Each is a caller's mistake, told with its numbers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TransformError {
    /// The sample's memory has another size than its shape says.
    OutSize {
        /// Bytes that the shape says.
        expected_bytes: usize,
        /// Bytes that were given.
        given_bytes: usize,
    },
    /// The workspace is smaller than this geometry needs.
    Workspace {
        /// Bytes that suffice.
        needed_bytes: u64,
        /// Bytes that were given.
        given_bytes: usize,
    },
    /// A geometry that looks outside the picture, or fills more than the sample.
    Geometry {
        /// The geometry.
        geometry: Geometry,
        /// The picture's columns.
        width: u32,
        /// The picture's rows.
        height: u32,
        /// The sample's shape.
        spec: SampleSpec,
    },
}

impl fmt::Display for TransformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransformError::OutSize { expected_bytes, given_bytes } => {
                write!(f, "a sample takes {expected_bytes} bytes, and {given_bytes} were given")
            }
            TransformError::Workspace { needed_bytes, given_bytes } => {
                write!(f, "resampling takes a workspace of {needed_bytes} bytes, and {given_bytes} were given")
            }
            TransformError::Geometry { geometry: Geometry { region, window, target, .. }, width, height, spec } => {
                write!(
                    f,
                    "a geometry does not fit a picture of {width}x{height} and a sample of {spec}: region {region:?}, window \
                 {window:?}, target {target:?}"
                )
            }
        }
    }
}

impl std::error::Error for TransformError {}

/// Why a sample could not be made of rows that were pulled.
#[derive(Clone, Debug, PartialEq)]
pub enum RowsError<E> {
    /// The caller's mistake.
    Transform(TransformError),
    /// What the source of rows said.
    Rows(E),
}

impl<E: fmt::Display> fmt::Display for RowsError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowsError::Transform(error) => error.fmt(f),
            RowsError::Rows(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RowsError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RowsError::Transform(error) => error.source(),
            RowsError::Rows(error) => error.source(),
        }
    }
}

impl<E> From<TransformError> for RowsError<E> {
    fn from(error: TransformError) -> Self {
        RowsError::Transform(error)
    }
}

/// Cuts, scales, turns and mirrors: makes one sample, in memory that it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampler {
    geometry: Geometry,
    orientation: Orientation,
    spec: SampleSpec,
}

impl Resampler {
    /// Makes what `geometry` shows of an upright picture a sample of this shape.
    #[must_use]
    pub fn new(geometry: Geometry, spec: SampleSpec) -> Self {
        Resampler { geometry, orientation: Orientation::UPRIGHT, spec }
    }

    /// Turns what is cut from a picture that is stored otherwise than it is seen. The geometry's region and window are
    /// those of the stored picture ([`Geometry::stored`]).
    #[must_use]
    pub fn oriented(mut self, orientation: Orientation) -> Self {
        self.orientation = orientation;
        self
    }

    /// Bytes of workspace that suffice for every geometry whose region is cut from rows of `row_pixels` pixels and is no
    /// more than `region_height` rows high; so, with a picture's stored sides, for every geometry of that picture. More
    /// pixels never need less.
    #[must_use]
    pub fn working_set(row_pixels: u32, region_height: u32, spec: SampleSpec, orientation: Orientation) -> u64 {
        let needs = Needs::most(row_pixels as usize, region_height as usize, spec, orientation);
        needs.bytes(needs.weights_most())
    }

    /// Makes the sample of a picture in memory: writes all bytes of `out`, RGB8, row by row, each once.
    ///
    /// # Errors
    /// See [`TransformError`]; nothing has been written then.
    pub fn apply(&self, image: ImageView<'_>, workspace: &mut [u8], out: &mut [u8]) -> Result<(), TransformError> {
        self.apply_with(Kernel::best(), image, workspace, out)
    }

    fn apply_with(
        &self,
        kernel: Kernel,
        image: ImageView<'_>,
        workspace: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), TransformError> {
        let job = Job::new(self, image.width(), image.height(), out.len())?;
        let (region, columns) = (self.geometry.region, job.columns);
        let needs = job.needs(None);
        let parts = cut(&needs, workspace)?;
        let stride = image.width() as usize * CHANNELS;
        let from = region.y as usize * stride + (region.x as usize + columns.0) * CHANNELS;
        let mut rows = Lying::new(&image.data()[from..], stride, columns.1 * CHANNELS);
        let Ok(()): Result<(), Infallible> = job.run(kernel, &needs, parts, &mut rows, out);
        Ok(())
    }

    /// Makes the sample of rows as they are decoded. `rows` writes the next row of the region, `row_pixels` pixels of
    /// which the region's first is number `left`, to the memory that it is given, whose contents are undefined. It is
    /// called for the rows of the region from the first to the last that is needed. Where the region lies in a picture
    /// is of no account.
    ///
    /// # Errors
    /// [`RowsError::Rows`] is what `rows` returned; `out` may then be partly written. See [`TransformError`] for the
    /// others, before any row is pulled.
    pub fn apply_rows<E>(
        &self,
        row_pixels: u32,
        left: u32,
        rows: impl FnMut(&mut [u8]) -> Result<(), E>,
        workspace: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), RowsError<E>> {
        self.apply_rows_with(Kernel::best(), (row_pixels, left), rows, workspace, out)
    }

    fn apply_rows_with<E>(
        &self,
        kernel: Kernel,
        (row_pixels, left): (u32, u32),
        rows: impl FnMut(&mut [u8]) -> Result<(), E>,
        workspace: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), RowsError<E>> {
        let mut placed = *self;
        (placed.geometry.region.x, placed.geometry.region.y) = (left, 0);
        let job = Job::new(&placed, row_pixels, self.geometry.region.height, out.len())?;
        let needs = job.needs(Some(row_pixels as usize));
        let mut parts = cut(&needs, workspace)?;
        let kept = std::mem::take(&mut parts.kept);
        let columns = (left as usize + job.columns.0, job.columns.1);
        let mut rows = Pulled::new(kept, needs.kept_row_bytes(), row_pixels as usize * CHANNELS, columns, rows);
        job.run(kernel, &needs, parts, &mut rows, out).map_err(RowsError::Rows)
    }
}

fn cut<'w>(needs: &Needs, workspace: &'w mut [u8]) -> Result<Parts<'w>, TransformError> {
    let given_bytes = workspace.len();
    let needed_bytes = needs.bytes(needs.table_pixels * needs.taps);
    needs.cut(workspace).ok_or(TransformError::Workspace { needed_bytes, given_bytes })
}

/// A resampling that has been found to be possible.
struct Job {
    down: Pass,
    along: Pass,
    /// The region's columns that are looked at: the first, and how many.
    columns: (usize, usize),
    /// Whether the sample is mirrored along stored rows, and down stored columns, after it has been turned.
    flips: (bool, bool),
    /// Where in the sample, mirrored if it is.
    target: Region,
    spec: SampleSpec,
    swaps: bool,
}

impl Job {
    fn new(resampler: &Resampler, width: u32, height: u32, out_bytes: usize) -> Result<Self, TransformError> {
        let Resampler { geometry, orientation, spec } = *resampler;
        if out_bytes != spec.elements() {
            return Err(TransformError::OutSize { expected_bytes: spec.elements(), given_bytes: out_bytes });
        }
        let Geometry { region, mut target, flip, .. } = geometry;
        let fits = region.fits(width, height) && target.fits(spec.width, spec.height);
        let Some([left, top, window_width, window_height]) = geometry.window_inside().filter(|_| fits) else {
            return Err(TransformError::Geometry { geometry, width, height, spec });
        };
        let (across, down) = orientation.sides(target.width, target.height);
        let along = Pass::new(left, window_width, region.width, across, orientation.mirrors_columns());
        let down = Pass::new(top, window_height, region.height, down, orientation.mirrors_rows());
        let columns = match along {
            Pass::Copy { first, count, .. } => (first, count),
            Pass::Scale(_) => (0, region.width as usize),
        };
        if flip {
            target.x = spec.width - target.width - target.x;
        }
        let swaps = orientation.swaps_sides();
        Ok(Job { down, along, columns, flips: (flip && !swaps, flip && swaps), target, spec, swaps })
    }

    /// Pixels of a row made of a stored row, and rows made of them.
    fn made(&self) -> (usize, usize) {
        let (width, height) = (self.target.width as usize, self.target.height as usize);
        if self.swaps { (height, width) } else { (width, height) }
    }

    /// `pulled` is the pixels of a row that is pulled, if rows are.
    fn needs(&self, pulled: Option<usize>) -> Needs {
        let mut needs = Needs { out_pixels: self.made().0, ..Needs::default() };
        let mut reach = 1;
        if let Pass::Scale(axis) = &self.down {
            reach = axis.taps();
            needs.between_pixels = self.columns.1;
            if reach > ROWS_MAX {
                needs.down_taps = reach;
                needs.sums = self.columns.1 * CHANNELS;
            }
        }
        if let Pass::Scale(axis) = &self.along {
            needs.table_pixels = axis.count().next_multiple_of(GROUP);
            needs.taps = axis.taps().next_multiple_of(2);
            needs.between_pixels = self.columns.1;
        }
        if let Some(row_pixels) = pulled {
            needs.row_pixels = row_pixels;
            needs.kept_rows = reach.min(ROWS_MAX);
        }
        if self.swaps {
            let (across, down) = self.made();
            (needs.turned_pixels, needs.turned_row_pixels) = (across * down, down);
        }
        needs
    }

    fn run<R: Rows>(
        &self,
        kernel: Kernel,
        needs: &Needs,
        parts: Parts<'_>,
        rows: &mut R,
        out: &mut [u8],
    ) -> Result<(), R::Error> {
        let Parts { starts, weights, down_weights, sums, between, out: made, turned, turned_row, .. } = parts;
        let (across, rows_made) = self.made();
        let whole = Region::whole(across as u32, rows_made as u32);
        let (sink, sample) = if self.swaps {
            let turned_spec = SampleSpec { height: whole.height, width: whole.width };
            (Sink::new(&mut *turned, turned_spec, whole), Some(Sink::new(out, self.spec, self.target)))
        } else {
            (Sink::new(out, self.spec, self.target), None)
        };
        let columns = (self.columns.1, self.flips.0);
        let mut along = Along::new(kernel, &self.along, columns, needs.taps, starts, weights, between, made, sink);
        let down = Down { kernel, flip: self.flips.1, weights: down_weights, sums };
        down.run(&self.down, rows, &mut along)?;
        let Some(mut sample) = sample else { return Ok(()) };
        // Each column of what was made is a row of the sample.
        let (pixels, _) = turned.as_chunks::<CHANNELS>();
        for row in 0..across {
            let (to, _) = turned_row.as_chunks_mut::<CHANNELS>();
            for (to, from) in to.iter_mut().zip(pixels[row..].iter().step_by(across)) {
                *to = *from;
            }
            sample.put(row, turned_row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
