//! Tar as PostgreSQL writes it in base backups: ustar headers, base-256 for large sizes, no extensions.
//!
//! [`TarDecoder`] turns archive bytes into members without copying file content. [`MemberHeader`] builds the header
//! blocks that `tarCreateHeader` of `src/port/tar.c` would build. What lies outside this dialect (pax records, GNU long
//! names, hard links, devices) is refused by name rather than guessed at: an archive that means different things to
//! different readers is how a backup gets written outside of its folder.

mod decoder;
mod error;
mod header;
mod member;
mod number;
mod path;
#[cfg(test)]
mod tests;

pub use decoder::{TarDecoder, TarEvent};
pub use error::TarError;
pub use header::{END_OF_ARCHIVE, MemberHeader, NameTooLong, padding_for, with_size};
pub use member::{MemberKind, TarMember};
pub use path::{MemberPath, PathError};

/// The unit of tar: headers are one block, content is padded to whole blocks (`TAR_BLOCK_SIZE`, `pgtar.h`).
pub const BLOCK_SIZE: usize = 512;
