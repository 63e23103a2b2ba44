//! Tests of Parquet sources: codecs, layouts, indices, damaged files, selection of columns.

mod write;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, SystemTime};

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::properties::WriterVersion;
use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use super::super::conformance;
use super::*;
use crate::rng::mix64;
use write::{HUB, Row, Shape, image, meaning, rows, write};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read(source: &ParquetSource, id: u64) -> Result<Vec<u8>, SourceError> {
    let mut out = vec![0xEE; source.encoded_bytes(SampleId(id)) as usize];
    source.read_into(SampleId(id), &mut out).map(|()| out)
}

/// Compares all samples with the rows that were written.
fn compare(source: &ParquetSource, rows: &[Row]) {
    assert_eq!(source.len(), rows.len() as u64);
    for (id, row) in rows.iter().enumerate() {
        assert_eq!(source.encoded_bytes(SampleId(id as u64)), row.bytes.as_ref().unwrap().len() as u64);
        assert_eq!(&read(source, id as u64).unwrap(), row.bytes.as_ref().unwrap(), "sample {id}");
        assert_eq!(i64::from(source.label(SampleId(id as u64))), row.label.unwrap());
    }
}

fn refusal(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> String {
    ParquetSource::open(paths).expect_err("it should be refused").to_string()
}

/// Overwrites some bytes of a file, and keeps its modification time.
fn damage(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.set_times(FileTimes::new().set_modified(modified)).unwrap();
}

fn index_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".feedstock-index");
    name.into()
}

#[test]
fn every_codec_and_layout_is_read() {
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    let required = "message m {
        required group image { required binary bytes; optional binary path (UTF8); }
        required int32 cls;
    }";
    for (number, codec) in codecs.into_iter().enumerate() {
        for (dictionary, version, delta, page_bytes, schema) in [
            (false, WriterVersion::PARQUET_1_0, false, 1 << 20, HUB),
            (true, WriterVersion::PARQUET_1_0, false, 2 << 10, required),
            (true, WriterVersion::PARQUET_2_0, false, 2 << 10, HUB),
            (false, WriterVersion::PARQUET_2_0, true, 4 << 10, HUB),
        ] {
            let folder = folder();
            let shape = Shape { codec, dictionary, version, delta, page_bytes, schema, ..Shape::default() };
            let shape = match schema {
                HUB => shape,
                _ => Shape { meaning: Some(meaning("cls", &["ant", "bee", "cat", "dog", "eel"])), ..shape },
            };
            // The last row group is shorter, and the rows of the second file follow those of the first.
            let first = write(folder.path(), "a.parquet", &rows(0, 35), &shape);
            let second = write(folder.path(), "b.parquet", &rows(35, 10 + number as u64), &shape);
            let source = ParquetSource::open([&first, &second]).unwrap();
            compare(&source, &rows(0, 45 + number as u64));
            assert_eq!(source.classes(), ["ant", "bee", "cat", "dog", "eel"]);
            let blocks = source.blocks().unwrap();
            let ends: Vec<u64> = (0..blocks.count()).map(|block| blocks.samples(block).end).collect();
            assert_eq!(ends[..5], [10, 20, 30, 35, 45]);
            assert_eq!(source.notes(), [""; 0]);
            conformance::check(&source).unwrap();
            // The saved index gives the same result as the scan.
            let again = ParquetSource::open([&first, &second]).unwrap();
            assert_eq!((&again.sizes, again.io_profile()), (&source.sizes, source.io_profile()));
            compare(&again, &rows(0, 45 + number as u64));
            assert_eq!(source.name(SampleId(36)), format!("{}: row 1", second.display()));
            assert_eq!(source.title(), format!("{} and 1 more", first.display()));
        }
    }
}

