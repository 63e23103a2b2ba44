//! Charts as SVG files that stand alone: lines, marks and bars on one or more panels, one below the other.
//!
//! A [`Panel`] is described in data coordinates. [`Chart::svg`] maps it onto the sheet, leaves out tick labels that
//! would touch, and draws the legend. Every mark carries its numbers as `data-` attributes and as a tooltip. Colors
//! follow the reader's light or dark scheme; print is light. Values outside of an axis are drawn at its end.

use std::fmt::Write;

use super::format;

/// The style of all charts.
pub(crate) const STYLE: &str = include_str!("chart.css");

/// Width of a chart in pixels: as narrow as a phone, where the smallest text is about ten pixels high.
pub(crate) const NARROW: f64 = 440.0;
/// Left margin of text.
const EDGE: f64 = 12.0;
/// Left margin of a panel with tick labels.
const LEFT: f64 = 68.0;
/// Smallest width and height of a bar: smaller ones could not be seen.
const BAR_MIN: f64 = 1.5;
/// Ticks of a logarithmic axis of bytes.
const TICKS_MIN: usize = 4;
const TICKS_MAX: usize = 9;

/// A chart of one or more panels.
pub(crate) struct Chart {
    /// Prefix of element ids, which are unique on a page.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// A line below the title; empty for none.
    pub(crate) subtitle: String,
    /// Description for readers who cannot see the chart.
    pub(crate) about: String,
    pub(crate) width: f64,
    pub(crate) panels: Vec<Panel>,
}

/// A pair of axes and the series on them.
pub(crate) struct Panel {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) height: f64,
    pub(crate) series: Vec<Series>,
    /// Vertical lines: position and label.
    pub(crate) lines: Vec<(f64, String)>,
    /// Draws y = x, and shades the side above it as over budget.
    pub(crate) limit: bool,
}

/// A range of values and its ticks.
#[derive(Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    /// Values at the left and right end, or at the bottom and the top.
    pub(crate) range: (f64, f64),
    pub(crate) log: bool,
    pub(crate) ticks: Vec<f64>,
    pub(crate) format: fn(f64) -> String,
}

/// Points or bars of one color.
#[derive(Clone, Default)]
pub(crate) struct Series {
    /// Name in the legend; empty for none.
    pub(crate) name: String,
    /// Number of a color, 0 to 7. 6 is gray, 7 is red.
    pub(crate) color: usize,
    pub(crate) line: Line,
    /// Number of a shape that marks each point.
    pub(crate) mark: Option<usize>,
    /// Draws marks and bars as outlines.
    pub(crate) hollow: bool,
    /// Pixels by which points are moved to the right, so that equal series do not hide each other.
    pub(crate) offset: f64,
    pub(crate) points: Vec<Point>,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Line {
    #[default]
    None,
    Solid,
    Dashed,
}

#[derive(Clone, Default)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Smallest and largest value of several runs.
    pub(crate) range: Option<(f64, f64)>,
    /// Tooltip.
    pub(crate) text: String,
    /// Highlights the mark as a violation.
    pub(crate) alert: bool,
}

/// A rectangle in data coordinates.
#[derive(Clone)]
pub(crate) struct Bar {
    pub(crate) x: (f64, f64),
    pub(crate) y: (f64, f64),
    /// Tooltip.
    pub(crate) text: String,
    /// Labels above the bar, at the left and at the right end of the panel.
    pub(crate) labels: Option<(String, String)>,
}

