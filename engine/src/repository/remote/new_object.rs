//! An object that is published by create-if-absent, whatever its size, in bounded memory.
//!
//! Up to [`WHOLE_MAX`] bytes it waits here and goes with one conditional request: the store sees to it that of several
//! that race one wins. What is larger goes in parts as it comes, under its final name, and nobody sees it before it is
//! complete; that no other has the name is asked beforehand. That is enough for what is so large: manifests, whose names
//! hold 32 random bits and the second (docs/repository-format.md, *Commit*).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::store::{NewObject, Upload};
use super::Place;
use super::upload::{PART, RemoteUpload};
use crate::failure::Failure;

/// The largest object that goes with one request.
const WHOLE_MAX: usize = 32 << 20;
/// Parts of a larger one that are in memory at a time.
const PARTS: usize = 4;
/// Bytes are gathered in pieces of this size.
const PIECE: usize = 1 << 20;

/// An object under way.
pub(super) struct RemoteNewObject {
    place: Arc<Place>,
    name: String,
    piece: BytesMut,
    waiting: Vec<Bytes>,
    waits: usize,
    large: Option<Large>,
}

struct Large {
    upload: RemoteUpload,
    outcome: Receiver<Result<(), Failure>>,
    memory: Arc<Semaphore>,
    length: u64,
}

/// Bytes that count as memory until they are dropped.
struct Held {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl RemoteNewObject {
    pub(super) fn new(place: Arc<Place>, name: &str) -> Self {
        let (piece, waiting) = (BytesMut::new(), Vec::new());
        Self { place, name: name.to_owned(), piece, waiting, waits: 0, large: None }
    }

    fn end_piece(&mut self) -> Result<(), Failure> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        if self.large.is_some() {
            return self.send(piece);
        }
        self.waits += piece.len();
        self.waiting.push(piece);
        if self.waits <= WHOLE_MAX {
            return Ok(());
        }
        let (tell, outcome) = channel();
        let done = move |outcome| {
            // Whoever has dropped the object does not want to know.
            let _ = tell.send(outcome);
        };
        let upload = RemoteUpload::begin(&self.place, self.name.clone(), done);
        let memory = Arc::new(Semaphore::new(PARTS * PART / PIECE));
        self.large = Some(Large { upload, outcome, memory, length: 0 });
        for piece in std::mem::take(&mut self.waiting) {
            self.send(piece)?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let large = self.large.as_mut().expect("the caller has begun it");
        let memory = Arc::clone(&large.memory);
        let permit = self.place.background.run(async move { memory.acquire_owned().await })?;
        let permit = permit.expect("nobody closes it");
        // An upload that failed has given its memory back; what it says comes first.
        if let Ok(outcome) = large.outcome.try_recv() {
            outcome?;
        }
        large.length += bytes.len() as u64;
        large.upload.send(Bytes::from_owner(Held { bytes, _permit: permit }));
        Ok(())
    }
}

impl NewObject for RemoteNewObject {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            if self.piece.capacity() == 0 {
                self.piece.reserve(PIECE);
            }
            let fits = bytes.len().min(PIECE - self.piece.len());
            self.piece.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if self.piece.len() >= PIECE {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    fn publish(mut self: Box<Self>) -> Result<bool, Failure> {
        self.end_piece()?;
        let (place, name) = (Arc::clone(&self.place), self.name.clone());
        let Some(large) = &mut self.large else {
            let pieces = std::mem::take(&mut self.waiting);
            let asked = Arc::clone(&place);
            return Ok(place.background.run(async move { asked.put_new(&name, pieces).await })??);
        };
        let asked = Arc::clone(&place);
        if place.background.run(async move { asked.tail(&name).await })??.is_some() {
            return Ok(false);
        }
        large.upload.end();
        let outcome = large.outcome.recv();
        outcome.unwrap_or_else(|_| Err(Failure::Stopped)).map(|()| true)
    }
}

impl Drop for RemoteNewObject {
    fn drop(&mut self) {
        if let Some(Large { upload, outcome, .. }) = self.large.take() {
            drop(upload);
            // What was sent is taken back before anybody ends the process. It has a time limit of its own.
            let _ = outcome.recv();
        }
    }
}
