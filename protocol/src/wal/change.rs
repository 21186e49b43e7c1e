//! What records do to relation files beside what their block references tell, in the formats of 13 to 18.
//!
//! Invariant: a record that may change relation files in a way that is not understood is an error, never [`Change::None`]:
//! whoever tracks changes must not miss one. What only touches the blocks that it names is understood by these.

use super::checker::WalError;
use super::content::{Contents, Record, Relation, WalVersion};
use super::manager::Manager;
use super::page::ByteOrder;
use crate::TimelineId;

/// `wal_level = minimal` as records say it (`WalLevel`, `access/xlog.h`).
const MINIMAL: u32 = 0;

/// What a record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Nothing but the blocks that it names.
    None,
    /// A fork's file is made.
    ForkCreated {
        /// Whose.
        relation: Relation,
        /// Which (`ForkNumber`).
        fork: u8,
    },
    /// Forks are cut.
    Truncated {
        /// Whose.
        relation: Relation,
        /// The blocks that are left of the main fork.
        blocks: u32,
        /// Whether the main fork is cut.
        main: bool,
        /// Whether the visibility map is cut to what `blocks` need.
        visibility: bool,
        /// Whether the free space map is.
        free_space: bool,
    },
    /// A transaction ended, and files of relations go with that.
    RelationsDropped(Relations<'a>),
    /// The folder of a database in a tablespace is made.
    DatabaseCreated {
        /// The database.
        database: u32,
        /// The tablespace.
        tablespace: u32,
        /// The database and the tablespace whose files are copied without a word in the log; `None` where each block is
        /// logged (15 and newer).
        copied_from: Option<(u32, u32)>,
    },
    /// Folders of a database are removed.
    DatabaseDropped {
        /// The database.
        database: u32,
        /// The tablespaces.
        tablespaces: Oids<'a>,
    },
    /// A relation map (`pg_filenode.map`) is written anew.
    RelationMap {
        /// The database; 0 for the shared map.
        database: u32,
        /// The tablespace of its folder.
        tablespace: u32,
    },
    /// A tablespace is made.
    TablespaceCreated {
        /// Its number.
        tablespace: u32,
        /// Where it is.
        location: &'a [u8],
    },
    /// A tablespace is removed.
    TablespaceDropped {
        /// Its number.
        tablespace: u32,
    },
    /// Recovery may begin here, or ended here, or parameters changed: what the record says of the log that follows.
    Level {
        /// Whether less is logged than tracking needs (`wal_level = minimal`); `None` where the record does not say.
        minimal: Option<bool>,
        /// Whether recovery may begin at the record: a checkpoint after a shutdown, a redo point.
        redo_point: bool,
        /// The timeline that begins, and the one that it left; of a checkpoint they are the same but for that case.
        timelines: Option<(TimelineId, TimelineId)>,
    },
}

/// Relations in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relations<'a> {
    bytes: &'a [[u8; 12]],
    order: ByteOrder,
}

impl Relations<'_> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Relation> + '_ {
        self.bytes.iter().map(|field| Relation::read(field, self.order))
    }
}

/// Numbers of objects in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a> {
    bytes: &'a [[u8; 4]],
    order: ByteOrder,
}

impl Oids<'_> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bytes.iter().map(|field| self.order.u32(field, 0))
    }
}

/// Reads main data.
struct Main<'a, 'r> {
    record: &'r Record<'a>,
    left: &'a [u8],
}

impl<'a> Main<'a, '_> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], WalError> {
        let short = || self.record.wrong("main data that ends before", &self.left.len(), &length);
        let (now, later) = self.left.split_at_checked(length).ok_or_else(short)?;
        self.left = later;
        Ok(now)
    }

    fn u32(&mut self) -> Result<u32, WalError> {
        self.take(4).map(|field| self.record.order().u32(field, 0))
    }

    fn relation(&mut self) -> Result<Relation, WalError> {
        let mut field = [0; 12];
        field.copy_from_slice(self.take(12)?);
        Ok(Relation::read(&field, self.record.order()))
    }

    /// As many entries of `N` bytes as the number before them says.
    fn list<const N: usize>(&mut self) -> Result<&'a [[u8; N]], WalError> {
        let count = self.u32()? as usize;
        let length = count.saturating_mul(N);
        Ok(self.take(length)?.as_chunks().0)
    }
}

