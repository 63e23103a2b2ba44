//! Results as text in aligned columns.

/// Lines of a label and a value.
pub(crate) fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let lines: Vec<String> = lines.iter().map(|(label, text)| format!("{label:width$}   {text}")).collect();
    lines.join("\n")
}

/// A header and rows, aligned to the right.
pub(crate) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let line = |cells: [&str; N]| {
        let cells: Vec<String> =
            cells.iter().enumerate().map(|(column, cell)| format!("{cell:>width$}", width = width(column))).collect();
        cells.join("   ")
    };
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    [line(head)].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// A number and its noun: "1 image", "2 images".
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if noun.ends_with("ss") || noun.ends_with("tch") { "es" } else { "s" };
    format!("{count} {noun}{}", if count == 1 { "" } else { plural })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["1".to_owned(), "12.5".to_owned()], ["10".to_owned(), "7.25".to_owned()]];
        assert_eq!(columns(["epoch", "s"], &rows), "epoch      s\n    1   12.5\n   10   7.25");
        assert_eq!(facts(&[("a", "one".to_owned()), ("bcd", "two".to_owned())]), "a     one\nbcd   two");
    }

    #[test]
    fn nouns_have_their_plurals() {
        for (count, noun, text) in [
            (1, "batch", "1 batch"),
            (2, "batch", "2 batches"),
            (3, "class", "3 classes"),
            (2, "epoch", "2 epochs"),
            (0, "image", "0 images"),
        ] {
            assert_eq!(counted(count, noun), text);
        }
    }
}
