//! Which backup a new one may be laid over.
//!
//! It must be one of the same history: every change that its files may hold, up to its end, was made before this backup's
//! start on the way that leads there. Otherwise pages that nobody changed since would be taken from a past that is none.

use std::path::Path;
use std::sync::Arc;

use pgstrata_protocol::control::ControlFile;
use pgstrata_protocol::names::{Fork, RelationFile};
use pgstrata_protocol::page::{PAGE_SIZE, SEGMENT_BLOCKS};
use pgstrata_protocol::replication::{BackupPosition, TimelineHistory};
use pgstrata_protocol::{Lsn, TimelineId};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::failure::Failure;
use crate::repository::{BackupSummary, BaseBackup, BaseFiles};

/// Backups that are looked at, the newest first: one that ended behind this one's start, as those of a standby may, has
/// others before it.
pub(crate) const CANDIDATES: usize = 8;

/// The timelines that lead to where a backup starts.
pub(crate) type History = Option<TimelineHistory>;

/// The backup that a new one is laid over.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) base: Arc<BaseBackup>,
    /// Where it began: what was changed before is in its files.
    pub(crate) since: BackupPosition,
    /// When it began, in seconds since 1970.
    pub(crate) started: u64,
    /// Whether pages of both carry checksums.
    pub(crate) has_checksums: bool,
}

/// What a new backup is laid over.
#[derive(Debug)]
pub(crate) enum Basis {
    /// Nothing, and why.
    Nothing(String),
    /// A backup, and the history that leads from it to the new one.
    Parent(Parent, History),
}

/// Why a backup is not laid under a new one.
#[derive(Debug)]
pub(crate) enum BaseChoice {
    /// It cannot be, and another may.
    Unfit(String),
    /// The new one is to end.
    Failed(Failure),
}

impl BaseChoice {
    /// What cannot be read of an older backup is no reason to fail, but for what would stop any run.
    pub(crate) fn of(failure: Failure) -> Self {
        match failure {
            Failure::Stopped => Self::Failed(failure),
            Failure::Repository(ref error) if error.is_foreign => Self::Failed(failure),
            failure => {
                let text = failure.to_string();
                Self::Unfit(text.split("\nHINT:").next().unwrap_or_default().to_owned())
            }
        }
    }
}

/// Which files of a backup are looked up.
pub(crate) fn is_looked_up(path: &[u8]) -> bool {
    path == CONTROL_FILE
        || path.ends_with(b"/PG_VERSION")
        || RelationFile::parse(path).is_some_and(|file| file.fork == Fork::Main)
}

const CONTROL_FILE: &[u8] = b"global/pg_control";

/// What tells a data directory from a copy of it: the inode and the birth of its control file, which a server updates in place as
/// long as it lives (`update_controlfile`, `common/controldata_utils.c`) and which every restore makes anew. None where the
/// file system keeps no births.
///
/// Positions and timelines alone do not: a backup that is started without recovery goes on along its old timeline, and so do
/// two copies that are promoted without knowing of each other.
pub(crate) fn identity(data_directory: &Path) -> Option<String> {
    let path = data_directory.join("global/pg_control");
    let facts = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::BTIME | StatxFlags::INO).ok()?;
    let born = &facts.stx_btime;
    let is_known = facts.stx_mask & StatxFlags::BTIME.bits() != 0 && born.tv_sec > 0;
    is_known.then(|| format!("{}-{}.{:09}", facts.stx_ino, born.tv_sec, born.tv_nsec))
}

/// Whether a backup is of the data directory that is backed up now.
///
/// # Errors
/// Why not.
pub(crate) fn check_identity(summary: &BackupSummary, now: Option<&str>) -> Result<(), String> {
    let then = summary.changes.as_ref().and_then(|changes| changes.data_directory.as_deref());
    match (then, now) {
        (Some(then), Some(now)) if then == now => Ok(()),
        (_, None) => Err("the file system of the data directory does not tell when files were made".into()),
        (None, _) => Err("it does not say which data directory it is of".into()),
        (Some(_), Some(_)) => {
            Err("it is of another data directory, or this one was restored or copied since".into())
        }
    }
}

