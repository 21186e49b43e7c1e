//! Writes an object frame by frame through the store.

use super::codec::{FrameCompression, FrameEncoder};
use super::container::{Built, ContainerBuilder, FRAMES_MAX, FrameKind, ObjectKind, PLAIN_MAX};
use super::error::RepositoryError;
use super::place::Repository;
use super::sealing::Sealing;
use super::store::{NewObject, Store};
use crate::failure::Failure;

/// What frames of records are compressed with.
const COMPRESSION: FrameCompression = FrameCompression::Zstd(3);

/// An object under way.
pub(super) struct ObjectWriter {
    object: Box<dyn NewObject>,
    name: String,
    builder: ContainerBuilder,
    encoder: FrameEncoder,
}

impl ObjectWriter {
    /// Begins an object of a repository. It is sealed under its name, so the name is given now.
    pub(super) fn begin(repository: &Repository, kind: ObjectKind, name: &str) -> Result<Self, Failure> {
        Self::begin_with(&**repository.store(), kind, name, repository.sealing())
    }

    /// Begins an object that is sealed so.
    pub(super) fn begin_with(
        store: &dyn Store,
        kind: ObjectKind,
        name: &str,
        sealing: &Sealing,
    ) -> Result<Self, Failure> {
        let builder = ContainerBuilder::new(kind, name, sealing)?;
        let mut object = store.create(name)?;
        object.write(builder.prologue())?;
        let encoder = FrameEncoder::new(COMPRESSION).map_err(|error| Failure::Target(error.to_string()))?;
        Ok(Self { object, name: name.to_owned(), builder, encoder })
    }

    /// Has frames compressed in another way than records are.
    pub(super) fn compress_with(&mut self, compression: FrameCompression) -> Result<(), Failure> {
        self.encoder = FrameEncoder::new(compression).map_err(|error| Failure::Target(error.to_string()))?;
        Ok(())
    }

    /// Appends a frame; one of no bytes is left out.
    pub(super) fn frame(&mut self, kind: FrameKind, plain: &[u8]) -> Result<(), Failure> {
        if plain.is_empty() {
            return Ok(());
        }
        // The backup is refused rather than half kept.
        if plain.len() > PLAIN_MAX || self.builder.frames() >= FRAMES_MAX {
            let what =
                format!("{} bytes in frame {} are more than it can hold", plain.len(), self.builder.frames());
            return Err(RepositoryError::new(&self.name, what, "tell the makers of pgstrata.").into());
        }
        let hash = *blake3::hash(plain).as_bytes();
        let framed = self.builder.frame(&mut self.encoder, kind, plain, hash);
        let (_, stored) = framed.map_err(|error| Failure::Target(format!("could not compress: {error}")))?;
        self.object.write(stored)
    }

    /// Ends it and publishes it; `None` where the name is taken.
    pub(super) fn publish(self) -> Result<Option<Built>, Failure> {
        let Self { mut object, builder, .. } = self;
        let (end, built) = builder.finish();
        object.write(&end)?;
        Ok(object.publish()?.then_some(built))
    }
}
