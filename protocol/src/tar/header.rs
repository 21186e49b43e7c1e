//! Writes member headers, byte for byte as `tarCreateHeader` of `src/port/tar.c` does.

use ::tar::{EntryType, Header, UstarHeader};

use super::{BLOCK_SIZE, MemberPath, number};

/// What ends a tar archive: two blocks of zeros. Servers up to 14 leave it to the client.
pub const END_OF_ARCHIVE: [u8; 2 * BLOCK_SIZE] = [0; 2 * BLOCK_SIZE];

/// The longest name and the longest link target, in bytes: the field less a NUL, as `tarCreateHeader` has it.
const MAX_NAME: usize = 99;

/// A name that has no room in a header; PostgreSQL's tar has no long names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} too long for tar: \"{}\" has {} bytes, expected at most 99", name.escape_ascii(), name.len())]
pub struct NameTooLong {
    /// Which of the two names.
    pub what: &'static str,
    /// The name.
    pub name: Vec<u8>,
}

/// How many zero bytes follow content of `size` bytes.
#[must_use]
pub fn padding_for(size: u64) -> usize {
    // At most 511: the low nine bits.
    usize::from(u16::try_from(size.wrapping_neg() % BLOCK_SIZE as u64).unwrap_or(0))
}

/// A received header with another size and a fitting checksum; everything else is left as it came.
#[must_use]
pub fn with_size(received: &[u8; BLOCK_SIZE], size: u64) -> [u8; BLOCK_SIZE] {
    let mut header = Header::from_byte_slice(received).clone();
    // Size and checksum lie at the same place in every dialect of tar.
    number::write(&mut header.as_old_mut().size, size);
    seal(&mut header);
    *header.as_bytes()
}

/// A header block for an archive of our own.
#[derive(Clone)]
pub struct MemberHeader(Header);

impl MemberHeader {
    /// A regular file of `size` bytes. `mode` holds the permission bits, `mtime` seconds since 1970.
    pub fn file(path: &MemberPath, size: u64, mode: u32, mtime: u64) -> Result<Self, NameTooLong> {
        let mut header = blank(path, EntryType::Regular, mode, mtime)?;
        number::write(&mut header.as_old_mut().size, size);
        Ok(Self(sealed(header)))
    }

    /// A directory.
    pub fn directory(path: &MemberPath, mode: u32, mtime: u64) -> Result<Self, NameTooLong> {
        Ok(Self(sealed(blank(path, EntryType::Directory, mode, mtime)?)))
    }

    /// A symbolic link to a directory; PostgreSQL knows no others and marks them by a slash behind the name.
    pub fn symlink(path: &MemberPath, target: &[u8], mode: u32, mtime: u64) -> Result<Self, NameTooLong> {
        if target.len() > MAX_NAME {
            return Err(NameTooLong { what: "link target", name: target.to_vec() });
        }
        let mut header = blank(path, EntryType::Symlink, mode, mtime)?;
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        Ok(Self(sealed(header)))
    }

    /// The same header with an owner. Without, both ids are 0, as pg_basebackup's own members have it.
    #[must_use]
    pub fn owned_by(mut self, uid: u64, gid: u64) -> Self {
        number::write(&mut self.0.as_old_mut().uid, uid);
        number::write(&mut self.0.as_old_mut().gid, gid);
        seal(&mut self.0);
        self
    }

    /// The block to write.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; BLOCK_SIZE] {
        self.0.as_bytes()
    }
}

/// A header with everything but link target, size and checksum.
fn blank(path: &MemberPath, kind: EntryType, mode: u32, mtime: u64) -> Result<Header, NameTooLong> {
    let name = if path.is_root() { b"." } else { path.as_bytes() };
    if name.len() > MAX_NAME {
        return Err(NameTooLong { what: "file name", name: name.to_vec() });
    }
    // `new_ustar` sets the magic and version that PostgreSQL writes.
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    let fields = header.as_old_mut();
    fields.name[..name.len()].copy_from_slice(name);
    if !kind.is_file() {
        fields.name[name.len()] = b'/';
    }
    number::write(&mut fields.mode, u64::from(mode & 0o7777));
    number::write(&mut fields.uid, 0);
    number::write(&mut fields.gid, 0);
    number::write(&mut fields.size, 0);
    number::write(&mut fields.mtime, mtime);
    if let Some(fields) = header.as_ustar_mut() {
        fields.uname[..8].copy_from_slice(b"postgres");
        fields.gname[..8].copy_from_slice(b"postgres");
        number::write(&mut fields.dev_major, 0);
        number::write(&mut fields.dev_minor, 0);
    }
    Ok(header)
}

fn sealed(mut header: Header) -> Header {
    seal(&mut header);
    header
}

fn seal(header: &mut Header) {
    let sum = checksum(header.as_bytes());
    number::write(&mut header.as_old_mut().cksum, u64::from(sum));
}

/// Where the checksum field lies, which counts as eight spaces.
const CHECKSUM_FIELD: std::ops::Range<usize> = 148..156;
const _: () = assert!(std::mem::offset_of!(UstarHeader, cksum) == CHECKSUM_FIELD.start);
const _: () = assert!(std::mem::size_of::<UstarHeader>() == BLOCK_SIZE);

/// The sum of a header's bytes with the checksum field read as spaces.
pub(super) fn checksum(block: &[u8; BLOCK_SIZE]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(block) - sum(&block[CHECKSUM_FIELD]) + 8 * u32::from(b' ')
}
