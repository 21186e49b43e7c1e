//! `global/pg_control`: what a cluster is and how far it is durable (`src/include/catalog/pg_control.h`).
//!
//! Read on the machine that runs the server, in its byte order and with the alignment of 64-bit platforms. A server
//! rewrites the file in place, so one that was read meanwhile may be torn: its checksum tells, and it is read again.

use crate::{Lsn, TimelineId};

/// Bytes of the file (`PG_CONTROL_FILE_SIZE`).
pub const CONTROL_FILE_SIZE: usize = 8192;

/// `PG_CONTROL_VERSION` with the offset of the checksum, which is what its structure ends with.
const VERSIONS: [(u32, usize); 3] = [
    // 13 to 17.
    (1300, 288),
    // Set aside by some builds of 17.
    (1700, 288),
    // 18: with `default_char_signedness`.
    (1800, 292),
];

const SYSTEM_IDENTIFIER: usize = 0;
const VERSION: usize = 8;
const CATALOG_VERSION: usize = 12;
const TIME: usize = 24;
const CHECKPOINT: usize = 32;
const REDO: usize = 40;
const TIMELINE: usize = 48;
const MIN_RECOVERY_POINT: usize = 136;
const MIN_RECOVERY_TIMELINE: usize = 144;
const BLOCK_SIZE: usize = 216;
const SEGMENT_BLOCKS: usize = 220;
const DATA_CHECKSUM_VERSION: usize = 252;

/// What a backup needs of the control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity, which its standbys share.
    pub system_identifier: u64,
    /// `CATALOG_VERSION_NO`, which the folders of tablespaces carry in their names.
    pub catalog_version: u32,
    /// Seconds since 1970 at the last update of the file.
    pub time: i64,
    /// The last checkpoint record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the checkpoint.
    pub timeline: TimelineId,
    /// How far a standby must replay to be consistent; 0 on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of that, 0 on a primary.
    pub min_recovery_timeline: TimelineId,
    /// `BLCKSZ`.
    pub block_size: u32,
    /// `RELSEG_SIZE`: blocks of a segment file.
    pub segment_blocks: u32,
    /// `PG_DATA_CHECKSUM_VERSION` where pages carry checksums, else 0.
    pub data_checksum_version: u32,
}

/// Why a file cannot be used as a control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// It has fewer bytes than its structure.
    #[error("it has {found} bytes, expected {CONTROL_FILE_SIZE}")]
    Length {
        /// Bytes found.
        found: usize,
    },
    /// Its version is not known, or it is of the other byte order.
    #[error(
        "its version is {found}, expected one of PostgreSQL 13 to 18\n\
         HINT: a newer PostgreSQL needs a newer pgstrata; it must be of this machine's byte order."
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Its content does not match its checksum: it is damaged, or was read while it was written.
    #[error("its checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// The one in the file.
        found: u32,
        /// That of its content.
        expected: u32,
    },
}

impl ControlFile {
    /// Reads the file.
    ///
    /// # Errors
    /// As [`ControlFileError`] says; [`ControlFileError::Checksum`] is worth another read where a server runs.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlFileError> {
        if bytes.len() != CONTROL_FILE_SIZE {
            return Err(ControlFileError::Length { found: bytes.len() });
        }
        let version = u32_at(bytes, VERSION);
        let known = VERSIONS.iter().find(|(known, _)| *known == version);
        let (_, end) = *known.ok_or(ControlFileError::Version { found: version })?;
        let (found, expected) = (u32_at(bytes, end), crc32c::crc32c(&bytes[..end]));
        if found != expected {
            return Err(ControlFileError::Checksum { found, expected });
        }
        Ok(Self {
            system_identifier: u64_at(bytes, SYSTEM_IDENTIFIER),
            catalog_version: u32_at(bytes, CATALOG_VERSION),
            time: u64_at(bytes, TIME).cast_signed(),
            checkpoint: Lsn(u64_at(bytes, CHECKPOINT)),
            redo: Lsn(u64_at(bytes, REDO)),
            timeline: TimelineId(u32_at(bytes, TIMELINE)),
            min_recovery_point: Lsn(u64_at(bytes, MIN_RECOVERY_POINT)),
            min_recovery_timeline: TimelineId(u32_at(bytes, MIN_RECOVERY_TIMELINE)),
            block_size: u32_at(bytes, BLOCK_SIZE),
            segment_blocks: u32_at(bytes, SEGMENT_BLOCKS),
            data_checksum_version: u32_at(bytes, DATA_CHECKSUM_VERSION),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u32, end: usize) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_SIZE];
        bytes[..8].copy_from_slice(&7_000_000_000_000_000_001u64.to_ne_bytes());
        bytes[VERSION..][..4].copy_from_slice(&version.to_ne_bytes());
        bytes[CATALOG_VERSION..][..4].copy_from_slice(&202_209_061u32.to_ne_bytes());
        bytes[CHECKPOINT..][..8].copy_from_slice(&0x2_0000_0028u64.to_ne_bytes());
        bytes[BLOCK_SIZE..][..4].copy_from_slice(&8192u32.to_ne_bytes());
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..][..4].copy_from_slice(&checksum.to_ne_bytes());
        bytes
    }

    #[test]
    fn reads_each_version() {
        for (version, end) in VERSIONS {
            let control = ControlFile::parse(&file(version, end)).expect("whole");
            assert_eq!(control.system_identifier, 7_000_000_000_000_000_001);
            assert_eq!((control.catalog_version, control.block_size), (202_209_061, 8192));
            assert_eq!(control.checkpoint.to_string(), "2/28");
        }
    }

    #[test]
    fn refuses_what_is_torn_or_strange() {
        let whole = file(1300, 288);
        for flipped in [0, 30, 200, 287, 288] {
            let mut torn = whole.clone();
            torn[flipped] ^= 1;
            assert!(matches!(ControlFile::parse(&torn), Err(ControlFileError::Checksum { .. })), "{flipped}");
        }
        assert_eq!(ControlFile::parse(&whole[..8000]), Err(ControlFileError::Length { found: 8000 }));
        assert_eq!(ControlFile::parse(&[]), Err(ControlFileError::Length { found: 0 }));
        let swapped = file(1300u32.swap_bytes(), 288);
        assert!(matches!(ControlFile::parse(&swapped), Err(ControlFileError::Version { .. })));
    }
}
