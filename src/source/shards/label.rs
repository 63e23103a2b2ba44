//! Owns what says which class a sample of a shard is: the members beside its picture, or the folder in its name.
//! It must never decide which number a class has: that takes all shards.

use serde_json::Value;

/// Members that say what a sample is, in the order in which they are believed.
pub(super) const LABEL_EXTENSIONS: [&str; 3] = ["cls", "json", "txt"];
/// The largest of them that is read, in bytes.
pub(super) const LABEL_BYTES_MAX: u64 = 1 << 20;
/// The longest name of a class, in bytes. A text that is longer is a caption.
const CLASS_BYTES_MAX: usize = 256;
/// The fields of a JSON member that may hold a class.
const FIELDS: [&str; 6] = ["cls", "label", "class", "target", "class_id", "category"];

/// The class that a member's bytes name: a number as digits, or a name.
pub(super) fn read(extension: &str, bytes: &[u8]) -> Result<String, String> {
    if extension == "json" {
        return from_json(bytes);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| format!("its .{extension} is no text"))?;
    class(text).ok_or_else(|| match text.trim() {
        "" => format!("its .{extension} is empty"),
        long => format!(
            "its .{extension} has {} bytes or several lines: a class is a number or a name of at most {CLASS_BYTES_MAX} bytes",
            long.len()
        ),
    })
}

fn class(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= CLASS_BYTES_MAX && !text.contains(['\n', '\r']);
    fits.then(|| text.to_owned())
}

fn from_json(bytes: &[u8]) -> Result<String, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("its .json cannot be read: {error}"))?;
    let found = match &value {
        Value::Object(fields) => FIELDS.iter().find_map(|field| fields.get(*field)),
        plain => Some(plain),
    };
    let named = match found {
        Some(Value::Number(number)) => number.as_u64().map(|number| number.to_string()),
        Some(Value::String(text)) => class(text),
        _ => None,
    };
    named.ok_or_else(|| format!("its .json names no class: a number or a name in one of {}", FIELDS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_as_people_write_them() {
        for (extension, bytes, class) in [
            ("cls", &b"7"[..], "7"),
            ("cls", b" 12\n", "12"),
            ("cls", b"tabby cat", "tabby cat"),
            ("txt", b"dog\r\n", "dog"),
            ("json", br#"{"width": 3, "label": 5}"#, "5"),
            ("json", br#"{"label": 5, "cls": "tabby"}"#, "tabby"),
            ("json", b"9", "9"),
        ] {
            assert_eq!(read(extension, bytes).as_deref(), Ok(class), "{extension} {bytes:?}");
        }
    }

    #[test]
    fn what_names_no_class_is_told_why() {
        let caption = "a photo of a cat ".repeat(30);
        for (extension, bytes, cause) in [
            ("cls", &b""[..], "its .cls is empty"),
            ("cls", b"\xFF", "its .cls is no text"),
            ("txt", caption.as_bytes(), "509 bytes or several lines"),
            ("txt", b"a\nb", "several lines"),
            ("json", b"{", "cannot be read"),
            ("json", br#"{"width": 3}"#, "names no class"),
            ("json", br#"{"label": -1}"#, "names no class"),
            ("json", br#"{"label": 1.5}"#, "names no class"),
        ] {
            let error = read(extension, bytes).unwrap_err();
            assert!(error.contains(cause), "{extension} {bytes:?}: {error}");
        }
    }
}
