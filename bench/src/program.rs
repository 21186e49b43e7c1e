//! The program under test: `pgstrata`, as users get it.
//!
//! Built by cargo in release mode from the sources beside this crate, so that a stale program is never measured.
//! Where there are no sources or cargo does not run, the one that lies beside this program is taken, and said to be.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

/// The workspace that this program was built from.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");

/// The program and what it says it is.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its path.
    pub(crate) path: PathBuf,
    /// What `--version` prints.
    pub(crate) version: String,
}

impl Program {
    /// Takes `named`, or builds it, or finds it beside this program.
    pub(crate) fn obtain(named: Option<&Path>) -> anyhow::Result<Self> {
        let path = match named {
            Some(path) => std::path::absolute(path)?,
            None if Path::new(MANIFEST).is_file() => build()?,
            None => beside()?,
        };
        let output = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", path.display()))?;
        if !output.status.success() {
            bail!("{} --version: {}", path.display(), output.status);
        }
        Ok(Self { path, version: String::from_utf8_lossy(&output.stdout).trim().to_owned() })
    }
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--release", "--package", "pgstrata", "--bin", "pgstrata"]);
    command.args(["--message-format", "json-render-diagnostics", "--manifest-path", MANIFEST]);
    // What cargo set for this program is not meant for that one.
    command.env_remove("CARGO_MANIFEST_DIR").stdin(Stdio::null()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return beside() };
    let messages = child.stdout.take().context("cargo's output was asked for")?;
    let mut program = None;
    for line in BufReader::new(messages).lines() {
        program = executable(&line.context("cannot read what cargo says")?).or(program);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("cargo build of pgstrata failed ({status}); its messages are above");
    }
    program.context("cargo build named no program pgstrata")
}

/// The program that a line of cargo's messages announces.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_program = message["reason"] == "compiler-artifact" && message["target"]["name"] == "pgstrata";
    message["executable"].as_str().filter(|_| is_program).map(PathBuf::from)
}

fn beside() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let path = exe.with_file_name("pgstrata");
    if !path.is_file() {
        bail!(
            "{}: no such program, and it cannot be built: the sources {MANIFEST} or cargo are not at hand\n\
             HINT: name a program with --pgstrata.",
            path.display()
        );
    }
    eprintln!("pgstrata-bench: measuring {}, which is not built anew", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_the_program() {
        for (line, expected) in [
            (
                r#"{"reason":"compiler-artifact","target":{"name":"pgstrata"},"executable":"/t/pgstrata"}"#,
                Some("/t/pgstrata"),
            ),
            (r#"{"reason":"compiler-artifact","target":{"name":"pgstrata"},"executable":null}"#, None),
            (r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":"/t/x"}"#, None),
            (r#"{"reason":"build-finished","success":true}"#, None),
            ("   Compiling", None),
        ] {
            assert_eq!(executable(line), expected.map(PathBuf::from), "{line}");
        }
    }
}
