//! Packs that one thread has open, the last ones used; more are closed again.

use std::sync::Arc;

use super::manifest::Manifest;
use super::object_reader::ObjectReader;
use crate::failure::Failure;

/// Packs open at a time. Lanes fill packs side by side, so neighbours in the manifest lie in a few of them.
const OPEN: usize = 16;

/// The open packs of a backup.
#[derive(Debug)]
pub struct OpenPacks {
    manifest: Arc<Manifest>,
    /// The last one used stands last.
    open: Vec<(u32, ObjectReader)>,
}

impl OpenPacks {
    /// Packs of a manifest; none is open yet.
    #[must_use]
    pub fn of(manifest: &Arc<Manifest>) -> Self {
        Self { manifest: Arc::clone(manifest), open: Vec::new() }
    }

    /// A pack by its place in the manifest's table.
    ///
    /// # Errors
    /// Where it is missing, damaged or another.
    pub fn get(&mut self, index: u32) -> Result<&ObjectReader, Failure> {
        match self.open.iter().position(|(open, _)| *open == index) {
            Some(place) => {
                let found = self.open.remove(place);
                self.open.push(found);
            }
            None => {
                let opened = self.manifest.open_pack(index)?;
                if self.open.len() >= OPEN {
                    self.open.remove(0);
                }
                self.open.push((index, opened));
            }
        }
        Ok(&self.open.last().expect("it was just put there").1)
    }
}
