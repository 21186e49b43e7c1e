//! What a demonstration is to do.

use std::path::PathBuf;

use crate::postmaster::{PostmasterError, ServerProgram, Unprivileged};
use pgstrata_protocol::ServerVersion;

use super::DemoError;

/// A demonstration, fully decided.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// The folder of the server's programs; one is looked for if not given.
    pub bin_dir: Option<PathBuf>,
    /// The major version to look for, or to fetch; the newest that is installed if not given.
    pub major: Option<u32>,
    /// Bytes of tables and indexes to make.
    pub bytes: u64,
    /// Whether the scratch folder stays.
    pub keep: bool,
    /// Where downloaded server programs are kept, where the server's account can get there.
    pub cache: PathBuf,
}

impl DemoConfig {
    /// Finds the server's programs, or downloads them.
    pub(super) fn find_program(&self, run_as: &Unprivileged) -> Result<ServerProgram, DemoError> {
        let program = match &self.bin_dir {
            Some(path) => ServerProgram::at(path)
                .map_err(|error| DemoError::BinDir { path: path.clone(), error: Box::new(error) })?,
            None => match ServerProgram::find(self.major) {
                // Only now does the cache have to exist.
                Err(PostmasterError::NoProgram { .. }) => {
                    ServerProgram::find_or_fetch(self.major, &run_as.scratch_base(&self.cache)?)?
                }
                found => found?,
            },
        };
        if program.version < ServerVersion::OLDEST_SUPPORTED {
            return Err(DemoError::TooOld { program: program.to_string() });
        }
        Ok(program)
    }
}