impl Axis {
    /// An axis from zero to `high` with about five round ticks.
    pub(crate) fn linear(label: &str, high: f64, format: fn(f64) -> String) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let power = 10f64.powf((high / 5.0).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0].map(|n| n * power).into_iter().find(|step| *step >= high / 5.0);
        let step = step.unwrap_or(10.0 * power);
        let ticks = (0..20).map(|n| f64::from(n) * step).take_while(|value| *value <= high).collect();
        Axis { label: label.to_owned(), range: (0.0, high), log: false, ticks, format }
    }

    /// A logarithmic axis with a tick at each power of ten, and at 2 and 5 times these where it is short.
    pub(crate) fn log(label: &str, (low, high): (f64, f64), format: fn(f64) -> String) -> Self {
        let (low, high) = (low.max(1e-12), high.max(1.01e-12));
        let parts = if high / low < 50.0 { &[1.0, 2.0, 5.0][..] } else { &[1.0] };
        // Parsed from text, so that a tenth is exactly the nearest number to 0.1.
        let decade = |power: i32| parts.iter().map(move |part| format!("{part}e{power}").parse().unwrap_or(0.0));
        let ticks = (-12..19).flat_map(decade).filter(|value| (low..=high).contains(value)).collect();
        Axis { label: label.to_owned(), range: (low, high), log: true, ticks, format }
    }

    /// A logarithmic axis of sizes: ticks at powers of two, and at simple fractions between them where it is short.
    pub(crate) fn bytes(label: &str, (low, high): (f64, f64)) -> Self {
        let (low, high) = if low < high { (low.max(1024.0), high.max(2048.0)) } else { (1024.0, 2048.0) };
        let fractions = |parts: u32| -> Vec<f64> {
            let octave = |power| (0..parts).map(move |n| 2f64.powi(power) * (1.0 + f64::from(n) / f64::from(parts)));
            (10..60).flat_map(octave).filter(|value| (low..=high).contains(value)).collect()
        };
        let ticks = [1, 2, 4, 8].map(fractions).into_iter().find(|ticks| ticks.len() >= TICKS_MIN);
        let ticks = ticks.unwrap_or_else(|| fractions(16));
        let ticks = ticks.iter().copied().step_by(ticks.len().div_ceil(TICKS_MAX).max(1)).collect();
        Axis { label: label.to_owned(), range: (low, high), log: true, ticks, format: format::bytes }
    }

    /// Position of a value: 0 at one end of the axis, 1 at the other.
    fn share(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        let share = if self.log { (value / low).log2() / (high / low).log2() } else { (value - low) / (high - low) };
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
    }
}

impl Panel {
    /// Peak and planned memory against the budget: `budget`, `planned`, `peak` in bytes and the name of each point.
    /// Peaks above their budget are highlighted.
    pub(crate) fn memory(points: &[(f64, f64, f64, String)], height: f64, line: bool) -> Panel {
        let ends = |of: &mut dyn Iterator<Item = f64>| {
            of.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)))
        };
        let (first, last) = ends(&mut points.iter().map(|point| point.0));
        let (low, high) = ends(&mut points.iter().flat_map(|(_, planned, peak, _)| [*planned, *peak]));
        let planned = points.iter().map(|(budget, planned, _, name)| {
            let text = format!("{name}: {} planned", format::bytes(*planned));
            Point { x: *budget, y: *planned, text, ..Point::default() }
        });
        let peak = points.iter().map(|(budget, _, peak, name)| {
            let text = format!(
                "{name}: {} at the peak, {} of the budget",
                format::bytes(*peak),
                format::percent(peak / budget)
            );
            Point { x: *budget, y: *peak, text, alert: peak > budget, ..Point::default() }
        });
        let series = |name: &str, color, style, mark, points: Vec<Point>| {
            let line = if line { style } else { Line::None };
            Series {
                name: name.to_owned(),
                color,
                line,
                mark: Some(mark),
                hollow: color == 1,
                points,
                ..Series::default()
            }
        };
        Panel {
            x: Axis::bytes("RAM budget (log scale)", (first / 1.2, last * 1.2)),
            y: Axis::bytes("resident memory of the process (log scale)", (low / 1.2, high.max(first) * 1.35)),
            height,
            series: vec![
                series("planned", 1, Line::Dashed, 2, planned.collect()),
                series("measured peak", 0, Line::Solid, 0, peak.collect()),
            ],
            lines: Vec::new(),
            limit: true,
        }
    }
}

