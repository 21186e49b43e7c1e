//! The judgement on what has arrived: page checksums, and everything that the manifest says.

use std::fs::File;

use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::BackupPosition;
use pgstrata_protocol::{Lsn, TimelineId};

use super::config::WalMethod;
use super::prepare::ServerFacts;
use super::run::Run;
use crate::failure::Failure;
use crate::pipeline::Pipeline;
use crate::verify::{Spool, compare_with_manifest};

impl Run<'_> {
    /// Fails where pages were found wrong.
    pub(super) fn fail_on_findings(pipeline: &Pipeline) -> Result<(), Failure> {
        let (count, kept) = pipeline.findings.take();
        if count == 0 {
            return Ok(());
        }
        Err(Failure::Verification(format!(
            "{count} pages have wrong checksums\n{}\n\
             HINT: the cluster's data is damaged; check its disks and memory, and restore these pages from an older backup.",
            listed(&kept, count)
        )))
    }

    /// Fails where WAL was to come with the files and is not whole from the backup's start to its end.
    pub(super) fn check_fetched_wal(&self, pipeline: &Pipeline, end: BackupPosition) -> Result<(), Failure> {
        if self.config.wal != WalMethod::Fetch {
            return Ok(());
        }
        let reason = match pipeline.findings.take_wal().as_slice() {
            [] => "no segment arrived".to_owned(),
            [wal] => match wal.finish(end) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            // The feeder sends it past one lane, but for an archive that comes a second time.
            _ => "segments came in two archives, expected one".to_owned(),
        };
        Err(Failure::Verification(format!(
            "WAL that came with the backup: {reason}\n\
             HINT: the backup cannot be recovered without that WAL; check the network and the server's disks, then take the backup again."
        )))
    }

    /// Compares what arrived with the manifest. Returns how many files match.
    pub(super) fn compare(
        &self,
        manifest: File,
        spool: Spool,
        facts: &ServerFacts,
        range: [BackupPosition; 2],
    ) -> Result<u64, Failure> {
        let asked = self.config.manifest.and_then(|manifest| manifest.checksums);
        let algorithm = asked.unwrap_or(ChecksumAlgorithm::None);
        let (comparison, summary) = compare_with_manifest(manifest, spool, algorithm).map_err(|error| {
            Failure::Verification(format!("the manifest that came with the backup: {error}"))
        })?;
        let claims = |what: &str, found: String, expected: String| {
            Err(Failure::Verification(format!(
                "the manifest that came with the backup names {what} {found}, expected {expected}\n\
                 HINT: the stream from the server is damaged or hostile; check the network path and the server."
            )))
        };
        let system = facts.system.system_identifier;
        if let Some(found) = summary.system_identifier.filter(|found| *found != system) {
            return claims("the system", found.to_string(), system.to_string());
        }
        let expected = range.map(|BackupPosition { lsn, timeline }| Some((lsn, timeline)));
        let found = [comparison.wal_start, comparison.wal_end];
        if found != expected {
            let shown = |[from, to]: [Option<(Lsn, TimelineId)>; 2]| {
                let place = |place: Option<(Lsn, TimelineId)>| {
                    place.map_or("nowhere".into(), |(lsn, timeline)| format!("{lsn} on timeline {timeline}"))
                };
                format!("{} to {}", place(from), place(to))
            };
            return claims("WAL from", shown(found), shown(expected));
        }
        if comparison.problem_count == 0 {
            return Ok(comparison.matched);
        }
        Err(Failure::Verification(format!(
            "{} files do not match the server's manifest\n{}\n\
             HINT: what arrived is not what the server read; check the network and this machine's memory, then take the backup again.",
            comparison.problem_count,
            listed(&comparison.problems, comparison.problem_count)
        )))
    }
}

fn listed(problems: &[String], count: u64) -> String {
    let mut text = problems.join("\n");
    let more = count.saturating_sub(problems.len() as u64);
    if more > 0 {
        text += &format!("\n… and {more} more");
    }
    text
}
