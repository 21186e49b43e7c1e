//! A store whose process dies at an operation: that one does not happen, or happens and is not heard of any more, and
//! none does afterwards, not even to clean up.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgstrata::failure::Failure;
use pgstrata::repository::{Entry, NewObject, Object, PackPlace, Requests, Store};

/// Where the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Before this operation.
    Before(usize),
    /// Behind it.
    Behind(usize),
    /// Not at all.
    Never,
}

#[derive(Debug)]
struct Fate {
    done: AtomicUsize,
    death: Death,
}

impl Fate {
    fn meet<T>(&self, act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        let dead = || Err(Failure::Target(format!("operation {number} of the store came too late")));
        match self.death {
            Death::Before(at) if number >= at => dead(),
            Death::Behind(at) if number > at => dead(),
            Death::Behind(at) if number == at => act().and_then(|_| dead()),
            _ => act(),
        }
    }
}

/// A store with a fate.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    store: Arc<dyn Store>,
    fate: Arc<Fate>,
}

impl FaultyStore {
    pub(crate) fn new(store: Arc<dyn Store>, death: Death) -> Self {
        Self { store, fate: Arc::new(Fate { done: AtomicUsize::new(0), death }) }
    }

    /// Operations so far, the one that was the last included.
    pub(crate) fn done(&self) -> usize {
        self.fate.done.load(Ordering::SeqCst)
    }
}

impl Store for FaultyStore {
    fn address(&self) -> String {
        self.store.address()
    }

    fn create(&self, name: &str) -> Result<Box<dyn NewObject>, Failure> {
        let object = self.fate.meet(|| self.store.create(name))?;
        Ok(Box::new(FaultyObject { object, fate: Arc::clone(&self.fate) }))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure> {
        self.fate.meet(|| self.store.open(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, Failure> {
        self.fate.meet(|| self.store.list(folder))
    }

    fn remove(&self, names: &[String]) -> Result<(), Failure> {
        // One operation each: it may die between two of them.
        names.iter().try_for_each(|name| self.fate.meet(|| self.store.remove(std::slice::from_ref(name))))
    }

    fn packs(&self, folder: &str) -> Result<PackPlace, Failure> {
        self.fate.meet(|| self.store.packs(folder))
    }

    fn staging(&self) -> Result<PathBuf, Failure> {
        self.fate.meet(|| self.store.staging())
    }

    fn requests(&self) -> Option<Requests> {
        self.store.requests()
    }

    fn sync_folder(&self, folder: &str) -> Result<(), Failure> {
        self.fate.meet(|| self.store.sync_folder(folder))
    }
}

struct FaultyObject {
    object: Box<dyn NewObject>,
    fate: Arc<Fate>,
}

impl NewObject for FaultyObject {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.object.write(bytes)
    }

    fn publish(self: Box<Self>) -> Result<bool, Failure> {
        let Self { object, fate } = *self;
        fate.meet(|| object.publish())
    }
}
