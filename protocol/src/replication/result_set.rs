//! The rows of one result, and typed access to their values with errors that name the place.

use std::str::FromStr;

use bytes::Bytes;

/// The rows of one result.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ResultSet {
    /// The columns' names, in order.
    pub columns: Vec<String>,
    /// The rows, each as long as `columns`; `None` is NULL.
    pub rows: Vec<Vec<Option<Bytes>>>,
}

/// A result that is not what the command promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// A column is missing.
    #[error("the server's answer to {command} has no column {column:?}, found {found:?}")]
    MissingColumn {
        /// The command.
        command: &'static str,
        /// The column.
        column: &'static str,
        /// The columns that are there.
        found: Vec<String>,
    },
    /// The number of rows is wrong.
    #[error("the server's answer to {command} has {found} rows, expected {expected}")]
    RowCount {
        /// The command.
        command: &'static str,
        /// The rows that are there.
        found: usize,
        /// The rows that it should have.
        expected: &'static str,
    },
    /// A value is NULL or not what it should be.
    #[error(
        "the server's answer to {command}, row {row}, column {column:?}: found {found}, expected {expected}"
    )]
    BadValue {
        /// The command.
        command: &'static str,
        /// The row, from 0.
        row: usize,
        /// The column.
        column: &'static str,
        /// The value, shortened.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// The longest piece of a value that an error repeats.
const SHOWN: usize = 60;

impl ResultSet {
    /// The position of a column. `command` names the result in errors.
    pub(super) fn column(&self, command: &'static str, column: &'static str) -> Result<usize, ResultError> {
        self.columns.iter().position(|name| name == column).ok_or_else(|| ResultError::MissingColumn {
            command,
            column,
            found: self.columns.clone(),
        })
    }

    /// Confirms that there is exactly one row.
    pub(super) fn one_row(&self, command: &'static str) -> Result<(), ResultError> {
        let found = self.rows.len();
        if found == 1 { Ok(()) } else { Err(ResultError::RowCount { command, found, expected: "one" }) }
    }

    /// A value by row and column name, `None` for NULL.
    pub(super) fn value(
        &self,
        command: &'static str,
        row: usize,
        column: &'static str,
    ) -> Result<Option<&Bytes>, ResultError> {
        let at = self.column(command, column)?;
        let missing = || ResultError::RowCount {
            command,
            found: self.rows.len(),
            expected: "more, each with all columns",
        };
        let value = self.rows.get(row).and_then(|values| values.get(at)).ok_or_else(missing)?;
        Ok(value.as_ref())
    }

    /// A value that must be there, as bytes.
    pub(super) fn bytes(
        &self,
        command: &'static str,
        row: usize,
        column: &'static str,
        expected: &'static str,
    ) -> Result<&Bytes, ResultError> {
        let found = || "NULL".to_owned();
        self.value(command, row, column)?.ok_or_else(|| ResultError::BadValue {
            command,
            row,
            column,
            found: found(),
            expected,
        })
    }

    /// A value read from its text, `None` for NULL. `expected` says in errors what the text should be.
    pub(super) fn parse_optional<T: FromStr>(
        &self,
        command: &'static str,
        row: usize,
        column: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ResultError> {
        let Some(value) = self.value(command, row, column)? else { return Ok(None) };
        match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
            Some(parsed) => Ok(Some(parsed)),
            None => {
                let shown = String::from_utf8_lossy(value.get(..SHOWN).unwrap_or(value)).into_owned();
                Err(ResultError::BadValue { command, row, column, found: format!("{shown:?}"), expected })
            }
        }
    }

    /// A value that must be there, read from its text.
    pub(super) fn parse<T: FromStr>(
        &self,
        command: &'static str,
        row: usize,
        column: &'static str,
        expected: &'static str,
    ) -> Result<T, ResultError> {
        self.parse_optional(command, row, column, expected)?.ok_or_else(|| ResultError::BadValue {
            command,
            row,
            column,
            found: "NULL".to_owned(),
            expected,
        })
    }
}
