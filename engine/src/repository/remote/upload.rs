//! Sends an object while it is made: in parts, several at a time, or with one request where it is small.
//!
//! Nothing is copied: a part is the buffers that came, which are free again once it was sent. A part that fails ends the
//! upload; one that is given up is taken back as far as the store lets it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::store::{Upload, Uploads};
use super::Place;
use super::trouble::Trouble;
use crate::failure::Failure;

/// Bytes of a part. All but the last are of one size, which some stores ask for, of at least 5 MiB.
pub(super) const PART: usize = 8 << 20;
/// Parts under way that keep a store busy.
const UNDER_WAY: usize = 8;
/// So long is tried to take back what was sent of an object that is given up.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// So often a put is made again that met another's which then came to nothing.
const CONFLICTS: u32 = 5;
/// So often one whose connection broke, beside what the library does by itself.
const BROKEN: u32 = 2;
/// Bytes of an object's end that are compared to know it again; its trailer, with the checksum of all of it.
const END: usize = 64;

/// Uploads to one folder of names.
#[derive(Debug)]
pub(super) struct FolderUploads {
    place: Arc<Place>,
    folder: String,
}

impl FolderUploads {
    pub(super) fn new(place: Arc<Place>, folder: &str) -> Self {
        Self { place, folder: folder.to_owned() }
    }
}

impl Uploads for FolderUploads {
    fn begin(&self, name: &str, done: Box<dyn FnOnce(Result<(), Failure>) + Send>) -> Box<dyn Upload> {
        let name = format!("{}/{name}", self.folder);
        Box::new(RemoteUpload::begin(&self.place, name, done))
    }

    fn part_size(&self) -> usize {
        PART
    }

    fn window(&self) -> usize {
        UNDER_WAY * PART
    }
}

enum Message {
    Piece(Bytes),
    End,
}

/// The near end of an upload.
pub(super) struct RemoteUpload {
    messages: UnboundedSender<Message>,
}

impl RemoteUpload {
    pub(super) fn begin(
        place: &Arc<Place>,
        name: String,
        done: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) -> Self {
        let (messages, incoming) = unbounded_channel();
        let sending = Sending {
            client: place.client(),
            path: place.path(&name),
            place: Arc::clone(place),
            name,
            incoming,
            pieces: Vec::new(),
            gathered: 0,
            length: 0,
            end: Vec::new(),
            parts: JoinSet::new(),
        };
        place.background.spawn(async move { done(sending.run().await) });
        Self { messages }
    }
}

impl Upload for RemoteUpload {
    fn send(&mut self, piece: Bytes) {
        // An upload that has failed has said so.
        let _ = self.messages.send(Message::Piece(piece));
    }

    fn end(&mut self) {
        let _ = self.messages.send(Message::End);
    }
}

/// The far end.
struct Sending {
    place: Arc<Place>,
    client: Arc<dyn ObjectStore>,
    name: String,
    path: Path,
    incoming: UnboundedReceiver<Message>,
    /// What waits until it is a part.
    pieces: Vec<Bytes>,
    gathered: usize,
    length: u64,
    /// The last bytes.
    end: Vec<u8>,
    parts: JoinSet<object_store::Result<()>>,
}

impl Sending {
    async fn run(mut self) -> Result<(), Failure> {
        let mut upload = None;
        let outcome = self.send(&mut upload).await;
        if let (Err(_), Some(upload)) = (&outcome, &mut upload) {
            self.parts.shutdown().await;
            // What cannot be taken back is nothing that anybody sees.
            let _ = timeout(ABORT_LIMIT, upload.abort()).await;
        }
        outcome
    }

    async fn send(&mut self, upload: &mut Option<Box<dyn MultipartUpload>>) -> Result<(), Failure> {
        loop {
            tokio::select! {
                message = self.incoming.recv() => match message {
                    Some(Message::Piece(piece)) => self.take(piece, upload).await?,
                    Some(Message::End) => break,
                    None => return Err(Failure::Stopped),
                },
                Some(part) = self.parts.join_next() => self.sent(part)?,
            }
        }
        let Some(upload) = upload else { return self.put_whole().await };
        self.begin_part(upload.as_mut());
        loop {
            tokio::select! {
                part = self.parts.join_next() => match part {
                    Some(part) => self.sent(part)?,
                    None => break,
                },
                // Nothing comes behind the end: this is its giving up.
                None = self.incoming.recv() => return Err(Failure::Stopped),
            }
        }
        let completed = tokio::select! {
            completed = upload.complete() => completed.map(drop),
            None = self.incoming.recv() => return Err(Failure::Stopped),
        };
        let Err(trouble) = self.place.judge(&self.name, "complete", completed) else { return Ok(()) };
        // An answer that was lost on its way: what was asked again is not there any more, because it is done.
        let is_there = self.place.is_there(&self.name, self.length, &self.end).await;
        if is_there { Ok(()) } else { Err(trouble.into()) }
    }

