//! `backup_label` as pg_combinebackup reads and writes it (`src/bin/pg_combinebackup/backup_label.c`): four lines count, all
//! others pass. Performs no I/O.

use pgstrata_protocol::{Lsn, TimelineId};

const START: &[u8] = b"START WAL LOCATION: ";
const TIMELINE: &[u8] = b"START TIMELINE: ";
const FROM_LSN: &[u8] = b"INCREMENTAL FROM LSN: ";
const FROM_TLI: &[u8] = b"INCREMENTAL FROM TLI: ";

/// Where a backup starts, and where the one starts that it builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainLink {
    pub(super) start: Lsn,
    pub(super) timeline: TimelineId,
    /// None of a full backup.
    pub(super) previous: Option<(Lsn, TimelineId)>,
}

impl ChainLink {
    /// Reads a label. The error is what is wrong with it, in the stock tool's words.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        let (mut start, mut timeline, mut from_lsn, mut from_tli) = (None, None, None, None);
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            if let Some(value) = line.strip_prefix(START) {
                start = Some(position(value, b' ', "START WAL LOCATION")?);
            } else if let Some(value) = line.strip_prefix(TIMELINE) {
                timeline = Some(timeline_of(value, "TLI for START TIMELINE")?);
            } else if let Some(value) = line.strip_prefix(FROM_LSN) {
                from_lsn = Some(position(value, b'\n', "INCREMENTAL FROM LSN")?);
            } else if let Some(value) = line.strip_prefix(FROM_TLI) {
                from_tli = Some(timeline_of(value, "INCREMENTAL FROM TLI")?);
            }
        }
        let previous = match (from_lsn, from_tli) {
            (None, None) => None,
            (Some(lsn), Some(timeline)) => Some((lsn, timeline)),
            (Some(_), None) => return Err("INCREMENTAL FROM LSN requires INCREMENTAL FROM TLI".into()),
            (None, Some(_)) => return Err("INCREMENTAL FROM TLI requires INCREMENTAL FROM LSN".into()),
        };
        Ok(Self {
            start: start.ok_or("could not find START WAL LOCATION")?,
            timeline: timeline.ok_or("could not find START TIMELINE")?,
            previous,
        })
    }
}

/// The label of the full backup that an incremental one becomes.
pub(super) fn of_full_backup(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.starts_with(FROM_LSN) && !line.starts_with(FROM_TLI))
        .flatten()
        .copied()
        .collect()
}

/// `1A/2000028` and the byte that must end it.
fn position(value: &[u8], end: u8, key: &str) -> Result<Lsn, String> {
    let unreadable = || format!("could not parse {key}");
    let digits = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let high = digits(value);
    let rest = value[high..].strip_prefix(b"/").ok_or_else(unreadable)?;
    let low = digits(rest);
    let text = std::str::from_utf8(&value[..high + 1 + low]).map_err(|_| unreadable())?;
    let lsn = text.parse().map_err(|_| unreadable())?;
    match rest.get(low) {
        Some(found) if *found == end => Ok(lsn),
        _ => Err(format!("improper terminator for {key}")),
    }
}

fn timeline_of(value: &[u8], what: &str) -> Result<TimelineId, String> {
    let number = value.strip_suffix(b"\n").and_then(|digits| std::str::from_utf8(digits).ok());
    let number = number.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()) {
        None => Err(format!("could not parse {what}")),
        Some(0) => Err("invalid TLI".into()),
        Some(number) => Ok(TimelineId(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "START WAL LOCATION: 1A/4000028 (file 000000010000001A00000004)\nCHECKPOINT LOCATION: 0/4000060\n\
        LABEL: it's\nSTART TIMELINE: 3\n";

    #[test]
    fn reads_what_counts_and_takes_it_out() {
        let full = ChainLink { start: Lsn(0x1A_0400_0028), timeline: TimelineId(3), previous: None };
        assert_eq!(ChainLink::parse(FULL.as_bytes()), Ok(full));
        let incremental = format!("{FULL}INCREMENTAL FROM LSN: 1A/28\nINCREMENTAL FROM TLI: 2\n");
        let previous = Some((Lsn(0x1A_0000_0028), TimelineId(2)));
        assert_eq!(ChainLink::parse(incremental.as_bytes()), Ok(ChainLink { previous, ..full }));
        assert_eq!(of_full_backup(incremental.as_bytes()), FULL.as_bytes());
        assert_eq!(of_full_backup(FULL.as_bytes()), FULL.as_bytes());
    }

    #[test]
    fn refuses_in_the_stock_tools_words() {
        let incremental = format!("{FULL}INCREMENTAL FROM LSN: 1A/28\nINCREMENTAL FROM TLI: 2\n");
        for (from, to, expected) in [
            (
                "START WAL LOCATION: 1A/4000028 (",
                "START WAL LOCATION: 1A (",
                "could not parse START WAL LOCATION",
            ),
            ("28 (file", "28(file", "improper terminator for START WAL LOCATION"),
            ("START WAL", "START OF WAL", "could not find START WAL LOCATION"),
            ("START TIMELINE: 3", "START TIMELINE: x", "could not parse TLI for START TIMELINE"),
            ("START TIMELINE: 3", "START TIMELINE: 3 ", "could not parse TLI for START TIMELINE"),
            ("START TIMELINE: 3", "START TIMELINE: 0", "invalid TLI"),
            ("START TIMELINE: 3\n", "", "could not find START TIMELINE"),
            ("LSN: 1A/28\n", "LSN: 1A/28 \n", "improper terminator for INCREMENTAL FROM LSN"),
            ("LSN: 1A/28\n", "LSN: 28\n", "could not parse INCREMENTAL FROM LSN"),
            ("TLI: 2\n", "TLI: -\n", "could not parse INCREMENTAL FROM TLI"),
            ("TLI: 2\n", "TLI: 2", "could not parse INCREMENTAL FROM TLI"),
            ("INCREMENTAL FROM TLI: 2\n", "", "INCREMENTAL FROM LSN requires INCREMENTAL FROM TLI"),
            ("INCREMENTAL FROM LSN: 1A/28\n", "", "INCREMENTAL FROM TLI requires INCREMENTAL FROM LSN"),
        ] {
            let changed = incremental.replace(from, to);
            assert_eq!(ChainLink::parse(changed.as_bytes()), Err(expected.to_owned()), "{from} -> {to}");
        }
    }
}
