//! `pgstrata pin` and `pgstrata unpin`: backups that are kept whatever the rules say.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::age::parse_time;
use super::message;
use super::repository::{RepositoryArgs, shown_time};
use crate::repository::{BackupChoice, BackupId, ClusterName, pin as publish, unpin as remove};

/// Keep a backup, whatever the rules say
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The backup
    #[arg(long, value_name = "ID|latest")]
    backup: BackupChoice,
    /// Until when, such as 2026-12-31T18:00:00Z; for good unless given
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Take all pins off a backup
#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The backup
    #[arg(long, value_name = "ID")]
    backup: BackupId,
}

/// The longest reason, so that a pin stays a small object.
const REASON_MAX: usize = 1000;

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn pin(args: &PinArgs) -> anyhow::Result<()> {
    let pinned = (|| {
        if args.reason.as_ref().is_some_and(|reason| reason.len() > REASON_MAX) {
            bail!("the reason is longer than {REASON_MAX} bytes\nHINT: shorten it.");
        }
        if let Some(until) = args.until
            && i64::try_from(until).is_ok_and(|until| until <= jiff::Timestamp::now().as_second())
        {
            bail!("{} has passed\nHINT: give --until a time to come.", shown_time(until));
        }
        let cluster = args.repository.cluster(args.cluster.as_ref())?;
        let repository = args.repository.open_of(Some(&cluster))?;
        let pin = publish(&repository, &cluster, args.backup, args.until, args.reason.clone())?;
        Ok(json!({
            "cluster": cluster.as_str(), "backup": pin.backup.to_string(), "until": pin.summary.until,
            "reason": pin.summary.reason,
        }))
    })();
    args.repository.tell(pinned, |pinned| {
        let until = pinned["until"].as_u64().map(|until| format!(" until {}", shown_time(until)));
        let backup = pinned["backup"].as_str().unwrap_or_default();
        message::note(&format!("backup {backup} pinned{}", until.unwrap_or_default()));
        Ok(())
    })
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn unpin(args: &UnpinArgs) -> anyhow::Result<()> {
    let unpinned = (|| {
        let cluster = args.repository.cluster(args.cluster.as_ref())?;
        let repository = args.repository.open_of(Some(&cluster))?;
        let count = remove(&repository, &cluster, args.backup)?;
        if count == 0 {
            bail!(
                "backup {} of cluster \"{cluster}\" is not pinned\nHINT: `pgstrata list` shows which are.",
                args.backup
            );
        }
        Ok(json!({ "cluster": cluster.as_str(), "backup": args.backup.to_string(), "pins": count }))
    })();
    args.repository.tell(unpinned, |_| {
        message::note(&format!("backup {} is not pinned any more", args.backup));
        Ok(())
    })
}
