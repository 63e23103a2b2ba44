//! The stand-in for NVIDIA's driver library, for tests: it is compiled once for each state of its sources, loaded
//! before the real library is looked for, and gives each test one of its devices.
#![allow(unreachable_pub, dead_code, reason = "each user is a program of its own, and uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, OsString, c_char, c_int};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use libloading::os::unix::Library;

/// Number of devices.
const DEVICES: u32 = 64;

/// The folder with `libcuda.so` in it, for `LD_LIBRARY_PATH`, and `nvrtc/libnvrtc.so`. Builds them where they are not
/// there yet.
pub fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = root.join("tests/standin");
    let kernels = root.join("src/device/cuda");
    let mut hash = DefaultHasher::new();
    let mut files: Vec<_> = fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(kernels.join("kernels.cu"));
    files.sort();
    for file in files {
        fs::read(file).unwrap().hash(&mut hash);
    }
    // Beside the test programs: they are all in one folder, which `cargo clean` removes.
    let programs = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let folder = programs.join(format!("standin-{:016x}", hash.finish()));
    if folder.join("libcuda.so").exists() {
        return folder;
    }
    let work = programs.join(format!("standin-{}-{:?}", std::process::id(), std::thread::current().id()));
    fs::create_dir_all(&work).unwrap();
    let compiler = |name: &str, default: &str| std::env::var_os(name).unwrap_or_else(|| OsString::from(default));
    run(Command::new(compiler("CXX", "c++"))
        .args(["-std=c++17", "-O1", "-fPIC", "-c"])
        .arg(sources.join("host_kernels.cpp"))
        .arg("-I")
        .arg(&kernels)
        .arg("-o")
        .arg(work.join("host_kernels.o")));
    // In a folder of its own: not everybody who is given the driver is to find a compiler.
    fs::create_dir(work.join("nvrtc")).unwrap();
    run(Command::new(compiler("CC", "cc"))
        .args(["-O1", "-fPIC", "-shared", "-Wl,-soname,libnvrtc.so"])
        .arg(sources.join("nvrtc.c"))
        .arg("-o")
        .arg(work.join("nvrtc/libnvrtc.so")));
    let mut link = OsString::from("link-arg=");
    link.push(work.join("host_kernels.o"));
    run(Command::new(compiler("RUSTC", "rustc"))
        .args(["--edition", "2024", "-O", "--crate-type", "cdylib", "--crate-name", "cuda"])
        .args(["-C", "link-arg=-Wl,-soname,libcuda.so", "-C", "link-arg=-lstdc++", "-C"])
        .arg(link)
        .arg("-o")
        .arg(work.join("libcuda.so"))
        .arg(sources.join("libcuda.rs")));
    // Another test program may have been faster; then this one is not needed.
    if fs::rename(&work, &folder).is_err() {
        let _ = fs::remove_dir_all(&work);
    }
    assert!(folder.join("libcuda.so").exists(), "{} was built", folder.display());
    folder
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
}

/// A report of the stand-in's, read.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// `key=value` lines whose values are numbers.
    pub numbers: std::collections::BTreeMap<String, u64>,
    /// Violations, in words.
    pub violations: Vec<String>,
    /// Leaks, in words.
    pub alive: Vec<String>,
}

impl Report {
    pub fn parse(text: &str) -> Self {
        let mut report = Report::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match (key, value.parse()) {
                ("violation", _) => report.violations.push(value.to_owned()),
                ("alive", _) => report.alive.push(value.to_owned()),
                (key, Ok(value)) => drop(report.numbers.insert(key.to_owned(), value)),
                (key, Err(_)) => panic!("'{key}={value}' is not a number"),
            }
        }
        report
    }

    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        *self.numbers.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }
}

/// Loads the stand-in, so that the driver's name means it from here on: a library that is loaded is found by its name.
pub fn load() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = folder().join("libcuda.so");
        #[allow(unsafe_code, reason = "a library is loaded")]
        // SAFETY: its initializer only reads the environment.
        unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

/// A device of the stand-in's, for one test.
#[derive(Debug)]
pub struct Standin {
    number: u32,
}

impl Standin {
    /// The next device that no other test has had, set up as `settings` say (`tests/standin/README.md`).
    pub fn new(settings: &str) -> Self {
        // The first belongs to those who ask for it by name.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < DEVICES, "the stand-in has no device left for this test");
        let standin = Standin { number };
        standin.set(settings);
        standin
    }

    /// A device that other tests may have as well, as the stand-in sets it up by itself.
    pub fn shared(number: u32) -> Self {
        load();
        Standin { number: number % DEVICES }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    /// Changes settings.
    pub fn set(&self, settings: &str) {
        let text = CString::new(settings).expect("no zero");
        type Configure = unsafe extern "C" fn(c_int, *const c_char) -> c_int;
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: it has a function of this name and type.
        let configure = unsafe { load().get::<Configure>(b"standin_configure\0") }.expect("a stand-in");
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: the text ends with a zero.
        let refused = unsafe { configure(self.number as c_int, text.as_ptr()) };
        assert_eq!(refused, 0, "'{settings}'");
    }

    pub fn report(&self) -> Report {
        type Ask = unsafe extern "C" fn(c_int, *mut c_char, usize) -> usize;
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: it has a function of this name and type.
        let report = unsafe { load().get::<Ask>(b"standin_report\0") }.expect("a stand-in");
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: null and 0 ask for the length.
        let len = unsafe { report(self.number as c_int, ptr::null_mut(), 0) };
        // Room for what is added between the two calls.
        let mut text = vec![0u8; len + 4096];
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: the buffer is as long as it says.
        unsafe {
            report(self.number as c_int, text.as_mut_ptr().cast(), text.len());
        }
        let end = text.iter().position(|&byte| byte == 0).expect("it ends");
        Report::parse(std::str::from_utf8(&text[..end]).expect("text"))
    }

    /// Nothing has gone against the rules so far.
    #[track_caller]
    pub fn assert_lawful(&self) {
        assert_eq!(self.report().violations, Vec::<String>::new());
    }

    /// As [`assert_lawful`](Self::assert_lawful), and without leaks.
    #[track_caller]
    pub fn assert_empty(&self) {
        self.assert_lawful();
        let report = self.report();
        for key in ["device_bytes", "pinned_bytes", "streams", "events", "modules", "contexts"] {
            assert_eq!(report.number(key), 0, "{key}: {report:?}");
        }
    }
}
