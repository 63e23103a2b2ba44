//! Selection of the image and label columns, by a file's schema and the metadata that the Hugging Face library writes.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::metadata::FileMetaData;
use parquet::schema::types::{ColumnDescPtr, Type};
use serde_json::Value;

/// Usual names of image columns, by priority.
const IMAGE_NAMES: [&str; 9] = ["image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "picture", "photo"];

/// Usual names of label columns, by priority.
const LABEL_NAMES: [&str; 10] =
    ["label", "labels", "fine_label", "cls", "class", "target", "category", "class_id", "label_id", "coarse_label"];

/// Types of image columns, for messages.
const IMAGE_TYPES: &str = "a struct with 'bytes' (binary) or a binary column";

/// Metadata key under which the Hugging Face library describes the columns.
const FEATURES_KEY: &str = "huggingface";

/// Columns to read.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) image: Leaf,
    /// Path stored beside an image, if any.
    pub(super) path: Option<Leaf>,
    pub(super) label: Leaf,
    pub(super) label_kind: LabelKind,
    pub(super) label_name: String,
    /// Names of the classes, if the file has them.
    pub(super) class_names: Option<Vec<String>>,
    /// Other columns that may be labels.
    pub(super) other_labels: Vec<String>,
}

/// Leaf column of the schema.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Index among all leaf columns.
    pub(super) index: usize,
    pub(super) column: ColumnDescPtr,
}

/// Physical type of the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelKind {
    Int32,
    Int64,
    Text,
}

/// Selects the columns. `image` and `label` are the user's choice, if any.
///
/// # Errors
/// A message with the columns of the file, if none or several are possible.
pub(super) fn select(file: &FileMetaData, image: Option<&str>, label: Option<&str>) -> Result<Columns, String> {
    let schema = file.schema_descr();
    let fields: Vec<&Type> = schema.root_schema().get_fields().iter().map(AsRef::as_ref).collect();
    let leaf = |path: &[&str]| {
        let index = schema.columns().iter().position(|column| column.path().parts() == path)?;
        Some(Leaf { index, column: schema.column(index) })
    };
    let listed =
        || format!("its columns are: {}", list(&fields.iter().map(|field| describe(field)).collect::<Vec<_>>()));

    let names = |is: &dyn Fn(&Type) -> bool| -> Vec<&str> {
        fields.iter().filter(|field| is(field)).map(|field| field.name()).collect()
    };
    let wrong = |name: &str, kind, expected| {
        Err(format!("the column '{name}' has no {kind}: expected {expected}; {}", listed()))
    };
    let (structs, binary) = (names(&is_image_struct), names(&is_binary));
    let image = match image {
        Some(name) if structs.contains(&name) || binary.contains(&name) => name,
        Some(name) => return wrong(name, "images", IMAGE_TYPES),
        None => {
            let candidates = if structs.is_empty() { &binary } else { &structs };
            best_match(candidates, &IMAGE_NAMES).ok_or_else(|| match candidates.as_slice() {
                [] => format!("no image column: expected {IMAGE_TYPES}; {}", listed()),
                several => format!("several columns may hold the images ({}): name the one to read", list(several)),
            })?
        }
    };
    let found = leaf(&[image, "bytes"]).or_else(|| leaf(&[image]));
    let Some(image_leaf) = found else { return Err(format!("the column '{image}' has no values; {}", listed())) };

    let features = HubFeatures::of(file);
    let labels = names(&|field| label_kind(field).is_some());
    let named: Vec<&str> = labels.iter().copied().filter(|name| features.class_names(name).is_some()).collect();
    let label_name = match label {
        Some(name) if labels.contains(&name) => name,
        Some(name) => return wrong(name, "labels", "integers or text"),
        None => best_match(&named, &LABEL_NAMES)
            .or_else(|| first_of(&labels, &LABEL_NAMES))
            .ok_or_else(|| format!("no label column was recognized: name it; {}", listed()))?,
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
        class_names: features.class_names(label_name).filter(|_| label_kind != LabelKind::Text),
        other_labels: labels.iter().filter(|name| is_other(name)).map(|&name| name.into()).collect(),
    })
}

/// First of the `likely` names that exists.
fn first_of<'a>(names: &[&'a str], likely: &[&str]) -> Option<&'a str> {
    likely.iter().find_map(|likely| names.iter().copied().find(|name| name.eq_ignore_ascii_case(likely)))
}

/// First of the `likely` names that exists, or else the only name.
fn best_match<'a>(names: &[&'a str], likely: &[&str]) -> Option<&'a str> {
    first_of(names, likely).or(if let [only] = names { Some(only) } else { None })
}

fn list(names: &[impl AsRef<str>]) -> String {
    const SHOWN_MAX: usize = 20;
    let shown = names.iter().take(SHOWN_MAX).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    if names.len() > SHOWN_MAX { format!("{shown}, and {} more", names.len() - SHOWN_MAX) } else { shown }
}

fn is_not_repeated(field: &Type) -> bool {
    let info = field.get_basic_info();
    !info.has_repetition() || info.repetition() != Repetition::REPEATED
}

fn is_of(field: &Type, physical: Physical) -> bool {
    is_not_repeated(field) && field.is_primitive() && field.get_physical_type() == physical
}

/// Returns true for a struct with binary `bytes`, in which the Hugging Face library stores images.
fn is_image_struct(field: &Type) -> bool {
    let is_bytes = |child: &Type| child.name() == "bytes" && is_of(child, Physical::BYTE_ARRAY);
    is_not_repeated(field) && field.is_group() && field.get_fields().iter().any(|child| is_bytes(child))
}

fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_string = matches!(info.logical_type_ref(), Some(LogicalType::String));
    is_of(field, Physical::BYTE_ARRAY) && (is_string || info.converted_type() == ConvertedType::UTF8)
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

/// Name and type of a column, for messages.
fn describe(field: &Type) -> String {
    let kind = match field {
        _ if !is_not_repeated(field) => "repeated".into(),
        _ if field.is_group() => {
            let names: Vec<&str> = field.get_fields().iter().map(|child| child.name()).collect();
            format!("struct of {}", list(&names))
        }
        _ if is_text(field) => "text".into(),
        _ => field.get_physical_type().to_string().to_lowercase(),
    };
    format!("{} ({kind})", field.name())
}

/// Description of the columns by the Hugging Face library, if there is one.
struct HubFeatures(Option<Value>);

impl HubFeatures {
    fn of(file: &FileMetaData) -> Self {
        let entries = file.key_value_metadata().into_iter().flatten();
        let text = entries.filter(|entry| entry.key == FEATURES_KEY).find_map(|entry| entry.value.as_deref());
        HubFeatures(text.and_then(|text| serde_json::from_str(text).ok()))
    }

    /// Class names of a label column.
    fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let names = self.0.as_ref()?.get("info")?.get("features")?.get(column)?.get("names")?.as_array()?;
        names.iter().map(|name| name.as_str().map(String::from)).collect()
    }
}