/// Whether a backup belongs to the past of a backup that starts at `start`, whose timeline has this history.
///
/// # Errors
/// Why not.
pub(crate) fn check_history(
    summary: &BackupSummary,
    start: BackupPosition,
    history: &History,
) -> Result<BackupPosition, String> {
    let position = |lsn: &str, timeline: u32| -> Result<BackupPosition, String> {
        let lsn = lsn.parse().map_err(|_| format!("its position \"{}\" is none", lsn.escape_default()))?;
        Ok(BackupPosition { lsn, timeline: TimelineId(timeline) })
    };
    let began = position(&summary.start_lsn, summary.start_timeline)?;
    let ended = position(&summary.end_lsn, summary.end_timeline)?;
    if began.lsn > ended.lsn || began.timeline > ended.timeline {
        return Err(format!("it ends at {} before it begins at {}", ended.lsn, began.lsn));
    }
    for at in [began, ended] {
        let [from, to] = part_of(at.timeline, start, history)?;
        if at.lsn < from {
            return Err(format!(
                "it needs position {} on timeline {}, which begins at {from}",
                at.lsn, at.timeline
            ));
        }
        if at.lsn > to {
            return Err(if at.timeline == start.timeline {
                format!("it ends at {}, behind the start of this backup at {to}", at.lsn)
            } else {
                format!("it needs position {} on timeline {}, which was left at {to}", at.lsn, at.timeline)
            });
        }
    }
    Ok(began)
}

/// Where a timeline begins and ends on the way to `start`.
fn part_of(timeline: TimelineId, start: BackupPosition, history: &History) -> Result<[Lsn; 2], String> {
    let switches = history.as_ref().map_or(&[][..], |history| &history.switches);
    let begin = |at: usize| at.checked_sub(1).map_or(Lsn(0), |before| switches[before].end);
    if timeline == start.timeline {
        return Ok([begin(switches.len()), start.lsn]);
    }
    match switches.iter().position(|switch| switch.timeline == timeline) {
        Some(at) => Ok([begin(at), switches[at].end]),
        None => Err(format!(
            "it was taken on timeline {timeline}, which is not in the history of timeline {}",
            start.timeline
        )),
    }
}

/// Whether pages of a backup mean the same as those of the cluster now, by both control files.
///
/// # Errors
/// Why not.
pub(crate) fn check_control(
    files: &mut BaseFiles,
    base: &BaseBackup,
    now: &ControlFile,
) -> Result<bool, Failure> {
    let refuse = |why: String| Err(Failure::Target(why));
    let Some(record) = files.find(CONTROL_FILE)? else {
        return refuse("it has no global/pg_control".into());
    };
    let then = ControlFile::parse(&base.content(&record)?);
    let then = match then {
        Ok(then) => then,
        Err(error) => return refuse(format!("its global/pg_control: {error}")),
    };
    for (what, then, now) in [
        ("system identifier", then.system_identifier, now.system_identifier),
        ("catalogue version", then.catalog_version.into(), now.catalog_version.into()),
        ("block size", then.block_size.into(), now.block_size.into()),
        ("segment size", then.segment_blocks.into(), now.segment_blocks.into()),
        // Turned on or off on a server that was stopped, which writes no WAL and changes no LSN.
        ("version of page checksums", then.data_checksum_version.into(), now.data_checksum_version.into()),
    ] {
        if then != now {
            return refuse(format!("its {what} is {then}, the cluster's is {now}"));
        }
    }
    Ok(now.data_checksum_version != 0)
}

