//! Reads an object: its footer first, then any of its frames.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::cipher::ObjectCipher;
use super::codec::FrameDecoder;
use super::container::{
    Frame, FrameKind, Hash, ObjectKind, PROLOGUE, Prologue, RepositoryId, TRAILER, Trailer, decode_footer,
};
use super::error::RepositoryError;
use super::place::Repository;
use super::sealing::Sealing;
use super::store::{Object, Store};
use crate::failure::Failure;
use crate::ring::{DiskFile, IoMode};

/// An open object whose footer is known to be whole.
pub struct ObjectReader {
    object: Box<dyn Object>,
    name: String,
    cipher: Option<ObjectCipher>,
    frames: Vec<Frame>,
    repository: RepositoryId,
    checksum: Hash,
    disk_file: OnceLock<Option<Arc<DiskFile>>>,
}

impl ObjectReader {
    /// Opens an object of a repository and checks its ends. `None` where there is none of that name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(repository: &Repository, name: &str, kind: ObjectKind) -> Result<Option<Self>, Failure> {
        Self::open_with(&**repository.store(), name, kind, Some(repository.sealing()))
    }

    /// Opens an object that is sealed so; without a sealing, of whatever repository, if it is not encrypted.
    pub(super) fn open_with(
        store: &dyn Store,
        name: &str,
        kind: ObjectKind,
        sealing: Option<&Sealing>,
    ) -> Result<Option<Self>, Failure> {
        let Some(object) = store.open(name)? else { return Ok(None) };
        let length = object.length();
        let enough = |least: usize| {
            if length >= least as u64 {
                return Ok(());
            }
            let what = format!("found {length} bytes, expected at least {least}");
            Err(RepositoryError::damaged(name, what))
        };
        enough(PROLOGUE + TRAILER)?;
        let mut first = [0; PROLOGUE];
        object.read(0, &mut first)?;
        let repository = sealing.map(Sealing::repository);
        let mut prologue = Prologue::decode(&first, kind, repository.as_ref(), name)?;
        enough(prologue.bytes().len() + TRAILER)?;
        if prologue.key().is_some() {
            object.read(PROLOGUE as u64, prologue.rest())?;
        }
        let repository = prologue.repository();
        let sealing = sealing.cloned().unwrap_or_else(|| Sealing::none(repository));
        let cipher = sealing.cipher(prologue.key(), prologue.bytes(), name)?;
        let mut trailer = [0; TRAILER];
        object.read(length - TRAILER as u64, &mut trailer)?;
        let trailer = Trailer::decode(&trailer, length, kind, &prologue, name)?;
        // Its length was just compared with the object's own.
        let mut footer = vec![0; trailer.footer_length()];
        object.read(trailer.footer, &mut footer)?;
        let frames = decode_footer(&prologue, cipher.as_ref(), &mut footer, &trailer, name)?;
        let (name, checksum) = (name.to_owned(), trailer.checksum);
        let disk_file = OnceLock::new();
        Ok(Some(Self { object, name, cipher, frames, repository, checksum, disk_file }))
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its frames.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The numbers of its frames of a kind.
    pub fn of_kind(&self, kind: FrameKind) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.frames).filter(move |(_, frame)| frame.kind == kind).map(|(number, _)| number)
    }

    /// Whose it is.
    #[must_use]
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// Bytes of the object.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.object.length()
    }

    /// The checksum in its trailer.
    #[must_use]
    pub fn checksum(&self) -> Hash {
        self.checksum
    }

    /// Reads a frame's stored bytes into `stored`, opens and unpacks them.
    ///
    /// # Errors
    /// Where there is no such frame, or it is damaged.
    pub fn frame<'d>(
        &self,
        number: u32,
        stored: &mut Vec<u8>,
        decoder: &'d mut FrameDecoder,
    ) -> Result<&'d [u8], Failure> {
        let frame = *self.entry(number)?;
        self.read_stored(&frame, stored)?;
        let packed = self.open_frame(number, &frame, stored)?;
        Ok(decoder.decode(&frame, packed, &self.name, number)?)
    }

    /// What the footer says of a frame.
    ///
    /// # Errors
    /// Where there is no such frame.
    pub fn entry(&self, number: u32) -> Result<&Frame, Failure> {
        self.frames.get(number as usize).ok_or_else(|| {
            let what = format!("found {} frames, expected one with number {number}", self.frames.len());
            RepositoryError::damaged(&self.name, what).into()
        })
    }

    /// Reads a frame's stored bytes.
    pub(super) fn read_stored(&self, frame: &Frame, stored: &mut Vec<u8>) -> Result<(), Failure> {
        stored.resize(frame.stored as usize, 0);
        self.object.read(frame.offset, stored)
    }

    /// Opens a frame of which the stored bytes were read, and unpacks it into bytes that are as many as it has.
    ///
    /// # Errors
    /// Where there is no such frame, or it is damaged.
    pub(super) fn unpack_into(
        &self,
        number: u32,
        stored: &mut [u8],
        decoder: &mut FrameDecoder,
        plain: &mut [u8],
    ) -> Result<(), Failure> {
        let frame = *self.entry(number)?;
        let packed = self.open_frame(number, &frame, stored)?;
        Ok(decoder.decode_into(&frame, packed, plain, &self.name, number)?)
    }

    /// The bytes that were packed, where they are those that were stored.
    fn open_frame<'s>(
        &self,
        number: u32,
        frame: &Frame,
        stored: &'s mut [u8],
    ) -> Result<&'s [u8], RepositoryError> {
        let damaged = |what: String| {
            let what = format!("frame {number} at byte {}: {what}", frame.offset);
            RepositoryError::damaged(&self.name, what)
        };
        match &self.cipher {
            None => {
                let found = crc32c::crc32c(stored);
                if found != frame.crc {
                    return Err(damaged(format!("found CRC-32C {found:08x}, expected {:08x}", frame.crc)));
                }
                Ok(stored)
            }
            Some(cipher) => cipher.open(number, &[], stored).map_err(|_| {
                damaged("it is not authentic: it was changed, or is another in its place".into())
            }),
        }
    }

    /// The object as a file that is read past the page cache, opened once; none where it is no file of this host, or
    /// cannot be opened so.
    pub(super) fn disk_file(&self, mode: IoMode) -> Option<&Arc<DiskFile>> {
        let open = || {
            let path = self.object.path()?;
            DiskFile::open_read(rustix::fs::CWD, path, mode).ok().map(Arc::new)
        };
        self.disk_file.get_or_init(open).as_ref()
    }

    /// Where it lies, if it is a file of this host.
    pub(super) fn path(&self) -> Option<&Path> {
        self.object.path()
    }
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").field("name", &self.name).finish_non_exhaustive()
    }
}
