//! The layering of `docs/ARCHITECTURE.md`, checked against the code file by file: imports run downward, no files import
//! each other in a circle, `unsafe` is only where it is listed, and docs open with the item they describe.
//!
//! The sources are read as text. Comments, the insides of strings and test modules are removed; every path that is left
//! is resolved to the file that defines its item, through re-exports. A re-export alone is not an import.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules of `src/`, layer by layer from the bottom. A file imports from its own module and from lower
/// layers.
const LAYERS: &[&[&str]] = &[
    &["units", "sync"],
    &["tensor", "blocks", "rng"],
    &["memory", "host", "budget", "metrics", "sampler", "source"],
    &["decode", "transform", "device"],
    &["sample_error", "plan"],
    &["survey", "bad_samples", "preprocess"],
    &["pool", "error", "preprocessor"],
    &["batch"],
    &["pipeline"],
    &["loader"],
    &["adapt", "pack"],
    &["train"],
    &["cli"],
];

/// Modules that use the public API alone: what they import from below is public in `lib.rs`.
const PUBLIC_API_ONLY: &[&str] = &["adapt", "pack", "train"];

/// The only files with `unsafe` in them, and the reason.
const UNSAFE: &[(&str, &str)] = &[
    ("src/decode/jpeg/turbo/fixtures.rs", "the tests' files come from an encoder in C"),
    ("src/decode/jpeg/turbo/shim.rs", "libjpeg-turbo is in C"),
    ("src/adapt/burn/cuda.rs", "memory of burn is passed by address, and its stream by id"),
    ("src/device/cuda.rs", "copies and kernels are given addresses"),
    ("src/device/cuda/driver.rs", "NVIDIA's driver is a library in C"),
    ("src/device/cuda/driver/stream.rs", "NVIDIA's driver is a library in C"),
    ("src/device/cuda/raw.rs", "a consumer names a stream of its own"),
    ("src/device/cuda/kernels.rs", "kernels are given addresses"),
    ("src/device/cuda/memory.rs", "memory of the driver's"),
    ("src/device/cuda/probe.rs", "copies are given addresses, and a library is looked for"),
    ("src/device/cuda/tests.rs", "does what consumers with streams and memory of their own do"),
    ("src/memory.rs", "memory made by hand: mapped, page-locked"),
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

/// Returns code without comments and without the insides of strings.
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

/// Returns code without the items that only tests see: what follows `#[cfg(test)]` up to its `;` or closing brace.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == '}' || c == ';')
        });
        rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
    }
    kept + rest
}

/// A path of a `use` declaration: its segments, the name that it binds, and whether it is a re-export.
struct Use {
    path: Vec<String>,
    name: String,
    reexport: bool,
}

/// One source file, or the crate's root: the code outside of `use` declarations, and these declarations.
struct Module {
    file: String,
    uses: Vec<Use>,
    body: String,
}

/// All modules by path; the root has the empty one.
struct Modules(BTreeMap<Vec<String>, Module>);

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(|segment| segment.trim().to_owned()).filter(|segment| !segment.is_empty()).collect()
}

/// Expands the tree of a `use` declaration into single paths, each with the name that it binds.
fn expand(prefix: &[String], tree: &str, out: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some(brace) = tree.find('{') {
        let mut inner_prefix = prefix.to_vec();
        inner_prefix.extend(segments(&tree[..brace]));
        let inner = tree[brace + 1..].trim_end().trim_end_matches('}');
        let (mut depth, mut item) = (0, String::new());
        for c in inner.chars().chain([',']) {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth == 0 {
                expand(&inner_prefix, &std::mem::take(&mut item), out);
            } else {
                item.push(c);
            }
        }
    } else if !tree.is_empty() {
        let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
        let mut full = prefix.to_vec();
        full.extend(segments(path));
        if full.last().is_some_and(|last| last == "self") {
            full.pop();
        }
        let name = alias.map_or_else(|| full.last().cloned().unwrap_or_default(), str::to_owned);
        out.push((full, name));
    }
}

/// Splits code into its `use` declarations and everything else.
fn uses_of(code: &str) -> (Vec<Use>, String) {
    let (mut uses, mut body) = (Vec::new(), String::new());
    let mut rest = code;
    let mut start_of_item = true;
    while !rest.is_empty() {
        let visibility = if rest.starts_with("pub(") {
            rest.find(')').map_or(0, |end| end + 1)
        } else if rest.starts_with("pub ") {
            3
        } else {
            0
        };
        let after = rest[visibility..].trim_start();
        if start_of_item && after.starts_with("use ") {
            let end = after.find(';').unwrap_or(after.len());
            let mut paths = Vec::new();
            expand(&[], &after["use ".len()..end], &mut paths);
            uses.extend(paths.into_iter().map(|(path, name)| Use { path, name, reexport: visibility > 0 }));
            rest = &after[(end + 1).min(after.len())..];
            continue;
        }
        let c = rest.chars().next().unwrap();
        start_of_item = !(c.is_alphanumeric() || c == '_');
        body.push(c);
        rest = &rest[c.len_utf8()..];
    }
    (uses, body)
}

