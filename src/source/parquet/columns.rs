//! Owns the choice of the columns that hold images and labels, from a file's schema and what the hub's library wrote
//! beside it. It must never read a value of a column.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::metadata::FileMetaData;
use parquet::schema::types::{ColumnDescPtr, Type};
use serde_json::Value;

/// Names that columns of images have, the likeliest first.
const IMAGE_NAMES: [&str; 9] = ["image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "picture", "photo"];

/// Names that columns of labels have, the likeliest first.
const LABEL_NAMES: [&str; 10] =
    ["label", "labels", "fine_label", "cls", "class", "target", "category", "class_id", "label_id", "coarse_label"];

/// Under which key the hub's library writes what the columns mean.
const MEANING_KEY: &str = "huggingface";

/// The columns that are read.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) image: Leaf,
    /// The path that is kept beside an image, if any.
    pub(super) path: Option<Leaf>,
    pub(super) label: Leaf,
    pub(super) label_kind: LabelKind,
    pub(super) label_name: String,
    /// Names of the classes, where the file tells them.
    pub(super) class_names: Option<Vec<String>>,
    /// Other columns that could be labels.
    pub(super) other_labels: Vec<String>,
}

/// A column of values.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Its place among all columns of values.
    pub(super) number: usize,
    pub(super) column: ColumnDescPtr,
}

/// What labels are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelKind {
    Int32,
    Int64,
    Text,
}

/// Which columns hold what, or what to do where that cannot be told. The names are the user's, if any.
pub(super) fn choose(file: &FileMetaData, image: Option<&str>, label: Option<&str>) -> Result<Columns, String> {
    let schema = file.schema_descr();
    let fields: Vec<&Type> = schema.root_schema().get_fields().iter().map(AsRef::as_ref).collect();
    let leaf = |path: &[&str]| {
        let number = schema.columns().iter().position(|column| column.path().parts() == path)?;
        Some(Leaf { number, column: schema.column(number) })
    };
    let listed = || format!("its columns are: {}", list(&fields.iter().map(|field| told(field)).collect::<Vec<_>>()));

    let images: Vec<&str> = fields.iter().filter(|field| is_image_struct(field)).map(|field| field.name()).collect();
    let plain: Vec<&str> = fields.iter().filter(|field| is_binary(field)).map(|field| field.name()).collect();
    let image = match image {
        Some(name) if images.contains(&name) || plain.contains(&name) => name,
        Some(name) => {
            return Err(format!(
                "the column '{name}' is none of images: that is a struct with 'bytes' (binary), or a binary column; {}",
                listed()
            ));
        }
        None => {
            let candidates = if images.is_empty() { &plain } else { &images };
            likeliest(candidates, &IMAGE_NAMES).ok_or_else(|| match candidates.as_slice() {
                [] => format!(
                    "no column of images, which is a struct with 'bytes' (binary), or a binary column; {}",
                    listed()
                ),
                several => format!("images could be in several columns ({}): name the one to read", list(several)),
            })?
        }
    };
    let found = leaf(&[image, "bytes"]).or_else(|| leaf(&[image]));
    let Some(image_leaf) = found else { return Err(format!("the column '{image}' has no values; {}", listed())) };

    let meaning = Meaning::of(file);
    let labels: Vec<&str> =
        fields.iter().filter(|field| label_kind(field).is_some()).map(|field| field.name()).collect();
    let named: Vec<&str> = labels.iter().copied().filter(|name| meaning.class_names(name).is_some()).collect();
    let label_name = match label {
        Some(name) if labels.contains(&name) => name,
        Some(name) => {
            return Err(format!(
                "the column '{name}' is none of labels, which are whole numbers or text; {}",
                listed()
            ));
        }
        None => match likeliest(&named, &LABEL_NAMES).or_else(|| first_of(&labels, &LABEL_NAMES)) {
            Some(name) => name,
            None => return Err(format!("it cannot be told which column holds the labels: name it; {}", listed())),
        },
    };
    let kind = fields.iter().find(|field| field.name() == label_name).and_then(|field| label_kind(field));
    let (Some(label), Some(label_kind)) = (leaf(&[label_name]), kind) else {
        return Err(format!("the column '{label_name}' has no values; {}", listed()));
    };
    let is_other = |name: &&str| *name != label_name && (named.contains(name) || LABEL_NAMES.contains(name));
    Ok(Columns {
        path: leaf(&[image, "path"]).filter(|leaf| leaf.column.physical_type() == Physical::BYTE_ARRAY),
        image: image_leaf,
        label,
        label_kind,
        label_name: label_name.into(),
        class_names: meaning.class_names(label_name).filter(|_| label_kind != LabelKind::Text),
        other_labels: labels.iter().filter(|name| is_other(name)).map(|&name| name.into()).collect(),
    })
}

