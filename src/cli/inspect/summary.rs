//! Summary of all files. Its size is bounded ([`SUMMARY_BYTES`]); the hashes, which grow with the number of files, have
//! an account of their own.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use feedstock::decode::Format;
use feedstock::{ByteCount, SampleErrorKind, Stage};

use super::super::data::readable;
use super::super::histogram::Histogram;
use super::super::table::{columns, counted, facts};
use super::classes::{ClassPath, Classes};
use super::duplicates::{Duplicates, Entry, Hashes};
use super::inspect_file::{Finding, Problem};
use super::outliers::Outliers;

/// Upper bound of the summary without hashes: half of it for the list of bad files, up to a dozen outlier paths of 4
/// KiB, and histograms of 32 KiB.
pub(super) const SUMMARY_BYTES: u64 = 1 << 20;
/// Maximum text of listed bad files, bytes.
const BAD_BYTES: usize = 512 << 10;

/// Counts by result.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) ok: u64,
    read: u64,
    probe: u64,
    decode: u64,
    pub(super) bytes: u64,
}

/// Statistics of all files so far, and outliers.
pub(super) struct Summary {
    began: Instant,
    roots: Vec<(PathBuf, Option<String>)>,
    pub(super) totals: Totals,
    formats: Counts,
    colors: Counts,
    /// Counts by EXIF orientation, 1 to 8; 0 counts files without one.
    orientations: [u64; 9],
    progressive: u64,
    classes: Classes,
    sizes: Histogram,
    widths: Histogram,
    heights: Histogram,
    short_sides: Histogram,
    aspects: Histogram,
    outliers: Outliers,
    hashes: Option<Hashes>,
    reasons: Vec<(Stage, SampleErrorKind, u64)>,
    bad: Vec<(String, Stage, String)>,
    bad_bytes: usize,
}

/// A measured quantity of files or images.
struct Measure<'a> {
    key: &'static str,
    label: &'static str,
    histogram: &'a Histogram,
    /// Formats a value.
    write: fn(f64) -> String,
    /// Draws a histogram of it.
    drawn: bool,
}