/// Returns every `a::b::c` in code outside of `use` declarations.
fn paths_in(body: &str) -> BTreeSet<Vec<String>> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = BTreeSet::new();
    let mut current = String::new();
    for c in body.chars().chain([' ']) {
        if word(c) || c == ':' {
            current.push(c);
        } else if !current.is_empty() {
            let text = std::mem::take(&mut current);
            if text.contains("::") && !text.starts_with(':') {
                paths.insert(segments(&text));
            }
        }
    }
    paths
}

impl Modules {
    fn read() -> Modules {
        let mut modules = BTreeMap::new();
        for path in rust_files("src") {
            let file = relative(&path);
            if file.ends_with("tests.rs") || file.contains("/tests/") || file == "src/main.rs" {
                continue;
            }
            let below = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
            let name = if below == "lib" { Vec::new() } else { below.split('/').map(str::to_owned).collect() };
            let (uses, body) = uses_of(&without_tests(&code_of(&fs::read_to_string(&path).unwrap())));
            modules.insert(name, Module { file, uses, body });
        }
        Modules(modules)
    }

    /// Returns the file that defines the item at `path` as seen from module `from`, if it is in this crate. A path that
    /// ends at a module names no item.
    fn defines(&self, from: &[String], path: &[String], depth: usize) -> Option<&str> {
        let mut at = from.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                let child: Vec<String> = at.iter().cloned().chain([first.to_owned()]).collect();
                if !self.0.contains_key(&child) {
                    // A name that was imported stands for what it was imported from.
                    let used = self.0.get(&at)?.uses.iter().find(|used| used.name == first && used.path[0] != first)?;
                    if depth == 0 {
                        return None;
                    }
                    let path: Vec<String> = used.path.iter().chain(&rest[1..]).cloned().collect();
                    return self.defines(&at, &path, depth - 1);
                }
            }
        }
        for (index, segment) in rest.iter().enumerate() {
            let child: Vec<String> = at.iter().cloned().chain([segment.clone()]).collect();
            if self.0.contains_key(&child) {
                at = child;
                continue;
            }
            let module = self.0.get(&at)?;
            let reexport = module.uses.iter().find(|used| used.name == *segment && used.reexport);
            if let (Some(used), true) = (reexport, depth > 0) {
                let path: Vec<String> = used.path.iter().chain(&rest[index + 1..]).cloned().collect();
                return self.defines(&at, &path, depth - 1).or(Some(&module.file));
            }
            return Some(&module.file);
        }
        None
    }

    /// Returns each file with the files that it imports from. A module is part of its parents, so what it takes from
    /// them is no import.
    fn imports(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut imports = BTreeMap::new();
        for (name, module) in &self.0 {
            let mut files = BTreeSet::new();
            if !name.is_empty() {
                let words: BTreeSet<&str> = module.body.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                let used = module.uses.iter().filter(|used| !used.reexport || words.contains(used.name.as_str()));
                let mut paths: BTreeSet<Vec<String>> = used.map(|used| used.path.clone()).collect();
                paths.extend(paths_in(&module.body));
                files.extend(paths.iter().filter_map(|path| self.defines(name, path, 8)));
                for parents in 0..=name.len() {
                    files.remove(self.0.get(&name[..parents]).map_or("", |parent| parent.file.as_str()));
                }
            }
            imports.insert(module.file.as_str(), files);
        }
        imports
    }
}

/// Returns every group of files that reach each other.
fn circles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reachable = |from: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for &next in imports.get(file).into_iter().flatten() {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> = imports.keys().map(|&file| (file, reachable(file))).collect();
    let mut found: Vec<Vec<&str>> = Vec::new();
    for (&file, reached) in &reach {
        let known = found.iter().any(|circle| circle.contains(&file));
        if !known && reached.contains(file) {
            found.push(reached.iter().copied().filter(|&other| reach[other].contains(file)).collect());
        }
    }
    found
}

/// The top-level module that a file belongs to.
fn top(file: &str) -> &str {
    file.trim_start_matches("src/").trim_end_matches(".rs").split('/').next().unwrap()
}

