//! That the directory is the server's: a standby beside its primary, or a copy of a data directory, has the same system
//! identifier, and files that are worth nothing under another server's backup.
//!
//! Before the backup begins: identifier, the postmaster's file, its port and its name for the directory. Once it has
//! begun: the control file, which the checkpoint has just changed, says the same here and over SQL. All of that holds
//! between containers too, which see neither each other's processes nor paths.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgstrata_protocol::control::ControlFile;

use super::control::{PostmasterFile, read_control};
use super::held::{ControlFacts, Held, SqlFacts};
use crate::failure::Failure;

/// How often the control files are compared: the server may have written it in between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// What lies in the directory.
#[derive(Debug)]
pub(super) struct Examined {
    /// Links resolved.
    pub(super) data_directory: PathBuf,
    pub(super) control: ControlFile,
    pub(super) postmaster: PostmasterFile,
}

impl Examined {
    /// Looks at a directory in which a server is to run.
    pub(super) fn of(data_directory: &Path) -> Result<Self, Failure> {
        let (_, control) = read_control(data_directory)?;
        let postmaster = PostmasterFile::read(data_directory)?;
        let data_directory =
            data_directory.canonicalize().map_err(|error| Failure::disk("resolve", data_directory, error))?;
        Ok(Self { data_directory, control, postmaster })
    }

    /// Compares what does not change while the server runs.
    pub(super) fn compare(&self, facts: &SqlFacts, control: &ControlFacts) -> Result<(), Failure> {
        let ours = self.control.system_identifier;
        if control.system_identifier != ours {
            return Err(self.another(
                "system identifier",
                &ours.to_string(),
                &control.system_identifier.to_string(),
            ));
        }
        if facts.port != self.postmaster.port {
            return Err(self.another("port", &self.postmaster.port, &facts.port));
        }
        match &facts.data_directory {
            Some(server) if *server != self.postmaster.data_directory => {
                let shown = |path: &[u8]| path.escape_ascii().to_string();
                Err(self.another("data directory", &shown(&self.postmaster.data_directory), &shown(server)))
            }
            _ => Ok(()),
        }
    }

    /// Compares the control files once the backup has begun. Returns the one of the directory.
    pub(super) async fn compare_control(&self, held: &mut Held) -> Result<ControlFile, Failure> {
        let mut tries = 0;
        loop {
            let (_, here) = read_control(&self.data_directory)?;
            let there = held.control().await?;
            let facts = ControlFacts {
                system_identifier: here.system_identifier,
                time: here.time,
                checkpoint: here.checkpoint,
                redo: here.redo,
                timeline: here.timeline,
            };
            if facts == there {
                return Ok(here);
            }
            tries += 1;
            if tries == TRIES {
                let shown =
                    |facts: &ControlFacts| format!("{} (written at {})", facts.checkpoint, facts.time);
                return Err(self.another("last checkpoint", &shown(&facts), &shown(&there)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn another(&self, what: &str, here: &str, server: &str) -> Failure {
        Failure::Target(format!(
            "\"{}\" is not the data directory of the server that was connected to: its {what} is {here}, the server's is \
             {server}\n\
             HINT: let --pgdata and the connection options name the same server; a standby is another one than its \
             primary.",
            self.data_directory.display()
        ))
    }
}
