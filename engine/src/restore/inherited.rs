//! What a backup brings along of an earlier recovery: signal files and settings that would make the restored server do what
//! nobody asked for. It would wait for a delay, use another standby's slot and take WAL from it, run commands that moved an
//! address or removed files from an archive, or stop at an old target.
//!
//! As pg_basebackup and pgBackRest do, what counts is written behind the rest of `postgresql.auto.conf`; nothing that was
//! backed up is changed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::basebackup::{RECOVERY_SIGNAL, STANDBY_SIGNAL};
use crate::failure::Failure;

/// Settings that a recovery must not inherit, and what they are without one (`guc_tables.c`). Targets are always written.
pub(super) const RESET: [(&str, &str); 5] = [
    ("recovery_min_apply_delay", "0"),
    ("recovery_end_command", ""),
    ("archive_cleanup_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
];

/// What is read of a file of settings.
const MOST: u64 = 1 << 20;

/// The words for an operator where the restored settings have some that are reset by `written`, which follows them.
pub(super) fn note(base: &Path, written: &str) -> Option<String> {
    let mut found = Vec::new();
    for name in ["postgresql.conf", "postgresql.auto.conf"] {
        let mut content = Vec::new();
        // What cannot be read here counts no less for being reset.
        let Ok(file) = File::open(base.join(name)) else { continue };
        if file.take(MOST).read_to_end(&mut content).is_ok() {
            let text = String::from_utf8_lossy(&content);
            found.extend(RESET.iter().filter(|setting| is_set(&text, setting)).map(|(name, _)| *name));
        }
    }
    // Whoever gives one anew knows.
    found.retain(|name| last_value(written, name).is_some_and(|value| RESET.contains(&(name, value))));
    found.sort_unstable();
    found.dedup();
    (!found.is_empty()).then(|| {
        format!(
            "the backup has settings of an earlier recovery: {}\n\
             HINT: postgresql.auto.conf resets them at its end; give them anew there if they are to count.",
            found.join(", ")
        )
    })
}

fn is_set(text: &str, (name, neutral): &(&str, &str)) -> bool {
    last_value(text, name).is_some_and(|value| value != *neutral)
}

/// The value of the last line that sets a name, without its quotes (`guc-file.l`).
fn last_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let line = line.trim_start();
        let (found, rest) = line.split_at_checked(name.len())?;
        if !found.eq_ignore_ascii_case(name) || !rest.starts_with(['=', ' ', '\t']) {
            return None;
        }
        let value = rest.trim_start_matches(['=', ' ', '\t']);
        match value.strip_prefix('\'') {
            Some(quoted) => Some(quoted.trim_end().strip_suffix('\'').unwrap_or(quoted)),
            None => Some(value.split(['#', ' ', '\t']).next().unwrap_or_default().trim()),
        }
    };
    text.lines().rev().find_map(value)
}

/// Removes the signals that a backup of a standby brings along: without a wish for recovery the server opens where the
/// backup ended. Returns words for the operator where there was one.
pub(super) fn remove_signals(base: &Path) -> Result<Option<String>, Failure> {
    let mut removed = Vec::new();
    for name in [STANDBY_SIGNAL, RECOVERY_SIGNAL] {
        let path = base.join(name);
        match fs::remove_file(&path) {
            Ok(()) => removed.push(name),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::disk("remove", path, error)),
        }
    }
    Ok((!removed.is_empty()).then(|| {
        format!(
            "the backup is of a server in recovery; {} was removed, so that the restored one opens where the backup ended\n\
             HINT: --standby makes it a standby, --target lets it recover.",
            removed.join(" and ")
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_the_server_reads_them() {
        for (text, value) in [
            ("primary_slot_name = 'a'\n", Some("a")),
            ("  Primary_Slot_Name='a'\nprimary_slot_name = ''\n", Some("")),
            ("primary_slot_name a # b", Some("a")),
            ("#primary_slot_name = 'a'\nprimary_slot_names = 'b'\n", None),
            ("primary_slot_name = 'it''s'  \r\n", Some("it''s")),
            ("", None),
        ] {
            assert_eq!(last_value(text, "primary_slot_name"), value, "{text}");
        }
    }

    #[test]
    fn only_what_counts_and_is_reset_is_told() {
        let scratch = tempfile::tempdir().expect("a folder");
        let set = |name: &str, text: &str| fs::write(scratch.path().join(name), text).expect("written");
        let reset: String = RESET.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        assert_eq!(note(scratch.path(), &reset), None);
        set("postgresql.conf", "recovery_min_apply_delay = 1h\n#primary_slot_name = 'x'\n");
        set("postgresql.auto.conf", "primary_conninfo = 'host=old'\nprimary_slot_name = ''\n");
        let told = note(scratch.path(), &reset).expect("two");
        assert!(told.contains("recovery: primary_conninfo, recovery_min_apply_delay\n"), "{told}");
        let anew = format!("{reset}primary_conninfo = 'host=new'\n");
        let told = note(scratch.path(), &anew).expect("one");
        assert!(told.contains("recovery: recovery_min_apply_delay\n"), "{told}");
    }
}
