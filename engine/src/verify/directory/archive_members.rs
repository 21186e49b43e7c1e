//! What was found in a backup's archives, and how it differs from the manifest.
//!
//! Members are tallied with their checksums as they are read, in any order and by all threads: where both sides'
//! tallies agree, so does every member. Beside that each thread notes its members in a spool, memory first and an
//! unnamed temporary file later, and only where the tallies differ the spools are read, some buckets at a time.

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use pgstrata_protocol::manifest::{ChecksumAlgorithm, ChecksumValue, ManifestFile};
use tempfile::SpooledTempFile;

use super::ManifestFacts;
use super::archive::Archive;
use super::presence::ROUND;
use super::problem::Problem;
use super::run::Run;
use super::tally::Tally;
use crate::failure::Failure;

/// Bytes of a spool that stay in memory.
const IN_MEMORY: usize = 4 << 20;

/// A member that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundMember {
    /// Which archive it is in.
    pub(super) archive: usize,
    /// As the manifest names it.
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    /// By the manifest's algorithm for it; empty where it was not summed up.
    pub(super) checksum: ChecksumValue,
}

/// The members that one thread has read.
pub(super) struct MemberSpool {
    spool: BufWriter<SpooledTempFile>,
    members: u64,
}

impl MemberSpool {
    pub(super) fn new() -> Self {
        Self { spool: BufWriter::with_capacity(64 << 10, SpooledTempFile::new(IN_MEMORY)), members: 0 }
    }

    /// Notes a member.
    pub(super) fn add(&mut self, member: &FoundMember) -> io::Result<()> {
        let long = |_| io::Error::other("a path of more than 65535 bytes");
        let (path, checksum) = (&member.path, member.checksum.as_bytes());
        self.spool.write_all(&u32::try_from(member.archive).map_err(long)?.to_le_bytes())?;
        self.spool.write_all(&member.size.to_le_bytes())?;
        self.spool.write_all(&u16::try_from(path.len()).map_err(long)?.to_le_bytes())?;
        self.spool.write_all(&[u8::try_from(checksum.len()).map_err(long)?])?;
        self.spool.write_all(path)?;
        self.spool.write_all(checksum)?;
        self.members += 1;
        Ok(())
    }

    /// Shows every member to `visit`, in the order in which they were added.
    fn read(&mut self, visit: &mut dyn FnMut(FoundMember) -> Result<(), Failure>) -> Result<(), Failure> {
        self.spool.flush().map_err(|error| lost(&error))?;
        let file = self.spool.get_mut();
        file.seek(SeekFrom::Start(0)).map_err(|error| lost(&error))?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        for _ in 0..self.members {
            visit(read_member(&mut reader).map_err(|error| lost(&error))?)?;
        }
        Ok(())
    }
}

/// The failure of a spool, which lies where temporary files do.
pub(super) fn lost(error: &io::Error) -> Failure {
    let folder = std::env::temp_dir();
    Failure::disk(
        "note members in a temporary file in",
        folder,
        io::Error::new(error.kind(), error.to_string()),
    )
}

fn read_member(reader: &mut impl Read) -> io::Result<FoundMember> {
    let mut head = [0; 15];
    reader.read_exact(&mut head)?;
    let [a0, a1, a2, a3, s0, s1, s2, s3, s4, s5, s6, s7, p0, p1, sum] = head;
    let mut path = vec![0; usize::from(u16::from_le_bytes([p0, p1]))];
    reader.read_exact(&mut path)?;
    let mut checksum = vec![0; usize::from(sum)];
    reader.read_exact(&mut checksum)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    Ok(FoundMember {
        archive: usize::try_from(u32::from_le_bytes([a0, a1, a2, a3])).map_err(|_| invalid())?,
        path,
        size: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        checksum: ChecksumValue::new(&checksum).ok_or_else(invalid)?,
    })
}

/// What the manifest says of a file in a bucket that differs.
struct Listed {
    size: u64,
    checksum: Option<(ChecksumAlgorithm, ChecksumValue)>,
    found: bool,
}

/// Reports every difference in these buckets. `all_read` says that no archive ended early: only then is a file that was
/// not found missing.
pub(super) fn resolve(
    run: &Run<'_>,
    facts: &ManifestFacts,
    archives: &[Archive],
    spools: &mut [MemberSpool],
    buckets: &[usize],
    all_read: bool,
) -> Result<(), Failure> {
    let in_round = |path: &[u8]| {
        let fingerprint = run.keys.fingerprint(path);
        buckets.binary_search(&fingerprint.bucket).is_ok().then_some(fingerprint.identity)
    };
    let mut listed: HashMap<u128, Listed> = HashMap::new();
    run.read_manifest_again(facts, &mut |file: ManifestFile| {
        let Some(identity) = in_round(&file.path) else { return Ok(()) };
        let entry = Listed { size: file.size, checksum: file.checksum, found: false };
        match listed.insert(identity, entry) {
            None => Ok(()),
            Some(_) => run.report(Problem::Duplicate { path: file.path }),
        }
    })?;
    for spool in spools {
        spool.read(&mut |member| {
            let Some(identity) = in_round(&member.path) else { return Ok(()) };
            match difference(run, archives, listed.get_mut(&identity), member) {
                Some(problem) => run.report(problem),
                None => Ok(()),
            }
        })?;
    }
    if !all_read || listed.values().all(|file| file.found) {
        return Ok(());
    }
    run.read_manifest_again(facts, &mut |file: ManifestFile| {
        let missing = in_round(&file.path)
            .and_then(|identity| listed.get(&identity))
            .is_some_and(|listed| !listed.found && !run.is_suppressed(&file.path));
        if missing { run.report(Problem::Missing { path: file.path }) } else { Ok(()) }
    })
}

/// The buckets that differ, in rounds of a bounded number of files.
pub(super) fn rounds(facts: &ManifestFacts, found: &Tally) -> Vec<Vec<usize>> {
    facts.tally.differing(found, ROUND)
}

fn difference(
    run: &Run<'_>,
    archives: &[Archive],
    listed: Option<&mut Listed>,
    member: FoundMember,
) -> Option<Problem> {
    let archive = archives.get(member.archive).map(|archive| archive.name.to_string()).unwrap_or_default();
    let FoundMember { path, size, checksum, .. } = member;
    let Some(listed) = listed else { return Some(Problem::ExtraMember { path, archive }) };
    if std::mem::replace(&mut listed.found, true) {
        return Some(Problem::MemberTwice { path, archive });
    }
    if listed.size != size {
        return Some(Problem::MemberSize { path, archive, found: size, expected: listed.size });
    }
    let (algorithm, expected) = listed.checksum.filter(|_| !run.config.skip_checksums)?;
    (expected != checksum).then_some(Problem::MemberChecksum {
        path,
        archive,
        algorithm,
        found: checksum,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spools_give_back_what_they_got() {
        let mut spool = MemberSpool::new();
        let member = |number: usize| FoundMember {
            archive: number % 7,
            path: format!("base/5/{number}").into_bytes().repeat(number % 3 + 1),
            size: number as u64 * 1_000_003,
            checksum: ChecksumValue::new(&vec![u8::try_from(number % 256).expect("a byte"); number % 65])
                .expect("short"),
        };
        // More than stays in memory.
        let count = 100_000;
        for number in 0..count {
            spool.add(&member(number)).expect("spooled");
        }
        for _ in 0..2 {
            let mut next = 0;
            spool
                .read(&mut |found| {
                    assert_eq!(found, member(next));
                    next += 1;
                    Ok(())
                })
                .expect("read");
            assert_eq!(next, count);
        }
    }
}
