//! The repository: backups as whole, immutable objects, on a local file system or in an object store.
//!
//! docs/repository-format.md has the bytes. From the bottom up: `container` is the frame of every object and `codec` its
//! frames, `records` what manifests list, all of these without I/O; `store` is the seam to a place, `local` and
//! `remote` are places, which `address` names; `manifest` and `place` put them together; `writing` is a backup under way.
//!
//! Invariants: nothing is rewritten or appended to; a backup exists from the moment its manifest is published by
//! create-if-absent, after every pack it refers to is durable; bytes that are read are compared with their hashes.

mod address;
mod base_backup;
mod catalogue;
mod check;
mod cipher;
mod codec;
mod container;
mod error;
mod frame_cache;
mod frame_index;
mod frame_reader;
mod frame_sort;
mod head;
mod hex;
mod identity;
mod key_change;
mod key_slots;
mod known_frames;
mod local;
mod manifest;
mod names;
mod object_reader;
mod object_writer;
mod open_packs;
mod owners;
mod pack_ledger;
mod paths;
mod place;
mod read_ahead;
mod records;
mod remote;
mod retention;
mod reuse;
mod sealing;
mod secret;
mod store;
mod summary;
mod tree;
mod wal_changes;
mod wal_check;
mod wal_history;
mod wal_names;
mod wal_object;
mod writing;

pub use address::open_store;
pub(crate) use base_backup::{BaseBackup, BaseFiles};
pub use catalogue::Placed;
pub use check::{CheckConfig, CheckReport, check};
pub use codec::{FrameCompression, FrameDecoder, FrameEncoder};
pub use container::{
    Built, Codec, ContainerBuilder, FRAMES_MAX, Frame, FrameKind, Hash, ObjectKind, PACK_FRAMES_MAX,
    PLAIN_MAX, RepositoryId,
};
pub use error::RepositoryError;
pub(crate) use frame_reader::{FrameAccess, FrameReader};
pub use head::{Head, KeySource, list_heads};
pub use key_change::{Added, Changed, add_recipient, remove_recipient, rotate};
pub use local::LocalStore;
pub use manifest::Manifest;
pub use names::{BackupId, ClusterName, InvalidName, PackId};
pub use object_reader::ObjectReader;
pub use open_packs::OpenPacks;
pub use owners::OwnerTable;
pub use pack_ledger::PackLedger;
pub(crate) use paths::{PathShare, shares};
pub(crate) use place::now;
pub use place::{BackupChoice, Repository};
pub use records::{BLOCK, BadRecord, EXTENTS_MAX, Extent, FileRecord, FolderRecord, PackRecord};
pub use remote::RemoteStore;
pub use retention::{
    ExpireConfig, ExpireReport, Expired, ExpiredWal, KeptBackup, Lease, LeaseHolder, LeaseSummary, Pin,
    PinSummary, Purpose, Reason, RemovedBackup, RetentionRules, Standing, expire, pin, pins, unpin,
};
pub use reuse::{Reuse, ReuseConfig, ReuseFrom, ReuseReader};
pub use sealing::Sealing;
pub use secret::Secret;
pub use store::{Entry, NewObject, Object, PackPlace, Requests, Store, Upload, Uploads};
pub use summary::{
    Argon2Cost, BackupSummary, DatabaseSummary, HeadSummary, IdentitySummary, KeySlot, OwnerSummary,
    TablespaceSummary, WrappedKey,
};
pub use tree::Tree;
pub(crate) use tree::tablespace_of;
pub use wal_changes::{ChangesName, ChangesObjectSummary, RecordHead, RecordTail};
pub use wal_names::{InvalidWalName, SegmentName, WalName};
pub use wal_object::{WalObject, WalSummary};
pub(crate) use wal_object::{WalObjectWriter, WalOwner, WalPublished};
pub(crate) use writing::{BackupFacts, RepositoryWriting};
pub use writing::{PACK_SIZE, RepositoryDestination, StoredBackup};

use crate::failure::Failure;

/// Bytes that nobody can foresee.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::Target("the system has no random numbers".into()))?;
    Ok(bytes)
}