#[test]
fn threads_can_read_in_any_order() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 200), &Shape::default());
    let source = ParquetSource::open_with([path], &ParquetOptions::new().shuffle_row_groups(1)).unwrap();
    thread::scope(|scope| {
        for thread in 0..6u64 {
            let source = &source;
            scope.spawn(move || {
                let mut ids: Vec<u64> = (0..200).collect();
                ids.sort_by_key(|&id| mix64(id ^ thread << 32));
                let page_cache = if thread % 2 == 0 { PageCache::Drop } else { PageCache::Keep };
                source.read_ahead(&[SampleId(0), SampleId(1), SampleId(55), SampleId(199)], page_cache);
                ids.into_iter().for_each(|id| assert_eq!(read(source, id).unwrap(), image(id)));
            });
        }
    });
}

#[test]
fn sizes_are_kept_beside_the_file_until_it_changes() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 30), &Shape::default());
    let index = index_of(&path);
    let start = ParquetSource::open([&path]).unwrap().groups[0].chunk.start;
    let kept = fs::read(&index).unwrap();
    // Damage that only a read of every page finds.
    damage(&path, start, &[0xFF; 64]);
    let source = ParquetSource::open([&path]).unwrap();
    assert!(read(&source, 0).is_err());
    assert_eq!(read(&source, 29).unwrap(), image(29));
    fs::remove_file(&index).unwrap();
    assert!(refusal([&path]).contains("row group 0, row 0"));

    // A new file with other sizes: the old index is ignored.
    write(folder.path(), "a.parquet", &rows(500, 30), &Shape::default());
    fs::write(&index, &kept).unwrap();
    compare(&ParquetSource::open([&path]).unwrap(), &rows(500, 30));
    let good = fs::read(&index).unwrap();
    assert_ne!(good, kept);
    // A damaged, truncated or too long index is replaced.
    for bad in [0, 9, 20, 40, 50, 80, good.len() - 9, good.len() - 1] {
        let mut text = good.clone();
        text[bad] ^= 4;
        fs::write(&index, &text).unwrap();
        compare(&ParquetSource::open([&path]).unwrap(), &rows(500, 30));
        assert_eq!(fs::read(&index).unwrap(), good, "byte {bad}");
    }
    for text in [&good[..good.len() - 4], &[], &[&good[..], b"+"].concat()] {
        fs::write(&index, text).unwrap();
        compare(&ParquetSource::open([&path]).unwrap(), &rows(500, 30));
        assert_eq!(fs::read(&index).unwrap(), good);
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn an_index_that_cannot_be_written_is_noted() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 12), &Shape::default());
    fs::write(folder.path().join("file"), "").unwrap();
    let source =
        ParquetSource::open_with([&path], &ParquetOptions::new().index_folder(folder.path().join("file/x"))).unwrap();
    compare(&source, &rows(0, 12));
    assert!(source.notes()[0].contains("could not be saved for the next run"), "{:?}", source.notes());

    let elsewhere = folder.path().join("deep/er");
    let source = ParquetSource::open_with([&path], &ParquetOptions::new().index_folder(&elsewhere)).unwrap();
    assert_eq!((source.notes().len(), fs::read_dir(&elsewhere).unwrap().count()), (0, 1));
    assert!(!index_of(&path).exists());
}

#[test]
fn rows_without_an_image_or_a_label_are_bad_samples() {
    let folder = folder();
    let mut some = rows(0, 25);
    (some[3].bytes, some[3].path) = (None, None);
    some[12].bytes = None;
    some[20].label = None;
    some[21].label = Some(-1);
    let path = write(folder.path(), "a.parquet", &some, &Shape::default());
    for _ in 0..2 {
        let source = ParquetSource::open([&path]).unwrap();
        for (id, text) in [
            (3, "row group 0, row 3: the row has no image"),
            (12, "row group 1, row 2: the row has the path of an image file, but not its bytes"),
            (20, "row group 2, row 0: the row has no label"),
            (21, "row group 2, row 1: the row has no label"),
        ] {
            let error = read(&source, id).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("a.parquet"), "{error}");
        }
        for id in (0..25).filter(|id| ![3, 12, 20, 21].contains(id)) {
            assert_eq!(read(&source, id).unwrap(), image(id));
        }
        let [note] = source.notes() else { panic!("{:?}", source.notes()) };
        let expected = "4 of 25 rows cannot be read: no image (1), no label (2), the path of an image file, but not";
        assert!(note.starts_with(expected), "{note}");
    }
    for (what, change) in [
        ("no image (5).", (|row: &mut Row| (row.bytes, row.path) = (None, None)) as fn(&mut Row)),
        ("the path of an image file, but not its bytes (5).", |row| row.bytes = None),
        ("no label (5).", |row| row.label = Some(-1)),
    ] {
        let mut none = rows(0, 5);
        none.iter_mut().for_each(change);
        let path = write(folder.path(), "none.parquet", &none, &Shape::default());
        let text = refusal([&path]);
        assert!(text.contains("no row of the file can be read") && text.contains(what), "{text}");
    }
    let path = write(folder.path(), "empty.parquet", &[], &Shape::default());
    assert!(refusal([&path]).contains("the file has no rows"));
    assert!(refusal([""; 0]).contains("no Parquet file is given"));
}

