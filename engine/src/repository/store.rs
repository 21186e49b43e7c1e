//! Where objects are kept: whole, immutable, published by create-if-absent.
//!
//! The seam between the repository and a place. A local file system is one place; what an object store can do as well
//! is all that is asked here.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::failure::Failure;

/// An object, as a store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The last component of its name.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// When it was published, by the store's clock.
    pub modified: SystemTime,
}

/// A place for objects. Names are relative paths of plain components, with `/` between them.
pub trait Store: Send + Sync + fmt::Debug {
    /// The place, for messages.
    fn address(&self) -> String;

    /// Begins an object that nobody sees until it is published.
    fn create(&self) -> Result<Box<dyn NewObject>, Failure>;

    /// Opens an object.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure>;

    /// The last components of all names below a folder of names, sorted.
    fn list(&self, folder: &str) -> Result<Vec<String>, Failure>;

    /// The objects of a folder of names, sorted by name.
    fn list_objects(&self, folder: &str) -> Result<Vec<Listed>, Failure>;

    /// Removes objects that nothing refers to; those that are not there are no error.
    fn remove(&self, names: &[String]) -> Result<(), Failure>;

    /// The folder of a local file system where objects of a folder of names lie, made durably. Packs are written there
    /// by rings; what has no folder would take them through [`Self::create`].
    fn local_folder(&self, folder: &str) -> Result<PathBuf, Failure>;

    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &str) -> Result<(), Failure>;
}

/// An object being written. Dropped unpublished, it leaves nothing.
pub trait NewObject: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure>;

    /// Makes it durable and gives it its name, unless that is taken: false then, and nothing is changed.
    fn publish(self: Box<Self>, name: &str) -> Result<bool, Failure>;
}

/// An object being read.
pub trait Object: Send + Sync {
    /// Its bytes.
    fn length(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure>;
}
