//! Changes of who may open a repository: recipients added and removed, data keys rotated. No data is rewritten.
//!
//! Each change is a head of the next number, published by create-if-absent; then the heads below it are removed, for
//! they open what is there for recipients that the new one has no more. Of two changes at once one is refused.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cipher::Key;
use super::error::RepositoryError;
use super::head::{DATA_KEYS_MAX, Head, SLOTS_MAX, numbers, publish};
use super::key_slots::{self, Opened};
use super::names::head;
use super::place::now;
use super::secret::Secret;
use super::store::Store;
use super::summary::{HeadSummary, KeySlot};
use crate::failure::Failure;

/// Bytes of a label.
const LABEL_MAX: usize = 64;

/// A published change.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// The repository's address.
    pub repository: String,
    /// The number of the head that counts now.
    pub head: u32,
    /// The data key that new objects are encrypted with.
    pub data_key: u32,
    /// Old heads that could not be removed, each with the reason.
    pub heads_left: Vec<String>,
}

/// A recipient that was added.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// The slot's number.
    pub slot: u32,
    /// The change.
    #[serde(flatten)]
    pub changed: Changed,
}

/// The first recipient's slot of a new repository, and what is in it.
pub(super) fn first(
    secret: &Secret,
    label: &str,
    repository: &[u8; 16],
) -> Result<(KeySlot, Opened), Failure> {
    secret.check_strength()?;
    check_label(label)?;
    let (repository_key, data_key) = (Key::new(super::random()?), Key::new(super::random()?));
    let data_keys = BTreeMap::from([(1, data_key)]);
    let slot = key_slots::make(secret, 1, (label, now()), repository, (&repository_key, &data_keys))?;
    Ok((slot, Opened { slot: 1, repository_key, data_keys }))
}

/// Lets a further recipient open everything that is there and comes.
///
/// # Errors
/// Where `secret` opens nothing, the new one is a recipient's already, or another change was faster.
pub fn add_recipient(
    store: &dyn Store,
    secret: &Secret,
    new: &Secret,
    label: &str,
) -> Result<Added, Failure> {
    new.check_strength()?;
    check_label(label)?;
    let Current { head, opened, address } = Current::open(store, secret)?;
    let mut summary = head.summary.clone();
    let refused = |what: String, hint| Failure::from(RepositoryError::new(&address, what, hint));
    if summary.key_slots.len() >= SLOTS_MAX {
        let what = format!("it has {} recipients, expected at most {SLOTS_MAX}", summary.key_slots.len());
        return Err(refused(what, "remove one with `pgstrata key remove`."));
    }
    if let Ok(there) = key_slots::open(&summary.key_slots, &head.repository, new) {
        let what = format!("the new key opens slot {} already", there.slot);
        return Err(refused(what, "nothing was changed; name another key for another recipient."));
    }
    // No number twice: what was said of a slot stays true.
    let slot = summary.key_slots.iter().map(|slot| slot.number).max().unwrap_or(0).max(summary.last_slot);
    let slot = slot.saturating_add(1);
    summary.last_slot = slot;
    let keys = (&opened.repository_key, &opened.data_keys);
    summary.key_slots.push(key_slots::make(new, slot, (label, now()), &head.repository, keys)?);
    let changed = replace(store, &head, &summary, &opened)?;
    Ok(Added { slot, changed })
}

/// Takes a recipient out, and begins a new data key, which that recipient cannot open.
///
/// # Errors
/// Where `secret` opens nothing, there is no such slot or no other, or another change was faster.
pub fn remove_recipient(store: &dyn Store, secret: &Secret, slot: u32) -> Result<Changed, Failure> {
    let Current { head, mut opened, address } = Current::open(store, secret)?;
    let mut summary = head.summary.clone();
    let refused = |what: String, hint| Failure::from(RepositoryError::new(&address, what, hint));
    if !summary.key_slots.iter().any(|each| each.number == slot) {
        let what = format!("there is no key slot {slot}");
        return Err(refused(what, "`pgstrata key list` shows the slots that there are."));
    }
    if summary.key_slots.len() == 1 {
        let what = format!("slot {slot} is the last that opens the repository");
        return Err(refused(
            what,
            "add another recipient with `pgstrata key add` first; nothing was changed.",
        ));
    }
    if slot == opened.slot {
        let what = format!("slot {slot} is that of the key that was given");
        return Err(refused(what, "give the key of a recipient that stays; nothing was changed."));
    }
    summary.last_slot =
        summary.key_slots.iter().map(|slot| slot.number).max().unwrap_or(0).max(summary.last_slot);
    summary.key_slots.retain(|each| each.number != slot);
    begin_data_key(&mut summary, &head, &mut opened, &address)?;
    replace(store, &head, &summary, &opened)
}

