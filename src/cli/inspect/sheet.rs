//! Contact sheet: one batch exactly as the loader delivers it, drawn as a grid into a PNG.
//!
//! Rows are encoded one at a time, and the file is renamed into place when it is whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use feedstock::device::DeviceSpec;
use feedstock::tensor::{CHANNELS, SIDE_MAX};
use feedstock::{Batch, ByteCount, CpuBudget, DType, Layout, RamBudget, Source};

use super::super::data::{BatchArgs, DecodeArgs, LoaderArgs, SourceArgs, split, with_other_accounts};
use super::super::failure::Failure;
use super::super::stop::Stop;
use super::super::table::counted;

/// Pixels between images and around them.
const MARGIN: usize = 4;
const MARGIN_LEVEL: u8 = 255;
/// Memory of the PNG encoder besides rows: compressor and buffers.
const ENCODER_BYTES: u64 = 1 << 20;
/// Rows in memory: one here, the others in the encoder, which filters each row against the one before.
const ROWS: u64 = 6;

/// Options of the contact sheet.
#[derive(Args)]
pub(crate) struct SheetArgs {
    /// Draw a batch as training sees it, as a PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Images on the sheet, up to 64
    #[arg(
        long, value_name = "N", requires = "sheet", default_value_t = 36,
        value_parser = clap::value_parser!(u64).range(1..=64)
    )]
    sheet_count: u64,
    /// Height and width of each image
    #[arg(
        long, value_name = "PIXELS", requires = "sheet", default_value_t = 224,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(SIDE_MAX))
    )]
    size: u32,
    /// Seed; the sheet shows the first batch of epoch 0
    #[arg(long, value_name = "N", requires = "sheet", default_value_t = 0)]
    seed: u64,
}

/// Layout of a sheet.
struct Grid {
    columns: usize,
    rows: usize,
    size: usize,
}

impl SheetArgs {
    /// Draws the sheet, if requested, and returns a line about it.
    pub(super) fn draw(&self, paths: &[PathBuf], budget: ByteCount, stop: &Stop) -> Result<Option<String>, Failure> {
        let Some(out) = &self.sheet else { return Ok(None) };
        let [data] = paths else {
            return Err(Failure::Usage(format!(
                "a sheet is drawn of one folder of class folders, and {} paths were given",
                paths.len()
            )));
        };
        let batch = BatchArgs {
            // The same split as `train`.
            data: split(data, None).0,
            batch_size: self.sheet_count as usize,
            size: self.size,
            dtype: DType::U8,
            layout: Layout::Nhwc,
        };
        let args = LoaderArgs {
            batch,
            ram_budget: vec![RamBudget::Bytes(budget)],
            workers: Vec::new(),
            // There is no training thread beside it.
            cpu_budget: Some(CpuBudget::Fraction(1.0)),
            no_governor: false,
            prefetch: Some(1),
            device: DeviceSpec::Cpu,
            source: SourceArgs::default(),
            decode: DecodeArgs::default(),
        };
        let folder = args.open()?;
        let sheet_bytes = ByteCount(Grid::of(self.sheet_count as usize, self.size).bytes());
        let because = "a few rows of the sheet, and their encoder";
        let refused = |error| with_other_accounts(error, &[("sheet", sheet_bytes, because)]);
        let (builder, _) = args.builder(&folder)?;
        // Bad files are replaced as in training; the rest of the report counts them.
        let builder = builder
            .seed(self.seed)
            .max_bad_fraction(1.0)
            .ram_budget(RamBudget::PerProcess(budget.saturating_sub(sheet_bytes)));
        let loader = builder.build().map_err(refused)?;
        let stopper = loader.clone();
        stop.on_stop(move || stopper.stop());
        let batch = loader.epoch(0).next().transpose()?;
        let batch = batch.ok_or_else(|| Failure::Data(format!("{}: no batch came of it", data.display())))?;
        let grid = Grid::of(batch.len(), self.size);
        write(out, &grid, &batch).map_err(|error| {
            Failure::Io(format!("cannot write {}: {error}; give --sheet another place", out.display()))
        })?;
        Ok(Some(self.told(out, &folder, &batch)))
    }