impl<'a> Record<'a> {
    /// What it changes beside the blocks that it names.
    ///
    /// # Errors
    /// [`WalError`] where that is not understood, and where the main data that says it is not all here.
    pub fn change(&self, contents: &Contents<'a>) -> Result<Change<'a>, WalError> {
        let version = self.known_version()?;
        let manager = self.manager();
        let change = match manager {
            Manager::LOG => self.log_change(contents, version)?,
            Manager::TRANSACTION => self.transaction_change(contents)?,
            Manager::STORAGE => self.storage_change(contents)?,
            Manager::DATABASE => self.database_change(contents, version)?,
            Manager::TABLESPACE => self.tablespace_change(contents)?,
            Manager::RELATION_MAP => self.map_change(contents)?,
            _ if manager.is_builtin() || manager.is_custom() && version >= WalVersion::V15 => Change::None,
            _ => return Err(self.wrong("resource manager", &manager.0, &"a known one")),
        };
        if change == Change::None && self.is_special_update() && manager != Manager::TRANSACTION {
            return Err(self.unknown());
        }
        Ok(change)
    }

    fn unknown(&self) -> WalError {
        let found = format!("{} {:#04x}", self.manager(), self.kind());
        self.wrong("type", &found, &"one whose changes are known")
    }

    fn main<'r>(&'r self, contents: &Contents<'a>) -> Result<Main<'a, 'r>, WalError> {
        let cut = || {
            let found = format!("{} bytes", contents.main_length);
            self.wrong("more main data than can be kept:", &found, &"less")
        };
        Ok(Main { record: self, left: contents.main_data.ok_or_else(cut)? })
    }

