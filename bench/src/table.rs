//! Tables that read well on a terminal and are Markdown at the same time.

use std::fmt::Write;

/// A table of texts. The first column is aligned left, all others right.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new<'a>(head: impl IntoIterator<Item = &'a str>) -> Self {
        Self { head: head.into_iter().map(str::to_owned).collect(), rows: Vec::new() }
    }

    /// Adds a row, as long as the head.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "a row has as many cells as the head");
        self.rows.push(cells);
    }

    /// The table's lines, each ended.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&self.head]);
                // A rule needs three characters.
                cells.map(|row| row[column].chars().count()).max().unwrap_or(0).max(3)
            })
            .collect();
        let rules = widths.iter().enumerate().map(|(column, width)| match column {
            0 => "-".repeat(*width),
            _ => format!("{}:", "-".repeat(width - 1)),
        });
        let mut text = String::new();
        for row in [&self.head, &rules.collect()].into_iter().chain(&self.rows) {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = match column {
                    0 => write!(text, "| {cell:<width$} "),
                    _ => write!(text, "| {cell:>width$} "),
                };
            }
            text.push_str("|\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["quantity", "a", "µs"]);
        table.row(vec!["wall".into(), "12.345".into(), "1".into()]);
        table.row(vec!["peak memory".into(), "1".into(), "–".into()]);
        let expected = "\
| quantity    |      a |  µs |
| ----------- | -----: | --: |
| wall        | 12.345 |   1 |
| peak memory |      1 |   – |
";
        assert_eq!(table.render(), expected);
    }

    #[test]
    #[should_panic(expected = "as many cells")]
    fn a_row_of_another_length_is_a_bug() {
        Table::new(["a", "b"]).row(vec!["1".into()]);
    }
}
