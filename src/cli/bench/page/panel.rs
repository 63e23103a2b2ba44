//! Owns the frame of a chart: its head, the key, the two axes, and the shapes that tell series apart. It must never
//! know what is measured.

use crate::cli::chart::{Scale, apart, width};
use crate::cli::sheet::Sheet;

/// As narrow as a phone allows: there the smallest text is some ten pixels high.
pub(super) const WIDTH: f64 = 440.0;
pub(super) const LEFT: f64 = 68.0;
pub(super) const RIGHT: f64 = WIDTH - 16.0;
/// Where lines of text begin.
pub(super) const EDGE: f64 = 12.0;
const HEIGHT: f64 = 210.0;

/// A chart under way: the head is drawn, and the room below it is known.
pub(super) struct Panel {
    pub(super) sheet: Sheet,
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Where the axis below begins.
    pub(super) left: f64,
    title: &'static str,
}

/// What stands in the key: a colour, a line and a shape on it, and the words.
pub(super) struct Key {
    pub(super) colour: usize,
    pub(super) line: &'static str,
    pub(super) shape: String,
    pub(super) words: String,
}

impl Panel {
    /// `subtitle` says what goes up, so that the axis needs no text beside it.
    pub(super) fn new(title: &'static str, subtitle: &str, keys: &[Key]) -> Self {
        let mut sheet = Sheet::default();
        sheet.text((EDGE, 28.0), "ink head", "start", title);
        sheet.text((EDGE, 50.0), "soft", "start", subtitle);
        let (mut x, mut y) = (EDGE, 76.0);
        for Key { colour, line, shape, words } in keys {
            // Names have no end.
            let words = shortened(words, 44);
            let wide = 36.0 + width(&words);
            if x > EDGE && x + wide > RIGHT {
                (x, y) = (EDGE, y + 20.0);
            }
            sheet.add(format_args!(r#"<g class="c{colour}">"#));
            sheet.key((x, y), line, shape, &words);
            sheet.add(format_args!("</g>"));
            x += wide + 14.0;
        }
        let top = if keys.is_empty() { 72.0 } else { y + 22.0 };
        Panel { sheet, top, bottom: top + HEIGHT, left: LEFT, title }
    }

    /// The line below, its ticks in their order, and what it is of.
    pub(super) fn across(&mut self, ticks: impl IntoIterator<Item = (f64, String)>, what: &str) {
        for (x, text) in apart(ticks) {
            self.sheet.line("axis", (x, self.bottom), (x, self.bottom + 4.0));
            // The outermost may not stand out of the sheet.
            let half = width(&text) / 2.0;
            let x = x.clamp(half, (WIDTH - half).max(half));
            self.sheet.text((x, self.bottom + 19.0), "ink", "middle", &text);
        }
        self.sheet.line("axis", (self.left, self.bottom), (RIGHT, self.bottom));
        self.sheet.text((f64::midpoint(self.left, RIGHT), self.bottom + 40.0), "soft", "middle", what);
    }

    /// The lines across, from below upward.
    pub(super) fn up(&mut self, ticks: impl IntoIterator<Item = (f64, String)>) {
        let mut free_to = f64::INFINITY;
        for (y, text) in ticks {
            if y > free_to || !(self.top - 1.0..=self.bottom + 1.0).contains(&y) {
                continue;
            }
            free_to = y - 18.0;
            self.sheet.line("grid", (LEFT, y), (RIGHT, y));
            self.sheet.text((LEFT - 8.0, y + 4.5), "ink", "end", &text);
        }
    }

    /// The whole chart.
    pub(super) fn done(self, name: &str, about: &str) -> String {
        self.sheet.done(name, (WIDTH, self.bottom + 54.0), self.title, about)
    }
}

/// A line of places at even steps.
pub(super) fn ticks(scale: &Scale, text: impl Fn(f64) -> String) -> Vec<(f64, String)> {
    scale.ticks().into_iter().map(|tick| (scale.at(tick), text(tick))).collect()
}

/// The path of a mark around a place, another one for each series.
pub(super) fn shape(series: usize, (x, y): (f64, f64)) -> String {
    const SHAPES: [&str; 6] = [
        "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
        "m-4 -4h8v8h-8Z",
        "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5Z",
        "m0 -5l5 9h-10Z",
        "m0 5l5 -9h-10Z",
        "m-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2Z",
    ];
    // After a round of colours the shapes are one further, so that no pair comes twice soon.
    let at = (series + series / SHAPES.len()) % SHAPES.len();
    format!("M{x:.1} {y:.1}{}", SHAPES[at])
}

/// The colour of a series.
pub(super) fn colour(series: usize) -> usize {
    series % 6
}

/// Text of this many characters at most.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}
