//! One thing that was looked at.

use serde::Serialize;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Backups work; something else will not.
    Warning,
    /// Backups fail.
    Error,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a word or two.
    pub subject: &'static str,
    /// How it is.
    pub level: Level,
    /// In words.
    pub text: String,
    /// What to do, where it is not fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// All of them, in the order in which they were looked at.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, subject: &'static str, text: impl Into<String>) {
        self.0.push(Finding { subject, level: Level::Ok, text: text.into(), hint: None });
    }

    pub(super) fn warning(
        &mut self,
        subject: &'static str,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Finding { subject, level: Level::Warning, text: text.into(), hint: Some(hint.into()) });
    }

    pub(super) fn error(&mut self, subject: &'static str, text: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Finding { subject, level: Level::Error, text: text.into(), hint: Some(hint.into()) });
    }

    /// A text that carries its hint.
    pub(super) fn error_told(&mut self, subject: &'static str, text: &str) {
        let (text, hint) = text.split_once("\nHINT: ").unwrap_or((text, "mend this first."));
        self.error(subject, text, hint);
    }
}
