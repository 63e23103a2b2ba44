//! Writer of Parquet files for tests.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use crate::rng::mix64;
use crate::sync::Arc;

/// Schema of the Hugging Face library.
pub(super) const HUB: &str = "message m {
    optional int64 id;
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label;
}";

/// Row: bytes of the image, its path, the label.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) path: Option<String>,
    pub(super) label: Option<i64>,
}

/// Layout of a file.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) schema: &'static str,
    pub(super) codec: Compression,
    pub(super) dictionary: bool,
    pub(super) version: WriterVersion,
    pub(super) delta: bool,
    pub(super) group_rows: usize,
    pub(super) page_bytes: usize,
    pub(super) meaning: Option<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            schema: HUB,
            codec: Compression::SNAPPY,
            dictionary: false,
            version: WriterVersion::PARQUET_1_0,
            delta: false,
            group_rows: 10,
            page_bytes: 4 << 10,
            meaning: Some(meaning("label", &["ant", "bee", "cat", "dog", "eel"])),
        }
    }
}

/// Metadata of the Hugging Face library for a label column.
pub(super) fn meaning(column: &str, names: &[&str]) -> String {
    let features =
        serde_json::json!({ "image": { "_type": "Image" }, column: { "names": names, "_type": "ClassLabel" } });
    serde_json::json!({ "info": { "features": features } }).to_string()
}

/// Bytes of an image, 0 to 4 KiB. Every third one repeats an earlier one, for dictionaries.
pub(super) fn image(id: u64) -> Vec<u8> {
    let seed = if id % 3 == 2 { id - 1 } else { id };
    (0..mix64(seed) % 4096).map(|i| if i % 5 == 0 { mix64(seed ^ i << 20) as u8 } else { 7 }).collect()
}

pub(super) fn rows(first: u64, count: u64) -> Vec<Row> {
    let row = |id| Row { bytes: Some(image(id)), path: Some(format!("{id}.jpg")), label: Some((id % 5) as i64) };
    (first..first + count).map(row).collect()
}

/// Writes a file. The name of a column determines its values.
pub(super) fn write(folder: &Path, name: &str, rows: &[Row], shape: &Shape) -> PathBuf {
    let path = folder.join(name);
    let mut properties = WriterProperties::builder()
        .set_writer_version(shape.version)
        .set_compression(shape.codec)
        .set_dictionary_enabled(shape.dictionary)
        .set_data_page_size_limit(shape.page_bytes)
        .set_write_batch_size(1)
        .set_key_value_metadata(
            shape.meaning.clone().map(|meaning| vec![KeyValue::new("huggingface".to_owned(), meaning)]),
        );
    if shape.delta {
        let bytes = ColumnPath::from("image.bytes".split('.').map(String::from).collect::<Vec<_>>());
        properties = properties.set_column_encoding(bytes, Encoding::DELTA_BYTE_ARRAY);
    }
    let schema = Arc::new(parse_message_type(shape.schema).unwrap());
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.clone(), Arc::new(properties.build())).unwrap();
    for rows in rows.chunks(shape.group_rows) {
        let mut group = writer.next_row_group().unwrap();
        let mut number = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            let descriptor = parquet::schema::types::SchemaDescriptor::new(schema.clone()).column(number);
            number += 1;
            let most = descriptor.max_def_level();
            let mut levels = Vec::new();
            let leaf = descriptor.path().parts().last().unwrap().clone();
            match leaf.as_str() {
                "id" => {
                    let numbers: Vec<i64> = (0..rows.len() as i64).collect();
                    levels.resize(rows.len(), most);
                    column.typed::<Int64Type>().write_batch(&numbers, Some(&levels), None).unwrap();
                }
                "bytes" | "photo" | "a" | "b" => {
                    let of = |row: &Row| row.bytes.clone().map(ByteArray::from);
                    let values = present(rows, most, &mut levels, of);
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
                }
                "path" => {
                    let of = |row: &Row| row.path.as_deref().map(ByteArray::from);
                    let values = present(rows, most, &mut levels, of);
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
                }
                "species" => {
                    let text = |label: i64| ByteArray::from(["wolf", "Ape", "ox", "\u{e4}lk", "newt"][label as usize]);
                    let values = present(rows, most, &mut levels, |row: &Row| row.label.map(text));
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
                }
                "cls" => {
                    let values = present(rows, most, &mut levels, |row: &Row| row.label.map(|label| label as i32));
                    column.typed::<Int32Type>().write_batch(&values, Some(&levels), None).unwrap();
                }
                _ => {
                    let values = present(rows, most, &mut levels, |row: &Row| row.label);
                    column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

fn present<T>(rows: &[Row], most: i16, levels: &mut Vec<i16>, of: impl Fn(&Row) -> Option<T>) -> Vec<T> {
    rows.iter()
        .filter_map(|row| {
            let value = of(row);
            levels.push(if value.is_some() { most } else { most - 1 });
            value
        })
        .collect()
}
