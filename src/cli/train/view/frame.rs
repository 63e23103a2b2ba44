//! Layout of the view for one snapshot. In a small terminal the least important lines are dropped first, down to one
//! line.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Sparkline, Widget};

use super::super::snapshot::Snapshot;
use super::figures::{of, percent, rate, share_of, short, time};
use super::history::History;

/// Minimum width of the two-column layout.
const WIDE: u16 = 76;
/// Below this width, or with fewer lines than this, one line is shown.
const WIDTH_MIN: u16 = 36;
const LINES_MIN: u16 = 4;
/// Share of input wait that is highlighted.
const WAITS: f64 = 0.1;

/// Contents of a frame.
pub(super) struct Frame<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) loss: &'a History,
    pub(super) rate: &'a History,
}

/// A line, or a line of a chart.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Rule,
    Head,
    Bar,
    /// The two charted numbers, and the charts below them.
    Numbers,
    Charts,
    Loss,
    Rate,
    Accuracy,
    AccuracyAndRate,
    Shares,
    Memory,
    Ram,
    Training,
    Accounts,
}

/// Lines from top to bottom, each with its priority when not all fit.
const SIDE_BY_SIDE: [(Part, u8); 10] = [
    (Part::Rule, 7),
    (Part::Head, 0),
    (Part::Numbers, 1),
    (Part::Charts, 5),
    (Part::Charts, 6),
    (Part::Charts, 8),
    (Part::AccuracyAndRate, 2),
    (Part::Shares, 4),
    (Part::Memory, 3),
    (Part::Accounts, 9),
];
const ONE_BELOW_ANOTHER: [(Part, u8); 9] = [
    (Part::Rule, 8),
    (Part::Head, 0),
    (Part::Bar, 6),
    (Part::Loss, 1),
    (Part::Rate, 3),
    (Part::Accuracy, 2),
    (Part::Shares, 5),
    (Part::Ram, 4),
    (Part::Training, 7),
];

/// Number of lines for a view on a terminal of this width and height. A third is left to other output, and one line to
/// the cursor.
pub(super) fn lines((width, height): (u16, u16)) -> u16 {
    let room = (height - height / 3).saturating_sub(1);
    let most = if width >= WIDE { SIDE_BY_SIDE.len() } else { ONE_BELOW_ANOTHER.len() } as u16;
    if width < WIDTH_MIN || room < LINES_MIN { 1 } else { room.min(most) }
}

fn parts(width: u16, height: u16) -> Vec<Part> {
    let all: &[(Part, u8)] = if width >= WIDE { &SIDE_BY_SIDE } else { &ONE_BELOW_ANOTHER };
    all.iter().filter(|(_, turn)| u16::from(*turn) < height).map(|(part, _)| *part).collect()
}

impl Widget for &Frame<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let area = area.intersection(buffer.area);
        if area.is_empty() {
            return;
        }
        if area.width < WIDTH_MIN || area.height < LINES_MIN {
            let line = format!("{}  {}", percent(self.snapshot.done_share()), self.snapshot.to_line());
            buffer.set_stringn(area.x, area.y, line, usize::from(area.width), Style::new());
            return;
        }
        let parts = parts(area.width, area.height);
        let mut row = area.y;
        let charts = parts.iter().filter(|part| **part == Part::Charts).count() as u16;
        for (place, &part) in parts.iter().enumerate() {
            if part == Part::Charts && place > 0 && parts[place - 1] == Part::Charts {
                continue;
            }
            let height = if part == Part::Charts { charts } else { 1 };
            self.part(part, Rect { y: row, height, ..area }, charts > 0, buffer);
            row += height;
        }
    }
}

