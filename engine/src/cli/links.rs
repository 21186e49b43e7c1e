//! `pgstrata links`: links by the names of PostgreSQL's tools, which make the program behave as those.

use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::message;
use super::stock::Tool;

/// Make links to this program by the names of the tools that it stands in for
#[derive(Debug, Args)]
pub(super) struct LinksArgs {
    /// The folder for the links, to be put into PATH before PostgreSQL's own
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &LinksArgs) -> anyhow::Result<()> {
    let outcome = make(&args.folder);
    if let Err(error) = &outcome {
        message::error(&format!("{error:#}"));
    }
    outcome
}

fn make(folder: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("could not find this program's own file")?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("could not create folder \"{}\"", folder.display()))?;
    for tool in Tool::ALL {
        let link = folder.join(tool.name());
        match symlink(&program, &link) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The same link once more is no reason to fail; anything else there is somebody's.
                if std::fs::read_link(&link).ok().as_deref() != Some(program.as_path()) {
                    bail!(
                        "\"{}\" exists and is not a link to \"{}\"\nHINT: choose another folder, or remove it.",
                        link.display(),
                        program.display()
                    );
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("could not create link \"{}\"", link.display()));
            }
        }
        // A reader that has gone away changes nothing about the links.
        let _ = writeln!(io::stdout(), "{} -> {}", link.display(), program.display());
    }
    Ok(())
}
