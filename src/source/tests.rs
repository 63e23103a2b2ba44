//! Tests of image folders: real folders, good and bad.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, mkfifoat, openat};
use tempfile::TempDir;

use super::*;
use crate::skip::{Missing, skip};

fn tree(files: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        write(root.path(), file, file.as_bytes());
    }
    root
}

fn write(root: &Path, file: impl AsRef<Path>, bytes: &[u8]) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn open(root: &TempDir) -> ImageFolder {
    ImageFolder::open(root.path()).unwrap()
}

fn paths(folder: &ImageFolder) -> Vec<String> {
    let below = |id| folder.path(SampleId(id)).strip_prefix(folder.root()).unwrap().to_string_lossy().into_owned();
    (0..folder.len()).map(below).collect()
}

fn labels(folder: &ImageFolder) -> Vec<u32> {
    (0..folder.len()).map(|id| folder.label(SampleId(id))).collect()
}

fn read(folder: &ImageFolder, id: u64) -> Result<Vec<u8>, SourceError> {
    let mut out = vec![0xEE; folder.encoded_bytes(SampleId(id)) as usize];
    folder.read_into(SampleId(id), &mut out).map(|()| out)
}

fn unreadable(folder: &ImageFolder) -> Vec<(String, String)> {
    let below = |path: &Path| path.strip_prefix(folder.root()).unwrap().to_string_lossy().into_owned();
    folder.unreadable().iter().map(|entry| (below(&entry.path), entry.cause.clone())).collect()
}

#[test]
fn classes_and_samples_come_in_torchvisions_order() {
    // As make_dataset lists them, `sorted(os.walk(class))`: folders of a class by their whole path, then files by name.
    let root = tree(&[
        "b/z.png",
        "b/sub/a.jpg",
        "b/sub-2/a.jpg",
        "b/sub/deep/er/1.gif",
        "B/upper.JPG",
        "a/10.jpeg",
        "a/9.JpEg",
        "a/notes.txt",
        "a/jpg",
        "a/1.jpg.zip",
        "c/x.webp",
        "c/y.bmp",
        "c/z.TIFF",
        "c/w.tif",
        "c/v.jpe",
        "c/u.jfif",
        "loose.jpg",
    ]);
    let folder = open(&root);
    assert_eq!(folder.classes(), ["B", "a", "b", "c"]);
    assert_eq!(
        paths(&folder),
        [
            "B/upper.JPG",
            "a/10.jpeg",
            "a/9.JpEg",
            "b/z.png",
            "b/sub/a.jpg",
            "b/sub-2/a.jpg",
            "b/sub/deep/er/1.gif",
            "c/u.jfif",
            "c/v.jpe",
            "c/w.tif",
            "c/x.webp",
            "c/y.bmp",
            "c/z.TIFF",
        ]
    );
    assert_eq!(labels(&folder), [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]);
    assert_eq!(read(&folder, 6).unwrap(), b"b/sub/deep/er/1.gif");
    assert_eq!(folder.name(SampleId(6)), folder.path(SampleId(6)).to_str().unwrap());
    assert_eq!(folder.unreadable(), []);
    assert_eq!(folder.notes(), ["not used: 1 image directly in the root, outside of any class folder"]);
}

#[test]
fn image_folder_keeps_the_rules() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..300 {
        write(root.path(), format!("class{}/{}/{i}.jpg", i % 7, i % 3), &vec![i as u8; i * 41 % 5000]);
    }
    conformance::check(&open(&root)).unwrap();
    conformance::check(&Arc::new(open(&root))).unwrap();
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..400 {
        write(root.path(), format!("c{}/{}/{}/{i}.jpg", i % 9, i % 5, i % 2), &[]);
        symlink("nowhere", root.path().join(format!("c{}/{i}.png", i % 9))).unwrap();
    }
    let scan = |threads| ImageFolder::open_with_threads(root.path(), NonZeroUsize::new(threads).unwrap()).unwrap();
    let one = scan(1);
    assert_eq!((one.len(), one.unreadable_count()), (400, 400));
    for threads in [2, 3, 7, 1000] {
        let many = scan(threads);
        assert_eq!(paths(&one), paths(&many));
        assert_eq!(labels(&one), labels(&many));
        assert_eq!(one.unreadable(), many.unreadable());
        assert_eq!(one.index_bytes(), many.index_bytes());
    }
}

