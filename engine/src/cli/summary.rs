//! The end of a backup in words.

use std::fmt::Write;

use super::progress::{human_bytes, human_seconds};
use crate::basebackup::{LimitedBy, Report};

/// What a finished backup tells people.
pub(super) fn summary(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    let place = match (&report.path, &report.target) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(_)) if report.format == "tar" => "on standard output".into(),
        (None, Some(target)) => format!("at the server's target {target}"),
        (None, None) if report.stored.is_some() => "in the repository".into(),
        (None, None) => "nothing kept".into(),
    };
    let kind = if report.incremental { "incremental, " } else { "" };
    row("backup", format!("{place} ({kind}{}, PostgreSQL {})", report.format, report.server_version));
    if report.source == "local" {
        row("source", "the data directory on this machine".into());
    }
    row("range", format!("{} to {} on timeline {}", report.start_lsn, report.end_lsn, report.timeline));
    // What a target takes is not told file by file.
    let files = if report.format == "target" { String::new() } else { format!(" in {} files", report.files) };
    row("data", format!("{}{files}", human_bytes(report.bytes)));
    if report.wal_bytes > 0 {
        row("WAL", human_bytes(report.wal_bytes));
    }
    if let Some(compression) = &report.compression {
        let stored = report.stages.writers.bytes;
        let size = if stored > 0 { format!(", {}", human_bytes(stored)) } else { String::new() };
        row("compressed", format!("{compression}{size}"));
    }
    row("verified", verified(report));
    let phases = &report.seconds;
    row(
        "time",
        format!(
            "{} (start {:.1}, data {:.1}, settle {:.1}, WAL {:.1}, end {:.1}), {:.0} MB/s",
            human_seconds(phases.total),
            phases.start,
            phases.data,
            phases.settle,
            phases.wal,
            phases.end,
            report.bytes_per_second / 1e6
        ),
    );
    row("cost", format!("{:.2} CPU seconds, {} memory", report.cpu_seconds, human_bytes(report.peak_memory)));
    row("I/O", format!("{} ({})", report.io, report.io_reason));
    if !report.durable {
        row("durable", "no: nothing was synced".into());
    }
    let detail = match report.limited_by {
        LimitedBy::ServerSend => format!(
            " ({:.0}% of the time data flowed we waited for it)",
            report.stages.waiting_for_server * 100.0
        ),
        LimitedBy::Read => format!(
            " ({:.0}% of the time data flowed we waited for it)",
            report.stages.waiting_for_server * 100.0
        ),
        LimitedBy::Checksum | LimitedBy::Compress
            if report.stages.waiting_for_stages < report.stages.lanes.busy_share() =>
        {
            format!(
                " (its threads were busy for {:.0}% of the time data flowed)",
                report.stages.lanes.busy_share() * 100.0
            )
        }
        LimitedBy::Write | LimitedBy::Checksum | LimitedBy::Compress => format!(
            " ({:.0}% of the time data flowed had to wait for it)",
            report.stages.waiting_for_stages * 100.0
        ),
        _ => String::new(),
    };
    row("limited by", format!("{}{detail}", report.limited_by));
    text
}

/// Against what the files were compared, and what was looked for within them.
fn verified(report: &Report) -> String {
    let algorithm = report.checksum_algorithm.as_str();
    if report.files_verified == 0 && report.source == "local" {
        let checked = if report.pages_checked { "page checksums" } else { "nothing" };
        return format!("{checked}; the manifest was made here, with {algorithm}");
    }
    let files = match (report.files_verified, algorithm) {
        (0, _) if report.format == "target" => "nothing: no file came here".into(),
        (0, _) => "nothing: the server made no manifest".into(),
        (files, "NONE") => format!("{files} files by size"),
        (files, algorithm) => format!("{files} files by size and {algorithm}"),
    };
    let pages = if report.pages_checked { ", and page checksums" } else { "" };
    format!("{files}{pages}")
}
