//! Owns the contact sheet: one batch as the loader gives it to a model, drawn as a grid in a PNG. It must never touch a
//! pixel of the batch, hold more than a row of the sheet, nor leave half a file behind.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use feedstock::device::DeviceSpec;
use feedstock::tensor::{CHANNELS, SIDE_MAX};
use feedstock::{Batch, ByteCount, CpuBudget, DType, Layout, RamBudget, Source};

use super::super::data::{DecodeArgs, LoaderArgs, SourceArgs, refused_beside, split};
use super::super::failure::Failure;
use super::super::stop::Stop;
use super::super::table::counted;

/// Pixels between pictures, and around them.
const MARGIN: usize = 4;
const MARGIN_LEVEL: u8 = 255;
/// What the encoder takes besides rows: its compressor and its buffers.
const ENCODER_BYTES: u64 = 1 << 20;
/// Rows that are held at once: one here, the others by the encoder, which filters each against the one before.
const ROWS: u64 = 6;

/// What is drawn, and where to.
#[derive(Args)]
pub(crate) struct SheetArgs {
    /// Draw a batch as training sees it, as a PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Pictures on the sheet, up to 64
    #[arg(long, value_name = "N", requires = "sheet", default_value_t = 36, value_parser = clap::value_parser!(u64).range(1..=64))]
    sheet_count: u64,
    /// Height and width of each of them
    #[arg(long, value_name = "PIXELS", requires = "sheet", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=i64::from(SIDE_MAX)))]
    size: u32,
    /// Which batch: the first one of epoch 0 with this seed
    #[arg(long, value_name = "N", requires = "sheet", default_value_t = 0)]
    seed: u64,
}

/// The places of a sheet.
struct Grid {
    columns: usize,
    rows: usize,
    size: usize,
}

impl SheetArgs {
    /// Draws the sheet, if one is wanted, and says what was drawn.
    pub(super) fn draw(&self, paths: &[PathBuf], budget: ByteCount, stop: &Stop) -> Result<Option<String>, Failure> {
        let Some(out) = &self.sheet else { return Ok(None) };
        let [data] = paths else {
            return Err(Failure::Usage(format!(
                "a sheet is drawn of one folder of class folders, and {} paths were given",
                paths.len()
            )));
        };
        let args = LoaderArgs {
            // As `train` would choose.
            data: split(data, None).0,
            ram_budget: vec![RamBudget::Bytes(budget)],
            batch_size: self.sheet_count as usize,
            size: self.size,
            workers: Vec::new(),
            // Nobody trains beside it.
            cpu_budget: Some(CpuBudget::Fraction(1.0)),
            no_governor: false,
            prefetch: Some(1),
            output: DType::U8,
            layout: Layout::Nhwc,
            device: DeviceSpec::Cpu,
            source: SourceArgs::default(),
            decode: DecodeArgs::default(),
        };
        let folder = args.open()?;
        let sheet_bytes = ByteCount(Grid::of(self.sheet_count as usize, self.size).bytes());
        let because = "a few rows of the sheet, and their encoder";
        let refused = |error| refused_beside(error, &[("sheet", sheet_bytes, because)]);
        let (builder, _) = args.builder(&folder)?;
        // Bad files are replaced, as in training; how many there are is what the rest of the report is about.
        let builder = builder.seed(self.seed).bad_samples_max(1.0).own_ram_budget(budget.saturating_sub(sheet_bytes));
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
            counted(batch.len() as u64, "picture"),
            self.seed,
            out.display(),
        )
    }
}

impl Grid {
    /// As square as it gets.
    fn of(pictures: usize, size: u32) -> Self {
        let columns = (1..).find(|side| side * side >= pictures).unwrap_or(1);
        Grid { columns, rows: pictures.div_ceil(columns), size: size as usize }
    }

    fn width(&self) -> usize {
        self.columns * (self.size + MARGIN) + MARGIN
    }

    fn height(&self) -> usize {
        self.rows * (self.size + MARGIN) + MARGIN
    }

    /// What drawing takes.
    fn bytes(&self) -> u64 {
        (self.width() * CHANNELS) as u64 * ROWS + ENCODER_BYTES
    }

    /// Fills one row of the sheet from the pictures of a batch, which lie one behind the other, red, green, blue.
    fn fill(&self, at: usize, pictures: &[u8], row: &mut [u8]) {
        row.fill(MARGIN_LEVEL);
        let step = self.size + MARGIN;
        let (below, within) = (at / step, at % step);
        let Some(line) = within.checked_sub(MARGIN) else { return };
        let line_bytes = self.size * CHANNELS;
        let pictures = pictures.chunks_exact(self.size * line_bytes).skip(below * self.columns).take(self.columns);
        for (across, picture) in pictures.enumerate() {
            let begins = (across * step + MARGIN) * CHANNELS;
            row[begins..begins + line_bytes].copy_from_slice(&picture[line * line_bytes..(line + 1) * line_bytes]);
        }
    }
}

/// Writes beside the file, then renames: whoever looks finds the old one or the new one, whole.
fn write(out: &Path, grid: &Grid, batch: &Batch) -> Result<(), Box<dyn std::error::Error>> {
    let mut beside = out.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let written = encode(&beside, grid, batch.bytes().ok_or("the batch is not in memory")?);
    let written = written.and_then(|()| Ok(fs::rename(&beside, out)?));
    if written.is_err() {
        // It may never have been there.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn encode(path: &Path, grid: &Grid, pictures: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut file, u32::try_from(grid.width())?, u32::try_from(grid.height())?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    let mut rows = writer.stream_writer()?;
    let mut row = vec![0; grid.width() * CHANNELS];
    for at in 0..grid.height() {
        grid.fill(at, pictures, &mut row);
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
    fn every_picture_has_its_place_and_the_margin_is_around_all() {
        for (pictures, columns, rows) in [(1, 1, 1), (2, 2, 1), (5, 3, 2), (36, 6, 6), (64, 8, 8)] {
            let grid = Grid::of(pictures, 2);
            assert_eq!((grid.columns, grid.rows), (columns, rows));
        }
        let grid = Grid::of(3, 2);
        let pictures: Vec<u8> = (0..3 * 2 * 2 * 3).collect();
        let mut row = vec![0; grid.width() * 3];
        grid.fill(MARGIN - 1, &pictures, &mut row);
        assert!(row.iter().all(|&level| level == MARGIN_LEVEL));
        // The second line of the first row of pictures.
        grid.fill(MARGIN + 1, &pictures, &mut row);
        let at = |across: usize| &row[(MARGIN + across * (2 + MARGIN)) * 3..][..6];
        assert_eq!((at(0), at(1)), (&pictures[6..12], &pictures[18..24]));
        // The first line of the second, where only one is left.
        grid.fill(2 * MARGIN + 2, &pictures, &mut row);
        assert_eq!(row[MARGIN * 3..][..6], pictures[24..30]);
        assert!(row[(MARGIN + 2) * 3..].iter().all(|&level| level == MARGIN_LEVEL));
    }
}
