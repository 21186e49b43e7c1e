//! The header that begins each record of WAL (`XLogRecord`), and the checksum over the whole record.

use super::page::ByteOrder;
use crate::Lsn;

/// The bytes of a header (`SizeOfXLogRecord`).
pub(super) const RECORD_HEADER: usize = 24;
/// Records begin at multiples of this (`MAXALIGN`).
pub(super) const ALIGNMENT: u64 = 8;
/// No record is as long as this (`MaxAllocSize`; 16 and newer stop a little earlier, at `XLogRecordMaxSize`).
pub(super) const TOO_LONG: u32 = 1 << 30;

/// Where the checksum stands in the header: it covers what lies before it there, after the record's body.
const CHECKSUM_AT: usize = 20;
/// The resource manager of the log itself (`RM_XLOG_ID`), and its record that ends a segment early (`XLOG_SWITCH`).
const LOG_MANAGER: u8 = 0;
const SWITCH: u8 = 0x40;

/// A record of which a part is here.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    /// Its first byte.
    pub(super) start: Lsn,
    header: [u8; RECORD_HEADER],
    /// How many of its bytes are here.
    have: u32,
    /// Of its body as far as it is here.
    checksum: u32,
}

impl Partial {
    pub(super) fn begin(start: Lsn) -> Self {
        Self { start, header: [0; RECORD_HEADER], have: 0, checksum: 0 }
    }

    /// Takes as much of `bytes` as belongs to the record's header. Returns how many those are.
    pub(super) fn take_header(&mut self, bytes: &[u8]) -> usize {
        let have = (self.have as usize).min(RECORD_HEADER);
        let taken = bytes.len().min(RECORD_HEADER - have);
        self.header[have..have + taken].copy_from_slice(&bytes[..taken]);
        self.have += u32::try_from(taken).unwrap_or_default();
        taken
    }

    /// Takes as much of `bytes` as belongs to the record's body. Returns how many those are.
    pub(super) fn take_body(&mut self, bytes: &[u8], order: ByteOrder) -> usize {
        let left = self.left(order).unwrap_or_default() as usize;
        let taken = bytes.len().min(left);
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes[..taken]);
        self.have += u32::try_from(taken).unwrap_or_default();
        taken
    }

    pub(super) fn has_header(&self) -> bool {
        self.have as usize >= RECORD_HEADER
    }

    /// The length that the header states, once that much of it is here. Alignment puts it on one page.
    pub(super) fn length(&self, order: ByteOrder) -> Option<u32> {
        (self.have >= 4).then(|| order.u32(&self.header, 0))
    }

    /// How many bytes are to come.
    pub(super) fn left(&self, order: ByteOrder) -> Option<u32> {
        self.length(order).map(|length| length.saturating_sub(self.have))
    }

    /// Where the header says that the record before this one begins.
    pub(super) fn previous(&self, order: ByteOrder) -> Lsn {
        Lsn(order.u64(&self.header, 8))
    }

    /// The checksum that the header states, and the one of what is here.
    pub(super) fn checksums(&self, order: ByteOrder) -> (u32, u32) {
        checksums(&self.header, self.checksum, order)
    }

    /// How many of its bytes are here.
    pub(super) fn have(&self) -> u32 {
        self.have
    }

    /// Whether the rest of the segment behind this record is unused.
    pub(super) fn ends_segment(&self) -> bool {
        is_switch(&self.header)
    }
}

/// The checksum that a header states, and the one of a record with this header and a body of that checksum.
pub(super) fn checksums(header: &[u8; RECORD_HEADER], body: u32, order: ByteOrder) -> (u32, u32) {
    (order.u32(header, CHECKSUM_AT), crc32c::crc32c_append(body, &header[..CHECKSUM_AT]))
}

/// Whether a header is that of a record that leaves the rest of its segment unused. It has no body.
pub(super) fn is_switch(header: &[u8; RECORD_HEADER]) -> bool {
    let [info, manager] = [header[16], header[17]];
    manager == LOG_MANAGER && info & 0xF0 == SWITCH
}
