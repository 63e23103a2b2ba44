//! Owns the building of the stand-in for NVIDIA's driver library: compiled once for a state of its sources, by the compilers
//! that the tests themselves were built with, and shared by every test program.
//! It must never be part of the library, and never load what it builds.
#![allow(unreachable_pub, dead_code, reason = "each user is a program of its own, and uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with `libcuda.so` in it, for `LD_LIBRARY_PATH`. Builds it where it is not there yet.
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
    /// What went against the rules, in words.
    pub violations: Vec<String>,
    /// What was not given back, in words.
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
                (key, Err(_)) => panic!("'{key}={value}' is no number"),
            }
        }
        report
    }

    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        *self.numbers.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }
}
