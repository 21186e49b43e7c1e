//! A repository in an object store: S3 and what speaks like it, Azure, Google Cloud Storage.
//!
//! `connection` turns an address and options into a client, `counting` counts what that client asks for, `runtime` is where
//! it runs, `upload` sends objects in parts, `reading` fetches ranges ahead of those who read on, `trouble` says what went
//! wrong in the operator's words.
//!
//! Invariants: an object is seen whole or not at all, by the store's own doing, and durable from then on; names are given
//! by create-if-absent (see [`new_object`] for objects too large for one request). No message holds credentials.

mod connection;
mod counting;
mod new_object;
mod reading;
mod runtime;
mod trouble;
mod upload;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use connection::Connection;
pub(super) use connection::Service;
use counting::Counters;
use new_object::RemoteNewObject;
use reading::{ReadAhead, RemoteObject};
use runtime::Background;
use trouble::Trouble;
use upload::FolderUploads;

use super::store::{Entry, NewObject, Object, PackPlace, Requests, Store};
use crate::failure::Failure;

/// Bytes read from an object's end when it is opened: its trailer and, mostly, its footer.
const TAIL: u64 = 64 << 10;

/// A bucket, or what is below a prefix of one.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    place: Arc<Place>,
}

/// What everything that works on the store shares.
pub(super) struct Place {
    /// `s3://bucket/prefix`.
    address: String,
    prefix: Path,
    service: Service,
    background: Background,
    /// For the first contact, which is to fail soon.
    hasty: Arc<dyn ObjectStore>,
    /// For a run under way, which is to survive what passes.
    patient: Arc<dyn ObjectStore>,
    answered: AtomicBool,
    counters: Arc<Counters>,
    reads: Arc<ReadAhead>,
    open: Mutex<HashMap<String, Weak<reading::Shared>>>,
}

impl RemoteStore {
    /// A store in a bucket. Nothing is asked of it yet.
    ///
    /// # Errors
    /// For settings that no connection can be made of.
    pub(super) fn new(
        service: Service,
        bucket: &str,
        prefix: &str,
        options: &[(String, String)],
    ) -> Result<Self, Failure> {
        let scheme = service.scheme();
        let address = match prefix {
            "" => format!("{scheme}://{bucket}"),
            prefix => format!("{scheme}://{bucket}/{prefix}"),
        };
        let bad = |what: String| {
            let hint = "name a bucket and, if wanted, a prefix below it: s3://bucket/prefix.";
            Failure::from(super::RepositoryError::new(&address, what, hint))
        };
        let prefix = Path::parse(prefix).map_err(|error| bad(error.to_string()))?;
        let background = Background::start()?;
        let counters = Arc::new(Counters::default());
        let Connection { hasty, patient } =
            background.enter(|| connection::connect(service, bucket, options, &counters, &address))?;
        Ok(Self {
            place: Arc::new(Place {
                address,
                prefix,
                service,
                background,
                hasty,
                patient,
                answered: AtomicBool::new(false),
                counters,
                reads: Arc::default(),
                open: Mutex::default(),
            }),
        })
    }
}

impl Place {
    /// A name's place in the bucket.
    fn path(&self, name: &str) -> Path {
        self.prefix.parts().chain(name.split('/').filter(|part| !part.is_empty()).map(Into::into)).collect()
    }

    /// The client to ask: until it has answered once, one that gives up soon.
    fn client(&self) -> Arc<dyn ObjectStore> {
        let answered = self.answered.load(Ordering::Relaxed);
        Arc::clone(if answered { &self.patient } else { &self.hasty })
    }

