//! Names of files that are being written, `NAME.pgstrata.PID.tmp`: each process has its own, and removes those of the dead.

use std::fs;
use std::path::{Path, PathBuf};

/// What stands between the file's name and the process.
const OURS: &str = ".pgstrata.";
/// What the name ends with.
const UNFINISHED: &str = ".tmp";

/// The name under which this process writes what becomes `target`.
pub(super) fn beside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!("{OURS}{}{UNFINISHED}", std::process::id()));
    PathBuf::from(name)
}

/// Whether a process is there, be it another one of its number.
pub(super) fn is_alive(pid: u32) -> bool {
    // Who may not be looked at is there.
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Removes what processes that have died left beside `target`.
pub(super) fn remove_stale(target: &Path) {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(own) = target.file_name().and_then(|name| name.to_str()) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(own)?.strip_prefix(OURS)) else {
            continue;
        };
        let process = rest.strip_suffix(UNFINISHED).and_then(|process| process.parse().ok());
        if process.is_some_and(|process| !is_alive(process)) {
            // What stays is removed the next time.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_left_goes() {
        let scratch = tempfile::tempdir().expect("a folder");
        let target = scratch.path().join("RECOVERYXLOG");
        let alive = beside(&target);
        // Above any process id (`PID_MAX_LIMIT`, `linux/threads.h`).
        let dead = scratch.path().join("RECOVERYXLOG.pgstrata.4194305.tmp");
        let others = ["RECOVERYXLOG.pgstrata.x.tmp", "RECOVERYHISTORY.pgstrata.4194305.tmp", "RECOVERYXLOG"];
        for path in [&alive, &dead].into_iter().cloned().chain(others.map(|name| scratch.path().join(name))) {
            fs::write(path, b"x").expect("written");
        }
        remove_stale(&target);
        assert!(alive.exists() && !dead.exists());
        assert!(others.iter().all(|name| scratch.path().join(name).exists()));
    }
}