impl Chart {
    /// The chart as an SVG element. A file holds the style; a page with several charts holds it once for all.
    pub(crate) fn svg(&self, with_style: bool) -> String {
        let (mut sheet, mut y) = (Sheet { svg: String::new(), width: self.width }, 28.0);
        sheet.text(EDGE, y, "ink head", "start", self.title);
        if !self.subtitle.is_empty() {
            y += 22.0;
            sheet.text(EDGE, y, "soft", "start", &self.subtitle);
        }
        for panel in &self.panels {
            y = sheet.panel(panel, y);
        }
        let Chart { id, width, .. } = self;
        let (title, about, height, drawn) = (escaped(self.title), escaped(&self.about), y + 14.0, sheet.svg);
        let style = if with_style { format!("<style>\n{STYLE}</style>\n") } else { String::new() };
        let size = format!(r#"viewBox="0 0 {width} {height}" width="{width}" height="{height}""#);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="{id}-title {id}-about">
<title id="{id}-title">{title}</title><desc id="{id}-about">{about}</desc>
{style}<rect class="sheet" width="{width}" height="{height}"/>
{drawn}</svg>
"#
        )
    }
}

/// An SVG under construction.
struct Sheet {
    svg: String,
    width: f64,
}

/// Appends formatted markup to a sheet. Writing to a string cannot fail.
macro_rules! add {
    ($sheet:expr, $($arguments:tt)*) => {{ let _ = writeln!($sheet.svg, $($arguments)*); }};
}

impl Sheet {
    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        add!(self, r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{}</text>"#, escaped(text));
    }