    /// Books that the store has answered, or says what went wrong.
    fn judge<T>(&self, name: &str, action: &str, outcome: object_store::Result<T>) -> Result<T, Trouble> {
        match outcome {
            Ok(value) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(value)
            }
            Err(error) => {
                let trouble = Trouble::of(self.service, self.object(name), action, &error);
                if !trouble.is_fatal() {
                    self.answered.store(true, Ordering::Relaxed);
                }
                Err(trouble)
            }
        }
    }

    /// An object's name for messages.
    fn object(&self, name: &str) -> String {
        if name.is_empty() { self.address.clone() } else { format!("{}/{name}", self.address) }
    }

    /// Fetches the end of an object, and says how long it is; `None` where there is no such object.
    async fn tail(&self, name: &str) -> Result<Option<(u64, bytes::Bytes)>, Trouble> {
        let (client, path) = (self.client(), self.path(name));
        let suffix = GetRange::Suffix(TAIL);
        let fetched = match self.service {
            // It has no ranges from the end.
            Service::Azure => match client.head(&path).await {
                Ok(meta) => {
                    let from = meta.size.saturating_sub(TAIL);
                    let range = client.get_range(&path, from..meta.size).await;
                    range.map(|bytes| (meta.size, bytes))
                }
                Err(error) => Err(error),
            },
            _ => {
                let options = GetOptions { range: Some(suffix), ..GetOptions::default() };
                match client.get_opts(&path, options).await {
                    Ok(result) => {
                        let size = result.meta.size;
                        result.bytes().await.map(|bytes| (size, bytes))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match self.judge(name, "read", fetched) {
            Ok((length, bytes)) => {
                self.counters.received(bytes.len());
                Ok(Some((length, bytes)))
            }
            Err(trouble) if trouble.is_missing_object() => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Clients hold credentials.
        f.debug_struct("Place").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Store for RemoteStore {
    fn address(&self) -> String {
        self.place.address.clone()
    }

    fn create(&self, name: &str) -> Result<Box<dyn NewObject>, Failure> {
        Ok(Box::new(RemoteNewObject::new(Arc::clone(&self.place), name)))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure> {
        let place = &self.place;
        let known = || place.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known().get(name).and_then(Weak::upgrade) {
            return Ok(Some(Box::new(RemoteObject::new(shared))));
        }
        let (asked, wanted) = (Arc::clone(place), name.to_owned());
        let tail = place.background.run(async move { asked.tail(&wanted).await })??;
        let Some((length, tail)) = tail else { return Ok(None) };
        let shared = Arc::new(reading::Shared::new(Arc::clone(place), name, length, tail));
        let mut open = known();
        open.retain(|_, shared| shared.strong_count() > 0);
        open.insert(name.to_owned(), Arc::downgrade(&shared));
        Ok(Some(Box::new(RemoteObject::new(shared))))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, Failure> {
        let place = Arc::clone(&self.place);
        let prefix = place.path(folder);
        let client = place.client();
        let listed = place.background.run(async move { client.list_with_delimiter(Some(&prefix)).await })?;
        let listed = place.judge(folder, "list", listed)?;
        let objects = listed.objects.iter().filter_map(|meta| {
            let modified = u64::try_from(meta.last_modified.timestamp()).unwrap_or(0);
            let name = meta.location.filename()?.to_owned();
            Some(Entry { name, is_folder: false, length: meta.size, modified })
        });
        let folders = listed.common_prefixes.iter().filter_map(|path| {
            Some(Entry { name: path.filename()?.to_owned(), is_folder: true, length: 0, modified: 0 })
        });
        // Some stores list a marker object of the folder itself.
        let mut found: Vec<_> = objects.chain(folders).collect();
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn remove(&self, names: &[String]) -> Result<(), Failure> {
        if names.is_empty() {
            return Ok(());
        }
        let place = Arc::clone(&self.place);
        {
            let mut open = place.open.lock().unwrap_or_else(PoisonError::into_inner);
            names.iter().for_each(|name| drop(open.remove(name)));
        }
        let paths: Vec<_> = names.iter().map(|name| Ok(place.path(name))).collect();
        let client = place.client();
        let removed = place.background.run(async move {
            let mut removed = client.delete_stream(stream::iter(paths).boxed());
            loop {
                match removed.try_next().await {
                    Ok(Some(_)) | Err(object_store::Error::NotFound { .. }) => {}
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        })?;
        Ok(place.judge("", "remove objects of", removed)?)
    }

    fn packs(&self, folder: &str) -> Result<PackPlace, Failure> {
        Ok(PackPlace::Uploads(Arc::new(FolderUploads::new(Arc::clone(&self.place), folder))))
    }

    fn sync_folder(&self, _: &str) -> Result<(), Failure> {
        // What has been answered is durable.
        Ok(())
    }

    fn staging(&self) -> Result<PathBuf, Failure> {
        Ok(std::env::temp_dir())
    }

    fn give_up(&self) {
        self.place.background.give_up();
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.place.counters.so_far())
    }
}