impl Frame<'_> {
    fn part(&self, part: Part, area: Rect, charted: bool, buffer: &mut Buffer) {
        let (left, right) = halves(area);
        match part {
            Part::Rule => {
                let rule = "─".repeat(usize::from(area.width));
                buffer.set_stringn(area.x, area.y, rule, usize::from(area.width), DIM);
            }
            Part::Head => self.head(area, buffer),
            Part::Bar => bar(area, self.snapshot.done_share(), GAUGE, buffer),
            Part::Numbers if charted => {
                title(left, &self.loss_line(), &range(self.loss), buffer);
                title(right, &self.rate_line(), &range(self.rate), buffer);
            }
            Part::Numbers => {
                self.loss(left, buffer);
                self.rate(right, buffer);
            }
            Part::Charts => {
                chart(left, self.loss, f64::INFINITY, LOSS, buffer);
                chart(right, self.rate, 0.0, RATE, buffer);
            }
            Part::Loss => self.loss(area, buffer),
            Part::Rate => self.rate(area, buffer),
            Part::Accuracy => {
                let rate = Line::from(vec![label("lr "), number(rate(self.snapshot.learning_rate))]);
                title(area, &self.accuracy_line("  val "), &rate, buffer);
            }
            Part::AccuracyAndRate => {
                title(left, &self.accuracy_line("  validation "), &Line::default(), buffer);
                let rate = Line::from(vec![label("learning rate "), number(rate(self.snapshot.learning_rate))]);
                title(right, &rate, &Line::default(), buffer);
            }
            Part::Shares => {
                let Snapshot { busy_share, input_wait_share, .. } = *self.snapshot;
                let waits = if input_wait_share >= WAITS { Style::new().fg(Color::Yellow) } else { GAUGE };
                let wide = area.width >= WIDE;
                gauge(left, if wide { "device busy" } else { "busy" }, busy_share, percent(busy_share), GAUGE, buffer);
                let name = if wide { "input wait" } else { "wait" };
                gauge(right, name, input_wait_share, percent(input_wait_share), waits, buffer);
            }
            Part::Memory => {
                self.ram(left, buffer);
                self.training(right, buffer);
            }
            Part::Ram => self.ram(area, buffer),
            Part::Training => self.training(area, buffer),
            Part::Accounts => self.accounts(area, buffer),
        }
    }

    fn head(&self, area: Rect, buffer: &mut Buffer) {
        let Snapshot { epoch, epochs, step, steps, seconds_left, .. } = self.snapshot;
        let mut start = vec![label("epoch "), strong(format!("{}/{epochs}", epoch + 1))];
        start.extend([label("  step "), number(format!("{step}/{steps}"))]);
        let done = strong(percent(self.snapshot.done_share()));
        let left = seconds_left.map_or(String::new(), |seconds| format!("  {} left", time(seconds)));
        let start = Line::from(start);
        let mut end = Line::from(vec![done, label(left)]);
        if start.width() + end.width() >= usize::from(area.width) {
            end.spans.truncate(1);
        }
        let taken = start.width() + end.width() + 4;
        title(area, &start, &end, buffer);
        if area.width >= WIDE && taken + 8 <= usize::from(area.width) {
            let x = area.x + start.width() as u16 + 2;
            bar(Rect { x, width: area.width - taken as u16, ..area }, self.snapshot.done_share(), GAUGE, buffer);
        }
    }

    fn loss_line(&self) -> Line<'static> {
        Line::from(vec![label("loss "), Span::styled(short(self.snapshot.loss), LOSS.add_modifier(Modifier::BOLD))])
    }

    fn rate_line(&self) -> Line<'static> {
        let rate = short(self.snapshot.images_per_s);
        Line::from(vec![label("images/s "), Span::styled(rate, RATE.add_modifier(Modifier::BOLD))])
    }

    fn accuracy_line(&self, validation: &'static str) -> Line<'static> {
        let mut spans = vec![label("accuracy "), strong(percent(self.snapshot.accuracy))];
        let validated = self.snapshot.val_accuracy.map_or_else(|| label("-"), |share| strong(percent(share)));
        spans.extend([label(validation), validated]);
        Line::from(spans)
    }

    /// A number and its history in one line.
    fn loss(&self, area: Rect, buffer: &mut Buffer) {
        title(area, &self.loss_line(), &Line::default(), buffer);
        let values = self.loss.whole(usize::from(area.width));
        // The scale starts a little below the minimum, so that a small decrease is visible and the minimum is not a
        // gap.
        let (low, high) = bounds(&values);
        let base = low - (high - low).max(f64::MIN_POSITIVE) / 7.0;
        sparkline(behind(area, 17), &values.iter().map(|value| value - base).collect::<Vec<_>>(), LOSS, buffer);
    }

    fn rate(&self, area: Rect, buffer: &mut Buffer) {
        title(area, &self.rate_line(), &Line::default(), buffer);
        sparkline(behind(area, 17), &self.rate.whole(usize::from(area.width)), RATE, buffer);
    }

    fn ram(&self, area: Rect, buffer: &mut Buffer) {
        let Snapshot { ram_held, ram_budget, .. } = *self.snapshot;
        gauge(area, "loader RAM", share_of(ram_held, ram_budget), of(ram_held, ram_budget), GAUGE, buffer);
    }

    fn training(&self, area: Rect, buffer: &mut Buffer) {
        let name = "training";
        match (self.snapshot.memory_in_use, self.snapshot.memory_budget) {
            (Some(held), Some(budget)) => gauge(area, name, share_of(held, budget), of(held, budget), GAUGE, buffer),
            (Some(held), None) => gauge(area, name, 0.0, format!("{held} of -"), GAUGE, buffer),
            (None, _) => gauge(area, name, 0.0, "-".to_owned(), GAUGE, buffer),
        }
    }

    /// Draws the largest accounts that fit.
    fn accounts(&self, area: Rect, buffer: &mut Buffer) {
        let mut line = Line::default();
        for (name, held) in &self.snapshot.accounts {
            let gap = if line.spans.is_empty() { "" } else { "   " };
            let spans = [label(format!("{gap}{name} ")), Span::styled(held.to_string(), DIM)];
            if line.width() + spans.iter().map(Span::width).sum::<usize>() > usize::from(area.width) {
                break;
            }
            line.spans.extend(spans);
        }
        title(area, &line, &Line::default(), buffer);
    }
}

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const GAUGE: Style = Style::new().fg(Color::Blue);
const LOSS: Style = Style::new().fg(Color::Cyan);
const RATE: Style = Style::new().fg(Color::Green);

