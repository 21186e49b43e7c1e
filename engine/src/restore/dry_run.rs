//! A restore that changes nothing: what it would do, and everything that stands in its way.

use std::path::PathBuf;

use serde::Serialize;

use super::config::RestoreConfig;
use super::examine::{check_packs, examine};
use super::run::choose;
use super::space::Space;
use crate::failure::Failure;

/// What a restore would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRunReport {
    /// The data directory.
    pub path: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The backup's id.
    pub backup: String,
    /// The server's version, in words.
    pub server_version: String,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files of databases that were not asked for.
    pub omitted_files: u64,
    /// Packs that hold them.
    pub packs: u64,
    /// Each file system, with what goes there.
    pub space: Vec<Space>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// How much stands in the way.
    pub problem_count: usize,
    /// All of it, in words.
    pub problems: Vec<String>,
}

/// Looks at everything, and changes nothing.
///
/// # Errors
/// Where the backup is damaged, or something cannot be looked at.
pub fn dry_run(config: &RestoreConfig) -> Result<DryRunReport, Failure> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let mut backup = choose(config)?;
    let prepared = config.recovery.as_ref();
    match prepared.map(|plan| plan.prepare(&config.repository, &config.cluster, backup)) {
        Some(Ok(prepared)) => (backup, warnings) = (prepared.backup, prepared.warnings),
        Some(Err(failure)) => problems.push(failure.to_string()),
        None => {}
    }
    let manifest = config.repository.backup(&config.cluster, backup)?;
    let plan = examine(config, &manifest, &mut problems)?;
    check_packs(config, &manifest, &mut problems)?;
    let summary = &manifest.summary;
    warnings.extend(plan.owners.warning);
    Ok(DryRunReport {
        path: config.target.clone(),
        cluster: summary.cluster.clone(),
        backup: summary.backup.clone(),
        server_version: summary.server_version.clone(),
        files: summary.files,
        bytes: summary.bytes,
        omitted_files: plan.omitted,
        packs: manifest.packs.iter().filter(|pack| pack.needed).count() as u64,
        space: plan.space,
        warnings,
        problem_count: problems.len(),
        problems,
    })
}
