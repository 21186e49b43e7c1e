//! Timeline history files: `timeline<TAB>position<TAB>reason` a line, `#` comments, oldest first
//! (`timeline.c`, `readTimeLineHistory`).

use crate::lsn::{Lsn, TimelineId};

/// The longest history that is read. A line has some 50 bytes, so this is a failover every hour for years.
const MAX_BYTES: usize = 4 << 20;

/// The ancestors of a timeline, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub timeline: TimelineId,
    /// Where each ancestor was left; timelines increase.
    pub switches: Vec<TimelineSwitch>,
}

/// The end of a timeline's part in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// The first position that no longer belongs to it.
    pub end: Lsn,
    /// Why, as the server noted it; often empty of meaning. Bytes that are not UTF-8 became U+FFFD.
    pub reason: String,
}

/// A history file that is none. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimelineHistoryError {
    /// The file is too long.
    #[error("history of timeline {timeline}: found {found} bytes, expected at most {MAX_BYTES}")]
    TooLong {
        /// Whose history.
        timeline: TimelineId,
        /// The file's length.
        found: usize,
    },
    /// A line is not `timeline position reason`.
    #[error("history of timeline {timeline}, line {line}: found {found:?}, expected {expected}")]
    BadLine {
        /// Whose history.
        timeline: TimelineId,
        /// The line.
        line: usize,
        /// The line's text, shortened.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Timelines or positions do not increase.
    #[error("history of timeline {timeline}, line {line}: {what} {found} does not follow {before}")]
    OutOfOrder {
        /// Whose history.
        timeline: TimelineId,
        /// The line.
        line: usize,
        /// `timeline` or `position`.
        what: &'static str,
        /// What the line says.
        found: String,
        /// What it should be past.
        before: String,
    },
}

impl TimelineHistory {
    /// Reads the file of `timeline`.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, TimelineHistoryError> {
        if content.len() > MAX_BYTES {
            return Err(TimelineHistoryError::TooLong { timeline, found: content.len() });
        }
        let mut switches: Vec<TimelineSwitch> = Vec::new();
        for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(line);
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let line = number + 1;
            let bad = |expected| TimelineHistoryError::BadLine {
                timeline,
                line,
                found: text.chars().take(60).collect(),
                expected,
            };
            let (id, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            let rest = rest.trim_start();
            let (position, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            // u32's own parser takes a sign.
            let id = Some(id).filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()));
            let id = id.and_then(|id| id.parse().ok()).map(TimelineId);
            let id = id.ok_or_else(|| bad("a timeline number first"))?;
            let end: Lsn = position.parse().map_err(|_| bad("a log position such as 16/B374D848 second"))?;
            let out_of_order = |what, found: String, before: String| {
                Err(TimelineHistoryError::OutOfOrder { timeline, line, what, found, before })
            };
            if let Some(last) = switches.last() {
                if id <= last.timeline {
                    return out_of_order("timeline", id.to_string(), last.timeline.to_string());
                }
                if end < last.end {
                    return out_of_order("position", end.to_string(), last.end.to_string());
                }
            }
            if id >= timeline {
                return Err(bad("an ancestor, whose number is smaller than the timeline's own"));
            }
            switches.push(TimelineSwitch { timeline: id, end, reason: reason.trim().to_owned() });
        }
        Ok(Self { timeline, switches })
    }

    /// The timeline that a position of this history belongs to: the first one that was left after it.
    #[must_use]
    pub fn timeline_of(&self, position: Lsn) -> TimelineId {
        let left_after = self.switches.iter().find(|switch| position < switch.end);
        left_after.map_or(self.timeline, |switch| switch.timeline)
    }
}

#[cfg(test)]
mod tests;