    /// Draws the legend from `y` on, and returns the position of its last row.
    fn legend(&mut self, panel: &Panel, mut y: f64) -> f64 {
        let limit = Series { name: "the budget (y = x)".to_owned(), color: 7, line: Line::Solid, ..Series::default() };
        let named = panel.series.iter().chain(panel.limit.then_some(&limit)).filter(|series| !series.name.is_empty());
        let mut x = f64::INFINITY;
        for series in named {
            // The length of names has no limit.
            let name = shortened(&series.name, 44);
            let width = 36.0 + text_width(&name);
            if x + width > self.width - EDGE {
                (x, y) = (EDGE, y + 20.0);
            }
            add!(self, r#"<g class="c{}" transform="translate({x} {y})">"#, series.color);
            if series.line != Line::None {
                add!(self, r#"<path class="{}" d="M0 0H28"/>"#, series.line.class());
            }
            if let Some(mark) = series.mark {
                add!(self, r#"<path class="mark{}" d="{}"/>"#, series.hollow_class(), shape(mark, 14.0, 0.0));
            }
            if !series.bars.is_empty() {
                add!(self, r#"<rect class="bar{}" x="2" y="-6" width="24" height="12"/>"#, series.hollow_class());
            }
            add!(self, r#"<text class="ink" x="36" y="4">{}</text></g>"#, escaped(&name));
            x += width + 14.0;
        }
        y
    }

    /// Draws a panel below `y`, and returns its lower end.
    fn panel(&mut self, panel: &Panel, mut y: f64) -> f64 {
        let Panel { x: across, y: up, height, series, lines, limit } = panel;
        y += 22.0;
        self.text(EDGE, y, "soft", "start", &up.label);
        y = self.legend(panel, y + 6.0);
        let labelled = up.ticks.iter().any(|tick| !(up.format)(*tick).is_empty());
        let (left, right) = (if labelled { LEFT } else { EDGE }, self.width - 16.0);
        // A row of text for each line, so that labels never touch.
        let rows = y + 20.0;
        let top = rows + 20.0 * lines.iter().filter(|(_, label)| !label.is_empty()).count() as f64;
        let bottom = top + height;
        let px = |value: f64| left + across.share(value) * (right - left);
        let py = |value: f64| bottom - up.share(value) * (bottom - top);

        let mut free = f64::INFINITY;
        for tick in &up.ticks {
            let y = py(*tick);
            if y <= free {
                add!(self, r#"<path class="grid" d="M{left} {y:.1}H{right}"/>"#);
                self.text(left - 8.0, y + 4.5, "ink", "end", &(up.format)(*tick));
                free = y - 18.0;
            }
        }
        let mut free = f64::NEG_INFINITY;
        for tick in &across.ticks {
            let (at, text) = (px(*tick), (across.format)(*tick));
            // The outermost labels stay on the sheet.
            let half = text_width(&text) / 2.0;
            let x = at.clamp(half, (self.width - half).max(half));
            if x - half >= free {
                add!(self, r#"<path class="axis" d="M{at:.1} {bottom}v4"/>"#);
                self.text(x, bottom + 19.0, "ink", "middle", &text);
                free = x + half + 8.0;
            }
        }
        let (low, high) = (across.range.0.max(up.range.0), across.range.1.min(up.range.1));
        if *limit && low < high {
            let [x0, y0, x1, y1] = [px(low), py(low), px(high), py(high)];
            add!(self, r#"<path class="over" d="M{left} {y0:.1}H{x0:.1}L{x1:.1} {y1:.1}V{top}H{left}Z"/>"#);
            add!(self, r#"<path class="line c7" d="M{x0:.1} {y0:.1}L{x1:.1} {y1:.1}"/>"#);
            self.text(left + 10.0, top + 18.0, "ink", "start", "over budget");
        }
        for (n, (at, label)) in lines.iter().enumerate() {
            let (x, y) = (px(*at), rows + 20.0 * n as f64);
            let (anchor, aside) = if x > f64::midpoint(left, right) { ("end", -6.0) } else { ("start", 6.0) };
            let from = if label.is_empty() { top } else { y - 10.0 };
            add!(self, r#"<path class="at" d="M{x:.1} {from:.1}V{bottom}" data-x="{at}"/>"#);
            self.text(x + aside, y, "ink", anchor, label);
        }
        for series in series {
            self.series(series, (left, right, bottom), px, py);
        }
        add!(self, r#"<path class="axis" d="M{left} {bottom}H{right}"/>"#);
        self.text(f64::midpoint(left, right), bottom + 40.0, "soft", "middle", &across.label);
        bottom + 40.0
    }

    fn series(
        &mut self,
        series: &Series,
        (left, right, bottom): (f64, f64, f64),
        px: impl Fn(f64) -> f64,
        py: impl Fn(f64) -> f64,
    ) {
        let (name, hollow) = (escaped(&series.name), series.hollow_class());
        add!(self, r#"<g class="c{}">"#, series.color);
        for Bar { x, y, text, labels } in &series.bars {
            let [x0, x1, y0, y1] = [px(x.0), px(x.1), py(y.0), py(y.1)];
            let (w, h) = ((x1 - x0 - 1.0).max(BAR_MIN), (y1 - y0).abs().max(BAR_MIN));
            let (at, top) = ((x0 + 0.5).min(right - w), y0.min(y1).min(bottom - h));
            let data = format!(r#"data-series="{name}" data-x="{}" data-x2="{}" data-y="{}""#, x.0, x.1, y.1);
            let (rect, text) = (format!(r#"x="{at:.1}" y="{top:.1}" width="{w:.1}" height="{h:.1}""#), escaped(text));
            add!(self, r#"<rect class="bar{hollow}" {rect} {data}><title>{text}</title></rect>"#);
            if let Some((before, after)) = labels {
                self.text(left, top - 6.0, "ink", "start", before);
                self.text(right, top - 6.0, "ink", "end", after);
            }
        }
        let at = |point: &Point| (px(point.x) + series.offset, py(point.y));
        if series.line != Line::None && series.points.len() > 1 {
            let path: Vec<String> = series.points.iter().map(at).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            add!(self, r#"<path class="{}" d="M{}"/>"#, series.line.class(), path.join("L"));
        }
        for point in &series.points {
            let ((x, y), Point { x: data_x, y: data_y, range, text, alert }) = (at(point), point);
            let mut data = format!(r#"data-series="{name}" data-x="{data_x}" data-y="{data_y}""#);
            if let Some((low, high)) = range.filter(|(low, high)| low < high) {
                let _ = write!(data, r#" data-low="{low}" data-high="{high}""#);
                let (x, low, high) = (x - 3.5, py(low), py(high));
                add!(self, r#"<path class="spread" d="M{x:.1} {high:.1}h7m-3.5 0V{low:.1}m-3.5 0h7"/>"#);
            }
            if let Some(mark) = series.mark {
                let (alert, shape, text) = (if *alert { " alert" } else { "" }, shape(mark, x, y), escaped(text));
                add!(self, r#"<path class="mark{hollow}{alert}" d="{shape}" {data}><title>{text}</title></path>"#);
            }
        }
        add!(self, "</g>");
    }
}

impl Line {
    fn class(self) -> &'static str {
        if self == Line::Dashed { "line dashed" } else { "line" }
    }
}

impl Series {
    fn hollow_class(&self) -> &'static str {
        if self.hollow { " hollow" } else { "" }
    }
}

/// Path of a mark around a position. Colors repeat after six series; shapes then are one further, so that pairs differ.
fn shape(number: usize, x: f64, y: f64) -> String {
    const SHAPES: [&str; 6] = [
        "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
        "m-4 -4h8v8h-8Z",
        "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5Z",
        "m0 -5l5 9h-10Z",
        "m0 5l5 -9h-10Z",
        "m-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2Z",
    ];
    format!("M{x:.1} {y:.1}{}", SHAPES[(number + number / SHAPES.len()) % SHAPES.len()])
}

/// Upper bound of a text's width in pixels, at the size of labels and in any usual font.
fn text_width(text: &str) -> f64 {
    8.0 * text.chars().count() as f64
}

/// Text of at most this many characters.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// Text that is safe between tags and within quotes.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // XML does not allow these, not even escaped.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => safe.push('\u{FFFD}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_are_equally_long_on_a_log_axis() {
        let axis = Axis::bytes("", (32.0 * 1024.0, 512.0 * 1024.0));
        let shares = [32.0, 64.0, 128.0, 512.0, 1024.0, 0.0].map(|kib| axis.share(kib * 1024.0));
        assert_eq!(shares, [0.0, 0.25, 0.5, 1.0, 1.0, 0.0]);
        let axis = Axis::linear("", 10.0, format::short);
        assert_eq!([-1.0, 0.0, 5.0, 10.0, f64::NAN].map(|value| axis.share(value)), [0.0, 0.0, 0.5, 1.0, 0.0]);
    }

    #[test]
    fn ticks_are_round_few_and_inside() {
        for (low, high) in [(38.0, 44.0), (38.0, 70.0), (38.0, 200.0), (38.0, 1100.0), (1.0, 90_000.0)] {
            let [low, high] = [low, high].map(|mib| mib * f64::from(1 << 20));
            let ticks = Axis::bytes("", (low, high)).ticks;
            assert!((2..=TICKS_MAX).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.is_sorted() && ticks.iter().all(|tick| (low..=high).contains(tick)), "{ticks:?}");
        }
        assert_eq!(Axis::linear("", 1100.0, format::short).ticks, [0.0, 250.0, 500.0, 750.0, 1000.0]);
        assert_eq!(Axis::linear("", 0.5, format::short).ticks.len(), 6);
        assert_eq!(Axis::log("", (0.0009, 0.011), format::time).ticks, [0.001, 0.002, 0.005, 0.01]);
        assert_eq!(Axis::log("", (1e-6, 1.0), format::time).ticks, [1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0]);
    }

    #[test]
    fn tick_labels_that_would_touch_are_left_out() {
        let ticks = [1.0, 2.0, 3.0, 4.0].map(|tick| 1000.0 + tick).to_vec();
        let x = Axis { ticks, range: (0.0, 10_000.0), ..Axis::linear("across", 1.0, format::short) };
        let y = Axis::linear("up", 1.0, format::percent);
        let panel = Panel { x, y, height: 100.0, series: Vec::new(), lines: Vec::new(), limit: false };
        let (subtitle, about) = (String::new(), "a<b>".to_owned());
        let svg = Chart { id: "x", title: "t", subtitle, about, width: NARROW, panels: vec![panel] }.svg(true);
        assert!(svg.contains(">1001<") && !svg.contains(">1002<") && svg.contains("a&lt;b&gt;"), "{svg}");
    }

    #[test]
    fn text_is_safe_within_xml() {
        assert_eq!(escaped("a<b>&\"c\"\u{1}"), "a&lt;b&gt;&amp;&quot;c&quot;\u{FFFD}");
    }
}
