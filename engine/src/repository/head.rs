//! A repository's head: what it is, and who may open it. The head of the highest number counts.
//!
//! A head is readable by everybody, for it is read before there is a key. What it says of keys is believed once its
//! seal is right, which takes all of its data keys.

use super::codec::FrameDecoder;
use super::container::{FrameKind, ObjectKind, RepositoryId};
use super::error::RepositoryError;
use super::key_slots::{self, NotOpened, Opened};
use super::names::{HEADS, head, head_number};
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::sealing::Sealing;
use super::secret::{PASSPHRASE_METHOD, Secret};
use super::store::Store;
use super::summary::{HeadSummary, KeySlot, parse};
use crate::failure::Failure;

/// Recipients of a repository.
pub(super) const SLOTS_MAX: usize = 16;
/// Data keys of a repository, old ones included.
pub(super) const DATA_KEYS_MAX: usize = 200;

/// What to open a repository with.
#[derive(Clone, Copy)]
pub enum KeySource<'a> {
    /// Nothing.
    None,
    /// A secret that was given. A repository that is not encrypted is refused.
    Given(&'a Secret),
    /// A passphrase that somebody can be asked for, where a recipient has one.
    Ask(&'a dyn Fn() -> Result<Secret, Failure>),
}

/// The head that counts.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its number.
    pub number: u32,
    /// The repository's identity.
    pub repository: RepositoryId,
    /// What it says.
    pub summary: HeadSummary,
    /// The bytes that are sealed.
    sealed: Vec<u8>,
    seal: Option<Vec<u8>>,
}

impl Head {
    /// Reads the head that counts. Everybody can. `None` where there is no repository.
    ///
    /// # Errors
    /// Where it cannot be read, or is none that this version knows.
    pub fn read(store: &dyn Store) -> Result<Option<Self>, Failure> {
        let mut last = None;
        loop {
            let Some(number) = numbers(store)?.pop() else { return Ok(None) };
            match Self::read_number(store, number)? {
                Some(head) => return Ok(Some(head)),
                // It was replaced by a higher one between the list and now.
                None if last != Some(number) => last = Some(number),
                None => {
                    return Err(RepositoryError::damaged(head(number), "it is listed, and not there").into());
                }
            }
        }
    }

    fn read_number(store: &dyn Store, number: u32) -> Result<Option<Self>, Failure> {
        let name = head(number);
        let Some(object) = ObjectReader::open_with(store, &name, ObjectKind::Head, None)? else {
            return Ok(None);
        };
        let sealed = frame(&object, FrameKind::Summary)?;
        let sealed = sealed.ok_or_else(|| RepositoryError::damaged(&name, "it has no summary"))?;
        let summary: HeadSummary = parse(&sealed, &name)?;
        // Nobody is to work for hours on what is not known to be authentic yet.
        let many_keys = |slot: &KeySlot| slot.data_keys.len() > DATA_KEYS_MAX;
        if summary.key_slots.len() > SLOTS_MAX || summary.key_slots.iter().any(many_keys) {
            let what = format!("expected at most {SLOTS_MAX} key slots of {DATA_KEYS_MAX} data keys each");
            return Err(RepositoryError::damaged(&name, what).into());
        }
        let seal = frame(&object, FrameKind::Seal)?;
        Ok(Some(Self { number, repository: object.repository(), summary, sealed, seal }))
    }

    /// Its object's name.
    #[must_use]
    pub fn name(&self) -> String {
        head(self.number)
    }

    #[cfg(test)]
    pub(super) fn seal(&self) -> Option<&[u8]> {
        self.seal.as_deref()
    }

