//! What a record says: its header, the blocks that it touches, and its main data (`access/xlogrecord.h`).
//!
//! A record is decoded where it lies, nothing of it is copied. Headers come first, payload behind them, so the blocks are
//! known of a record of which only the beginning is here.

use super::checker::{WalError, wrong_record};
use super::manager::Manager;
use super::page::ByteOrder;
use super::record::RECORD_HEADER;
use crate::page::PAGE_SIZE;
use crate::{BlockNumber, Lsn};

/// The highest number of a block within a record (`XLR_MAX_BLOCK_ID`).
const MAX_BLOCK_ID: u8 = 32;
/// Numbers that stand for other parts of a record (`XLR_BLOCK_ID_…`).
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL_TRANSACTION: u8 = 252;

/// The fork within a block's flags, and the flags (`BKPBLOCK_…`).
const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;
/// The highest number of a fork (`MAX_FORKNUM`).
const MAX_FORK: u8 = 3;

/// An image without the zeros in the middle of its page (`BKPIMAGE_HAS_HOLE`).
const HAS_HOLE: u8 = 0x01;

/// The bits of `xl_info` that are not the resource manager's (`XLR_INFO_MASK`).
const INFO_MASK: u8 = 0x0F;
/// Relation files are changed in ways that block references do not tell (`XLR_SPECIAL_REL_UPDATE`).
const SPECIAL_UPDATE: u8 = 0x01;

/// Whose format records have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalVersion {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl WalVersion {
    /// The version whose pages begin with this (`XLOG_PAGE_MAGIC`, `access/xlog_internal.h`).
    #[must_use]
    pub fn of_magic(magic: u16) -> Option<Self> {
        match magic {
            0xD106 => Some(Self::V13),
            0xD10D => Some(Self::V14),
            0xD110 => Some(Self::V15),
            0xD113 => Some(Self::V16),
            0xD116 => Some(Self::V17),
            0xD118 => Some(Self::V18),
            _ => None,
        }
    }
}

/// Takes records as they are found whole and right.
pub trait RecordSink {
    /// How many bytes of a record are kept while it comes in pieces. A longer one is handed out cut, see
    /// [`Record::is_whole`]; where it is 0, records in pieces are not handed out.
    fn keep(&self) -> usize {
        64 << 20
    }

    /// Takes a record. An error ends the stream as damage does.
    ///
    /// # Errors
    /// Where it cannot be used.
    fn record(&mut self, record: &Record<'_>) -> Result<(), WalError>;

    /// Takes a piece of the rest of the record that began before the stream. Nothing has checked it but for its length.
    fn rest(&mut self, bytes: &[u8]) {
        let _ = bytes;
    }
}

/// A record, as it lies in the log.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its first byte.
    pub start: Lsn,
    /// Where the next one may begin: behind padding, and at the next segment where it leaves the rest of its own unused.
    pub end: Lsn,
    bytes: &'a [u8],
    order: ByteOrder,
    magic: u16,
}

/// The three numbers that name a relation's files (`RelFileLocator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    /// The tablespace.
    pub tablespace: u32,
    /// The database; 0 for relations that all share.
    pub database: u32,
    /// The number of its file.
    pub number: u32,
}

/// A block that a record touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReference {
    /// Its number within the record.
    pub id: u8,
    /// Whose block it is.
    pub relation: Relation,
    /// The fork (`ForkNumber`): 0 main, 1 free space, 2 visibility, 3 init.
    pub fork: u8,
    /// The block.
    pub block: BlockNumber,
    /// The image of the page, where there is one.
    pub image: Option<BlockImage>,
    /// The bytes of payload that belong to the block, without the image.
    pub data_length: u16,
    /// Whether replay makes the page anew.
    pub will_init: bool,
}

/// The image of a page within a record (`XLogRecordBlockImageHeader`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockImage {
    /// Its bytes in the record.
    pub length: u16,
    /// The zeros that were left out: where they begin, and how many they are.
    pub hole: (u16, u16),
    /// What it is compressed with.
    pub compression: Compression,
    /// Whether replay puts it in place; else it is there for comparison.
    pub apply: bool,
}

/// What an image is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// PostgreSQL's own (`pglz`).
    Pglz,
    /// LZ4, from 15.
    Lz4,
    /// Zstandard, from 15.
    Zstd,
}

/// What is in a record beside its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents<'a> {
    /// The main data; `None` where the record is cut within or before it.
    pub main_data: Option<&'a [u8]>,
    /// Its length.
    pub main_length: u32,
    /// The replication origin.
    pub origin: Option<u16>,
    /// The transaction of which the record's own is a part.
    pub top_level_transaction: Option<u32>,
}

