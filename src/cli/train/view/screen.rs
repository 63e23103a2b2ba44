//! Lines at the bottom of a terminal that are redrawn in place, without raw mode, alternate screen or hidden cursor.
//!
//! The cursor rests below the last line, and lines are reached by moving up from it; its absolute position is not
//! queried, because the answer would arrive on standard input in raw mode. A killed program leaves the cursor visible
//! below the view and the terminal as it was.

use std::fmt::Write as _;
use std::io::{self, Write};

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier, Style};

/// Interval of full redraws, which overwrite other output: of a shell that stopped the program, or echoed keys.
const WHOLE_EVERY: u32 = 20;

/// The bottom of a terminal.
pub(super) struct Screen<W> {
    out: W,
    /// Current contents.
    drawn: Option<Drawn>,
    draws: u32,
    text: String,
}

struct Drawn {
    buffer: Buffer,
    /// Terminal width and height at the last draw.
    size: (u16, u16),
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W) -> Self {
        Screen { out, drawn: None, draws: 0, text: String::new() }
    }

    /// Draws lines on a terminal of this width and height in one write: changed cells, and at intervals all.
    ///
    /// # Errors
    /// The terminal cannot be written to.
    pub(super) fn draw(&mut self, buffer: Buffer, size: (u16, u16)) -> io::Result<()> {
        self.text.clear();
        self.draws = self.draws.wrapping_add(1);
        let same = |drawn: &&Drawn| drawn.size == size && drawn.buffer.area == buffer.area;
        match self.drawn.as_ref().filter(same) {
            Some(drawn) if !self.draws.is_multiple_of(WHOLE_EVERY) => changes(&mut self.text, &drawn.buffer, &buffer),
            Some(drawn) => {
                up(&mut self.text, u32::from(drawn.buffer.area.height));
                lines(&mut self.text, &buffer);
            }
            None => {
                self.erase(size.0);
                lines(&mut self.text, &buffer);
            }
        }
        self.drawn = Some(Drawn { buffer, size });
        self.send()
    }

    /// Removes the lines, if any, and leaves the cursor at the first.
    ///
    /// # Errors
    /// The terminal cannot be written to.
    pub(super) fn take(&mut self, width: u16) -> io::Result<Option<Buffer>> {
        self.text.clear();
        self.erase(width);
        let drawn = self.drawn.take();
        self.send()?;
        Ok(drawn.map(|drawn| drawn.buffer))
    }

    /// Moves up to the first line and clears everything from there on.
    fn erase(&mut self, width: u16) {
        let Some(Drawn { buffer, .. }) = &self.drawn else { return };
        // A terminal that became narrower has wrapped the lines that no longer fit.
        let rows = |row| u32::from(length(buffer, row).div_ceil(width.max(1)).max(1));
        up(&mut self.text, (0..buffer.area.height).map(rows).sum());
        self.text.push_str("\r\x1b[J");
    }

    fn send(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        self.out.write_all(self.text.as_bytes())?;
        self.out.flush()
    }
}

fn up(text: &mut String, rows: u32) {
    if rows > 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, "\x1b[{rows}A");
    }
}

/// Cells of a line up to the last visible one.
fn length(buffer: &Buffer, row: u16) -> u16 {
    let shows = |&column: &u16| buffer[(column, row)].symbol() != " ";
    (0..buffer.area.width).rev().find(shows).map_or(0, |column| column + 1)
}

/// Whole lines without trailing blanks.
fn lines(text: &mut String, buffer: &Buffer) {
    for row in 0..buffer.area.height {
        text.push('\r');
        styled(text, (0..length(buffer, row)).map(|column| &buffer[(column, row)]));
        text.push_str("\x1b[K\r\n");
    }
}

/// Changed cells by line: the cursor moves to each run of them and back.
fn changes(text: &mut String, before: &Buffer, after: &Buffer) {
    let height = after.area.height;
    let mut at = height;
    for row in 0..height {
        let differs = |column: u16| before[(column, row)] != after[(column, row)];
        let Some(first) = (0..after.area.width).find(|&column| differs(column)) else { continue };
        let last = (first..after.area.width).rev().find(|&column| differs(column)).unwrap_or(first);
        if row < at {
            up(text, u32::from(at - row));
        } else if row > at {
            let _ = write!(text, "\x1b[{}B", row - at);
        }
        // Trailing blanks are cleared, not written: a terminal that becomes narrower would wrap them.
        let length = length(after, row);
        let _ = write!(text, "\x1b[{}G", first.min(length) + 1);
        styled(text, (first..length.min(last + 1)).map(|column| &after[(column, row)]));
        if last >= length {
            text.push_str("\x1b[K");
        }
        at = row;
    }
    if at < height {
        let _ = write!(text, "\x1b[{}B\r", height - at);
    }
}

/// Consecutive cells, with style changes.
fn styled<'a>(text: &mut String, cells: impl Iterator<Item = &'a Cell>) {
    let plain = Cell::EMPTY.style();
    let mut worn = plain;
    for cell in cells {
        if cell.style() != worn {
            worn = cell.style();
            dress(text, worn);
        }
        text.push_str(cell.symbol());
    }
    if worn != plain {
        text.push_str("\x1b[0m");
    }
}

/// Escape sequence of a style, in the terminal theme's colors.
fn dress(text: &mut String, style: Style) {
    text.push_str("\x1b[0");
    for (modifier, code) in [(Modifier::BOLD, 1), (Modifier::DIM, 2)] {
        if style.add_modifier.contains(modifier) {
            let _ = write!(text, ";{code}");
        }
    }
    for (color, base) in [(style.fg, 30), (style.bg, 40)] {
        if let Some(number) = color.and_then(number) {
            let _ = write!(text, ";{}", base + number);
        }
    }
    text.push('m');
}

/// Palette index of a color.
fn number(color: Color) -> Option<u8> {
    Some(match color {
        Color::Black => 0,
        Color::Red => 1,
        Color::Green => 2,
        Color::Yellow => 3,
        Color::Blue => 4,
        Color::Magenta => 5,
        Color::Cyan => 6,
        _ => return None,
    })
}
