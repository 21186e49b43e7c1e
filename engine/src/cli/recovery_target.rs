//! The options of `pgstrata restore` that say what the restored server does when it is started.

use anyhow::{Context, anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use pgstrata_protocol::{Lsn, TimelineId};

use super::connection::ConnectionArgs;
use super::message;
use super::repository::RepositoryArgs;
use crate::repository::ClusterName;
use crate::restore::{RecoveryPlan, RecoveryRole, RecoveryTarget, TargetAction, TargetTimeline};

const HEADING: &str = "Recovery options";

/// What the restored server does when it is started.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = HEADING)]
pub(super) struct RecoveryArgs {
    /// Recover to the end of the WAL in the archive, or only until the copy is consistent
    #[arg(long, value_name = "latest|immediate", value_parser = ["latest", "immediate"], group = "end", help_heading = HEADING)]
    target: Option<String>,
    /// Recover to a time, with its offset from UTC: 2026-11-26 10:00:00+00
    #[arg(long, value_name = "TIME", group = "end", help_heading = HEADING)]
    target_time: Option<String>,
    /// Recover to a transaction
    #[arg(long, value_name = "XID", group = "end", value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    target_xid: Option<u64>,
    /// Recover to a position in the log
    #[arg(long, value_name = "LSN", group = "end", help_heading = HEADING)]
    target_lsn: Option<Lsn>,
    /// Recover to a point that pg_create_restore_point() named
    #[arg(long, value_name = "NAME", group = "end", help_heading = HEADING)]
    target_name: Option<String>,
    /// Recover along this timeline
    #[arg(long, value_name = "latest|current|N", help_heading = HEADING)]
    target_timeline: Option<String>,
    /// What the server does at the target (pause unless said)
    #[arg(long, value_name = "pause|promote|shutdown", value_parser = ["pause", "promote", "shutdown"], help_heading = HEADING)]
    target_action: Option<String>,
    /// Stop just before the target
    #[arg(long, help_heading = HEADING)]
    target_exclusive: bool,
    /// Make it a standby that reads the archive
    #[arg(long, conflicts_with_all = ["end", "target_action", "target_exclusive"], help_heading = HEADING)]
    standby: bool,
    /// Have the standby stream from the server of the connection options
    #[arg(short = 'R', long, requires = "standby", help_heading = HEADING)]
    write_recovery_conf: bool,
    /// Replication slot to stream from
    #[arg(short = 'S', long, value_name = "SLOTNAME", requires = "write_recovery_conf", help_heading = HEADING)]
    slot: Option<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

impl RecoveryArgs {
    /// The plan; none where the server is to open where the backup ended. `address` is the repository's.
    pub(super) fn resolve(
        &self,
        repository: &RepositoryArgs,
        address: &str,
        cluster: &ClusterName,
        chooses_backup: bool,
    ) -> anyhow::Result<Option<RecoveryPlan>> {
        if !self.write_recovery_conf && self.connection.is_given() {
            bail!("connection options are for --standby with -R\nHINT: add -R, or leave them out.");
        }
        let target = self.target()?;
        let role = match target {
            _ if self.standby => RecoveryRole::Standby {
                primary: match self.write_recovery_conf {
                    true => Some(Box::new(self.connection.resolve(message::program_name())?)),
                    false => None,
                },
                slot: self.slot.clone(),
            },
            Some(target) => self.recovers(target)?,
            None if self.target_action.is_some()
                || self.target_exclusive
                || self.target_timeline.is_some() =>
            {
                bail!("there is no recovery target\nHINT: add --target latest, or one of the other targets.");
            }
            None => return Ok(None),
        };
        Ok(Some(RecoveryPlan {
            role,
            timeline: self.timeline()?,
            restore_command: restore_command(repository, address, cluster)?,
            chooses_backup,
        }))
    }

    fn recovers(&self, target: RecoveryTarget) -> anyhow::Result<RecoveryRole> {
        let has_edge =
            matches!(target, RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Lsn(_));
        if self.target_exclusive && !has_edge {
            bail!("--target-exclusive needs --target-time, --target-xid or --target-lsn");
        }
        if self.target_action.is_some() && target == RecoveryTarget::Latest {
            bail!("--target-action is for a target: at the end of the log a server always opens");
        }
        let action = match self.target_action.as_deref() {
            Some("promote") => TargetAction::Promote,
            Some("shutdown") => TargetAction::Shutdown,
            _ => TargetAction::Pause,
        };
        Ok(RecoveryRole::Recovers { target, action, exclusive: self.target_exclusive })
    }

    fn target(&self) -> anyhow::Result<Option<RecoveryTarget>> {
        if let Some(text) = &self.target_time {
            return Ok(Some(RecoveryTarget::Time(parse_time(text)?)));
        }
        if let Some(name) = &self.target_name {
            // `MAXFNAMELEN` (`access/xlog_internal.h`).
            if name.is_empty() || name.len() >= 64 {
                bail!("invalid restore point \"{name}\", expected 1 to 63 bytes");
            }
            return Ok(Some(RecoveryTarget::Name(name.clone())));
        }
        let word = self.target.as_deref().map(|word| match word {
            "immediate" => RecoveryTarget::Immediate,
            _ => RecoveryTarget::Latest,
        });
        Ok(word.or(self.target_xid.map(RecoveryTarget::Xid)).or(self.target_lsn.map(RecoveryTarget::Lsn)))
    }

    fn timeline(&self) -> anyhow::Result<TargetTimeline> {
        match self.target_timeline.as_deref() {
            None | Some("latest") => Ok(TargetTimeline::Latest),
            Some("current") => Ok(TargetTimeline::Current),
            Some(number) => match number.parse() {
                Ok(number @ 1..) => Ok(TargetTimeline::Id(TimelineId(number))),
                _ => Err(anyhow!("invalid timeline \"{number}\", expected latest, current or a number")),
            },
        }
    }
}

/// The server would read a time without an offset in its own time zone, and the backup would be chosen in another.
fn parse_time(text: &str) -> anyhow::Result<Timestamp> {
    text.trim().parse().map_err(|error| {
        anyhow!(
            "invalid time \"{text}\": {error}\n\
             HINT: write date, time and offset from UTC, such as \"2026-11-26 10:00:00+00\"."
        )
    })
}

/// This program, by its full name, on the same repository.
fn restore_command(
    repository: &RepositoryArgs,
    address: &str,
    cluster: &ClusterName,
) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("could not find out where this program is")?;
    let program = program.to_str().ok_or_else(|| {
        anyhow!("the path of this program is no text: \"{}\"\nHINT: move it.", program.display())
    })?;
    let mut words = vec![program.to_owned(), "wal".into(), "get".into()];
    words.extend(repository.words(address, cluster)?);
    words.extend(["--cluster".into(), cluster.to_string()]);
    let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    Ok(format!("{} %f \"%p\"", words.join(" ")))
}

/// A word as the shell takes it, with what the server would take for a placeholder doubled.
fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''")).replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_server_and_shell() {
        for (word, quoted) in [
            ("/srv/repo", "/srv/repo"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("100%", "'100%%'"),
            ("$(x)`y`\\", "'$(x)`y`\\'"),
        ] {
            assert_eq!(shell_word(word), quoted);
        }
    }

    #[test]
    fn times_have_offsets() {
        for (text, time) in [
            ("2026-11-26 10:00:00+00", "2026-11-26T10:00:00Z"),
            ("2026-11-26T10:00:00.25Z", "2026-11-26T10:00:00.25Z"),
            ("2026-11-26 10:00:00.123456-05:30", "2026-11-26T15:30:00.123456Z"),
        ] {
            assert_eq!(parse_time(text).expect(text).to_string(), time);
        }
        for bad in ["", "yesterday", "2026-11-26 10:00:00", "2026-11-26"] {
            assert!(parse_time(bad).expect_err(bad).to_string().contains("HINT:"), "{bad}");
        }
    }
}
