//! Where objects are kept: whole, immutable, published by create-if-absent.
//!
//! The seam between the repository and a place. A local file system is one place (`local`), an object store another
//! (`remote`); what both can do is all that is asked here. Every call blocks until it is done.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::failure::Failure;

/// A place for objects. Names are relative paths of plain components, with `/` between them.
pub trait Store: Send + Sync + fmt::Debug {
    /// The place, for messages. Holds no credentials.
    fn address(&self) -> String;

    /// Begins an object that nobody sees until it is published.
    fn create(&self, name: &str) -> Result<Box<dyn NewObject>, Failure>;

    /// Opens an object.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure>;

    /// What lies directly in a folder of names, sorted by name. A folder that is not there has nothing in it.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, Failure>;

    /// Removes objects that nothing refers to, many with one request where the place has such a one; those that are not
    /// there are no error.
    fn remove(&self, names: &[String]) -> Result<(), Failure>;

    /// How the objects of a folder of names are written that come through a pipeline.
    fn packs(&self, folder: &str) -> Result<PackPlace, Failure>;

    /// Makes the names in a folder durable, where they are not from the moment on when they are there.
    fn sync_folder(&self, folder: &str) -> Result<(), Failure>;

    /// A folder of a local file system, made durably, for what is kept only until it is stored.
    fn staging(&self) -> Result<PathBuf, Failure>;

    /// Wakes everybody who waits for the place, and lets nothing more be asked: for a run that is stopped.
    fn give_up(&self);

    /// What has been asked of the place so far; none where that is nobody's concern.
    fn requests(&self) -> Option<Requests>;
}

/// What lies in a folder of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last component of its name.
    pub name: String,
    /// Whether it is a folder of further names; these have neither length nor time.
    pub is_folder: bool,
    /// Bytes.
    pub length: u64,
    /// When it was written, by the place's clock: seconds since 1970.
    pub modified: u64,
}

/// How packs are written.
#[derive(Clone, Debug)]
pub enum PackPlace {
    /// As files in this folder, which is there: by rings.
    Folder(PathBuf),
    /// As objects that are sent somewhere.
    Uploads(Arc<dyn Uploads>),
}

/// A place that objects are sent to while they are made, many at a time.
pub trait Uploads: Send + Sync + fmt::Debug {
    /// Begins an object of the folder of names that this is of. `done` is told once, from any thread: when the object is there for good, or why it is not;
    /// [`Failure::Stopped`] where it was given up.
    fn begin(&self, name: &str, done: Box<dyn FnOnce(Result<(), Failure>) + Send>) -> Box<dyn Upload>;

    /// Bytes that one upload may hold back until it has enough of them to send.
    fn part_size(&self) -> usize;

    /// Bytes that are to be under way at a time for the place to be busy.
    fn window(&self) -> usize;
}

/// An object being sent. Dropped before it is there for good, it is given up, and leaves nothing that anybody sees.
pub trait Upload: Send {
    /// Takes the next bytes, which are given back (dropped) once they have been sent. Does not wait.
    fn send(&mut self, piece: Bytes);

    /// That was all; the rest goes by itself.
    fn end(&mut self);
}

/// An object being written. Dropped unpublished, it leaves nothing that anybody sees.
pub trait NewObject: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure>;

    /// Makes it durable under its name, unless that is taken: false then, and nothing is changed.
    fn publish(self: Box<Self>) -> Result<bool, Failure>;
}

/// An object being read.
pub trait Object: Send + Sync {
    /// Its bytes.
    fn length(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure>;

    /// The file that it is on this host, for whoever reads many of its parts at a time; none where it is no file.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// What has been asked of an object store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Objects written with one request.
    pub puts: u64,
    /// Parts of larger objects.
    pub parts: u64,
    /// Uploads in parts that were begun, ended or given up.
    pub multipart: u64,
    /// Reads, whole or of a range, and questions whether an object is there.
    pub gets: u64,
    /// Listings; one for each 1,000 names.
    pub lists: u64,
    /// Removals; on S3 one for up to 1,000 objects.
    pub deletes: u64,
    /// Requests for credentials and the like.
    pub others: u64,
    /// Those of all these that failed in a way that is tried again: no answer, too many requests, a server's error.
    pub failed: u64,
    /// Bytes sent, without headers.
    pub bytes_up: u64,
    /// Bytes received, without headers.
    pub bytes_down: u64,
}
