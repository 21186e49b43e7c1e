//! Writes an object frame by frame through the store.

use super::codec::{FrameCompression, FrameEncoder};
use super::container::{Built, ContainerBuilder, FRAMES_MAX, FrameKind, ObjectKind, PLAIN_MAX, RepositoryId};
use super::error::RepositoryError;
use super::store::{NewObject, Store};
use crate::failure::Failure;

/// What frames of records are compressed with.
const COMPRESSION: FrameCompression = FrameCompression::Zstd(3);

/// An object under way.
pub(super) struct ObjectWriter {
    object: Box<dyn NewObject>,
    builder: ContainerBuilder,
    encoder: FrameEncoder,
}

impl ObjectWriter {
    pub(super) fn begin(store: &dyn Store, kind: ObjectKind, id: &RepositoryId) -> Result<Self, Failure> {
        let builder = ContainerBuilder::new(kind, id);
        let mut object = store.create()?;
        object.write(builder.prologue())?;
        let encoder = FrameEncoder::new(COMPRESSION).map_err(|error| Failure::Target(error.to_string()))?;
        Ok(Self { object, builder, encoder })
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
            return Err(RepositoryError::new("manifest", what, "tell the makers of pgstrata.").into());
        }
        let hash = *blake3::hash(plain).as_bytes();
        let encoded = self.encoder.encode(plain);
        let (codec, stored) =
            encoded.map_err(|error| Failure::Target(format!("could not compress: {error}")))?;
        self.builder.push(kind, codec, plain.len(), stored.len(), hash);
        self.object.write(stored)
    }

    /// Ends it and publishes it; `None` where the name is taken.
    pub(super) fn publish(self, name: &str) -> Result<Option<Built>, Failure> {
        let Self { mut object, builder, .. } = self;
        let (end, built) = builder.finish();
        object.write(&end)?;
        Ok(object.publish(name)?.then_some(built))
    }
}