    /// `XLOG_…`, `catalog/pg_control.h`.
    fn log_change(&self, contents: &Contents<'a>, version: WalVersion) -> Result<Change<'a>, WalError> {
        let newer = version >= WalVersion::V17;
        match self.kind() {
            // CheckPoint: redo, the timeline and the one before, full_page_writes and padding, from 17 wal_level.
            0x00 | 0x10 => {
                let mut main = self.main(contents)?;
                main.take(8)?;
                let timelines = Some((TimelineId(main.u32()?), TimelineId(main.u32()?)));
                main.take(4)?;
                let minimal = if newer { Some(main.u32()? == MINIMAL) } else { None };
                Ok(Change::Level { minimal, redo_point: self.kind() == 0x00, timelines })
            }
            // xl_parameter_change: five other numbers, wal_level.
            0x60 => {
                let mut main = self.main(contents)?;
                main.take(20)?;
                let minimal = Some(main.u32()? == MINIMAL);
                Ok(Change::Level { minimal, redo_point: false, timelines: None })
            }
            // xl_end_of_recovery: time, the timeline and the one before, from 17 wal_level.
            0x90 => {
                let mut main = self.main(contents)?;
                main.take(8)?;
                let timelines = Some((TimelineId(main.u32()?), TimelineId(main.u32()?)));
                let minimal = if newer && main.left.len() >= 4 { Some(main.u32()? == MINIMAL) } else { None };
                Ok(Change::Level { minimal, redo_point: false, timelines })
            }
            // XLOG_CHECKPOINT_REDO: wal_level.
            0xE0 if newer => {
                let minimal = Some(self.main(contents)?.u32()? == MINIMAL);
                Ok(Change::Level { minimal, redo_point: true, timelines: None })
            }
            // No-op, next OID, switch, backup end, restore point, full_page_writes, images, an overwritten record.
            0x20 | 0x30 | 0x40 | 0x50 | 0x70 | 0x80 | 0xA0 | 0xB0 | 0xD0 => Ok(Change::None),
            _ => Err(self.unknown()),
        }
    }

    /// `xl_xact_commit` and `xl_xact_abort`, `access/xact.h`.
    fn transaction_change(&self, contents: &Contents<'a>) -> Result<Change<'a>, WalError> {
        /// `XLOG_XACT_HAS_INFO`, and the parts before the relations: `XACT_XINFO_HAS_…`.
        const HAS_INFO: u8 = 0x80;
        const HAS_DATABASE: u32 = 1;
        const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
        const HAS_RELATIONS: u32 = 1 << 2;
        match self.kind() & !HAS_INFO {
            // Commit, abort, and both of what was prepared.
            0x00 | 0x20 | 0x30 | 0x40 => {}
            // Prepare, assignment, invalidations.
            0x10 | 0x50 | 0x60 => return Ok(Change::None),
            _ => return Err(self.unknown()),
        }
        if self.kind() & HAS_INFO == 0 {
            return if self.is_special_update() { Err(self.unknown()) } else { Ok(Change::None) };
        }
        let mut main = self.main(contents)?;
        main.take(8)?;
        let parts = main.u32()?;
        if parts & HAS_RELATIONS == 0 {
            return if self.is_special_update() { Err(self.unknown()) } else { Ok(Change::None) };
        }
        if parts & HAS_DATABASE != 0 {
            main.take(8)?;
        }
        if parts & HAS_SUBTRANSACTIONS != 0 {
            main.list::<4>()?;
        }
        let bytes = main.list()?;
        Ok(Change::RelationsDropped(Relations { bytes, order: self.order() }))
    }

    /// `xl_smgr_create` and `xl_smgr_truncate`, `catalog/storage_xlog.h`.
    fn storage_change(&self, contents: &Contents<'a>) -> Result<Change<'a>, WalError> {
        const KNOWN_FLAGS: u32 = 7;
        let mut main = self.main(contents)?;
        match self.kind() {
            0x10 => {
                let relation = main.relation()?;
                let fork = main.u32()?;
                match u8::try_from(fork) {
                    Ok(fork @ 0..=3) => Ok(Change::ForkCreated { relation, fork }),
                    _ => Err(self.wrong("fork", &fork, &"0 to 3")),
                }
            }
            0x20 => {
                let blocks = main.u32()?;
                let relation = main.relation()?;
                let flags = main.u32()?;
                if flags & !KNOWN_FLAGS != 0 {
                    return Err(self.wrong("flags of a truncation", &format!("{flags:#x}"), &"0 to 7"));
                }
                let [main, visibility, free_space] = [1, 2, 4].map(|flag| flags & flag != 0);
                Ok(Change::Truncated { relation, blocks, main, visibility, free_space })
            }
            _ => Err(self.unknown()),
        }
    }

    /// `xl_dbase_…`, `commands/dbcommands_xlog.h`. 15 brought a second way to create, and moved the number of drop.
    fn database_change(&self, contents: &Contents<'a>, version: WalVersion) -> Result<Change<'a>, WalError> {
        let logs_blocks = version >= WalVersion::V15;
        let drop = if logs_blocks { 0x20 } else { 0x10 };
        let mut main = self.main(contents)?;
        match self.kind() {
            0x00 => {
                let [database, tablespace] = [main.u32()?, main.u32()?];
                let copied_from = Some((main.u32()?, main.u32()?));
                Ok(Change::DatabaseCreated { database, tablespace, copied_from })
            }
            0x10 if logs_blocks => {
                let [database, tablespace] = [main.u32()?, main.u32()?];
                Ok(Change::DatabaseCreated { database, tablespace, copied_from: None })
            }
            kind if kind == drop => {
                let database = main.u32()?;
                let tablespaces = Oids { bytes: main.list()?, order: self.order() };
                Ok(Change::DatabaseDropped { database, tablespaces })
            }
            _ => Err(self.unknown()),
        }
    }

    /// `xl_tblspc_…`, `commands/tablespace.h`.
    fn tablespace_change(&self, contents: &Contents<'a>) -> Result<Change<'a>, WalError> {
        let mut main = self.main(contents)?;
        let tablespace = main.u32()?;
        match self.kind() {
            0x00 => {
                let end = main.left.iter().position(|byte| *byte == 0).unwrap_or(main.left.len());
                Ok(Change::TablespaceCreated { tablespace, location: &main.left[..end] })
            }
            0x10 => Ok(Change::TablespaceDropped { tablespace }),
            _ => Err(self.unknown()),
        }
    }

    /// `xl_relmap_update`, `utils/relmapper.h`.
    fn map_change(&self, contents: &Contents<'a>) -> Result<Change<'a>, WalError> {
        if self.kind() != 0x00 {
            return Err(self.unknown());
        }
        let mut main = self.main(contents)?;
        let [database, tablespace] = [main.u32()?, main.u32()?];
        Ok(Change::RelationMap { database, tablespace })
    }
}
