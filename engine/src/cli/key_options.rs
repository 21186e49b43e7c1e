//! The options that name a key of a repository, the environment behind them, and the question on a terminal.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use clap::Args;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::repository::Secret;

/// Which key opens the repository.
#[derive(Debug, Clone, Args)]
pub(super) struct KeyOptions {
    /// Key file of an encrypted repository (default: PGSTRATA_KEY_FILE)
    #[arg(long, value_name = "FILE", help_heading = "Key options", conflicts_with = "passphrase_file")]
    key_file: Option<PathBuf>,
    /// File with the passphrase of an encrypted repository (default: PGSTRATA_PASSPHRASE holds it)
    #[arg(long, value_name = "FILE", help_heading = "Key options")]
    passphrase_file: Option<PathBuf>,
}

impl KeyOptions {
    /// The secret that the options or the environment give.
    pub(super) fn secret(&self) -> anyhow::Result<Option<Secret>> {
        if let Some(secret) = from_files(self.key_file.as_deref(), self.passphrase_file.as_deref())? {
            return Ok(Some(secret));
        }
        match (variable("PGSTRATA_KEY_FILE"), variable("PGSTRATA_PASSPHRASE")) {
            (None, None) => Ok(None),
            (Some(path), None) => Ok(Some(Secret::from_key_file(Path::new(&path))?)),
            (None, Some(phrase)) => {
                let phrase = Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(phrase));
                let secret = Secret::passphrase(&phrase);
                Ok(Some(secret.map_err(|what| anyhow!("PGSTRATA_PASSPHRASE: {what}"))?))
            }
            (Some(_), Some(_)) => bail!(
                "PGSTRATA_KEY_FILE and PGSTRATA_PASSPHRASE are both set, expected one\n\
                 HINT: unset one of them, or say which with --key-file or --passphrase-file."
            ),
        }
    }
}

impl KeyOptions {
    /// The options with which another process, in another folder and environment, finds the same key: its file's whole
    /// path. A passphrase that the environment holds has none; `configured` is what the configuration file names.
    pub(super) fn words(&self, configured: [Option<&Path>; 2]) -> anyhow::Result<Vec<String>> {
        let variable = variable("PGSTRATA_KEY_FILE").map(PathBuf::from);
        let (option, path) = match (self.key_file.as_deref(), self.passphrase_file.as_deref()) {
            (Some(path), _) => ("--key-file", path),
            (None, Some(path)) => ("--passphrase-file", path),
            (None, None) => match (variable.as_deref(), configured) {
                (Some(path), _) | (None, [Some(path), _]) => ("--key-file", path),
                (None, [None, Some(path)]) => ("--passphrase-file", path),
                (None, [None, None]) => return Ok(Vec::new()),
            },
        };
        let whole = std::path::absolute(path)?.into_os_string().into_string();
        let whole = whole.map_err(|path| {
            let path = Path::new(&path).display().to_string();
            anyhow!("the path of the key is no text: \"{path}\"\nHINT: move it.")
        })?;
        Ok(vec![option.into(), whole])
    }
}

/// What one of two options names.
pub(super) fn from_files(key: Option<&Path>, passphrase: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    Ok(match (key, passphrase) {
        (Some(path), _) => Some(Secret::from_key_file(path)?),
        (None, Some(path)) => Some(Secret::from_passphrase_file(path)?),
        (None, None) => None,
    })
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether there is somebody to ask.
pub(super) fn may_ask() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks for the repository's passphrase on the terminal.
pub(super) fn ask() -> Result<Secret, Failure> {
    let phrase = prompt("Passphrase of the repository: ")?;
    Secret::passphrase(phrase.as_bytes()).map_err(Failure::Target)
}

/// Asks for a new passphrase, twice.
pub(super) fn ask_new() -> anyhow::Result<Secret> {
    if !may_ask() {
        bail!(
            "a passphrase is to be asked for, and standard input is no terminal\n\
             HINT: name a file that holds it."
        );
    }
    let phrase = prompt("New passphrase: ")?;
    if *phrase != *prompt("New passphrase again: ")? {
        bail!("the two passphrases differ\nHINT: try again; nothing was changed.");
    }
    Secret::passphrase(phrase.as_bytes()).map_err(|what| anyhow!(what))
}

fn prompt(text: &str) -> Result<Zeroizing<String>, Failure> {
    let answer = rpassword::prompt_password(text);
    answer.map(Zeroizing::new).map_err(|error| {
        Failure::Target(format!(
            "could not read the passphrase from the terminal: {error}\n\
             HINT: name a file that holds it with --passphrase-file."
        ))
    })
}