/// The first of `likely` that is there.
fn first_of<'a>(names: &[&'a str], likely: &[&str]) -> Option<&'a str> {
    likely.iter().find_map(|likely| names.iter().copied().find(|name| name.eq_ignore_ascii_case(likely)))
}

/// The same, or else the only one that there is.
fn likeliest<'a>(names: &[&'a str], likely: &[&str]) -> Option<&'a str> {
    first_of(names, likely).or(if let [only] = names { Some(only) } else { None })
}

fn list(names: &[impl AsRef<str>]) -> String {
    const SHOWN_MAX: usize = 20;
    let shown = names.iter().take(SHOWN_MAX).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    if names.len() > SHOWN_MAX { format!("{shown}, and {} more", names.len() - SHOWN_MAX) } else { shown }
}

fn is_single(field: &Type) -> bool {
    let info = field.get_basic_info();
    !info.has_repetition() || info.repetition() != Repetition::REPEATED
}

fn is_of(field: &Type, physical: Physical) -> bool {
    is_single(field) && field.is_primitive() && field.get_physical_type() == physical
}

/// A struct with binary `bytes`, as the hub's library stores images.
fn is_image_struct(field: &Type) -> bool {
    let is_bytes = |child: &Type| child.name() == "bytes" && is_of(child, Physical::BYTE_ARRAY);
    is_single(field) && field.is_group() && field.get_fields().iter().any(|child| is_bytes(child))
}

fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_said = matches!(info.logical_type_ref(), Some(LogicalType::String));
    is_of(field, Physical::BYTE_ARRAY) && (is_said || info.converted_type() == ConvertedType::UTF8)
}

fn is_binary(field: &Type) -> bool {
    is_of(field, Physical::BYTE_ARRAY) && !is_text(field)
}

fn label_kind(field: &Type) -> Option<LabelKind> {
    match field {
        _ if is_of(field, Physical::INT32) => Some(LabelKind::Int32),
        _ if is_of(field, Physical::INT64) => Some(LabelKind::Int64),
        _ if is_text(field) => Some(LabelKind::Text),
        _ => None,
    }
}

/// A column in an error: its name and what it is.
fn told(field: &Type) -> String {
    let what = match field {
        _ if !is_single(field) => "repeated".into(),
        _ if field.is_group() => {
            let names: Vec<&str> = field.get_fields().iter().map(|child| child.name()).collect();
            format!("struct of {}", list(&names))
        }
        _ if is_text(field) => "text".into(),
        _ => field.get_physical_type().to_string().to_lowercase(),
    };
    format!("{} ({what})", field.name())
}

/// What the hub's library says about the columns, if anything.
struct Meaning(Option<Value>);

impl Meaning {
    fn of(file: &FileMetaData) -> Self {
        let entries = file.key_value_metadata().into_iter().flatten();
        let text = entries.filter(|entry| entry.key == MEANING_KEY).find_map(|entry| entry.value.as_deref());
        Meaning(text.and_then(|text| serde_json::from_str(text).ok()))
    }

    /// The names of the classes that a column's numbers stand for.
    fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let names = self.0.as_ref()?.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
        names.iter().map(|name| name.as_str().map(String::from)).collect()
    }
}
