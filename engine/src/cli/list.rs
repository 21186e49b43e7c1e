//! `pgstrata list` and `pgstrata show`: what a repository holds.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use super::message;
use super::progress::human_bytes;
use super::repository::{RepositoryArgs, print_lines, shown_time};
use crate::repository::{BackupChoice, BackupSummary, ClusterName, PinSummary, Standing};

/// List the backups of a repository
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Only this cluster's
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
}

/// Show all that is known of a backup
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The backup
    #[arg(long, value_name = "ID|latest", default_value = "latest")]
    backup: BackupChoice,
}

/// Adds to a backup's summary what is said of it elsewhere.
fn add_standing(backup: &mut Value, standing: &Standing) {
    let id = backup["backup"].as_str().and_then(|id| id.parse().ok());
    let pins = standing.pins.iter().filter(|pin| Some(pin.backup) == id);
    let pins = pins.map(|pin| {
        let PinSummary { until, reason, created, .. } = &pin.summary;
        json!({ "until": until, "reason": reason, "created": created })
    });
    backup["pins"] = pins.collect();
    backup["removing"] = id.is_some_and(|id| standing.removing.contains(&id)).into();
}

/// Does what the arguments ask. A manifest that cannot be read does not hide the others; the exit status tells.
pub(super) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut unreadable = None;
    let listed = read_list(args, &mut unreadable);
    args.repository.tell(listed, |listed| {
        let mut text = String::new();
        let backups = listed["backups"].as_array().map(Vec::as_slice).unwrap_or_default();
        for backup in backups {
            let word = |key: &str| backup[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| backup[key].as_u64().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<16} {}  {}  {:>10} in {:>10}  {} to {}  PostgreSQL {}  system {}{}",
                word("cluster"),
                word("backup"),
                shown_time(number("ended")),
                human_bytes(number("bytes")),
                human_bytes(number("stored_bytes")),
                word("start_lsn"),
                word("end_lsn"),
                word("server_version"),
                word("system_identifier"),
                match (&backup["removing"], backup["pins"].as_array().is_some_and(|pins| !pins.is_empty())) {
                    (Value::Bool(true), _) => "  being removed",
                    (_, true) => "  pinned",
                    _ => "",
                }
            );
        }
        if backups.is_empty() {
            message::note("there is no backup");
        }
        print_lines(&text);
        Ok(())
    })?;
    match unreadable {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

fn read_list(args: &ListArgs, unreadable: &mut Option<anyhow::Error>) -> anyhow::Result<Value> {
    let repository = args.repository.open_of(args.cluster.as_ref())?;
    let clusters = match &args.cluster {
        Some(cluster) => vec![cluster.clone()],
        None => repository.clusters()?,
    };
    let mut backups = Vec::new();
    for cluster in clusters {
        let standing = Standing::read(&repository, &cluster)?;
        for id in repository.backups(&cluster)? {
            match repository.backup(&cluster, BackupChoice::Id(id)) {
                Ok(manifest) => {
                    let mut backup = serde_json::to_value(&manifest.summary)?;
                    add_standing(&mut backup, &standing);
                    backups.push(backup);
                }
                Err(failure) => {
                    message::error(&failure.to_string());
                    backups.push(json!({
                        "cluster": cluster.as_str(), "backup": id.to_string(), "error": failure.to_string(),
                    }));
                    *unreadable = Some(failure.into());
                }
            }
        }
    }
    Ok(json!({ "repository": repository.store().address(), "backups": backups }))
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let opened = args.repository.cluster(args.cluster.as_ref()).and_then(|cluster| {
        let repository = args.repository.open_of(Some(&cluster))?;
        Ok((cluster, repository))
    });
    let shown = opened.and_then(|(cluster, repository)| {
        let manifest = repository.backup(&cluster, args.backup)?;
        let mut shown = serde_json::to_value(&manifest.summary)?;
        shown["packs"] = manifest.packs.iter().filter(|pack| pack.needed).count().into();
        shown["pack_bytes"] =
            manifest.packs.iter().filter(|pack| pack.needed).map(|pack| pack.length).sum::<u64>().into();
        shown["manifest_bytes"] = manifest.object().length().into();
        add_standing(&mut shown, &Standing::read(&repository, &cluster)?);
        Ok((manifest.summary, shown))
    });
    let shown = shown.map(|(summary, value)| Shown { summary, value });
    args.repository.tell(shown, |shown| {
        print_lines(&words(shown));
        Ok(())
    })
}

struct Shown {
    summary: BackupSummary,
    value: Value,
}

impl serde::Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

fn words(shown: &Shown) -> String {
    let BackupSummary {
        cluster,
        backup,
        server_version,
        system_identifier,
        start_lsn,
        start_timeline,
        end_lsn,
        end_timeline,
        ..
    } = &shown.summary;
    let summary = &shown.summary;
    let number = |key: &str| shown.value[key].as_u64().unwrap_or_default();
    let mut rows = vec![
        ("backup", format!("{backup} of cluster {cluster}")),
        ("label", summary.label.clone()),
        ("server", format!("PostgreSQL {server_version}, system {system_identifier}")),
        ("began", shown_time(summary.started)),
        ("ended", shown_time(summary.ended)),
        (
            "range",
            format!("{start_lsn} on timeline {start_timeline} to {end_lsn} on timeline {end_timeline}"),
        ),
        ("data", format!("{} in {} files", human_bytes(summary.bytes), summary.files)),
        ("WAL", format!("{} of these", human_bytes(summary.wal_bytes))),
        (
            "stored",
            format!(
                "{} in {} packs ({}), {} manifest",
                human_bytes(number("pack_bytes")),
                number("packs"),
                summary.compression,
                human_bytes(number("manifest_bytes"))
            ),
        ),
    ];
    for tablespace in &summary.tablespaces {
        let location = String::from_utf8_lossy(&tablespace.location).into_owned();
        rows.push(("tablespace", format!("{} in {location}", tablespace.oid)));
    }
    for pin in shown.value["pins"].as_array().into_iter().flatten() {
        let until = pin["until"]
            .as_u64()
            .map_or_else(|| "for good".into(), |until| format!("until {}", shown_time(until)));
        let reason = pin["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        rows.push(("pinned", format!("{until}{reason}")));
    }
    if shown.value["removing"] == true {
        rows.push(("removal", "begun; it goes as soon as no run uses it".into()));
    }
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
        text
    })
}
