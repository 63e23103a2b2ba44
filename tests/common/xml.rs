//! Strict parser of the XML subset that the charts use, shared by unit tests and integration tests.

/// Name and attributes of an element.
pub(crate) type Element = (String, Vec<(String, String)>);

/// Parses XML.
///
/// # Panics
/// Panics if the text is not well-formed, or uses features that the charts do not.
pub(crate) fn elements(xml: &str) -> Vec<Element> {
    let (mut open, mut found) = (Vec::new(), Vec::new());
    let text_is_safe = |text: &str| {
        for (at, _) in text.match_indices('&') {
            let name = text[at + 1..].split(';').next().expect("an entity");
            assert!(["amp", "lt", "gt", "quot"].contains(&name), "{name}");
        }
        assert!(!text.contains('>') && !text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
    };
    let mut rest = xml.trim();
    while let Some(at) = rest.find('<') {
        text_is_safe(&rest[..at]);
        assert!(!open.is_empty() || found.is_empty(), "more than one root");
        let end = rest[at..].find('>').expect("a tag that ends") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "{tag}");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut pairs: Vec<(String, String)> = Vec::new();
        while !attributes.trim().is_empty() {
            let (key, value) = attributes.trim_start().split_once("=\"").expect("an attribute");
            let (value, more) = value.split_once('"').expect("a closing quote");
            assert!(more.is_empty() || more.starts_with(' '), "{tag}");
            assert!(pairs.iter().all(|(other, _)| other != key), "{key} twice in {tag}");
            text_is_safe(value);
            pairs.push((key.to_owned(), value.to_owned()));
            attributes = more;
        }
        if !closed {
            open.push(name.to_owned());
        }
        found.push((name.to_owned(), pairs));
    }
    assert!(open.is_empty() && rest.is_empty(), "open: {open:?}, rest: {rest}");
    found
}
