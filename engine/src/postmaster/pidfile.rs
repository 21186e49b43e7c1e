//! Reads `postmaster.pid`, where a postmaster writes how far it has come.
//!
//! The lines are those of `LOCK_FILE_LINE_*` in src/include/utils/pidfile.h: 1 pid, 2 data directory, 3 start time,
//! 4 port, 5 socket directory, 6 listen address, 7 shared memory key and id, 8 status. Lines appear one after the
//! other while the server starts.

use std::fs;
use std::path::Path;

/// `PM_STATUS_READY` and `PM_STATUS_STANDBY`: connections are accepted, or would be if hot standby were on.
const ACCEPTING: [&str; 2] = ["ready", "standby"];

/// As much of `postmaster.pid` as is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    /// Line 1.
    pub(super) pid: i32,
    /// Line 8, without its padding; empty while it is missing.
    pub(super) status: String,
}

impl PidFile {
    /// Reads the file in a data directory; `None` while there is none, or no whole first line.
    pub(super) fn read(data_dir: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
    }

    /// Whether the server has finished starting.
    pub(super) fn is_ready(&self) -> bool {
        ACCEPTING.contains(&self.status.as_str())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let pid = lines.next()?.trim().parse().ok()?;
        let status = lines.nth(6).unwrap_or_default().trim().to_owned();
        Some(Self { pid, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_file_in_every_stage() {
        let head = "4711\n/data\n1763813000\n5433\n/tmp\n127.0.0.1\n";
        for (text, expected) in [
            (String::new(), None),
            ("47".to_owned(), None),
            ("x\n".to_owned(), None),
            ("4711\n/data\n".to_owned(), Some((4711, "", false))),
            (head.to_owned(), Some((4711, "", false))),
            (format!("{head} 12345 67\nstarting\n"), Some((4711, "starting", false))),
            (format!("{head} 12345 67\nrea"), Some((4711, "", false))),
            (format!("{head} 12345 67\nready   \n"), Some((4711, "ready", true))),
            (format!("{head} 12345 67\nstandby \n"), Some((4711, "standby", true))),
        ] {
            let read = PidFile::parse(&text);
            let found = read.as_ref().map(|file| (file.pid, file.status.as_str(), file.is_ready()));
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
