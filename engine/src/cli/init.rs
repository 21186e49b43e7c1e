//! `pgstrata init`: makes a repository.

use clap::Args;
use serde_json::json;

use super::message;
use super::repository::RepositoryArgs;
use crate::repository::Repository;

/// Make a repository for backups
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let made = args.repository.store().and_then(|store| Ok(Repository::init(store)?));
    let made = made.map(|repository| json!({ "repository": repository.store().address() }));
    args.repository.tell(made, |made| {
        message::note(&format!("repository made in {}", made["repository"].as_str().unwrap_or_default()));
        Ok(())
    })
}
