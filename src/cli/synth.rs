//! Synthetic data set for `train` without data: small JPEG files of drawn shapes and textures, in class folders below
//! `train/` and `test/`.
//!
//! It is written to a temporary folder and renamed into place; a folder with other contents is left alone. The bytes
//! depend on the spec alone: each image has its own random stream, whichever thread draws it.

mod draw;

use draw::{CLASSES, Canvas, Class};
use feedstock::SampleId;
use feedstock::rng::{KeyedRng, Seed};
use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Manifest file beside the split folders, where no class folders are expected.
const MANIFEST: &str = "synth.txt";
const SIDE: RangeInclusive<u32> = 16..=4096;
const PER_CLASS: RangeInclusive<u32> = 1..=100_000;
const THREADS_MAX: usize = 16;
/// Age after which leftovers of an interrupted run are removed; no live run takes as long.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Specification of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SynthSpec {
    pub(crate) seed: u64,
    pub(crate) train_per_class: u32,
    pub(crate) test_per_class: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Default for SynthSpec {
    fn default() -> Self {
        SynthSpec { seed: 0, train_per_class: 200, test_per_class: 40, width: 64, height: 64 }
    }
}

/// Result of [`make`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SynthReport {
    /// Training folder.
    pub(crate) train: PathBuf,
    /// Test folder.
    pub(crate) test: PathBuf,
    pub(crate) classes: usize,
    pub(crate) images: usize,
    /// True if the whole set existed already and nothing was written.
    pub(crate) reused: bool,
}

/// Error of making the data set.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum SynthError {
    /// A number of the spec is out of range.
    Spec { what: &'static str, given: u32, allowed: RangeInclusive<u32> },
    /// The folder has other contents and is left alone.
    Occupied { dir: PathBuf },
    /// A file or folder could not be read or written.
    Io { path: PathBuf, source: io::Error },
}

impl fmt::Display for SynthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SynthError::Spec { what, given, allowed } => {
                write!(f, "synthetic data: {what} is {given}, must be from {} to {}", allowed.start(), allowed.end())
            }
            SynthError::Occupied { dir } => write!(
                f,
                "synthetic data: {} holds something else, or a damaged set; remove it or name another folder",
                dir.display()
            ),
            SynthError::Io { path, source } => write!(f, "synthetic data: {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for SynthError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SynthError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, SynthError> {
    result.map_err(|source| SynthError::Io { path: path.to_owned(), source })
}

/// Makes the data set at `dir`, or reuses the one that exists.
pub(crate) fn make(dir: &Path, spec: &SynthSpec) -> Result<SynthReport, SynthError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    make_with(dir, spec, threads)
}

fn make_with(dir: &Path, spec: &SynthSpec, threads: usize) -> Result<SynthReport, SynthError> {
    spec.check()?;
    let report = |reused| SynthReport {
        train: dir.join("train"),
        test: dir.join("test"),
        classes: CLASSES.len(),
        images: spec.splits().iter().map(|(_, per_class)| *per_class as usize * CLASSES.len()).sum(),
        reused,
    };
    if is_made(dir, spec)? {
        return Ok(report(true));
    }
    let partial = Partial::beside(dir)?;
    draw_all(&partial.0, spec, threads)?;
    let manifest = partial.0.join(MANIFEST);
    at(&manifest, fs::write(&manifest, spec.manifest()))?;
    match fs::rename(&partial.0, dir) {
        Ok(()) => Ok(report(false)),
        // Another run may have finished first.
        Err(source) => match is_made(dir, spec)? {
            true => Ok(report(true)),
            false => at(dir, Err(source)),
        },
    }
}

/// True where `dir` holds the whole set, false where there is nothing yet.
fn is_made(dir: &Path, spec: &SynthSpec) -> Result<bool, SynthError> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(false) => {}
        Ok(true) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return at(dir, Err(source)),
    }
    // The manifest was written last, but files may have been removed since.
    let manifest = fs::read(dir.join(MANIFEST)).is_ok_and(|text| text == spec.manifest().as_bytes());
    let whole = spec.splits().into_iter().all(|(split, per_class)| {
        let count = |class: &Class| fs::read_dir(dir.join(split).join(class.name)).map_or(0, Iterator::count);
        CLASSES.iter().all(|class| count(class) == per_class as usize)
    });
    if manifest && whole { Ok(true) } else { Err(SynthError::Occupied { dir: dir.to_owned() }) }
}

impl SynthSpec {
    fn check(&self) -> Result<(), SynthError> {
        let numbers = [
            ("the width", self.width, SIDE),
            ("the height", self.height, SIDE),
            ("the number of training images a class", self.train_per_class, PER_CLASS),
            ("the number of test images a class", self.test_per_class, PER_CLASS),
        ];
        match numbers.into_iter().find(|(_, given, allowed)| !allowed.contains(given)) {
            Some((what, given, allowed)) => Err(SynthError::Spec { what, given, allowed }),
            None => Ok(()),
        }
    }