/// Whether blocks of a cluster can be told apart at all.
///
/// # Errors
/// Why not.
pub(crate) fn check_blocks(now: &ControlFile) -> Result<(), String> {
    let found = (now.block_size, now.segment_blocks);
    if found == (u32::try_from(PAGE_SIZE).unwrap_or(0), SEGMENT_BLOCKS) {
        return Ok(());
    }
    Err(format!(
        "the cluster has pages of {} bytes in segments of {}, changes are told of pages of {PAGE_SIZE} in segments of \
         {SEGMENT_BLOCKS}",
        found.0, found.1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        // Timeline 2 left 1 at 0/200, and 4 left 2 at 0/400.
        let text = b"1\t0/200\tno recovery target specified\n\n2\t0/400\tpromoted\n";
        Some(TimelineHistory::parse(TimelineId(4), text).expect("a history"))
    }

    #[test]
    fn only_what_lies_on_the_way_is_a_past() {
        let start = BackupPosition { lsn: Lsn(0x600), timeline: TimelineId(4) };
        for (begin, end, good) in [
            (("0/100", 1), ("0/150", 1), true),
            (("0/100", 1), ("0/200", 1), true),
            // Ended on what was left.
            (("0/100", 1), ("0/201", 1), false),
            (("0/210", 1), ("0/220", 1), false),
            (("0/100", 1), ("0/250", 2), true),
            (("0/200", 2), ("0/400", 2), true),
            (("0/1F0", 2), ("0/300", 2), false),
            (("0/300", 2), ("0/401", 2), false),
            (("0/500", 4), ("0/600", 4), true),
            // Of a standby that is ahead.
            (("0/500", 4), ("0/601", 4), false),
            (("0/3F0", 4), ("0/500", 4), false),
            // Not in the history, before or behind.
            (("0/300", 3), ("0/310", 3), false),
            (("0/500", 5), ("0/510", 5), false),
            (("0/500", 4), ("0/4FF", 4), false),
            (("0/100", 1), ("x", 1), false),
        ] {
            let checked = check_history(&summary(begin, end), start, &history());
            assert_eq!(checked.is_ok(), good, "{begin:?} to {end:?}: {checked:?}");
        }
        let start = BackupPosition { lsn: Lsn(0x600), timeline: TimelineId(1) };
        check_history(&summary(("0/100", 1), ("0/600", 1)), start, &None).expect("the first timeline");
        check_history(&summary(("0/100", 2), ("0/300", 2)), start, &None).expect_err("another");
    }

    #[test]
    fn a_copy_is_another_data_directory() {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(place.path().join("global")).expect("made");
        let control = place.path().join("global/pg_control");
        std::fs::write(&control, [1; 10]).expect("written");
        let Some(first) = identity(place.path()) else { return };
        let of = |data_directory: Option<&str>| BackupSummary {
            changes: Some(crate::tracking::ChangesSummary {
                data_directory: data_directory.map(str::to_owned),
                ..Default::default()
            }),
            ..BackupSummary::default()
        };
        // Updated in place.
        std::fs::OpenOptions::new().write(true).open(&control).expect("opened").set_len(5).expect("changed");
        check_identity(&of(Some(&first)), identity(place.path()).as_deref()).expect("the same");
        check_identity(&of(None), Some(&first)).expect_err("unknown");
        check_identity(&BackupSummary::default(), Some(&first)).expect_err("unknown");
        check_identity(&of(Some(&first)), None).expect_err("unknown now");
        std::fs::copy(&control, place.path().join("copy")).expect("copied");
        std::fs::rename(place.path().join("copy"), &control).expect("replaced");
        check_identity(&of(Some(&first)), identity(place.path()).as_deref()).expect_err("a copy");
    }

    fn summary(begin: (&str, u32), end: (&str, u32)) -> BackupSummary {
        BackupSummary {
            start_lsn: begin.0.into(),
            start_timeline: begin.1,
            end_lsn: end.0.into(),
            end_timeline: end.1,
            ..BackupSummary::default()
        }
    }
}
