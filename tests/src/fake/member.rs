//! Members of a fake archive: a tar header and what follows it.

use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// A member of a tar archive, honest or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The 512 bytes of the header.
    pub header: Vec<u8>,
    /// The content, without padding.
    pub content: Vec<u8>,
}

impl Member {
    /// A regular file with mode 0600.
    #[must_use]
    pub fn file(path: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        let size = u64::try_from(content.len()).expect("a length");
        Self { header: header(path.as_ref(), EntryType::Regular, b"", size, 0o600), content }
    }

    /// A directory with mode 0700.
    #[must_use]
    pub fn directory(path: impl AsRef<[u8]>) -> Self {
        Self { header: header(path.as_ref(), EntryType::Directory, b"", 0, 0o700), content: Vec::new() }
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            header: header(path.as_ref(), EntryType::Symlink, target.as_ref(), 0, 0o777),
            content: Vec::new(),
        }
    }

    /// A member of any other type, such as a hard link, a device or a pax record.
    #[must_use]
    pub fn of_type(
        kind: EntryType,
        path: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
        content: &[u8],
    ) -> Self {
        let size = u64::try_from(content.len()).expect("a length");
        Self { header: header(path.as_ref(), kind, target.as_ref(), size, 0o600), content: content.to_vec() }
    }

    /// Lets the header name another size than the content has.
    #[must_use]
    pub fn claiming(mut self, size: u64) -> Self {
        let mut changed = Header::from_byte_slice(&self.header).clone();
        changed.set_size(size);
        changed.set_cksum();
        self.header = changed.as_bytes().to_vec();
        self
    }

    /// Changes the header's bytes at will; the checksum is set afterwards.
    #[must_use]
    pub fn with_header(mut self, change: impl FnOnce(&mut [u8])) -> Self {
        change(&mut self.header);
        let mut changed = Header::from_byte_slice(&self.header).clone();
        changed.set_cksum();
        self.header = changed.as_bytes().to_vec();
        self
    }

    /// Changes the header's bytes at will and leaves the checksum wrong, if that makes it so.
    #[must_use]
    pub fn with_raw_header(mut self, change: impl FnOnce(&mut [u8])) -> Self {
        change(&mut self.header);
        self
    }

    /// Its name, as far as it is text.
    #[must_use]
    pub fn path(&self) -> String {
        String::from_utf8_lossy(&Header::from_byte_slice(&self.header).path_bytes()).into_owned()
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        Header::from_byte_slice(&self.header).entry_type().is_file()
    }

    /// The zeros that fill its last block.
    #[must_use]
    pub fn padding(&self) -> Vec<u8> {
        vec![0; self.content.len().next_multiple_of(BLOCK) - self.content.len()]
    }
}

/// A header as `tarCreateHeader` of src/port/tar.c writes it. Names go in as they are, absolute ones too.
fn header(path: &[u8], kind: EntryType, target: &[u8], size: u64, mode: u32) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(1_700_000_000);
    let old = header.as_old_mut();
    assert!(
        path.len() <= old.name.len() && target.len() <= old.linkname.len(),
        "too long for a plain header"
    );
    old.name[..path.len()].copy_from_slice(path);
    old.linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    header.as_bytes().to_vec()
}