#[test]
fn other_files_are_refused_with_advice() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let page = "<html><body>Please log in</body></html>";
    for (name, text) in [("empty", ""), ("short", "PAR1PAR1"), ("page", page)] {
        fs::write(at(name), text).unwrap();
    }
    mkfifoat(CWD, at("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    let whole = fs::read(write(folder.path(), "a.parquet", &rows(0, 20), &Shape::default())).unwrap();
    fs::write(at("cut"), &whole[..whole.len() - 100]).unwrap();
    fs::write(at("secret"), [&whole[..whole.len() - 4], b"PARE"].concat()).unwrap();
    let mut long = whole;
    let end = long.len();
    long[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(at("long"), long).unwrap();
    for (name, expected) in [
        ("empty", "the file is empty"),
        ("short", "a Parquet file has at least 12 bytes, and this one has 8"),
        ("page", "not a Parquet file, which begins with 'PAR1'"),
        ("fifo", "this is a FIFO, not a Parquet file"),
        ("", "this is a folder: name the Parquet files in it"),
        ("cut", "truncated: it does not end with 'PAR1'"),
        ("secret", "encrypted Parquet files are not supported"),
        ("long", "footer: it is damaged"),
        ("missing", "cannot open"),
    ] {
        let text = refusal([at(name)]);
        assert!(text.contains(expected) && text.contains(at(name).to_str().unwrap()), "{name}: {text}");
    }
    assert!(refusal([at("a.parquet"), folder.path().join("./a.parquet")]).contains("given twice"));
}

#[test]
fn changed_files_are_errors() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 60), &Shape::default());
    let open = || ParquetSource::open_with([&path], &ParquetOptions::new().shuffle_row_groups(1)).unwrap();
    let source = open();
    File::options().append(true).open(&path).and_then(|mut file| std::io::Write::write_all(&mut file, b"+")).unwrap();
    assert!(matches!(read(&source, 0), Err(SourceError::Changed { .. })));

    write(folder.path(), "a.parquet", &rows(0, 60), &Shape::default());
    let source = open();
    assert_eq!(read(&source, 0).unwrap(), image(0));
    let later = SystemTime::now() + Duration::from_secs(5);
    File::open(&path).unwrap().set_times(FileTimes::new().set_modified(later)).unwrap();
    let error = read(&source, 59).unwrap_err().to_string();
    assert!(error.contains("was modified after it was opened"), "{error}");
    assert_eq!(read(&source, 1).unwrap(), image(1), "its block is held");
    fs::remove_file(&path).unwrap();
    assert!(matches!(read(&source, 59), Err(SourceError::Io { doing: "open", .. })));
    source.read_ahead(&[SampleId(59)], PageCache::Keep);
}

