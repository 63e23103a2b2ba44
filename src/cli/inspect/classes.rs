//! Class and split (train, val) of a file, and the sizes of the classes.
//!
//! Files arrive in the order of the walk, one class at a time, so no table of all class names is kept.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::super::data::readable;
use super::super::table::counted;

/// Names of split folders: they hold class folders and are not classes themselves.
const PARTS: [&str; 8] = ["train", "training", "val", "valid", "validation", "dev", "test", "eval"];

/// Split and class of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ClassPath<'a> {
    pub(super) part: Option<&'a str>,
    pub(super) class: Option<&'a OsStr>,
}

impl<'a> ClassPath<'a> {
    /// Split and class of a file below `root`. `root_name` is the split if several folders were given.
    pub(super) fn of(path: &'a Path, root: &Path, root_name: Option<&'a str>) -> Self {
        let Ok(below) = path.strip_prefix(root) else { return ClassPath { part: None, class: None } };
        let mut names = below.iter();
        let (first, second, third) = (names.next(), names.next(), names.next());
        let known = first.and_then(OsStr::to_str).filter(|name| PARTS.contains(&name.to_ascii_lowercase().as_str()));
        match (first, second, third) {
            (_, Some(class), Some(_)) if known.is_some() => ClassPath { part: known, class: Some(class) },
            (Some(class), Some(_), _) => ClassPath { part: root_name, class: Some(class) },
            (Some(_), None, _) => ClassPath { part: root_name, class: None },
            (None, ..) => ClassPath { part: None, class: None },
        }
    }

    /// Short hashes of the split and the class, to compare files.
    pub(super) fn marks(&self) -> (u32, u32) {
        let mark = |name: Option<&[u8]>| name.map_or(0, |name| xxh3_64(name) as u32);
        (mark(self.part.map(str::as_bytes)), mark(self.class.map(OsStr::as_encoded_bytes)))
    }
}

/// Number of classes in each split, with the smallest and the largest.
#[derive(Clone, Default)]
pub(super) struct Classes {
    parts: Vec<Part>,
    /// Class that the walk is in.
    now: Option<(usize, OsString, u64)>,
}

#[derive(Clone, Default)]
struct Part {
    name: Option<String>,
    classes: u64,
    /// Files in classes.
    files: u64,
    /// Files outside of classes.
    outside: u64,
    smallest: Option<(u64, String)>,
    largest: Option<(u64, String)>,
}

impl Classes {
    pub(super) fn add(&mut self, place: ClassPath<'_>) {
        let known = self.parts.iter().position(|part| part.name.as_deref() == place.part);
        let at = known.unwrap_or_else(|| {
            self.parts.push(Part { name: place.part.map(str::to_owned), ..Part::default() });
            self.parts.len() - 1
        });
        let Some(class) = place.class else {
            self.parts[at].outside += 1;
            return;
        };
        self.parts[at].files += 1;
        match &mut self.now {
            Some((part, name, files)) if *part == at && name == class => *files += 1,
            _ => {
                self.close();
                self.now = Some((at, class.to_owned(), 1));
            }
        }
    }

    /// Closes the current class: all of its files were seen.
    fn close(&mut self) {
        let Some((part, name, files)) = self.now.take() else { return };
        let Part { classes, smallest, largest, .. } = &mut self.parts[part];
        *classes += 1;
        let beats = |best: &Option<(u64, String)>, better: fn(&u64, &u64) -> bool| {
            best.as_ref().is_none_or(|(other, _)| better(&files, other))
        };
        let this = || Some((files, readable(name.as_encoded_bytes())));
        if beats(smallest, u64::lt) {
            *smallest = this();
        }
        if beats(largest, u64::gt) {
            *largest = this();
        }
    }

    fn closed(&self) -> Vec<Part> {
        let mut all = self.clone();
        all.close();
        all.parts
    }

    /// A label and a line for each split.
    pub(super) fn text(&self) -> Vec<(String, String)> {
        let line = |part: &Part| {
            let mut text = match part.classes {
                0 => "none".to_owned(),
                classes => counted(classes, "class"),
            };
            if let (Some((fewest, small)), Some((most, large))) = (&part.smallest, &part.largest) {
                text += &match fewest == most {
                    true if part.classes == 1 => format!(" of {}", counted(*most, "file")),
                    true => format!(" of {} each", counted(*most, "file")),
                    false => format!(
                        ", from {} ({small}) to {most} ({large}): 1 to {:.1}",
                        counted(*fewest, "file"),
                        *most as f64 / *fewest as f64
                    ),
                };
            }
            if part.outside > 0 {
                text += &format!("; {} outside of any", counted(part.outside, "file"));
            }
            let label = part.name.as_ref().map_or("classes".to_owned(), |name| format!("classes, {name}"));
            (label, text)
        };
        self.closed().iter().map(line).collect()
    }

    pub(super) fn json(&self) -> Value {
        let class = |class: &Option<(u64, String)>| {
            class.as_ref().map(|(files, name)| json!({ "class": name, "files": files }))
        };
        let part = |part: &Part| {
            let sizes = part.smallest.as_ref().zip(part.largest.as_ref());
            json!({
                "part": part.name,
                "classes": part.classes,
                "files": part.files,
                "outside_files": part.outside,
                "smallest": class(&part.smallest),
                "largest": class(&part.largest),
                "imbalance": sizes.map(|(small, large)| large.0 as f64 / small.0 as f64),
            })
        };
        self.closed().iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_only_where_it_holds_classes() {
        let place = |path: &'static str| {
            let ClassPath { part, class } = ClassPath::of(Path::new(path), Path::new("/d"), None);
            (part, class.and_then(OsStr::to_str))
        };
        assert_eq!(place("/d/cat/1.jpg"), (None, Some("cat")));
        assert_eq!(place("/d/cat/more/1.jpg"), (None, Some("cat")));
        assert_eq!(place("/d/Train/cat/1.jpg"), (Some("Train"), Some("cat")));
        // `train` may be a class (beside `boat`).
        assert_eq!(place("/d/train/1.jpg"), (None, Some("train")));
        assert_eq!(place("/d/1.jpg"), (None, None));
        assert_eq!(ClassPath::of(Path::new("1.jpg"), Path::new("1.jpg"), None), ClassPath { part: None, class: None });
        let within = ClassPath::of(Path::new("a/cat/1.jpg"), Path::new("a"), Some("a"));
        assert_eq!((within.part, within.class), (Some("a"), Some(OsStr::new("cat"))));
        assert_ne!(within.marks(), ClassPath { part: Some("b"), ..within }.marks());
    }

    #[test]
    fn classes_are_counted_as_they_come() {
        let mut classes = Classes::default();
        for (class, files) in [("ant", 3), ("bee", 1), ("cat", 5), ("dog", 1)] {
            (0..files).for_each(|_| classes.add(ClassPath { part: None, class: Some(OsStr::new(class)) }));
        }
        classes.add(ClassPath { part: None, class: None });
        (0..4).for_each(|_| classes.add(ClassPath { part: Some("val"), class: Some(OsStr::new("ant")) }));
        assert_eq!(
            classes.text(),
            [
                (
                    "classes".to_owned(),
                    "4 classes, from 1 file (bee) to 5 (cat): 1 to 5.0; 1 file outside of any".to_owned()
                ),
                ("classes, val".to_owned(), "1 class of 4 files".to_owned()),
            ]
        );
        let json = classes.json();
        assert_eq!(
            (&json[0]["files"], &json[0]["imbalance"], &json[1]["classes"]),
            (&10.into(), &5.0.into(), &1.into())
        );
    }
}
