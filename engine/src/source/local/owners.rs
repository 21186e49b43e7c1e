//! Whose files and folders are, numbered by all threads that read.

use std::sync::{Arc, Mutex, PoisonError};

use crate::repository::OwnerTable;

/// One thread's way to the table. It remembers the last owner: a cluster has one, and the lock is for others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owners {
    table: Arc<Mutex<OwnerTable>>,
    last: Option<((u32, u32), u16)>,
}

impl Owners {
    /// The number of an owner.
    pub(crate) fn number(&mut self, uid: u32, gid: u32) -> u16 {
        if let Some((_, number)) = self.last.filter(|(last, _)| *last == (uid, gid)) {
            return number;
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let number = table.number(uid.into(), gid.into());
        self.last = Some(((uid, gid), number));
        number
    }

    /// The table, once all others have theirs no more.
    pub(crate) fn into_table(self) -> OwnerTable {
        std::mem::take(&mut *self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