#[test]
fn damage_is_an_error_and_never_a_panic_or_a_wrong_size() {
    let folder = folder();
    for (seed, codec) in
        [(1, Compression::SNAPPY), (2, Compression::UNCOMPRESSED), (3, Compression::ZSTD(ZstdLevel::default()))]
    {
        let dictionary = seed == 1;
        let shape = Shape { codec, dictionary, version: WriterVersion::PARQUET_2_0, ..Shape::default() };
        let whole = fs::read(write(folder.path(), "whole.parquet", &rows(0, 30), &shape)).unwrap();
        let path = folder.path().join("bad.parquet");
        let (mut refused, mut failed) = (0, 0);
        for step in 0..150u64 {
            let mut text = whole.clone();
            let random = mix64(step ^ seed << 50);
            match step % 3 {
                // Most of a file is images; its ends are where the structure is.
                0 => text[random as usize % whole.len()] ^= 1 << (random >> 40 & 7),
                1 => text[whole.len() - 1 - random as usize % 1500] ^= 1 << (random >> 40 & 7),
                _ => text.truncate(random as usize % whole.len()),
            }
            fs::write(&path, text).unwrap();
            let _ = fs::remove_file(index_of(&path));
            match ParquetSource::open([&path]) {
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("bad.parquet"), "{error}");
                }
                Ok(source) => failed += (0..source.len()).filter(|&id| read(&source, id).is_err()).count(),
            }
        }
        assert!(refused > 50, "{codec}: {refused} refused, {failed} reads failed");
    }
}

#[test]
fn later_damage_fails_only_its_row_group() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 30), &Shape::default());
    let source = ParquetSource::open([&path]).unwrap();
    let group = &source.groups[1];
    damage(&path, group.chunk.start + group.chunk.bytes / 2, &[0xA5; 600]);
    let error = read(&source, 15).unwrap_err().to_string();
    assert!(error.contains("a.parquet, row group 1, row ") && error.contains("damaged"), "{error}");
    for id in (0..10).chain(20..30) {
        assert_eq!(read(&source, id).unwrap(), image(id));
    }
}

#[test]
fn columns_are_recognized_or_named() {
    let folder = folder();
    let open = |options: &ParquetOptions, schema: &'static str, meaning: Option<String>| {
        let shape = Shape { schema, meaning, ..Shape::default() };
        ParquetSource::open_with([write(folder.path(), "a.parquet", &rows(0, 20), &shape)], options)
    };
    let none = ParquetOptions::new();
    let refused = |schema| open(&none, schema, None).unwrap_err().to_string();

    // A plain column of bytes, and labels as text: the classes are sorted.
    let plain = "message m { optional binary photo; required binary species (UTF8); optional int64 id; }";
    assert!(refused(plain).contains("no label column was recognized: name it; its columns are: photo"));
    let source = open(&none.clone().label_column("species"), plain, None).unwrap();
    assert_eq!(source.classes(), ["Ape", "newt", "ox", "wolf", "\u{e4}lk"]);
    let labels: Vec<u32> = (0..5).map(|id| source.label(SampleId(id))).collect();
    assert_eq!(labels, [3, 0, 2, 4, 1]);
    assert_eq!(read(&source, 7).unwrap(), image(7));

    // Two columns that could hold images, and two of labels.
    let two =
        "message m { optional binary a; optional binary b; optional int64 coarse_label; optional int64 fine_label; }";
    assert!(refused(two).contains("several columns may hold the images (a, b): name the one to read"));
    let source = open(&none.clone().image_column("b"), two, Some(meaning("fine_label", &["v", "w", "x", "y", "z"])));
    let source = source.unwrap();
    assert_eq!(source.notes(), ["labels are read from the column 'fine_label'; other candidates: coarse_label"]);
    assert_eq!(source.classes(), ["v", "w", "x", "y", "z"]);
    compare(&source, &rows(0, 20));
    let source = open(&none.clone().image_column("a").label_column("coarse_label"), two, None).unwrap();
    assert_eq!(source.classes(), ["0", "1", "2", "3", "4"]);

    // A label column that only the hub's metadata names.
    let odd = "message m { optional binary photo; optional int64 kind; optional int64 id; }";
    let source = open(&none, odd, Some(meaning("kind", &["v", "w", "x", "y", "z"]))).unwrap();
    assert_eq!(source.classes().len(), 5);

    for (options, expected) in [
        (none.clone().image_column("nothing"), "the column 'nothing' has no images"),
        (none.clone().image_column("label"), "the column 'label' has no images"),
        (none.clone().label_column("image"), "the column 'image' has no labels"),
    ] {
        let text = open(&options, HUB, None).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains("image (struct of bytes, path), label (int64)"), "{text}");
    }
    let nested = "message m { optional group images (LIST) { repeated group list { optional group element { \
                  optional binary bytes; } } } optional int64 label; }";
    let shape = Shape { schema: nested, ..Shape::default() };
    let text = refusal([write(folder.path(), "nested.parquet", &[], &shape)]);
    assert!(text.contains("no image column") && text.contains("images (struct of list)"), "{text}");
}