    /// Whether the repository is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !self.summary.key_slots.is_empty()
    }

    /// What objects of the repository are sealed with.
    pub(super) fn open(&self, address: &str, key: KeySource<'_>) -> Result<Sealing, Failure> {
        if !self.is_encrypted() {
            let KeySource::Given(_) = key else { return Ok(Sealing::none(self.repository)) };
            let hint = "leave the key out if that is as it should be (--key-file, --passphrase-file, PGSTRATA_KEY_FILE, \
                        PGSTRATA_PASSPHRASE); if it was encrypted before, somebody has changed its head: do not use it.";
            return Err(RepositoryError::new(
                address,
                "a key is given, and the repository is not encrypted",
                hint,
            )
            .into());
        }
        let asked;
        let secret = match key {
            KeySource::Given(secret) => secret,
            KeySource::Ask(ask) if self.has_passphrase() => {
                asked = ask()?;
                &asked
            }
            KeySource::None | KeySource::Ask(_) => {
                let what = "the repository is encrypted, and no key is given";
                let hint = "name a recipient's key with --key-file or --passphrase-file, or in PGSTRATA_KEY_FILE or \
                            PGSTRATA_PASSPHRASE; `pgstrata key list` shows the recipients.";
                return Err(RepositoryError::new(address, what, hint).into());
            }
        };
        let keys = self.unlock(address, secret)?.data_keys;
        Ok(Sealing::with(self.repository, keys))
    }

    /// Opens the slot of a secret, and checks with what is in it that the head is authentic.
    pub(super) fn unlock(&self, address: &str, secret: &Secret) -> Result<Opened, Failure> {
        let opened = key_slots::open(&self.summary.key_slots, &self.repository, secret);
        let opened = opened.map_err(|error| match error {
            NotOpened::NoSlot => {
                let what = match secret.method() {
                    PASSPHRASE_METHOD => "the passphrase does not open this repository",
                    _ => "the key file does not open this repository",
                };
                let hint = "it is no recipient's, or no longer; `pgstrata key list` shows the recipients that there are.";
                RepositoryError::new(address, what, hint)
            }
            NotOpened::Damaged(slot, what) => {
                RepositoryError::damaged(self.name(), format!("key slot {slot}: {what}"))
            }
        })?;
        let seal = self.seal.as_deref().unwrap_or_default();
        if key_slots::is_sealed(&opened.data_keys, &self.repository, &self.name(), &self.sealed, seal) {
            return Ok(opened);
        }
        let what = "its seal is not authentic: it was changed by somebody who does not have its data keys";
        Err(RepositoryError::damaged(self.name(), what).into())
    }

    fn has_passphrase(&self) -> bool {
        self.summary.key_slots.iter().any(|slot| slot.method == PASSPHRASE_METHOD)
    }
}

/// The names of all heads, the one that counts last.
///
/// # Errors
/// Where they cannot be listed.
pub fn list_heads(store: &dyn Store) -> Result<Vec<String>, Failure> {
    Ok(numbers(store)?.into_iter().map(head).collect())
}

/// The numbers of all heads, the highest last.
pub(super) fn numbers(store: &dyn Store) -> Result<Vec<u32>, Failure> {
    let mut numbers = Vec::new();
    for name in store.list("")?.iter().map(|entry| &entry.name).filter(|name| name.starts_with(HEADS)) {
        let number = head_number(name);
        numbers.push(number.ok_or_else(|| RepositoryError::unknown(name, "it is no name of a head"))?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Publishes a head; false where there is one of its number. `opened` is what its slots open.
pub(super) fn publish(
    store: &dyn Store,
    number: u32,
    repository: RepositoryId,
    summary: &HeadSummary,
    opened: Option<&Opened>,
) -> Result<bool, Failure> {
    let name = head(number);
    let mut object = ObjectWriter::begin_with(store, ObjectKind::Head, &name, &Sealing::none(repository))?;
    let text = serde_json::to_vec(summary).expect("a summary is JSON");
    object.frame(FrameKind::Summary, &text)?;
    if let Some(opened) = opened {
        object.frame(FrameKind::Seal, &key_slots::seal(&opened.data_keys, &repository, &name, &text))?;
    }
    Ok(object.publish()?.is_some())
}

/// The plain bytes of the only frame of a kind.
fn frame(object: &ObjectReader, kind: FrameKind) -> Result<Option<Vec<u8>>, Failure> {
    let mut numbers = object.of_kind(kind);
    let Some(number) = numbers.next() else { return Ok(None) };
    if numbers.next().is_some() {
        return Err(RepositoryError::damaged(object.name(), "it says twice what it is").into());
    }
    let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
    Ok(Some(object.frame(number, &mut Vec::new(), &mut decoder)?.to_vec()))
}
