//! What a backup is laid over: the newest backup that can be, and the source that says what changed since.

use std::path::Path;
use std::sync::Arc;

use pgstrata_protocol::control::ControlFile;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::replication::command::timeline_history;
use pgstrata_protocol::replication::{BackupPosition, TimelineHistory, TimelineHistoryFile};

use super::super::run::Run;
use crate::connect::{ControlRuntime, Purpose, Session};
use crate::failure::Failure;
use crate::repository::{Manifest, RepositoryDestination, RepositoryWriting};
use crate::tracking::{
    ArchiveRange, BaseChoice, Basis, CANDIDATES, ChangeSource, Changes, ChangesAsked, ChangesSummary,
    ChangesWanted, History, Parent, PassedOver, ServerChanges, SummaryPlace, archive_changes, check_blocks,
    check_history, check_identity, server_changes,
};

/// What is known of the cluster.
pub(super) struct BasisFacts<'a> {
    pub(super) destination: &'a RepositoryDestination,
    /// Its control file, now that the backup has begun.
    pub(super) control: &'a ControlFile,
    pub(super) segment_size: WalSegmentSize,
    pub(super) data_directory: &'a Path,
    /// Which one that is, as far as it can be told.
    pub(super) identity: Option<String>,
}

/// What a backup is laid over, and how that came.
pub(super) struct Chosen {
    pub(super) over: Option<(Arc<Parent>, Changes)>,
    pub(super) summary: ChangesSummary,
}