#[test]
fn files_of_different_data_sets_are_refused() {
    let folder = folder();
    let first = write(folder.path(), "a.parquet", &rows(0, 20), &Shape::default());
    let other = Shape { meaning: Some(meaning("label", &["ant", "bee", "cat", "dog", "fox"])), ..Shape::default() };
    let other = write(folder.path(), "b.parquet", &rows(0, 20), &other);
    assert!(refusal([&first, &other]).contains("the class names of 'label' differ from those of"));

    let text = "message m { optional binary photo; required binary label (UTF8); }";
    let bare = Shape { meaning: None, ..Shape::default() };
    let text = write(folder.path(), "c.parquet", &[], &Shape { schema: text, ..bare.clone() });
    assert!(refusal([&text, &first]).contains("are integers, and those of"));

    // A file without names goes with one that has some, as long as there are enough.
    let mut more = rows(0, 20);
    let unnamed = write(folder.path(), "d.parquet", &more, &bare);
    assert_eq!(ParquetSource::open([&unnamed, &first]).unwrap().classes().len(), 5);
    more[13].label = Some(5);
    write(folder.path(), "d.parquet", &more, &bare);
    assert!(refusal([&unnamed, &first]).contains("d.parquet, row 13: the label is 5, but"));
    let named = write(folder.path(), "e.parquet", &more, &Shape::default());
    assert!(refusal([&named]).contains("row group 1, row 3: the label is 5, but there are at most 5 classes"));
    assert_eq!(ParquetSource::open([&unnamed]).unwrap().classes().len(), 6);
    more[13].label = Some(i64::MAX);
    assert!(refusal([write(folder.path(), "f.parquet", &more, &bare)]).contains("is 'label' the label column?"));
}

#[test]
fn unsupported_codecs_are_named() {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(HUB).unwrap());
    let column = parquet::schema::types::SchemaDescriptor::new(schema).column(1);
    let codec = |codec| {
        let metadata = ColumnChunkMetaData::builder(column.clone()).set_compression(codec).build().unwrap();
        ColumnChunk::of(&metadata, 100).unwrap().unsupported_codec()
    };
    assert_eq!(
        (codec(Compression::BROTLI(BrotliLevel::default())), codec(Compression::LZO)),
        (Some("Brotli"), Some("LZO"))
    );
    assert_eq!((codec(Compression::SNAPPY), codec(Compression::LZ4)), (None, None));
}

#[test]
fn large_row_groups_are_noted() {
    let folder = folder();
    let path = write(folder.path(), "a.parquet", &rows(0, 12), &Shape::default());
    let (mut options, mut names) = (ParquetOptions::new(), ClassNames::default());
    let mut scanned = scan::scan(&path, &options, &mut names).unwrap();
    // Larger sizes in the index: writing such a file would take long.
    scanned.sizes.rows[3] = 300 << 20;
    options = options.shuffle_row_groups(2);
    let source = ParquetSource::assemble(vec![scanned], names, &options).unwrap();
    assert!(source.notes()[0].starts_with("the largest row group has 300"), "{:?}", source.notes());
    assert!(source.io_profile().buffer_bytes > 600 << 20);
    // The wrong size is detected.
    let error = read(&source, 0).unwrap_err().to_string();
    assert!(error.contains("in the index"), "{error}");
}