/// Begins a new data key for what is written from now on. All that is there stays readable.
///
/// # Errors
/// Where `secret` opens nothing, or another change was faster.
pub fn rotate(store: &dyn Store, secret: &Secret) -> Result<Changed, Failure> {
    let Current { head, mut opened, address } = Current::open(store, secret)?;
    let mut summary = head.summary.clone();
    begin_data_key(&mut summary, &head, &mut opened, &address)?;
    replace(store, &head, &summary, &opened)
}

/// The head that counts, opened.
struct Current {
    head: Head,
    opened: Opened,
    address: String,
}

impl Current {
    fn open(store: &dyn Store, secret: &Secret) -> Result<Self, Failure> {
        let address = store.address();
        let Some(head) = Head::read(store)? else {
            let hint = "check the name, or make a repository with `pgstrata init`.";
            return Err(RepositoryError::new(address, "there is no repository", hint).into());
        };
        if !head.is_encrypted() {
            let hint =
                "make an encrypted one with `pgstrata init --key-file FILE`, and take backups into that.";
            return Err(RepositoryError::new(address, "the repository is not encrypted", hint).into());
        }
        let opened = head.unlock(&address, secret)?;
        Ok(Self { head, opened, address })
    }
}

fn check_label(label: &str) -> Result<(), Failure> {
    if label.len() <= LABEL_MAX && !label.chars().any(char::is_control) {
        return Ok(());
    }
    let what = format!("expected at most {LABEL_MAX} bytes without control characters");
    let hint = "everybody can read labels: name a recipient by a word or two.";
    Err(RepositoryError::new(format!("label \"{}\"", label.escape_default()), what, hint).into())
}

fn begin_data_key(
    summary: &mut HeadSummary,
    head: &Head,
    opened: &mut Opened,
    address: &str,
) -> Result<(), Failure> {
    if opened.data_keys.len() >= DATA_KEYS_MAX {
        let what = format!("it has {DATA_KEYS_MAX} data keys, expected no more");
        let hint = "make a new repository, and take backups into that.";
        return Err(RepositoryError::new(address, what, hint).into());
    }
    let (newest, _) = opened.data_keys.last_key_value().expect("a slot that opens has data keys");
    let (number, key) = (newest.saturating_add(1), Key::new(super::random()?));
    key_slots::give(&mut summary.key_slots, &head.repository, &opened.repository_key, (number, &key))?;
    opened.data_keys.insert(number, key);
    Ok(())
}

/// Publishes the next head, unless another did, and removes those below.
fn replace(
    store: &dyn Store,
    old: &Head,
    summary: &HeadSummary,
    opened: &Opened,
) -> Result<Changed, Failure> {
    let busy = || {
        let what = "its keys were changed by another process at the same time, and not by this one";
        Failure::from(RepositoryError::new(store.address(), what, "see `pgstrata key list`, and try again."))
    };
    let number = old.number.checked_add(1).ok_or_else(busy)?;
    let summary = HeadSummary { program: env!("CARGO_PKG_VERSION").to_owned(), ..summary.clone() };
    if !publish(store, number, old.repository, &summary, Some(opened))? {
        return Err(busy());
    }
    let numbers = numbers(store)?;
    // Where others published this number and a higher one, and removed this one, while we read the old head, its
    // name was free again. The highest head is never removed, so it is seen here.
    if numbers.last().is_some_and(|highest| *highest > number) {
        store.remove(&[head(number)])?;
        return Err(busy());
    }
    let mut heads_left = Vec::new();
    for name in numbers.into_iter().filter(|below| *below < number).map(head) {
        if let Err(failure) = store.remove(std::slice::from_ref(&name)) {
            heads_left.push(format!("{name}: {failure}"));
        }
    }
    let data_key = opened.data_keys.last_key_value().map_or(0, |(number, _)| *number);
    Ok(Changed { repository: store.address(), head: number, data_key, heads_left })
}

#[cfg(test)]
mod tests;