#[test]
fn imports_run_downward() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(layer, names)| names.iter().map(move |&name| (name, layer))).collect();
    let modules = Modules::read();
    let mut breaches = Vec::new();
    for (file, imported) in modules.imports() {
        if file == "src/lib.rs" {
            continue;
        }
        let Some(own) = layer.get(top(file)) else {
            breaches.push(format!("{file}: '{}' is not in the table of layers", top(file)));
            continue;
        };
        for other in imported.into_iter().filter(|other| top(other) != top(file)) {
            if layer.get(top(other)).is_none_or(|layer| layer >= own) {
                breaches.push(format!("{file} imports {other}"));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = Modules::read();
    let imports = modules.imports();
    let within = |circle: Vec<&str>| -> Vec<String> {
        let edges = circle.iter().flat_map(|&from| imports[from].iter().map(move |&to| (from, to)));
        edges.filter(|(_, to)| circle.contains(to)).map(|(from, to)| format!("{from} -> {to}")).collect()
    };
    let circles: Vec<Vec<String>> = circles(&imports).into_iter().map(within).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn outer_modules_use_the_public_api_alone() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let private: BTreeSet<&str> = lib.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    assert!(private.contains("pipeline"), "lib.rs was not understood: {private:?}");
    let mut breaches = Vec::new();
    for (name, module) in Modules::read().0 {
        if name.first().is_none_or(|top| !PUBLIC_API_ONLY.contains(&top.as_str())) {
            continue;
        }
        let paths = module.uses.iter().map(|used| used.path.clone()).chain(paths_in(&module.body));
        for path in paths.filter(|path| path[0] == "crate" && path.len() > 1 && private.contains(path[1].as_str())) {
            breaches.push(format!("{} imports {}", module.file, path.join("::")));
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn the_document_lists_the_layers() {
    let document = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    for (layer, names) in LAYERS.iter().enumerate() {
        for name in *names {
            let row = format!("| {} | ", layer + 1);
            let listed = document.lines().any(|line| {
                line.starts_with(&row)
                    && (line.contains(&format!("`{name}/`")) || line.contains(&format!("`{name}.rs`")))
            });
            assert!(listed, "docs/ARCHITECTURE.md does not list `{name}` in layer {}", layer + 1);
        }
    }
}

#[test]
fn docs_open_with_the_item() {
    const QUESTIONS: &[&str] =
        &["What", "Whether", "How", "Who", "Whoever", "Whose", "Since", "That", "Where", "When", "As", "Why", "Which"];
    let mut found = Vec::new();
    for path in rust_files("src") {
        let text = fs::read_to_string(&path).unwrap();
        let mut inside = false;
        for (number, line) in text.lines().enumerate() {
            let doc = ["///", "//!"].iter().find_map(|mark| line.trim_start().strip_prefix(mark));
            if let (Some(doc), false) = (doc, inside)
                && QUESTIONS.contains(&doc.split_whitespace().next().unwrap_or_default())
            {
                found.push(format!("{}:{}:{doc}", relative(&path), number + 1));
            }
            inside = doc.is_some();
        }
    }
    assert!(found.is_empty(), "say what the item is or does: {found:#?}");
}

#[test]
fn lines_have_at_most_120_columns() {
    let documents = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let markdown = documents.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let files = rust_files("src").into_iter().chain(markdown).chain([root().join("README.md")]);
    let mut long = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let mut fenced = false;
        for (number, line) in text.lines().enumerate() {
            fenced ^= line.starts_with("```");
            // Tables, and what a program prints, keep their width.
            let wide = path.extension().is_some_and(|extension| extension == "md") && (fenced || line.starts_with('|'));
            if !wide && line.chars().count() > 120 {
                long.push(format!("{}:{}", relative(&path), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
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
fn the_reader_of_code_sees_paths_and_nothing_else() {
    let code = without_tests(&code_of(
        "use crate::a::{b, c as d}; // crate::comment\nlet s = \"crate::string \\\" crate::still\"; e::f(g);\n\
         #[cfg(test)]\nmod tests { use crate::test::Only; }\npub(crate) use self::h::I;",
    ));
    let (uses, body) = uses_of(&code);
    let uses: Vec<_> = uses.iter().map(|u| (u.path.join("::"), u.name.as_str(), u.reexport)).collect();
    let expected = [("crate::a::b", "b", false), ("crate::a::c", "d", false), ("self::h::I", "I", true)];
    assert_eq!(uses, expected.map(|(path, name, reexport)| (path.to_owned(), name, reexport)));
    assert_eq!(paths_in(&body).into_iter().collect::<Vec<_>>(), [["e", "f"]]);
}

#[test]
fn circles_are_found_and_chains_are_not() {
    let graph = |edges: &[(&'static str, &'static str)]| {
        let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for &(from, to) in edges {
            graph.entry(from).or_default().insert(to);
            graph.entry(to).or_default();
        }
        graph
    };
    assert!(circles(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    assert_eq!(circles(&graph(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])), [["b", "c"]]);
}
