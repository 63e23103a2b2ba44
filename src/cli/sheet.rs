//! Owns what every picture is made with: one SVG that needs nothing else, its colours on a light page, on a dark one
//! and on paper, and its plainest elements. It must never know what a picture shows.

use std::fmt::{Arguments, Write};

use super::chart::escaped;

/// Colours that also differ in lightness, and shapes that differ without them. Print is light, whatever the screen is.
pub(crate) const STYLE: &str = "\
svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:13px}
.sheet{fill:#fff}.ink{fill:#1f2328}.soft{fill:#59636e}.head{font-size:18px;font-weight:600}
.axis{stroke:#59636e;fill:none}.grid{stroke:#d8dee4;fill:none}.mark{stroke:#59636e;stroke-dasharray:2 4;fill:none}
.over{fill:#cf222e;fill-opacity:.07}.over-text{fill:#b3202c}.budget{stroke:#b3202c;stroke-width:1.5;fill:none}
.planned{stroke:#bc5400;stroke-width:1.5;fill:none;stroke-dasharray:6 4}
.planned-at{stroke:#bc5400;stroke-width:1.5;fill:#fff}
.peak{stroke:#0550ae;stroke-width:2;fill:none}.peak-at{fill:#0550ae}
.broken-at{fill:#cf222e;stroke:#1f2328;stroke-width:1.5}
.speed{stroke:#116329;stroke-width:2;fill:none}.speed-at{fill:#116329}
.c0{color:#0550ae}.c1{color:#bc5400}.c2{color:#116329}.c3{color:#8250df}.c4{color:#0f6b75}.c5{color:#a5306f}
.c6{color:#59636e}
.told{stroke:currentColor;stroke-width:2;fill:none}.told-at,.used-at,.rate-at,.ceiling-at{fill:currentColor}
.spread{stroke:currentColor;stroke-width:1.5;fill:none}
.guess{stroke:currentColor;stroke-width:1.5;fill:none;stroke-dasharray:5 4}
.guess-at{stroke:currentColor;stroke-width:1.5;fill:#fff}
.ceiling{stroke:currentColor;stroke-width:1.5;fill:none;stroke-dasharray:2 3}
.step{stroke:#8250df;stroke-width:1.5;stroke-dasharray:10 3 2 3;fill:none}
.work{fill:#0550ae}.wait{fill:#bc5400;fill-opacity:.18;stroke:#bc5400;stroke-dasharray:4 2}.count{fill:#0550ae}
@media screen and (prefers-color-scheme:dark){
.sheet{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.axis,.mark{stroke:#9198a1}.grid{stroke:#2a313c}
.over{fill:#ff7b72;fill-opacity:.12}.over-text{fill:#ff9a92}.budget{stroke:#ff7b72}
.planned,.planned-at{stroke:#f0a35c}.planned-at{fill:#0d1117}.peak{stroke:#79c0ff}.peak-at{fill:#79c0ff}
.broken-at{fill:#ff7b72;stroke:#e6edf3}.speed{stroke:#56d364}.speed-at{fill:#56d364}
.c0{color:#79c0ff}.c1{color:#f0a35c}.c2{color:#56d364}.c3{color:#d2a8ff}.c4{color:#4fd1c5}.c5{color:#ff9bce}
.c6{color:#9198a1}
.guess-at{fill:#0d1117}.step{stroke:#d2a8ff}.work,.count{fill:#79c0ff}.wait{fill:#f0a35c;stroke:#f0a35c}
}";

/// A picture under way.
#[derive(Default)]
pub(crate) struct Sheet {
    svg: String,
}

impl Sheet {
    pub(crate) fn add(&mut self, element: Arguments<'_>) {
        // A string takes everything.
        let _ = writeln!(self.svg, "{element}");
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{text}</text>"#));
    }

    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(r#"<path class="{class}" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#));
    }

    /// From place to place.
    pub(crate) fn path(&mut self, class: &str, places: impl Iterator<Item = (f64, f64)>) {
        let step = |(n, (x, y))| format!("{}{x:.1} {y:.1}", if n == 0 { 'M' } else { 'L' });
        let path: String = places.enumerate().map(step).collect();
        self.add(format_args!(r#"<path class="{class}" d="{path}"/>"#));
    }

    /// What a line and a shape on it mean. `shape` is markup, and lies around 14, 0.
    pub(crate) fn key(&mut self, (x, y): (f64, f64), class: &str, shape: &str, words: &str) {
        let words = escaped(words);
        self.add(format_args!(
            r#"<g transform="translate({x} {y})"><path class="{class}" d="M0 0H28"/>{shape}<text class="ink" x="36" y="4">{words}</text></g>"#
        ));
    }

    /// The whole picture. `name` sets its ids apart from those of others on the same page; `title` and `about` are for
    /// who cannot see it.
    pub(crate) fn done(self, name: &str, (width, height): (f64, f64), title: &str, about: &str) -> String {
        let (title, about, drawn) = (escaped(title), escaped(about), self.svg);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="{name}-title {name}-about">
<title id="{name}-title">{title}</title><desc id="{name}-about">{about}</desc>
<style>
{STYLE}
</style>
<rect class="sheet" width="{width}" height="{height}"/>
{drawn}</svg>
"#
        )
    }
}