    fn told(&self, out: &Path, folder: &Arc<dyn Source>, batch: &Batch) -> String {
        let Grid { columns, rows, size } = Grid::of(batch.len(), self.size);
        let first = batch.ids().first().map_or(String::new(), |&id| format!("; top left is {}", folder.name(id)));
        let replaced = match batch.bad_samples().count() as u64 {
            0 => String::new(),
            bad => format!("; {} replaced", counted(bad, "bad file")),
        };
        format!(
            "sheet of {} of {size}x{size}, {columns} across and {rows} down, seed {}: {}{first}{replaced}\n",
            counted(batch.len() as u64, "image"),
            self.seed,
            out.display(),
        )
    }
}

impl Grid {
    /// Lays out `images` images as close to a square as possible.
    fn of(images: usize, size: u32) -> Self {
        let columns = (1..).find(|side| side * side >= images).unwrap_or(1);
        Grid { columns, rows: images.div_ceil(columns), size: size as usize }
    }

    fn width(&self) -> usize {
        self.columns * (self.size + MARGIN) + MARGIN
    }

    fn height(&self) -> usize {
        self.rows * (self.size + MARGIN) + MARGIN
    }

    /// Memory of drawing, bytes.
    fn bytes(&self) -> u64 {
        (self.width() * CHANNELS) as u64 * ROWS + ENCODER_BYTES
    }

    /// Fills row `at` of the sheet from the images of a batch, contiguous RGB.
    fn fill(&self, at: usize, images: &[u8], row: &mut [u8]) {
        row.fill(MARGIN_LEVEL);
        let step = self.size + MARGIN;
        let (below, within) = (at / step, at % step);
        let Some(line) = within.checked_sub(MARGIN) else { return };
        let line_bytes = self.size * CHANNELS;
        let images = images.chunks_exact(self.size * line_bytes).skip(below * self.columns).take(self.columns);
        for (across, image) in images.enumerate() {
            let begins = (across * step + MARGIN) * CHANNELS;
            row[begins..begins + line_bytes].copy_from_slice(&image[line * line_bytes..(line + 1) * line_bytes]);
        }
    }
}

/// Writes a temporary file and renames it, so that the old or the new sheet is always whole.
fn write(out: &Path, grid: &Grid, batch: &Batch) -> Result<(), Box<dyn std::error::Error>> {
    let mut beside = out.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let written = encode(&beside, grid, batch.bytes().ok_or("the batch is not in memory")?);
    let written = written.and_then(|()| Ok(fs::rename(&beside, out)?));
    if written.is_err() {
        // It may not exist.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn encode(path: &Path, grid: &Grid, images: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut file, u32::try_from(grid.width())?, u32::try_from(grid.height())?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    let mut rows = writer.stream_writer()?;
    let mut row = vec![0; grid.width() * CHANNELS];
    for at in 0..grid.height() {
        grid.fill(at, images, &mut row);
        rows.write_all(&row)?;
    }
    rows.finish()?;
    writer.finish()?;
    file.flush()?;
    Ok(file.get_ref().sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_fill_the_grid_with_margins() {
        for (images, columns, rows) in [(1, 1, 1), (2, 2, 1), (5, 3, 2), (36, 6, 6), (64, 8, 8)] {
            let grid = Grid::of(images, 2);
            assert_eq!((grid.columns, grid.rows), (columns, rows));
        }
        let grid = Grid::of(3, 2);
        let images: Vec<u8> = (0..3 * 2 * 2 * 3).collect();
        let mut row = vec![0; grid.width() * 3];
        grid.fill(MARGIN - 1, &images, &mut row);
        assert!(row.iter().all(|&level| level == MARGIN_LEVEL));
        // Second line of the first row of images.
        grid.fill(MARGIN + 1, &images, &mut row);
        let at = |across: usize| &row[(MARGIN + across * (2 + MARGIN)) * 3..][..6];
        assert_eq!((at(0), at(1)), (&images[6..12], &images[18..24]));
        // First line of the second row, which has one image.
        grid.fill(2 * MARGIN + 2, &images, &mut row);
        assert_eq!(row[MARGIN * 3..][..6], images[24..30]);
        assert!(row[(MARGIN + 2) * 3..].iter().all(|&level| level == MARGIN_LEVEL));
    }
}
