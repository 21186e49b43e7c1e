//! `backup_label`: where recovery from a backup starts (`build_backup_content`, `src/backend/access/transam/xlogbackup.c`).

use crate::{Lsn, TimelineId};

/// The content of `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts.
    pub start: Lsn,
    /// The name of the WAL segment that holds the start.
    pub start_segment: String,
    /// The checkpoint record that the backup starts from.
    pub checkpoint: Lsn,
    /// `streamed`, or `pg_start_backup` for exclusive backups of servers up to 14.
    pub method: String,
    /// What kind of server it was taken from.
    pub origin: BackupOrigin,
    /// When it began, as the server printed it, in the server's time zone.
    pub start_time: Vec<u8>,
    /// The label that the user chose, in the server's encoding.
    pub label: Vec<u8>,
    /// The timeline that it began on.
    pub timeline: TimelineId,
    /// For an incremental backup, where the backup that it builds on started.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// What kind of server a backup was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackupOrigin {
    /// A server that takes writes.
    Primary,
    /// A standby: `minRecoveryPoint` of `pg_control` tells where the backup ends.
    Standby,
}

/// Why a file is no `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line of unknown meaning.
    #[error("backup_label line {line}: unexpected \"{}\"\n\
             HINT: It may come from a newer PostgreSQL, or the backup's label holds a line break.", found.escape_ascii())]
    UnexpectedLine {
        /// The line's number, from 1.
        line: usize,
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// A known line with a value that cannot be read.
    #[error("backup_label line {line}: {key}: \"{}\", expected {expected}", found.escape_ascii())]
    Value {
        /// The line's number, from 1.
        line: usize,
        /// What the line is about.
        key: &'static str,
        /// The value's first bytes.
        found: Vec<u8>,
        /// What would be right.
        expected: &'static str,
    },
    /// A line that comes twice.
    #[error("backup_label line {line}: {key} comes a second time")]
    Duplicate {
        /// The line's number, from 1.
        line: usize,
        /// What the line is about.
        key: &'static str,
    },
    /// A line that is not there.
    #[error("backup_label has no line {key}")]
    Missing {
        /// What the line is about.
        key: &'static str,
    },
    /// The last line has no end.
    #[error("backup_label is cut short: its last line does not end in a line break")]
    Truncated,
}

const START: &str = "START WAL LOCATION";
const CHECKPOINT: &str = "CHECKPOINT LOCATION";
const METHOD: &str = "BACKUP METHOD";
const ORIGIN: &str = "BACKUP FROM";
const TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const TIMELINE: &str = "START TIMELINE";
const FROM_LSN: &str = "INCREMENTAL FROM LSN";
const FROM_TLI: &str = "INCREMENTAL FROM TLI";

const KEYS: [&str; 9] = [START, CHECKPOINT, METHOD, ORIGIN, TIME, LABEL, TIMELINE, FROM_LSN, FROM_TLI];

/// How much of a bad line a message repeats.
const SHOWN: usize = 200;

/// A line's number and value.
type Line<'a> = (usize, &'a [u8]);

impl BackupLabel {
    /// Reads a label. Lines may come in any order, each at most once; unknown ones are refused, as a server that knows
    /// them may depend on them.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        let mut values: [Option<Line<'_>>; KEYS.len()] = [None; KEYS.len()];
        let body = content.strip_suffix(b"\n").ok_or(LabelError::Truncated)?;
        for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            let known = KEYS.iter().zip(&mut values).find_map(|(key, slot)| {
                Some((*key, line.strip_prefix(key.as_bytes())?.strip_prefix(b": ")?, slot))
            });
            let Some((key, value, slot)) = known else {
                let found = line[..line.len().min(SHOWN)].to_vec();
                return Err(LabelError::UnexpectedLine { line: number, found });
            };
            if slot.replace((number, value)).is_some() {
                return Err(LabelError::Duplicate { line: number, key });
            }
        }
        let [start, checkpoint, method, origin, time, label, timeline, from_lsn, from_tli] = values;
        let (start, start_segment) = read(required(start, START)?, START, "0/2000028 (file …)", start_of)?;
        let segment_timeline = start_segment.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let lsn = |key, line| read(line, key, "a log position such as 0/2000028", text_as::<Lsn>);
        let tli = |key, line| read(line, key, "a timeline from 1 up", timeline_of);
        let timeline_line = required(timeline, TIMELINE)?;
        let timeline = tli(TIMELINE, timeline_line)?;
        if segment_timeline != Some(timeline.0) {
            read(timeline_line, TIMELINE, "the timeline that the start's segment names", |_| None::<()>)?;
        }
        Ok(Self {
            start,
            start_segment,
            checkpoint: lsn(CHECKPOINT, required(checkpoint, CHECKPOINT)?)?,
            method: read(required(method, METHOD)?, METHOD, "streamed or pg_start_backup", |value| {
                matches!(value, b"streamed" | b"pg_start_backup")
                    .then(|| String::from_utf8_lossy(value).into_owned())
            })?,
            origin: read(required(origin, ORIGIN)?, ORIGIN, "primary or standby", |value| match value {
                b"primary" | b"master" => Some(BackupOrigin::Primary),
                b"standby" => Some(BackupOrigin::Standby),
                _ => None,
            })?,
            start_time: required(time, TIME)?.1.to_vec(),
            label: required(label, LABEL)?.1.to_vec(),
            timeline,
            incremental_from: match (from_lsn, from_tli) {
                (None, None) => None,
                (from_lsn, from_tli) => Some((
                    lsn(FROM_LSN, required(from_lsn, FROM_LSN)?)?,
                    tli(FROM_TLI, required(from_tli, FROM_TLI)?)?,
                )),
            },
        })
    }
}