/// Counts by name, for few names.
#[derive(Default)]
struct Counts(Vec<(&'static str, u64)>);

impl Summary {
    /// Creates a summary of files below `paths`; without `hashes`, duplicates are not searched.
    pub(super) fn new(paths: &[PathBuf], hashes: Option<Hashes>) -> Self {
        let name = |path: &PathBuf| (paths.len() > 1).then(|| readable(path.as_os_str().as_encoded_bytes()));
        Summary {
            began: Instant::now(),
            roots: paths.iter().map(|path| (path.clone(), name(path))).collect(),
            totals: Totals::default(),
            formats: Counts::default(),
            colors: Counts::default(),
            orientations: [0; 9],
            progressive: 0,
            classes: Classes::default(),
            sizes: Histogram::new(1.0, 40),
            widths: Histogram::new(1.0, 16),
            heights: Histogram::new(1.0, 16),
            short_sides: Histogram::new(1.0, 16),
            aspects: Histogram::new(2f64.powi(-16), 32),
            outliers: Outliers::default(),
            hashes,
            reasons: Vec::new(),
            bad: Vec::new(),
            bad_bytes: 0,
        }
    }

    /// Adds a file. Files are added in the order of the walk.
    pub(super) fn add(&mut self, finding: &Finding) {
        let ordinal = self.totals.files();
        self.totals.add(finding);
        let place = self.roots.get(finding.found.root).map_or(ClassPath { part: None, class: None }, |(root, name)| {
            ClassPath::of(&finding.found.path, root, name.as_deref())
        });
        self.classes.add(place);
        if let Some(bytes) = finding.seen.bytes {
            self.sizes.add(bytes as f64);
        }
        if let Some(header) = &finding.seen.header {
            self.formats.add(header.format.name());
            self.colors.add(header.color.name());
            self.progressive += u64::from(header.progressive);
            if let Some(count) = self.orientations.get_mut(usize::from(header.orientation)) {
                *count += 1;
            }
            let (width, height) = (f64::from(header.width), f64::from(header.height));
            self.widths.add(width);
            self.heights.add(height);
            self.short_sides.add(width.min(height));
            self.aspects.add(width / height);
            self.outliers.add(finding);
        }
        match (&finding.problem, &mut self.hashes, finding.seen.hash) {
            (Some(problem), ..) => self.add_bad(finding, problem),
            (None, Some(hashes), Some(hash)) => hashes.add(Entry { hash, ordinal, marks: place.marks() }),
            _ => {}
        }
    }

    fn add_bad(&mut self, finding: &Finding, problem: &Problem) {
        let Problem { stage, kind, cause } = problem;
        match self.reasons.iter_mut().find(|(a, b, _)| (a, b) == (stage, kind)) {
            Some((.., count)) => *count += 1,
            None => self.reasons.push((*stage, *kind, 1)),
        }
        let path = finding.path();
        let bytes = path.len() + cause.len() + size_of::<(String, Stage, String)>();
        if self.bad_bytes + bytes <= BAD_BYTES {
            self.bad_bytes += bytes;
            self.bad.push((path, *stage, cause.clone()));
        }
    }

    /// Files of equal content; `None` if they were not searched.
    pub(super) fn duplicates(&mut self) -> Option<Duplicates> {
        self.hashes.as_mut().map(Hashes::duplicates)
    }

    /// Progress line, with the total number of files if known.
    pub(super) fn progress(&self, files: Option<u64>) -> String {
        let done = self.totals.files();
        let rate = done as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let mut text = format!("{}, {rate:.0} files/s", self.totals.text());
        if let Some(left) = files.and_then(|files| files.checked_sub(done)) {
            text += &format!(", {:.0} s left", left as f64 / rate.max(1e-3));
        }
        text
    }

    pub(super) fn text(&self, duplicates: Option<&Duplicates>, ended_early: bool) -> String {
        let (line, equal) = duplicates.map(Duplicates::text).unzip();
        let mut parts = vec![self.totals.text()];
        if self.totals.files() > 0 {
            parts.push(self.facts(line, ended_early));
        }
        if self.sizes.ends().is_some() {
            parts.push(self.spread());
        }
        for Measure { label, histogram, write, drawn, .. } in self.measures() {
            if drawn && !alike(histogram) {
                parts.push(format!("{label}\n{}", histogram.bars(write)));
            }
        }
        let same_pixels = alike(&self.widths) && alike(&self.heights);
        parts.push(self.outliers.text([alike(&self.sizes), same_pixels, same_pixels, alike(&self.aspects)]));
        parts.extend(equal);
        if !self.reasons.is_empty() {
            let line = |(stage, kind, count): &(Stage, SampleErrorKind, u64)| format!("  {count} {kind} ({stage})");
            parts.push(format!("bad files\n{}", self.reasons.iter().map(line).collect::<Vec<_>>().join("\n")));
        }
        parts.retain(|part| !part.is_empty());
        parts.join("\n\n")
    }

    /// Labeled lines.
    fn facts(&self, duplicates: Option<String>, ended_early: bool) -> String {
        let Totals { bytes, .. } = self.totals;
        let headers = self.formats.all();
        let mut lines = vec![("size".to_owned(), format!("{} in all", ByteCount(bytes)))];
        if headers > 0 {
            lines.push(("formats".to_owned(), self.formats.text()));
            lines.push(("color".to_owned(), self.colors.text()));
        }
        let jpeg = self.formats.of(Format::Jpeg.name());
        if jpeg > 0 {
            let progressive = self.progressive;
            lines.push(("progressive".to_owned(), format!("{} of the JPEG files", share(progressive, jpeg))));
        }
        let turned: u64 = self.orientations.iter().skip(2).sum();
        if turned > 0 {
            let each = self.orientations.iter().enumerate().skip(2).filter(|(_, count)| **count > 0);
            let each: Vec<String> = each.map(|(orientation, count)| format!("{count} with {orientation}")).collect();
            lines.push(("turned by EXIF".to_owned(), format!("{}: {}", share(turned, headers), each.join(", "))));
        }
        lines.extend(self.classes.text());
        lines.push(match duplicates {
            Some(duplicates) => ("duplicates".to_owned(), duplicates),
            None => (
                "quick".to_owned(),
                "headers only: neither damage in the image data nor duplicates were searched".to_owned(),
            ),
        });
        let took = self.began.elapsed().as_secs_f64().max(1e-3);
        let files = self.totals.files() as f64 / took;
        let mut speed = format!("{took:.2} s: {files:.0} files/s");
        if self.hashes.is_some() {
            speed += &format!(", {}/s", ByteCount((bytes as f64 / took) as u64));
        }
        lines.push(("took".to_owned(), speed));
        if ended_early {
            lines.push(("ended early".to_owned(), "interrupted".to_owned()));
        }
        let lines: Vec<(&str, String)> = lines.iter().map(|(label, text)| (label.as_str(), text.clone())).collect();
        facts(&lines)
    }

    /// Minimum, median and maximum of each measured quantity.
    fn spread(&self) -> String {
        let row = |Measure { label, histogram, write, .. }: Measure<'_>| {
            let (least, greatest) = histogram.ends()?;
            let at = |share| histogram.quantile(share).map_or(String::new(), write);
            Some([label.to_owned(), write(least), at(0.01), at(0.5), at(0.99), write(greatest)])
        };
        let rows: Vec<[String; 6]> = self.measures().into_iter().filter_map(row).collect();
        columns(["", "least", "1 %", "half", "99 %", "greatest"], &rows)
    }

    fn measures(&self) -> [Measure<'_>; 5] {
        let of = |key, label, histogram, write, drawn| Measure { key, label, histogram, write, drawn };
        [
            of("encoded_bytes", "encoded size", &self.sizes, size_name as fn(f64) -> String, true),
            of("width", "width", &self.widths, side_name, false),
            of("height", "height", &self.heights, side_name, false),
            of("short_side", "short side", &self.short_sides, side_name, true),
            of("aspect_ratio", "width / height", &self.aspects, aspect_name, true),
        ]
    }

    pub(super) fn json(&self, duplicates: Option<&Duplicates>, ended_early: bool) -> Value {
        let Totals { ok, bytes, .. } = self.totals;
        let orientations = (1..9).map(|at| (at.to_string(), self.orientations[at].into()));
        let reason = |(stage, kind, count): &(Stage, SampleErrorKind, u64)| {
            json!({
                "stage": stage.name(), "code": kind.code(), "files": count
            })
        };
        let bad = |(path, stage, cause): &(String, Stage, String)| {
            json!({
                "path": path, "stage": stage.name(), "error": cause
            })
        };
        let spread = self.measures().map(|Measure { key, histogram, .. }| (key.to_owned(), histogram.json()));
        json!({
            "files": self.totals.files(),
            "ok": ok,
            "bad": self.totals.bad(),
            "bytes": bytes,
            "quick": self.hashes.is_none(),
            "formats": self.formats.json(),
            "colors": self.colors.json(),
            "progressive": self.progressive,
            "orientations": Value::Object(orientations.collect()),
            "classes": self.classes.json(),
            "spread": Value::Object(spread.into_iter().collect()),
            "outliers": self.outliers.json(),
            "duplicates": duplicates.map(Duplicates::json),
            "bad_reasons": self.reasons.iter().map(reason).collect::<Value>(),
            "bad_files": self.bad.iter().map(bad).collect::<Value>(),
            "seconds": self.began.elapsed().as_secs_f64(),
            "ended_early": ended_early.then_some("interrupted"),
        })
    }
}

impl Totals {
    fn add(&mut self, finding: &Finding) {
        match finding.stage() {
            None => self.ok += 1,
            Some(Stage::Probe) => self.probe += 1,
            Some(Stage::Decode) => self.decode += 1,
            Some(_) => self.read += 1,
        }
        self.bytes += finding.seen.bytes.unwrap_or(0);
    }

    pub(super) fn bad(&self) -> u64 {
        self.read + self.probe + self.decode
    }

    pub(super) fn files(&self) -> u64 {
        self.ok + self.bad()
    }

    fn text(&self) -> String {
        let mut text = format!("{}: {} ok", counted(self.files(), "file"), self.ok);
        for (count, what) in [(self.read, "not read"), (self.probe, "no usable header"), (self.decode, "not decoded")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}

impl Counts {
    fn add(&mut self, name: &'static str) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.0.push((name, 1)),
        }
    }

    fn all(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn of(&self, name: &str) -> u64 {
        self.0.iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| *count)
    }

    /// Most frequent first.
    fn text(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        let each = sorted.iter().map(|(name, count)| format!("{name} {}", share(*count, self.all())));
        each.collect::<Vec<_>>().join(", ")
    }

    fn json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect())
    }
}

fn alike(histogram: &Histogram) -> bool {
    histogram.ends().is_none_or(|(least, greatest)| least == greatest)
}

fn share(count: u64, all: u64) -> String {
    format!("{count} ({:.1} %)", count as f64 / all.max(1) as f64 * 100.0)
}

fn size_name(bytes: f64) -> String {
    ByteCount(bytes.ceil() as u64).to_string()
}

fn side_name(pixels: f64) -> String {
    format!("{}", pixels.ceil())
}

fn aspect_name(ratio: f64) -> String {
    format!("{ratio:.2}")
}
