//! The layering of `docs/ARCHITECTURE.md`, checked against the code: which module may import which, and where `unsafe` may be.
//!
//! It reads the sources as text: comments and strings are taken out, then every `crate::name` is an import of that room.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms that it may import. What is not listed here is not a room, and fails.
const ROOMS: &[(&str, &[&str])] = &[
    // 1: values and primitives
    ("units", &[]),
    ("sync", &[]),
    ("blocks", &["units", "sync"]),
    // 2: leaves that know nothing of each other
    ("tensor", &["units"]),
    ("host", &["units", "sync"]),
    ("budget", &["units", "sync"]),
    ("metrics", &["units", "sync"]),
    ("quarantine", &["units", "sync"]),
    ("sampler", &["units", "sync", "blocks"]),
    ("source", &["units", "sync", "blocks"]),
    // 3: what is done to a sample, and where it goes
    ("decode", &["units", "sync", "tensor"]),
    ("transform", &["units", "sync", "tensor"]),
    ("device", &["units", "sync", "tensor"]),
    // 4: sizes, and the memory that is used again
    ("plan", &["units", "tensor", "decode", "source"]),
    ("pool", &["units", "sync", "tensor", "budget", "quarantine", "decode", "transform", "device"]),
    // 5: what the consumer holds
    ("batch", &["units", "sync", "tensor", "quarantine", "device", "pool"]),
    // 6: the run
    (
        "pipeline",
        &[
            "units",
            "sync",
            "tensor",
            "host",
            "budget",
            "metrics",
            "quarantine",
            "sampler",
            "source",
            "decode",
            "transform",
            "device",
            "plan",
            "pool",
            "batch",
        ],
    ),
    // 7
    ("error", &["units", "budget", "quarantine", "source", "device", "plan", "pipeline"]),
    // 8: the face
    ("maker", &["units", "quarantine", "decode", "transform", "pool"]),
    (
        "loader",
        &[
            "units",
            "sync",
            "tensor",
            "host",
            "budget",
            "metrics",
            "quarantine",
            "sampler",
            "source",
            "decode",
            "transform",
            "device",
            "plan",
            "pool",
            "batch",
            "pipeline",
            "error",
        ],
    ),
    // 9: the public face, which is written `crate::Loader`, and public rooms
    ("adapt", &["FACE", "tensor", "source", "transform", "device"]),
    ("pack", &["FACE", "budget", "decode", "host", "plan", "sampler", "source", "tensor", "transform"]),
    ("train", &["FACE", "adapt", "host", "tensor", "source", "transform"]),
    // 10: `feedstock::...` only; `crate::` is the program's own
    ("cli", &["cli"]),
];

/// The only files with `unsafe` in them, and why.
const UNSAFE: &[(&str, &str)] = &[
    ("src/decode/turbo/sample.rs", "the tests' files come from an encoder in C"),
    ("src/decode/turbo/shim.rs", "libjpeg-turbo is in C"),
    ("src/adapt/burn/cuda.rs", "burn's memory is lent by address, and its stream named by id"),
    ("src/device/cuda.rs", "copies and kernels are given addresses"),
    ("src/device/cuda/driver.rs", "NVIDIA's driver is a library in C"),
    ("src/device/cuda/driver/stream.rs", "NVIDIA's driver is a library in C"),
    ("src/device/cuda/raw.rs", "a consumer names a stream of its own"),
    ("src/device/cuda/kernels.rs", "kernels are given addresses"),
    ("src/device/cuda/memory.rs", "memory of the driver's"),
    ("src/device/cuda/probe.rs", "copies are given addresses, and a library is looked for"),
    ("src/device/cuda/tests.rs", "does what consumers with streams and memory of their own do"),
    ("src/device/memory.rs", "memory made by hand: mapped, page-locked"),
    ("src/device/output.rs", "a copy of a safe function compiled for AVX2, called where the CPU has it"),
    ("src/device/sim/tests.rs", "writes to a slot behind a copy's back, to see it caught"),
    ("src/transform/kernel.rs", "calls to functions compiled for AVX2, where the CPU has it"),
    ("src/host/allocator.rs", "declares a function of the C library, for the allocator's settings"),
    ("src/host/malloc_info.rs", "declares functions of the C library, for what its allocator says of itself"),
    ("src/host/heap.rs", "a global allocator, which counts and hands on to the system's"),
    ("src/pool/slot.rs", "several workers write disjoint parts of one slot"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// The room that a file is in: the first name below `src`.
fn room(path: &Path) -> String {
    let below = relative(path).trim_start_matches("src/").trim_end_matches(".rs").to_owned();
    below.split('/').next().unwrap().to_owned()
}

/// Code without comments and without the insides of strings.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") {
            3
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    code
}

/// Every name that follows `crate::`, those in braces included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let name_of =
            |text: &str| text.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
        match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                let list: String = list
                    .chars()
                    .take_while(|&c| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        depth >= 0
                    })
                    .collect();
                names.extend(split_outside_braces(&list).into_iter().map(|item| name_of(&item)));
            }
            None => {
                names.insert(name_of(rest));
            }
        }
    }
    names.remove("");
    names
}

fn split_outside_braces(list: &str) -> Vec<String> {
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in list.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

#[test]
fn no_import_runs_upward() {
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let mut breaches = Vec::new();
    for path in rust_files("src") {
        let room = room(&path);
        if matches!(room.as_str(), "lib" | "main") {
            continue;
        }
        let Some(allowed) = rooms.get(room.as_str()) else {
            breaches.push(format!("{}: '{room}' is no room of the table", relative(&path)));
            continue;
        };
        for name in imports(&code_of(&fs::read_to_string(&path).unwrap())) {
            let from = if name.starts_with(char::is_uppercase) { "FACE" } else { name.as_str() };
            if from != room && !allowed.contains(&from) {
                breaches.push(format!("{} imports crate::{name}", relative(&path)));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn the_table_itself_has_no_circle() {
    // Each room may import only rooms that stand above it in the table.
    let mut seen = BTreeSet::from(["FACE", "cli"]);
    for (room, allowed) in ROOMS {
        for name in *allowed {
            assert!(seen.contains(name), "{room} may import {name}, which stands below it");
        }
        seen.insert(room);
    }
}

#[test]
fn unsafe_stays_where_it_is_listed() {
    let word = |code: &str| {
        let outside = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        code.match_indices("unsafe").any(|(at, word)| {
            outside(code[..at].chars().next_back()) && outside(code[at + word.len()..].chars().next())
        })
    };
    let found: BTreeSet<_> = rust_files("src")
        .iter()
        .filter(|path| word(&code_of(&fs::read_to_string(path).unwrap())))
        .map(|path| relative(path))
        .collect();
    let listed: BTreeSet<_> = UNSAFE.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(found, listed, "the list of files with unsafe code and the code disagree");
}

#[test]
fn the_reader_of_code_is_not_fooled() {
    let code = code_of(
        "use crate::a::{b, c}; // crate::comment\nlet s = \"crate::string \\\" crate::still\"; crate::{d::e, f::{g, h}, I};",
    );
    assert_eq!(imports(&code).into_iter().collect::<Vec<_>>(), ["I", "a", "d", "f"]);
}