fn label(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), DIM)
}

fn number(text: String) -> Span<'static> {
    Span::raw(text)
}

fn strong(text: String) -> Span<'static> {
    Span::styled(text, Modifier::BOLD)
}

/// Splits a line into two halves with a gap.
fn halves(area: Rect) -> (Rect, Rect) {
    let gap = if area.width >= WIDE { 4 } else { 2 };
    let width = area.width.saturating_sub(gap) / 2;
    (Rect { width, ..area }, Rect { x: area.x + area.width - width, width, ..area })
}

/// Rest of a line after its first cells.
fn behind(area: Rect, cells: u16) -> Rect {
    let cells = cells.min(area.width);
    Rect { x: area.x + cells, width: area.width - cells, ..area }
}

/// A text at the left and, if it fits, one at the right.
fn title(area: Rect, left: &Line<'_>, right: &Line<'_>, buffer: &mut Buffer) {
    buffer.set_line(area.x, area.y, left, area.width);
    let (taken, wanted) = (left.width() as u16 + 1, right.width() as u16);
    if taken + wanted <= area.width {
        buffer.set_line(area.x + area.width - wanted, area.y, right, wanted);
    }
}

/// A name, a bar and a figure.
fn gauge(area: Rect, name: &'static str, share: f64, figure: String, style: Style, buffer: &mut Buffer) {
    const NAME: u16 = 12;
    let name_width = if area.width >= 30 { NAME } else { name.len() as u16 + 1 };
    // Constant width of figures, so that bars do not move.
    let figure_width = (figure.chars().count() as u16).max(if area.width >= 30 { 0 } else { 4 });
    title(area, &Line::from(label(name)), &Line::from(number(figure)), buffer);
    let width = area.width.saturating_sub(name_width + figure_width + 1);
    if width >= 3 {
        bar(Rect { x: area.x + name_width, width, ..area }, share, style, buffer);
    }
}

/// A bar filled to the share, to half a cell.
fn bar(area: Rect, share: f64, style: Style, buffer: &mut Buffer) {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let halves = (share * f64::from(area.width) * 2.0).round() as u16;
    for column in 0..area.width {
        let (symbol, style) = match halves.saturating_sub(column * 2) {
            0 => ("─", DIM),
            1 => ("╸", style),
            _ => ("━", style),
        };
        buffer.set_stringn(area.x + column, area.y, symbol, 1, style);
    }
}

/// A line chart over the whole width, from `floor` or the minimum to the maximum.
fn chart(area: Rect, history: &History, floor: f64, style: Style, buffer: &mut Buffer) {
    // Braille has two points per cell.
    let values = history.whole(usize::from(area.width) * 2);
    if values.len() < 2 {
        return;
    }
    let (low, high) = bounds(&values);
    let low = low.min(floor);
    // A constant line is drawn in the middle.
    let margin = if high > low { 0.0 } else { 1.0 };
    let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(at, &value)| (at as f64, value)).collect();
    let line = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(style).data(&points);
    Chart::new(vec![line])
        .x_axis(Axis::default().bounds([0.0, (values.len() - 1) as f64]))
        .y_axis(Axis::default().bounds([low - margin, high + margin]))
        .render(area, buffer);
}

/// Bars over the whole width, from zero to the maximum.
fn sparkline(area: Rect, values: &[f64], style: Style, buffer: &mut Buffer) {
    // Fine enough for eight levels per cell.
    const LEVELS: f64 = 1000.0;
    let (_, high) = bounds(values);
    if values.is_empty() || high <= 0.0 {
        return;
    }
    let width = usize::from(area.width);
    let level = |place: usize| (values[place * values.len() / width].max(0.0) / high * LEVELS) as u64;
    let levels: Vec<u64> = (0..width).map(level).collect();
    Sparkline::default().data(&levels).max(LEVELS as u64).style(style).render(area, buffer);
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}

/// Minimum and maximum of a history.
fn range(history: &History) -> Line<'static> {
    let (low, high) = bounds(&history.whole(usize::MAX));
    if low < high { Line::from(label(format!("{} .. {}", short(low), short(high)))) } else { Line::default() }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
