//! Where results go: text for people, one JSON document for programs.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

/// Opened before anything is measured, so that no result is lost to a path that cannot be written.
#[derive(Debug)]
pub(crate) enum Output {
    /// Text to stdout.
    Text,
    /// Text to stdout, JSON to a file.
    TextAndFile(File, PathBuf),
    /// JSON to stdout, text to stderr.
    JsonToStdout,
}

impl Output {
    /// As `--json` asks.
    pub(crate) fn open(json: Option<&Path>) -> anyhow::Result<Self> {
        Ok(match json {
            None => Output::Text,
            Some(path) if path == Path::new("-") => Output::JsonToStdout,
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
                Output::TextAndFile(file, path.to_owned())
            }
        })
    }

    /// Prints text.
    pub(crate) fn say(&self, text: &str) -> anyhow::Result<()> {
        let written = match self {
            Output::Text | Output::TextAndFile(..) => writeln!(io::stdout(), "{text}"),
            Output::JsonToStdout => writeln!(io::stderr(), "{text}"),
        };
        written.context("cannot print the results")
    }

    /// Writes the document where one is wanted.
    pub(crate) fn finish(self, document: &impl Serialize) -> anyhow::Result<()> {
        let write = |out: &mut dyn Write| {
            serde_json::to_writer_pretty(&mut *out, document)?;
            writeln!(out)
        };
        match self {
            Output::Text => Ok(()),
            Output::JsonToStdout => write(&mut io::stdout()).context("cannot print the results"),
            Output::TextAndFile(mut file, path) => {
                write(&mut file).with_context(|| format!("cannot write {}", path.display()))?;
                writeln!(io::stdout(), "wrote {}", path.display()).context("cannot print the results")
            }
        }
    }
}

/// Bytes in gigabytes (10^9).
pub(crate) fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Bytes in MiB (2^20).
pub(crate) fn mebi(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