    async fn take(
        &mut self,
        mut piece: Bytes,
        upload: &mut Option<Box<dyn MultipartUpload>>,
    ) -> Result<(), Failure> {
        self.length += piece.len() as u64;
        self.end.extend_from_slice(&piece[piece.len().saturating_sub(END)..]);
        self.end.drain(..self.end.len().saturating_sub(END));
        while self.gathered + piece.len() > PART {
            let fits = piece.split_to(PART - self.gathered);
            self.gathered = PART;
            self.pieces.push(fits);
            let upload = match &mut *upload {
                Some(upload) => upload,
                none => {
                    let begun = self.client.put_multipart(&self.path).await;
                    none.insert(self.place.judge(&self.name, "begin", begun)?)
                }
            };
            self.begin_part(upload.as_mut());
        }
        self.gathered += piece.len();
        self.pieces.push(piece);
        Ok(())
    }

    fn begin_part(&mut self, upload: &mut dyn MultipartUpload) {
        let payload: PutPayload = std::mem::take(&mut self.pieces).into_iter().collect();
        self.gathered = 0;
        self.parts.spawn(upload.put_part(payload));
    }

    fn sent(&self, part: Result<object_store::Result<()>, tokio::task::JoinError>) -> Result<(), Failure> {
        let part =
            part.map_err(|_| Failure::Target("an upload panicked; this is a bug in pgstrata".into()))?;
        Ok(self.place.judge(&self.name, "write", part)?)
    }

    async fn put_whole(&mut self) -> Result<(), Failure> {
        let pieces = std::mem::take(&mut self.pieces);
        let (place, name) = (Arc::clone(&self.place), self.name.clone());
        let published = tokio::select! {
            published = place.put_new(&name, pieces) => published,
            None = self.incoming.recv() => return Err(Failure::Stopped),
        };
        if published? {
            return Ok(());
        }
        let what = "there is an object of this name already";
        Err(super::super::RepositoryError::new(&self.name, what, "take the backup again.").into())
    }
}

impl Place {
    /// Puts an object that is not there yet, with one request. False where the name is taken by another.
    pub(super) async fn put_new(&self, name: &str, pieces: Vec<Bytes>) -> Result<bool, Trouble> {
        let (length, end) = ends(&pieces);
        let payload: PutPayload = pieces.into_iter().collect();
        let path = self.path(name);
        let mut attempts = 0;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = self.client().put_opts(&path, payload.clone(), options).await;
            let trouble = match self.judge(name, "write", put) {
                Ok(_) => return Ok(true),
                Err(trouble) if trouble.is_taken() => trouble,
                // The library does not make a conditional request again whose connection broke: only who looks can know.
                // A gateway may have given up on what the store did all the same.
                Err(trouble) if trouble.is_busy() => match self.tail(name).await {
                    Ok(Some((found, tail))) => return Ok(found == length && tail.ends_with(&end)),
                    Ok(None) | Err(_) => return Err(trouble),
                },
                Err(trouble) if trouble.has_no_answer() && attempts < BROKEN => trouble,
                Err(trouble) => return Err(trouble),
            };
            match self.tail(name).await? {
                // The answer to our own first attempt may have been lost on its way.
                Some((found, tail)) => return Ok(found == length && tail.ends_with(&end)),
                // S3 refuses two that come at once, without saying which one will be there.
                None if attempts < CONFLICTS => attempts += 1,
                None => return Err(trouble),
            }
            sleep(Duration::from_millis(100 << attempts)).await;
        }
    }

    /// Whether an object is there that is so long and ends so. Where that cannot be found out, it is not.
    pub(super) async fn is_there(&self, name: &str, length: u64, end: &[u8]) -> bool {
        match self.tail(name).await {
            Ok(Some((found, tail))) => found == length && tail.ends_with(end),
            _ => false,
        }
    }
}

/// The length of what is in pieces, and its last bytes.
fn ends(pieces: &[Bytes]) -> (u64, Vec<u8>) {
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut end: Vec<u8> =
        pieces.iter().rev().flat_map(|piece| piece.iter().rev().copied()).take(END).collect();
    end.reverse();
    (length, end)
}