#[test]
fn symbolic_links_are_followed_without_loops() {
    let root = tree(&["a/1.jpg", "b/2.jpg", "outside.d/deep/3.jpg"]);
    let at = |path: &str| root.path().join(path);
    fs::rename(at("outside.d"), at(".outside")).unwrap();
    symlink("../.outside", at("a/linked")).unwrap();
    symlink("../b/2.jpg", at("a/to-file.jpg")).unwrap();
    symlink(".outside/deep", at("c")).unwrap();
    symlink("..", at("a/up")).unwrap();
    symlink(".", at("a/self")).unwrap();
    symlink("../a", at("b/cross")).unwrap();
    symlink("../b", at("a/cross")).unwrap();
    symlink("ring2.jpg", at("a/ring1.jpg")).unwrap();
    symlink("ring1.jpg", at("a/ring2.jpg")).unwrap();
    symlink("gone", at("b/dangling")).unwrap();
    let folder = open(&root);
    assert_eq!(folder.classes(), ["a", "b", "c"]);
    assert_eq!(
        paths(&folder),
        [
            "a/1.jpg",
            "a/to-file.jpg",
            "a/cross/2.jpg",
            "a/linked/deep/3.jpg",
            "b/2.jpg",
            "b/cross/1.jpg",
            "b/cross/to-file.jpg",
            "b/cross/linked/deep/3.jpg",
            "c/3.jpg",
        ]
    );
    assert_eq!(read(&folder, 7).unwrap(), b"outside.d/deep/3.jpg");
    let found = unreadable(&folder);
    let leads_back = "a symbolic link to a folder above itself; not followed";
    let causes = |path: &str| found.iter().find(|entry| entry.0 == path).map(|entry| entry.1.as_str());
    for path in ["a/up", "a/self", "a/cross/cross", "b/cross/cross", "b/cross/up", "b/cross/self"] {
        assert_eq!(causes(path), Some(leads_back), "{path}");
    }
    assert_eq!(causes("a/ring1.jpg"), Some("a symbolic link to itself, through others"));
    assert_eq!(causes("b/dangling"), Some("a symbolic link to a missing file"));
    assert_eq!(folder.unreadable_count(), found.len() as u64);
}

#[test]
fn multiplying_links_end_in_an_error() {
    // 2^10 paths through ten folders; the real limit is 2^24.
    let root = tree(&["c0/1.jpg"]);
    for i in 0..9 {
        fs::create_dir(root.path().join(format!("c{}", i + 1))).unwrap();
        for name in ["x", "y"] {
            symlink(format!("../c{}", i + 1), root.path().join(format!("c{i}/{name}"))).unwrap();
        }
    }
    let fd = scan::open_directory(CWD, root.path()).unwrap();
    let scan = |max| scan::scan_at_most(root.path(), std::os::fd::AsFd::as_fd(&fd), NonZeroUsize::new(3).unwrap(), max);
    // Sum over the ten starts: 2 * (2^10 - 1) - 10.
    assert_eq!(scan(2036).unwrap().index.len(), 1);
    let error = scan(2035).unwrap_err();
    assert!(error.to_string().contains("leads to more than 2035 folders"), "{error}");
}

#[test]
fn names_of_any_bytes_are_supported() {
    let root = tree(&["plain/1.jpg"]);
    let class = OsStr::from_bytes(b"caf\xE9");
    write(root.path(), Path::new(class).join(OsStr::from_bytes(b"\xFF\xFE.jpg")), b"bytes");
    write(root.path(), "ein \u{1F600} \n'Bild'/\u{e4}.png", b"text");
    let folder = open(&root);
    assert_eq!(folder.classes(), ["caf\\xE9", "ein \u{1F600} \n'Bild'", "plain"]);
    assert!(folder.name(SampleId(0)).ends_with("caf\\xE9/\\xFF\\xFE.jpg"));
    assert_eq!(folder.path(SampleId(0)).file_name().unwrap().as_bytes(), b"\xFF\xFE.jpg");
    assert_eq!(read(&folder, 0).unwrap(), b"bytes");
    assert_eq!(read(&folder, 1).unwrap(), b"text");
    conformance::check(&folder).unwrap();
}