/// Reads the fields at the beginning of what is left.
struct Fields<'a> {
    bytes: &'a [u8],
    order: ByteOrder,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|field| field[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take::<2>().map(|field| self.order.u16(field, 0))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take::<4>().map(|field| self.order.u32(field, 0))
    }

    fn relation(&mut self) -> Option<Relation> {
        let field = self.take::<12>()?;
        Some(Relation::read(field, self.order))
    }
}

impl Relation {
    pub(super) fn read(field: &[u8; 12], order: ByteOrder) -> Self {
        Self { tablespace: order.u32(field, 0), database: order.u32(field, 4), number: order.u32(field, 8) }
    }
}

impl<'a> Record<'a> {
    /// `bytes` is the record's header at least, and no more than the record.
    pub(super) fn new(start: Lsn, end: Lsn, bytes: &'a [u8], order: ByteOrder, magic: u16) -> Self {
        debug_assert!(bytes.len() >= RECORD_HEADER);
        Self { start, end, bytes, order, magic }
    }

    /// A record that was put together of pieces, not checked; `None` where its header is not all there.
    pub(super) fn unchecked(
        start: Lsn,
        end: Lsn,
        bytes: &'a [u8],
        order: ByteOrder,
        magic: u16,
    ) -> Option<Self> {
        let length = bytes.get(..RECORD_HEADER).map(|header| order.u32(header, 0) as usize)?;
        let bytes = &bytes[..bytes.len().min(length.max(RECORD_HEADER))];
        Some(Self::new(start, end, bytes, order, magic))
    }