impl Run<'_> {
    /// Chooses what the backup that starts at `start` is laid over.
    pub(super) fn choose_basis(
        &self,
        runtime: &ControlRuntime,
        start: BackupPosition,
        facts: &BasisFacts<'_>,
        writing: &mut RepositoryWriting,
    ) -> Result<Chosen, Failure> {
        let (wanted, control) = (facts.destination.changes, facts.control);
        let full = |why: Vec<PassedOver>| Chosen {
            over: None,
            summary: ChangesSummary { source: "full".into(), passed_over: why, ..ChangesSummary::default() },
        };
        let passed = |what: &str, why: String| PassedOver { what: what.into(), why };
        if wanted == ChangesWanted::Full {
            return Ok(full(Vec::new()));
        }
        let basis = match check_blocks(control) {
            Err(why) => Basis::Nothing(why),
            Ok(()) => self.find_parent(runtime, (start, control, facts.identity.as_deref()), writing)?,
        };
        let parent = match basis {
            Basis::Nothing(why) if wanted == ChangesWanted::Auto => {
                return Ok(full(vec![passed("parent", why)]));
            }
            Basis::Nothing(why) => {
                return Err(refused("there is no backup that this one can be laid over", &why));
            }
            Basis::Parent(parent, history) => (parent, history),
        };
        let (parent, history) = parent;
        let parent = Arc::new(parent);
        let (mut passed_over, mut found) = (Vec::new(), None);
        for source in ChangeSource::ALL {
            if matches!(wanted, ChangesWanted::Only(only) if only != source) {
                continue;
            }
            let known = match source {
                ChangeSource::Server => self.by_server(runtime, &parent, (start, facts), &history)?,
                ChangeSource::Archive => self.by_archive(&parent, (start, facts), &history)?,
                ChangeSource::Pages => by_pages(&parent),
            };
            match known {
                Ok(changes) => {
                    found = Some((source, changes));
                    break;
                }
                Err(why) if wanted != ChangesWanted::Auto => {
                    let what = format!("{} does not say all that changed", source.name());
                    return Err(refused(&what, &why));
                }
                Err(why) => passed_over.push(passed(source.name(), why)),
            }
        }
        let Some((source, changes)) = found else { return Ok(full(passed_over)) };
        let summary = ChangesSummary {
            source: source.name().into(),
            passed_over,
            since: Some(parent.since.lsn.to_string()),
            ..ChangesSummary::default()
        };
        Ok(Chosen { over: Some((parent, changes)), summary })
    }

    /// What the server's own summaries say.
    fn by_server(
        &self,
        runtime: &ControlRuntime,
        parent: &Parent,
        (start, facts): (BackupPosition, &BasisFacts<'_>),
        history: &History,
    ) -> Result<Result<Changes, String>, Failure> {
        let asked = ChangesAsked {
            from: parent.since,
            to: start,
            history: history.clone(),
            place: SummaryPlace::Folder(facts.data_directory.join("pg_wal/summaries")),
            patience: None,
        };
        let settings = self.config.connection.clone().or_database("postgres");
        let known = self.wait(runtime, async {
            let mut session = Session::connect(&settings, Purpose::Sql, self.notices()).await?;
            session.set_stall_limit(Some(self.config.stall_timeout));
            let known = server_changes(&mut session, &asked).await?;
            session.close().await;
            Ok(known)
        });
        match known {
            Ok(ServerChanges::Known { changes, .. }) => Ok(Ok(Changes::Wal(changes))),
            Ok(ServerChanges::Unknown(why)) => Ok(Err(why)),
            // This connection is one more than a backup needs: there are other sources.
            Err(failure) => match BaseChoice::of(failure) {
                BaseChoice::Failed(failure) => Err(failure),
                BaseChoice::Unfit(why) => Ok(Err(why)),
            },
        }
    }

    /// What the WAL says that is archived, or still in `pg_wal`.
    fn by_archive(
        &self,
        parent: &Parent,
        (start, facts): (BackupPosition, &BasisFacts<'_>),
        history: &History,
    ) -> Result<Result<Changes, String>, Failure> {
        let none = TimelineHistory { timeline: start.timeline, switches: Vec::new() };
        let pg_wal = facts.data_directory.join("pg_wal");
        let range = ArchiveRange {
            repository: &facts.destination.repository,
            cluster: &facts.destination.cluster,
            system_identifier: facts.control.system_identifier,
            segment_size: facts.segment_size,
            history: history.as_ref().unwrap_or(&none),
            from_timeline: parent.since.timeline,
            from: parent.since.lsn,
            to: start.lsn,
            pg_wal: Some(&pg_wal),
        };
        match archive_changes(&range, self.stop) {
            Ok(Ok(changes)) => Ok(Ok(Changes::Wal(changes.references))),
            Ok(Err(missing)) => Ok(Err(missing.to_string())),
            Err(failure) => match BaseChoice::of(failure) {
                BaseChoice::Failed(failure) => Err(failure),
                BaseChoice::Unfit(why) => Ok(Err(why)),
            },
        }
    }

    /// The newest backup of this history whose files can be laid under the new ones.
    fn find_parent(
        &self,
        runtime: &ControlRuntime,
        (start, control, identity): (BackupPosition, &ControlFile, Option<&str>),
        writing: &mut RepositoryWriting,
    ) -> Result<Basis, Failure> {
        let mut backups = writing.older_backups()?;
        backups.reverse();
        backups.truncate(CANDIDATES);
        let history = match backups.is_empty() {
            true => None,
            false => self.history(runtime, start)?,
        };
        let mut first = None;
        for id in backups {
            match self.try_parent((id, start, control, identity), &history, writing) {
                Ok(parent) => return Ok(Basis::Parent(parent, history)),
                Err(BaseChoice::Failed(failure)) => return Err(failure),
                Err(BaseChoice::Unfit(why)) => {
                    first.get_or_insert_with(|| format!("backup {id}: {why}"));
                }
            }
        }
        Ok(Basis::Nothing(first.unwrap_or_else(|| "there is no earlier backup".into())))
    }

    fn try_parent(
        &self,
        (id, start, control, identity): (
            crate::repository::BackupId,
            BackupPosition,
            &ControlFile,
            Option<&str>,
        ),
        history: &History,
        writing: &mut RepositoryWriting,
    ) -> Result<Parent, BaseChoice> {
        let manifest: Manifest = match writing.open_older(id) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Err(BaseChoice::Unfit("it is being removed".into())),
            Err(failure) => return Err(BaseChoice::of(failure)),
        };
        let summary = &manifest.summary;
        if summary.system_identifier != control.system_identifier {
            return Err(BaseChoice::Unfit(format!("it is of system {}", summary.system_identifier)));
        }
        check_identity(summary, identity).map_err(BaseChoice::Unfit)?;
        let since = check_history(summary, start, history).map_err(BaseChoice::Unfit)?;
        let started = summary.started;
        let opened = writing.open_base(manifest, control, self.stop);
        let (base, has_checksums) = opened.map_err(BaseChoice::of)?;
        Ok(Parent { base, since, started, has_checksums })
    }

    /// The history of the timeline that the backup starts on; the first one has none.
    fn history(&self, runtime: &ControlRuntime, start: BackupPosition) -> Result<History, Failure> {
        if start.timeline.0 <= 1 {
            return Ok(None);
        }
        let content = self.wait(runtime, async {
            let settings = &self.config.connection;
            let mut session = Session::connect(settings, Purpose::Replication, self.notices()).await?;
            session.set_stall_limit(Some(self.config.stall_timeout));
            let refuse = |error: &dyn std::fmt::Display| Failure::stream("TIMELINE_HISTORY", error);
            let asked = session.simple_query(&timeline_history(start.timeline)).await;
            let results =
                asked.map_err(|error| Failure::session("could not ask for the timeline's history", error))?;
            let result = results.first().ok_or_else(|| refuse(&"no result"))?;
            let history = TimelineHistoryFile::from_result(result).map_err(|error| refuse(&error))?;
            session.close().await;
            let expected = format!("{:08X}.history", start.timeline.0);
            if history.name != expected {
                return Err(refuse(&format!("found file {:?}, expected {expected}", history.name)));
            }
            Ok(history.content)
        })?;
        let history = TimelineHistory::parse(start.timeline, &content);
        history.map(Some).map_err(|error| Failure::stream("TIMELINE_HISTORY", &error))
    }
}

/// Page LSNs as the source of change, where they tell all.
fn by_pages(parent: &Parent) -> Result<Changes, String> {
    // Without them a page is marked as all-visible, and its visibility map with it, while its LSN stays
    // (`log_heap_visible`, `heapam.c`): the map would be taken from now and the page from then.
    if !parent.has_checksums {
        return Err(
            "the cluster has no page checksums, and then not every change of a page changes its LSN".into()
        );
    }
    Ok(Changes::Pages(parent.since.lsn))
}

fn refused(what: &str, why: &str) -> Failure {
    Failure::Target(format!(
        "{what}: {why}\nHINT: leave --changes out to take what works, or take a full backup with --full."
    ))
}
