//! What tests of the whole program share: data made on the spot, and running the binary with a limit on the time.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part of it")]

pub mod skip;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// Nothing here takes a tenth of this, even on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// A picture with large and small structure, so that its JPEG is about as large as a photograph's.
pub fn picture(seed: u32, width: u32, height: u32) -> DynamicImage {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) / 5
    };
    let wave = |at: u32, period: u32| ((at + seed * 31) % period).abs_diff(period / 2) * 240 / period + 40;
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        let [red, green, blue] = [(x, 37), (y, 53), (x + y, 29)].map(|(at, period)| wave(at, period + seed % 23));
        image::Rgb([red + noise(), green + noise(), blue + noise()].map(|level| level.min(255) as u8))
    }))
}

pub fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

pub fn jpeg(seed: u32, width: u32, height: u32) -> Vec<u8> {
    encoded(&picture(seed, width, height), ImageFormat::Jpeg)
}

/// `<folder>/<class>/<number>.jpg`, `per_class` of each class, of the sizes in turn.
pub fn class_folders(folder: &Path, classes: &[&str], per_class: u32, sizes: &[(u32, u32)]) {
    let mut seed = 0;
    for class in classes {
        fs::create_dir_all(folder.join(class)).expect("a folder");
        for number in 0..per_class {
            let (width, height) = sizes[seed as usize % sizes.len()];
            fs::write(folder.join(class).join(format!("{number:04}.jpg")), jpeg(seed, width, height)).expect("written");
            seed += 1;
        }
    }
}

/// Three classes of four JPEG files of several sizes.
pub fn small_set() -> TempDir {
    let folder = tempdir().expect("a folder");
    class_folders(folder.path(), &["ant", "bee", "cat"], 4, &[(80, 60), (64, 64), (40, 90)]);
    folder
}

/// Small batches of small samples, in a bench.
pub fn bench(folder: &Path, more: &str) -> Said {
    run(words(&format!("bench --data DIR --size 32 --batch-size 5 {more}"), folder))
}

/// The header of a JPEG that announces this size, and nothing after it.
pub fn jpeg_header(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 17, 8];
    bytes.extend(height.to_be_bytes());
    bytes.extend(width.to_be_bytes());
    bytes.extend([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
    bytes.extend([0xFF, 0xDA, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0, 0, 0xFF, 0xD9]);
    bytes
}

pub fn fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("a FIFO");
}

/// A folder of real photographs beside the repository, if it is there.
pub fn imagenet_sample() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/datasets/imagenet-sample-500");
    folder.is_dir().then_some(folder)
}

pub fn feedstock<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedstock"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end, and fails instead of hanging where it does not come.
pub fn finish(child: Child) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (done, output) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    match output.recv_timeout(PATIENCE) {
        Ok(output) => output.expect("the program's output"),
        Err(_) => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("the program did not end within {PATIENCE:?}");
        }
    }
}

/// What a finished program said.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "one line on standard output: {self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}\n--- out\n{}\n--- err\n{}", self.code, self.out, self.err)
    }
}

pub fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let said = Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!said.err.contains("panicked"), "{said:?}");
    said
}

pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Said {
    said(finish(feedstock(args).spawn().expect("started")))
}

/// Arguments in one text, and the folder they are about.
pub fn words<'a>(text: &'a str, folder: &'a Path) -> Vec<&'a str> {
    let folder = folder.to_str().expect("a folder with a plain name");
    text.split_whitespace().map(|word| if word == "DIR" { folder } else { word }).collect()
}