fn required<'a>(line: Option<Line<'a>>, key: &'static str) -> Result<Line<'a>, LabelError> {
    line.ok_or(LabelError::Missing { key })
}

fn read<T>(
    (line, value): Line<'_>,
    key: &'static str,
    expected: &'static str,
    read: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T, LabelError> {
    let refused =
        || LabelError::Value { line, key, found: value[..value.len().min(SHOWN)].to_vec(), expected };
    read(value).ok_or_else(refused)
}

fn text_as<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn timeline_of(value: &[u8]) -> Option<TimelineId> {
    let digits = value.iter().all(u8::is_ascii_digit);
    text_as::<u32>(value).filter(|timeline| digits && *timeline > 0).map(TimelineId)
}

/// `0/2000028 (file 000000010000000000000002)`
fn start_of(value: &[u8]) -> Option<(Lsn, String)> {
    let text = std::str::from_utf8(value).ok()?;
    let (lsn, file) = text.split_once(" (file ")?;
    let file = file.strip_suffix(')')?;
    let is_segment = file.len() == 24 && file.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_segment.then_some((lsn.parse().ok()?, file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n\
        CHECKPOINT LOCATION: 0/4000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-22 12:35:26 UTC\n\
        LABEL: it's\n\
        START TIMELINE: 1\n";

    #[test]
    fn reads() {
        let plain = BackupLabel {
            start: Lsn(0x400_0028),
            start_segment: "000000010000000000000004".into(),
            checkpoint: Lsn(0x400_0060),
            method: "streamed".into(),
            origin: BackupOrigin::Primary,
            start_time: b"2026-11-22 12:35:26 UTC".to_vec(),
            label: b"it's".to_vec(),
            timeline: TimelineId(1),
            incremental_from: None,
        };
        assert_eq!(BackupLabel::parse(PLAIN.as_bytes()), Ok(plain.clone()));
        for (from, to, expected) in [
            ("primary", "standby", BackupLabel { origin: BackupOrigin::Standby, ..plain.clone() }),
            ("primary", "master", plain.clone()),
            (
                "streamed",
                "pg_start_backup",
                BackupLabel { method: "pg_start_backup".into(), ..plain.clone() },
            ),
            ("it's", "", BackupLabel { label: Vec::new(), ..plain.clone() }),
            ("it's", "LABEL: \u{e9}: x ", BackupLabel { label: "LABEL: \u{e9}: x ".into(), ..plain.clone() }),
            (
                "START TIMELINE: 1\n",
                "START TIMELINE: 1\nINCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n",
                BackupLabel { incremental_from: Some((Lsn(0x200_0028), TimelineId(1))), ..plain },
            ),
        ] {
            assert_eq!(BackupLabel::parse(PLAIN.replace(from, to).as_bytes()), Ok(expected), "{to}");
        }
    }

    #[test]
    fn refuses() {
        for (from, to, error) in [
            ("0/4000028 (", "0/4000028(", "START WAL LOCATION: \"0/4000028(file"),
            ("(file 0000", "(file 000", "expected 0/2000028 (file"),
            ("04)", "04", "expected 0/2000028 (file"),
            ("0/4000060", "4000060", "line 2: CHECKPOINT LOCATION: \"4000060\", expected a log position"),
            ("streamed", "pg_rewind", "BACKUP METHOD: \"pg_rewind\", expected streamed"),
            ("primary", "replica", "BACKUP FROM: \"replica\", expected primary or standby"),
            ("TIMELINE: 1", "TIMELINE: 0", "line 7: START TIMELINE: \"0\", expected a timeline from 1 up"),
            ("TIMELINE: 1", "TIMELINE: +1", "expected a timeline from 1 up"),
            ("TIMELINE: 1", "TIMELINE: 2", "expected the timeline that the start's segment names"),
            ("LABEL: it's\n", "", "no line LABEL"),
            ("START TIME: 2026-11-22 12:35:26 UTC\n", "", "no line START TIME"),
            ("BACKUP METHOD: streamed\n", "", "no line BACKUP METHOD"),
            ("LABEL: it's\n", "LABEL: it's\nLABEL: it's\n", "line 7: LABEL comes a second time"),
            ("it's", "it's\nnot", "line 7: unexpected \"not\""),
            ("it's", "it's\n", "line 7: unexpected \"\""),
            (
                "START TIMELINE: 1\n",
                "START TIMELINE: 1\nINCREMENTAL FROM LSN: 0/28\n",
                "no line INCREMENTAL FROM TLI",
            ),
            (
                "START TIMELINE: 1\n",
                "START TIMELINE: 1\nINCREMENTAL FROM TLI: 1\n",
                "no line INCREMENTAL FROM LSN",
            ),
            ("TIMELINE: 1\n", "TIMELINE: 1", "cut short"),
        ] {
            let found = BackupLabel::parse(PLAIN.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(found.contains(error), "{found}\nlacks {error}");
        }
        for length in 0..PLAIN.len() {
            assert!(BackupLabel::parse(&PLAIN.as_bytes()[..length]).is_err(), "{length}");
        }
    }
}