    fn splits(&self) -> [(&'static str, u32); 2] {
        [("train", self.train_per_class), ("test", self.test_per_class)]
    }

    fn manifest(&self) -> String {
        let SynthSpec { seed, train_per_class, test_per_class, width, height } = self;
        format!(
            "Synthetic images made by feedstock, version 1\nseed {seed}\nsize {width}x{height}\n\
             classes {}, each {train_per_class} for training and {test_per_class} for testing\n",
            CLASSES.len()
        )
    }
}

/// A temporary folder, removed on drop unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    fn beside(dir: &Path) -> Result<Partial, SynthError> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let Some(name) = dir.file_name() else {
            return at(dir, Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no name for a new folder")));
        };
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        at(parent, fs::create_dir_all(parent))?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        sweep(parent, &prefix);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{prefix}{}-{unique}", std::process::id()));
        at(&path, fs::create_dir(&path))?;
        Ok(Partial(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing to remove. A folder that cannot be removed is removed by a later run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes leftovers of killed runs.
fn sweep(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if entry.file_name().to_string_lossy().starts_with(prefix) && age().is_some_and(|age| age > LEFTOVER_AGE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Draws all images of both splits into `dir`.
fn draw_all(dir: &Path, spec: &SynthSpec, threads: usize) -> Result<(), SynthError> {
    // A job is one image of every class: jobs take equally long, and a job's number names its images.
    let mut jobs = Vec::new();
    for (salt, (split, per_class)) in (0u64..).zip(spec.splits()) {
        for class in &CLASSES {
            let folder = dir.join(split).join(class.name);
            at(&folder, fs::create_dir_all(&folder))?;
        }
        jobs.extend((0..per_class).map(|number| (salt, split, number)));
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut canvas = Canvas::new(spec.width, spec.height);
        let mut encoded = Vec::new();
        while let Some((salt, split, number)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            for (index, class) in CLASSES.iter().enumerate() {
                let key = SampleId(u64::from(*number) * CLASSES.len() as u64 + index as u64);
                let mut rng = KeyedRng::new(Seed(spec.seed), 0, key, *salt);
                canvas.draw(class, &mut rng);
                let path = dir.join(split).join(class.name).join(format!("{number:05}.jpg"));
                let quality = 60 + rng.below(36) as u8;
                if let Err(source) = canvas.encode(quality, &mut encoded).and_then(|()| fs::write(&path, &encoded)) {
                    // Stops the other threads from taking another job.
                    next.store(jobs.len(), Ordering::Relaxed);
                    return at(&path, Err(source));
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |sum, other| match other.join() {
            Ok(result) => sum.and(result),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: SynthSpec = SynthSpec { seed: 7, train_per_class: 3, test_per_class: 2, width: 48, height: 32 };

    /// Every file below `dir` with its bytes, by relative path.
    fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push((path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_bytes_depend_on_the_spec_alone() {
        let place = tempfile::tempdir().unwrap();
        let made = |name: &str, spec: SynthSpec, threads| {
            make_with(&place.path().join(name), &spec, threads).unwrap();
            files(&place.path().join(name))
        };
        let one = made("one", SMALL, 1);
        assert_eq!(one, made("three", SMALL, 3));
        let other = made("other", SynthSpec { seed: 8, ..SMALL }, 2);
        assert!(one.iter().zip(&other).all(|(a, b)| a.0 == b.0 && a.1 != b.1));
        // More images of a class leave the first ones as they are.
        let more = made("more", SynthSpec { train_per_class: 4, ..SMALL }, 2);
        let images = one.iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "jpg"));
        assert!(images.clone().all(|file| more.contains(file)));
        assert_eq!(images.count(), 50);
    }

    #[test]
    fn every_class_has_its_images_and_they_decode() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("deep/er/set");
        let report = make(&dir, &SMALL).unwrap();
        assert_eq!((report.classes, report.images, report.reused), (10, 50, false));
        assert!(CLASSES.is_sorted_by_key(|class| class.name));
        for (split, count) in [(&report.train, 3), (&report.test, 2)] {
            assert_eq!(fs::read_dir(split).unwrap().count(), 10);
            for class in &CLASSES {
                let images = files(&split.join(class.name));
                assert_eq!(images.len(), count);
                for (_, bytes) in images {
                    let image = image::load_from_memory_with_format(&bytes, image::ImageFormat::Jpeg).unwrap();
                    assert_eq!((image.width(), image.height()), (48, 32));
                }
            }
        }
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_whole_set_is_reused_and_anything_else_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("set");
        fs::create_dir(&dir).unwrap();
        assert!(!make(&dir, &SMALL).unwrap().reused, "an empty folder may be filled");
        let before = files(&dir);
        assert!(make(&dir, &SMALL).unwrap().reused);
        let occupied = |spec| matches!(make(&dir, &spec), Err(SynthError::Occupied { .. }));
        assert!(occupied(SynthSpec { seed: 8, ..SMALL }));
        assert_eq!(files(&dir), before);
        fs::remove_file(dir.join("test/ring/00001.jpg")).unwrap();
        assert!(occupied(SMALL));
        let foreign = place.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.txt"), "irreplaceable").unwrap();
        let error = make(&foreign, &SMALL).unwrap_err().to_string();
        assert!(error.contains("foreign holds something else"), "{error}");
        assert_eq!(files(&foreign).len(), 1);
    }

    #[test]
    fn a_failure_leaves_nothing_behind_and_names_the_path() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let error = make(&file, &SMALL).unwrap_err().to_string();
        assert!(error.contains("/file: "), "{error}");
        assert!(matches!(make(&file.join("set"), &SMALL), Err(SynthError::Io { .. })));
        assert!(matches!(make(Path::new("/"), &SMALL), Err(SynthError::Occupied { .. })));
        let partial = Partial::beside(&place.path().join("set")).unwrap();
        fs::write(partial.0.join("half"), "made").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_spec_out_of_range_is_refused() {
        let place = tempfile::tempdir().unwrap();
        for spec in [
            SynthSpec { width: 0, ..SMALL },
            SynthSpec { height: 70_000, ..SMALL },
            SynthSpec { train_per_class: 0, ..SMALL },
            SynthSpec { test_per_class: u32::MAX, ..SMALL },
        ] {
            let error = make(&place.path().join("set"), &spec).unwrap_err();
            assert!(matches!(error, SynthError::Spec { .. }) && error.to_string().contains("must be from"), "{error}");
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