#[test]
fn special_files_are_reported_and_never_opened() {
    let root = tree(&["a/1.jpg", "a/folder.jpg/2.jpg"]);
    // Opening a FIFO without a writer would hang this test.
    mkfifoat(CWD, root.path().join("a/fifo.jpg"), Mode::RUSR | Mode::WUSR).unwrap();
    mkfifoat(CWD, root.path().join("a/fifo.txt"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = UnixListener::bind(root.path().join("a/socket.png")).unwrap();
    symlink("/dev/zero", root.path().join("a/zero.gif")).unwrap();
    let folder = open(&root);
    assert_eq!(paths(&folder), ["a/1.jpg", "a/folder.jpg/2.jpg"]);
    let cause = |path: &str, what: &str| (path.to_owned(), format!("not a regular file but {what}"));
    assert_eq!(
        unreadable(&folder),
        [cause("a/fifo.jpg", "a FIFO"), cause("a/socket.png", "a socket"), cause("a/zero.gif", "a device")]
    );
}

#[test]
fn hidden_names_are_skipped_and_counted() {
    let root =
        tree(&["a/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", ".ipynb_checkpoints/3.jpg", "a/.DS_Store", ".hidden.jpg"]);
    let folder = open(&root);
    assert_eq!((folder.classes(), paths(&folder)), (&["a".to_owned()][..], vec!["a/1.jpg".to_owned()]));
    assert_eq!(folder.notes(), ["skipped: 4 image or folder names beginning with a dot"]);
}

#[test]
fn classes_without_images_keep_their_labels() {
    let root = tree(&["b/1.jpg", "d/2.jpg", "a/readme.txt"]);
    fs::create_dir_all(root.path().join("c/empty")).unwrap();
    let folder = open(&root);
    assert_eq!((labels(&folder), folder.classes().len()), (vec![1, 3], 4));
    assert_eq!(folder.notes(), ["no images in 2 of 4 classes (which keep their labels): a, c"]);
}

#[test]
fn a_folder_of_splits_is_noted() {
    let folder = open(&tree(&["train/cat/1.jpg", "val/cat/1.jpg"]));
    assert_eq!(folder.notes(), ["the classes are named train, val: give the folder of one split"]);
}

fn refusal(path: &Path) -> (SourceError, String) {
    let error = ImageFolder::open(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    (error, text)
}

#[test]
fn other_folders_are_refused_with_advice() {
    let (error, text) = refusal(Path::new("/no/such/folder"));
    assert!(matches!(error, SourceError::Io { doing: "open", .. }) && text.contains("check the path"), "{text}");

    let root = tree(&["file.jpg"]);
    let (error, _) = refusal(&root.path().join("file.jpg"));
    assert!(matches!(error, SourceError::NotAFolder { .. }));

    let root = tempfile::tempdir().unwrap();
    let (error, text) = refusal(root.path());
    assert!(matches!(error, SourceError::NoClasses { loose_image_count: 0, .. }), "{text}");

    let root = tree(&["1.jpg", "2.jpg"]);
    let (error, text) = refusal(root.path());
    assert!(matches!(error, SourceError::NoClasses { loose_image_count: 2, .. }));
    assert!(text.contains("has no class folders, but 2 images directly in it: put the images"), "{text}");

    let root = tree(&["a/1.txt", "b/2.zip"]);
    symlink("nowhere", root.path().join("a/1.jpg")).unwrap();
    let (error, text) = refusal(root.path());
    assert!(matches!(error, SourceError::NoImages { class_count: 2, other_file_count: 2, unreadable: Some(_), .. }));
    assert!(text.contains("2 class folders") && text.contains("a symbolic link to a missing file"), "{text}");
}

#[test]
fn a_changed_file_is_an_error() {
    let root = tree(&["a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "a/5.jpg", "a/6.jpg"]);
    let folder = open(&root);
    let at = |id: u64| folder.path(SampleId(id));
    File::options().append(true).open(at(0)).and_then(|mut f| std::io::Write::write_all(&mut f, b"+")).unwrap();
    File::options().write(true).open(at(1)).and_then(|f| f.set_len(3)).unwrap();
    fs::remove_file(at(2)).unwrap();
    for id in [3, 4] {
        fs::remove_file(at(id)).unwrap();
    }
    mkfifoat(CWD, at(3), Mode::RUSR | Mode::WUSR).unwrap();
    fs::create_dir(at(4)).unwrap();

    let text = |id| {
        let error = read(&folder, id).unwrap_err();
        assert!(error.to_string().contains(at(id).to_str().unwrap()), "{error}");
        error
    };
    assert!(matches!(text(0), SourceError::Changed { indexed_bytes: 7, found_bytes: 8, .. }));
    assert!(matches!(text(1), SourceError::Changed { indexed_bytes: 7, found_bytes: 3, .. }));
    assert!(matches!(text(2), SourceError::Io { doing: "open", .. }));
    assert!(matches!(text(3), SourceError::NotAFile { found: "a FIFO", .. }));
    assert!(matches!(text(4), SourceError::NotAFile { found: "a folder", .. }));
    assert_eq!(read(&folder, 5).unwrap(), b"a/6.jpg");
}

#[test]
fn an_empty_file_is_a_sample_of_no_bytes() {
    let root = tree(&["a/1.jpg"]);
    write(root.path(), "a/0.jpg", b"");
    let folder = open(&root);
    assert_eq!((folder.len(), folder.encoded_bytes(SampleId(0))), (2, 0));
    assert_eq!(read(&folder, 0).unwrap(), b"");
}

#[test]
#[should_panic(expected = "sample 0 has 7 bytes")]
fn a_buffer_of_another_size_panics() {
    let root = tree(&["a/1.jpg"]);
    let _ = open(&root).read_into(SampleId(0), &mut [0; 8]);
}

#[test]
fn entries_without_permission_are_reported() {
    use std::os::unix::fs::PermissionsExt;
    let root = tree(&["a/1.jpg", "a/locked.jpg", "b/2.jpg", "c/3.jpg"]);
    let mode =
        |path: &str, mode| fs::set_permissions(root.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    mode("a/locked.jpg", 0o000);
    mode("b", 0o000);
    // Can be listed, but not entered.
    mode("c", 0o400);
    if File::open(root.path().join("a/locked.jpg")).is_ok() {
        skip(&Missing::Privilege("a user from whom a file can be locked (this one may read everything)"));
        return;
    }
    let folder = open(&root);
    let found = unreadable(&folder);
    let unlock = || ["b", "c"].into_iter().for_each(|path| mode(path, 0o700));
    unlock();
    assert_eq!(paths(&folder), ["a/1.jpg", "a/locked.jpg"]);
    assert_eq!(found.iter().map(|entry| entry.0.as_str()).collect::<Vec<_>>(), ["b", "c/3.jpg"]);
    assert!(found.iter().all(|entry| entry.1.contains("Permission denied")), "{found:?}");
    let error = read(&folder, 1).unwrap_err();
    assert!(matches!(error, SourceError::Io { doing: "open", .. }), "{error}");
    assert!(error.to_string().contains("check the permissions"), "{error}");
}

#[test]
fn a_path_too_long_to_open_is_reported() {
    let root = tree(&["a/1.jpg"]);
    let name = "d".repeat(250);
    let mut fd = openat(CWD, root.path().join("a"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..20 {
        mkdirat(&fd, &name, Mode::RWXU).unwrap();
        fd = openat(&fd, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let folder = open(&root);
    assert_eq!((folder.len(), folder.unreadable_count()), (1, 1));
    assert!(folder.unreadable()[0].cause.contains("too long"), "{}", folder.unreadable()[0]);
}

#[test]
fn the_unreadable_are_listed_up_to_a_thousand() {
    let root = tree(&["a/1.jpg"]);
    for i in 0..1500 {
        symlink("nowhere", root.path().join(format!("a/{i:04}.png"))).unwrap();
    }
    let folder = open(&root);
    assert_eq!((folder.unreadable().len(), folder.unreadable_count()), (1000, 1500));
    assert!(folder.unreadable()[999].path.ends_with("a/0999.png"));
}

#[test]
fn the_root_may_be_renamed() {
    let root = tree(&["data/a/1.jpg"]);
    let folder = ImageFolder::open(root.path().join("data")).unwrap();
    fs::rename(root.path().join("data"), root.path().join("moved")).unwrap();
    assert_eq!(read(&folder, 0).unwrap(), b"data/a/1.jpg");
}

#[test]
fn the_index_of_a_small_folder_is_small() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..320 {
        write(root.path(), format!("n0144076{}/n01440764_{i}.JPEG", i % 2), b"x");
    }
    let folder = open(&root);
    let fixed = std::mem::size_of::<ImageFolder>() as u64;
    let per_sample = (folder.index_bytes() - fixed) as f64 / 320.0;
    assert!((10.0..20.0).contains(&per_sample), "{per_sample}");
}

/// Uses the data set beside the repository, if it is there.
#[test]
fn real_images_are_indexed() {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/datasets/imagenet-sample-500"));
    if !root.is_dir() {
        skip(&Missing::Data(&root.display().to_string()));
        return;
    }
    let folder = ImageFolder::open(&root).unwrap();
    assert_eq!((folder.len(), folder.classes().len(), folder.unreadable_count()), (500, 500, 0));
    assert_eq!(folder.notes(), [""; 0]);
    conformance::check(&folder).unwrap();
}
