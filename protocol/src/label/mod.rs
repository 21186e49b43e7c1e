//! The two small files that tell a server how to recover from a backup: `backup_label` and `tablespace_map`.

mod backup;
mod tablespaces;

pub use backup::{BackupLabel, BackupOrigin, LabelError};
pub use tablespaces::{MappedTablespace, TablespaceMap, TablespaceMapError};