    /// Its bytes, or the first of them where it is cut.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether all of it is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == u64::from(self.length())
    }

    /// How many bytes it has (`xl_tot_len`).
    #[must_use]
    pub fn length(&self) -> u32 {
        self.order.u32(self.bytes, 0)
    }

    /// Its transaction (`xl_xid`).
    #[must_use]
    pub fn transaction(&self) -> u32 {
        self.order.u32(self.bytes, 4)
    }

    /// Where the record before it begins (`xl_prev`).
    #[must_use]
    pub fn previous(&self) -> Lsn {
        Lsn(self.order.u64(self.bytes, 8))
    }

    /// Who replays it (`xl_rmid`).
    #[must_use]
    pub fn manager(&self) -> Manager {
        Manager(self.bytes[17])
    }

    /// Which of its manager's records it is: the upper half of `xl_info`.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.bytes[16] & !INFO_MASK
    }

    /// Whether it changes relation files in ways that its blocks do not tell.
    #[must_use]
    pub fn is_special_update(&self) -> bool {
        self.bytes[16] & SPECIAL_UPDATE != 0
    }

    /// Whose format it has; `None` where that is not known.
    #[must_use]
    pub fn version(&self) -> Option<WalVersion> {
        WalVersion::of_magic(self.magic)
    }

    pub(super) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(super) fn wrong(
        &self,
        what: &'static str,
        found: &dyn ToString,
        expected: &dyn ToString,
    ) -> WalError {
        wrong_record(self.start, what, found, expected)
    }

    /// The version, as far as it must be known to go on.
    pub(super) fn known_version(&self) -> Result<WalVersion, WalError> {
        self.version().ok_or_else(|| {
            self.wrong("page magic", &format!("{:#06X}", self.magic), &"that of PostgreSQL 13 to 18")
        })
    }

    /// Reads it. `blocks` is emptied and gets the blocks, in their order.
    ///
    /// # Errors
    /// [`WalError`] where its parts do not add up (`DecodeXLogRecord`, `xlogreader.c`), where its version is not known, and
    /// where it is cut before the end of its headers.
    pub fn decode(&self, blocks: &mut Vec<BlockReference>) -> Result<Contents<'a>, WalError> {
        blocks.clear();
        let version = self.known_version()?;
        let cut = || self.wrong("no end of its headers in", &self.bytes.len(), &"them in its first bytes");
        let mut fields = Fields { bytes: &self.bytes[RECORD_HEADER..], order: self.order };
        let mut contents =
            Contents { main_data: None, main_length: 0, origin: None, top_level_transaction: None };
        let mut left = u64::from(self.length()).saturating_sub(RECORD_HEADER as u64);
        let mut payload = 0_u64;
        while left > payload {
            let before = fields.bytes.len();
            let id = fields.u8().ok_or_else(cut)?;
            let is_last = matches!(id, DATA_SHORT | DATA_LONG);
            match id {
                DATA_SHORT => contents.main_length = fields.u8().ok_or_else(cut)?.into(),
                DATA_LONG => contents.main_length = fields.u32().ok_or_else(cut)?,
                ORIGIN => contents.origin = Some(fields.u16().ok_or_else(cut)?),
                TOP_LEVEL_TRANSACTION if version >= WalVersion::V14 => {
                    contents.top_level_transaction = Some(fields.u32().ok_or_else(cut)?);
                }
                ..=MAX_BLOCK_ID => {
                    if let Some(last) = blocks.last().filter(|last| last.id >= id) {
                        return Err(self.wrong("block number", &id, &format!("more than {}", last.id)));
                    }
                    let same = blocks.last().map(|block| block.relation);
                    let block = self.block(id, &mut fields, same, version)?;
                    payload +=
                        u64::from(block.data_length) + u64::from(block.image.map_or(0, |image| image.length));
                    blocks.push(block);
                }
                _ => return Err(self.wrong("block number", &id, &"0 to 32 or a mark of other data")),
            }
            left = left.checked_sub((before - fields.bytes.len()) as u64).ok_or_else(cut)?;
            if is_last {
                payload += u64::from(contents.main_length);
                break;
            }
        }
        if left != payload {
            return Err(self.wrong("payload in bytes", &left, &payload));
        }
        if self.is_whole() {
            // All of it is here and adds up, so the main data is its end.
            let main = self.bytes.len().saturating_sub(contents.main_length as usize);
            contents.main_data = Some(&self.bytes[main..]);
        }
        Ok(contents)
    }

    fn block(
        &self,
        id: u8,
        fields: &mut Fields<'a>,
        same: Option<Relation>,
        version: WalVersion,
    ) -> Result<BlockReference, WalError> {
        let cut = || self.wrong("no end of its headers in", &self.bytes.len(), &"them in its first bytes");
        let flags = fields.u8().ok_or_else(cut)?;
        let data_length = fields.u16().ok_or_else(cut)?;
        if (flags & HAS_DATA != 0) != (data_length > 0) {
            return Err(self.wrong("a block's data length", &data_length, &"0 without data, more with it"));
        }
        let fork = flags & FORK_MASK;
        if fork > MAX_FORK {
            return Err(self.wrong("fork", &fork, &format!("0 to {MAX_FORK}")));
        }
        let image = if flags & HAS_IMAGE != 0 { Some(self.image(fields, version, cut)?) } else { None };
        let relation = if flags & SAME_RELATION == 0 {
            fields.relation().ok_or_else(cut)?
        } else {
            same.ok_or_else(|| self.wrong("a block of the same relation", &"none before", &"one"))?
        };
        let block = BlockNumber(fields.u32().ok_or_else(cut)?);
        Ok(BlockReference {
            id,
            relation,
            fork,
            block,
            image,
            data_length,
            will_init: flags & WILL_INIT != 0,
        })
    }

    fn image(
        &self,
        fields: &mut Fields<'a>,
        version: WalVersion,
        cut: impl Fn() -> WalError,
    ) -> Result<BlockImage, WalError> {
        let length = fields.u16().ok_or_else(&cut)?;
        let hole_start = fields.u16().ok_or_else(&cut)?;
        let flags = fields.u8().ok_or_else(&cut)?;
        // 13 and 14 know one way to compress, and have the flags in another order.
        let (apply, compression) = if version < WalVersion::V15 {
            let compression = if flags & 0x02 == 0 { Compression::None } else { Compression::Pglz };
            (flags & 0x04 != 0, Some(compression))
        } else {
            let compression = match flags & 0x1C {
                0 => Some(Compression::None),
                0x04 => Some(Compression::Pglz),
                0x08 => Some(Compression::Lz4),
                0x10 => Some(Compression::Zstd),
                _ => None,
            };
            (flags & 0x02 != 0, compression)
        };
        let compression = compression
            .ok_or_else(|| self.wrong("flags of an image", &format!("{flags:#04x}"), &"one compression"))?;
        let has_hole = flags & HAS_HOLE != 0;
        let page = u16::try_from(PAGE_SIZE).unwrap_or(u16::MAX);
        let hole_length = match compression {
            // The page is what the image and the hole make.
            Compression::None => page.checked_sub(length),
            _ if has_hole => Some(fields.u16().ok_or_else(&cut)?),
            _ => Some(0),
        };
        let hole_length = hole_length.filter(|hole| {
            let whole = length < page || compression == Compression::None;
            whole && if has_hole { hole_start > 0 && *hole > 0 } else { hole_start == 0 && *hole == 0 }
        });
        let hole_length = hole_length.ok_or_else(|| {
            let found = format!("{length} bytes, hole at {hole_start}, flags {flags:#04x}");
            self.wrong("an image of", &found, &format!("one of a page of {page} bytes"))
        })?;
        Ok(BlockImage { length, hole: (hole_start, hole_length), compression, apply })
    }
}
