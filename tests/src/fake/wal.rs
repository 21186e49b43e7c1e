//! WAL as the scripted server writes it: one record up to the end of the scripted backup, then a segment switch.

use super::script::SYSTEM;

/// Where the WAL of a scripted backup begins: the first byte of a segment.
pub const WAL_START: u64 = 0x0200_0000;
/// Where its first record begins and where the backup ends, counted from there.
const RECORD: usize = 0x28;
const END: usize = 0x100;
const SEGMENT: u32 = 16 << 20;
const PAGE: u32 = 8192;

/// The size of the segment that [`honest_segment`] makes: the smallest there is.
const SMALL_SEGMENT: u32 = 1 << 20;

/// The segment that a scripted backup needs, of 1 MiB, as a member of its archive.
///
/// # Panics
/// As [`honest_wal`].
#[must_use]
pub fn honest_segment(major: u32) -> Vec<u8> {
    wal_in_segments_of(SMALL_SEGMENT, major, SMALL_SEGMENT as usize)
}

/// So many bytes of WAL from [`WAL_START`], as a server of this version writes it.
///
/// # Panics
/// For versions whose page magic is not known.
#[must_use]
pub fn honest_wal(major: u32, length: usize) -> Vec<u8> {
    wal_in_segments_of(SEGMENT, major, length)
}

fn wal_in_segments_of(size: u32, major: u32, length: usize) -> Vec<u8> {
    let magic = pgstrata_protocol::ServerVersion(major * 10_000).wal_magic().expect("a known version");
    let mut log = Vec::new();
    log.extend(magic.to_le_bytes());
    // A long header, and no more flags.
    log.extend(2_u16.to_le_bytes());
    log.extend(1_u32.to_le_bytes());
    log.extend(WAL_START.to_le_bytes());
    log.extend([0; 8]);
    log.extend(SYSTEM.to_le_bytes());
    log.extend(size.to_le_bytes());
    log.extend(PAGE.to_le_bytes());
    assert_eq!(log.len(), RECORD);
    let body = vec![0x5a; END - RECORD - 24];
    log.extend(record(WAL_START - 64, 10, 0, &body));
    log.extend(record(WAL_START + RECORD as u64, 0, 0x40, &[]));
    log.resize(length, 0);
    log
}

fn record(previous: u64, manager: u8, info: u8, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend(u32::try_from(body.len() + 24).expect("a short record").to_le_bytes());
    record.extend(7_u32.to_le_bytes());
    record.extend(previous.to_le_bytes());
    record.extend([info, manager, 0, 0]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
    record.extend(checksum.to_le_bytes());
    record.extend(body);
    record
}
