//! Reads an object: its footer first, then any of its frames.

use super::codec::FrameDecoder;
use super::container::{
    Frame, FrameKind, Hash, ObjectKind, PROLOGUE, RepositoryId, TRAILER, Trailer, check_prologue,
    decode_footer,
};
use super::error::RepositoryError;
use super::store::{Object, Store};
use crate::failure::Failure;

/// An open object whose footer is known to be whole.
pub struct ObjectReader {
    object: Box<dyn Object>,
    name: String,
    frames: Vec<Frame>,
    repository: RepositoryId,
    checksum: Hash,
}

impl ObjectReader {
    /// Opens an object and checks its ends. `None` where there is none of that name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(
        store: &dyn Store,
        name: &str,
        kind: ObjectKind,
        repository: Option<&RepositoryId>,
    ) -> Result<Option<Self>, Failure> {
        let Some(object) = store.open(name)? else { return Ok(None) };
        let length = object.length();
        let least = (PROLOGUE + TRAILER) as u64;
        if length < least {
            let what = format!("found {length} bytes, expected at least {least}");
            return Err(RepositoryError::damaged(name, what).into());
        }
        let mut prologue = [0; PROLOGUE];
        object.read(0, &mut prologue)?;
        let repository = check_prologue(&prologue, kind, repository, name)?;
        let mut trailer = [0; TRAILER];
        object.read(length - TRAILER as u64, &mut trailer)?;
        let trailer = Trailer::decode(&trailer, length, kind, name)?;
        // Its length was just compared with the object's own.
        let mut footer = vec![0; trailer.footer_length()];
        object.read(trailer.footer, &mut footer)?;
        let frames = decode_footer(&prologue, &footer, &trailer, name)?;
        Ok(Some(Self { object, name: name.to_owned(), frames, repository, checksum: trailer.checksum }))
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

    /// Reads a frame's stored bytes into `stored` and unpacks them.
    ///
    /// # Errors
    /// Where there is no such frame, or it is damaged.
    pub fn frame<'d>(
        &self,
        number: u32,
        stored: &mut Vec<u8>,
        decoder: &'d mut FrameDecoder,
    ) -> Result<&'d [u8], Failure> {
        let Some(frame) = self.frames.get(number as usize) else {
            let what = format!("found {} frames, expected one with number {number}", self.frames.len());
            return Err(RepositoryError::damaged(&self.name, what).into());
        };
        stored.resize(frame.stored as usize, 0);
        self.object.read(frame.offset, stored)?;
        Ok(decoder.decode(frame, stored, &self.name, number)?)
    }
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").field("name", &self.name).finish_non_exhaustive()
    }
}
