//! Labels of samples in a shard: parses the members that hold them.

use serde_json::Value;

/// Extensions of members with a label, in order of preference.
pub(super) const LABEL_EXTENSIONS: [&str; 3] = ["cls", "json", "txt"];
/// Maximum size of such a member, bytes.
pub(super) const LABEL_BYTES_MAX: u64 = 1 << 20;
/// Maximum length of a class name, bytes. A longer text is a caption.
const CLASS_BYTES_MAX: usize = 256;
/// Fields of a JSON member that may hold a class.
const FIELDS: [&str; 6] = ["cls", "label", "class", "target", "class_id", "category"];

/// Parses the content of a label member to a class: digits, or a name.
pub(super) fn parse_label(extension: &str, bytes: &[u8]) -> Result<String, String> {
    if extension == "json" {
        return label_from_json(bytes);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| format!("its .{extension} is not UTF-8 text"))?;
    class_name(text).ok_or_else(|| match text.trim() {
        "" => format!("its .{extension} is empty"),
        long => format!(
            "its .{extension} has {} bytes or several lines: a class is a number or a name of at most \
             {CLASS_BYTES_MAX} bytes",
            long.len()
        ),
    })
}

fn class_name(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = !text.is_empty() && text.len() <= CLASS_BYTES_MAX && !text.contains(['\n', '\r']);
    fits.then(|| text.to_owned())
}

fn label_from_json(bytes: &[u8]) -> Result<String, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("its .json cannot be parsed: {error}"))?;
    let found = match &value {
        Value::Object(fields) => FIELDS.iter().find_map(|field| fields.get(*field)),
        plain => Some(plain),
    };
    let named = match found {
        Some(Value::Number(number)) => number.as_u64().map(|number| number.to_string()),
        Some(Value::String(text)) => class_name(text),
        _ => None,
    };
    named.ok_or_else(|| format!("its .json has no class: expected a number or a name in one of {}", FIELDS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_classes() {
        for (extension, bytes, class) in [
            ("cls", &b"7"[..], "7"),
            ("cls", b" 12\n", "12"),
            ("cls", b"tabby cat", "tabby cat"),
            ("txt", b"dog\r\n", "dog"),
            ("json", br#"{"width": 3, "label": 5}"#, "5"),
            ("json", br#"{"label": 5, "cls": "tabby"}"#, "tabby"),
            ("json", b"9", "9"),
        ] {
            assert_eq!(parse_label(extension, bytes).as_deref(), Ok(class), "{extension} {bytes:?}");
        }
    }

    #[test]
    fn bad_labels_are_refused_with_a_reason() {
        let caption = "a photo of a cat ".repeat(30);
        for (extension, bytes, cause) in [
            ("cls", &b""[..], "its .cls is empty"),
            ("cls", b"\xFF", "its .cls is not UTF-8 text"),
            ("txt", caption.as_bytes(), "509 bytes or several lines"),
            ("txt", b"a\nb", "several lines"),
            ("json", b"{", "cannot be parsed"),
            ("json", br#"{"width": 3}"#, "has no class"),
            ("json", br#"{"label": -1}"#, "has no class"),
            ("json", br#"{"label": 1.5}"#, "has no class"),
        ] {
            let error = parse_label(extension, bytes).unwrap_err();
            assert!(error.contains(cause), "{extension} {bytes:?}: {error}");
        }
    }
}
