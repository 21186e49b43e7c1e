//! Key slots: how each recipient's secret opens the repository's keys. docs/repository-format.md, *Key slots*, has the
//! derivations.
//!
//! Sans-IO. A slot wraps the repository key under what is derived from the secret, and each data key under what an
//! X25519 agreement with the slot's public key gives together with the repository key. So whoever opens one slot can
//! give a new data key to all of them, nobody can who opens none, and who was left out does not get it.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{Aad, Nonce};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::cipher::{KEY, Key, TAG};
use super::container::RepositoryId;
use super::secret::{PASSPHRASE_METHOD, Secret};
use super::summary::{Argon2Cost, KeySlot, WrappedKey};
use crate::failure::Failure;

/// What Argon2id is asked for in new slots: the second choice of RFC 9106.
const COST: Argon2Cost = Argon2Cost { memory_kib: 64 << 10, passes: 3, lanes: 4 };

const WRAPPING_KEY: &[u8] = b"pgstrata 1 slot wrapping key";
const AGREEMENT_KEY: &[u8] = b"pgstrata 1 slot agreement key";
const REPOSITORY_KEY: &[u8] = b"pgstrata 1 repository key";
const DATA_KEY: &[u8] = b"pgstrata 1 data key";
const HEAD_SEAL: &[u8] = b"pgstrata 1 head seal";

/// A wrapped key: ciphertext and tag.
const WRAPPED: usize = KEY + TAG;

/// What a slot opens.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    /// The slot.
    pub(super) slot: u32,
    /// What no recipient is without.
    pub(super) repository_key: Key,
    /// By number, at least one.
    pub(super) data_keys: BTreeMap<u32, Key>,
}

/// Why a secret opens nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// It is no recipient's.
    NoSlot,
    /// The slot is not what was written.
    Damaged(u32, String),
}

/// The two keys that a recipient has of a slot.
struct SlotKeys {
    wrapping: Key,
    agreement: PrivateKey,
    public: [u8; 32],
}

impl SlotKeys {
    fn derive(secret: &Secret, salt: &[u8; 32], cost: Option<&Argon2Cost>) -> Result<Self, String> {
        let root = secret.root(salt, cost)?;
        let wrapping = Key::derive(root.bytes(), salt, &[WRAPPING_KEY]);
        let agreement = private_key(&Key::derive(root.bytes(), salt, &[AGREEMENT_KEY]));
        let public = public_key(&agreement);
        Ok(Self { wrapping, agreement, public })
    }
}

fn private_key(bytes: &Key) -> PrivateKey {
    PrivateKey::from_private_key(&X25519, bytes.bytes()).expect("any 32 bytes are a key of X25519")
}

fn public_key(key: &PrivateKey) -> [u8; 32] {
    let public = key.compute_public_key().expect("a private key has a public one");
    public.as_ref().try_into().expect("it has 32 bytes in X25519")
}

/// The associated data of a wrapped repository key.
fn repository_key_data(repository: &RepositoryId, public: &[u8; 32]) -> Vec<u8> {
    [REPOSITORY_KEY, b"\0", repository, public].concat()
}

/// Wraps with a key that wraps nothing else.
fn wrap(with: &Key, data: &[u8], key: &Key) -> [u8; WRAPPED] {
    let mut wrapped = [0; WRAPPED];
    let (bytes, tag) = wrapped.split_at_mut(KEY);
    bytes.copy_from_slice(key.bytes());
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let made = with.cipher().seal_in_place_separate_tag(nonce, Aad::from(data), bytes);
    tag.copy_from_slice(made.expect("a key is short").as_ref());
    wrapped
}

fn unwrap(with: &Key, data: &[u8], wrapped: &[u8; WRAPPED]) -> Option<Key> {
    let mut bytes = Zeroizing::new(*wrapped);
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let key = with.cipher().open_in_place(nonce, Aad::from(data), &mut bytes[..]).ok()?;
    Some(Key::new((&*key).try_into().ok()?))
}

/// The key that wraps a data key for the slot with this public key: `own` and `other` agree, one of which was made for
/// this once.
fn data_wrapping_key(
    (own, other): (&PrivateKey, &[u8; 32]),
    once: &[u8; 32],
    public: &[u8; 32],
    repository: &RepositoryId,
    repository_key: &Key,
    number: u32,
) -> Option<Key> {
    agree(own, UnparsedPublicKey::new(&X25519, other), (), |shared| {
        let secret = Zeroizing::new([shared, repository_key.bytes()].concat());
        let salt = [&once[..], public].concat();
        Ok(Key::derive(&secret, &salt, &[DATA_KEY, b"\0", repository, &number.to_le_bytes()]))
    })
    .ok()
}

/// Gives a data key to the recipient of a slot, whose secret need not be known.
fn wrap_data_key(
    public: &[u8; 32],
    repository: &RepositoryId,
    repository_key: &Key,
    (number, key): (u32, &Key),
    ephemeral: &Key,
) -> Result<WrappedKey, Failure> {
    let own = private_key(ephemeral);
    let once = public_key(&own);
    let wrapping = data_wrapping_key((&own, public), &once, public, repository, repository_key, number);
    let wrapping =
        wrapping.ok_or_else(|| Failure::Target("a key slot has an impossible public key".into()))?;
    Ok(WrappedKey { number, ephemeral: once, wrapped: wrap(&wrapping, &[], key) })
}

/// Gives a data key to the recipients of all slots.
pub(super) fn give(
    slots: &mut [KeySlot],
    repository: &RepositoryId,
    repository_key: &Key,
    (number, key): (u32, &Key),
) -> Result<(), Failure> {
    for slot in slots {
        let once = Key::new(super::random()?);
        let wrapped = wrap_data_key(&slot.public, repository, repository_key, (number, key), &once)?;
        slot.data_keys.push(wrapped);
    }
    Ok(())
}

/// Makes a slot for a secret, with every data key in it.
pub(super) fn make(
    secret: &Secret,
    number: u32,
    (label, created): (&str, u64),
    repository: &RepositoryId,
    opened: (&Key, &BTreeMap<u32, Key>),
) -> Result<KeySlot, Failure> {
    let cost = (secret.method() == PASSPHRASE_METHOD).then_some(COST);
    let mut slot = make_with(secret, number, (label, created), repository, opened.0, super::random()?, cost)?;
    for (number, key) in opened.1 {
        give(std::slice::from_mut(&mut slot), repository, opened.0, (*number, key))?;
    }
    Ok(slot)
}

fn make_with(
    secret: &Secret,
    number: u32,
    (label, created): (&str, u64),
    repository: &RepositoryId,
    repository_key: &Key,
    salt: [u8; 32],
    argon2id: Option<Argon2Cost>,
) -> Result<KeySlot, Failure> {
    let keys = SlotKeys::derive(secret, &salt, argon2id.as_ref()).map_err(Failure::Target)?;
    let wrapped = wrap(&keys.wrapping, &repository_key_data(repository, &keys.public), repository_key);
    let (method, label, public) = (secret.method().to_owned(), label.to_owned(), keys.public);
    Ok(KeySlot { number, method, label, created, salt, argon2id, public, wrapped, data_keys: Vec::new() })
}

/// Opens the slot that is this secret's.
pub(super) fn open(
    slots: &[KeySlot],
    repository: &RepositoryId,
    secret: &Secret,
) -> Result<Opened, NotOpened> {
    for slot in slots.iter().filter(|slot| slot.method == secret.method()) {
        let damaged = |what: String| NotOpened::Damaged(slot.number, what);
        let keys = SlotKeys::derive(secret, &slot.salt, slot.argon2id.as_ref()).map_err(damaged)?;
        if keys.public != slot.public {
            continue;
        }
        let data = repository_key_data(repository, &slot.public);
        let broken = |what: &str| damaged(format!("its {what} is not authentic"));
        let repository_key =
            unwrap(&keys.wrapping, &data, &slot.wrapped).ok_or_else(|| broken("repository key"))?;
        let mut data_keys = BTreeMap::new();
        for WrappedKey { number, ephemeral, wrapped } in &slot.data_keys {
            let wrapping = data_wrapping_key(
                (&keys.agreement, ephemeral),
                ephemeral,
                &slot.public,
                repository,
                &repository_key,
                *number,
            );
            let key = wrapping.and_then(|wrapping| unwrap(&wrapping, &[], wrapped));
            let key = key.filter(|_| *number > 0).ok_or_else(|| broken(&format!("data key {number}")))?;
            if data_keys.insert(*number, key).is_some() {
                return Err(damaged(format!("data key {number} comes twice")));
            }
        }
        if data_keys.is_empty() {
            return Err(damaged("it has no data key".into()));
        }
        return Ok(Opened { slot: slot.number, repository_key, data_keys });
    }
    Err(NotOpened::NoSlot)
}

/// The seal of a head: only who has all of its data keys can make it. So a recipient who was removed makes none that
/// keeps the keys which came after, and one without them is found out by the objects that they sealed.
pub(super) fn seal(
    data_keys: &BTreeMap<u32, Key>,
    repository: &RepositoryId,
    name: &str,
    summary: &[u8],
) -> [u8; 32] {
    let tag = hmac::sign(&seal_key(data_keys, repository), &[name.as_bytes(), b"\0", summary].concat());
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Whether a head's seal is right.
pub(super) fn is_sealed(
    data_keys: &BTreeMap<u32, Key>,
    repository: &RepositoryId,
    name: &str,
    summary: &[u8],
    found: &[u8],
) -> bool {
    let message = [name.as_bytes(), b"\0", summary].concat();
    hmac::verify(&seal_key(data_keys, repository), &message, found).is_ok()
}

fn seal_key(data_keys: &BTreeMap<u32, Key>, repository: &RepositoryId) -> hmac::Key {
    let all: Zeroizing<Vec<u8>> = Zeroizing::new(data_keys.values().flat_map(|key| *key.bytes()).collect());
    let key = Key::derive(&all, repository, &[HEAD_SEAL]);
    hmac::Key::new(hmac::HMAC_SHA256, key.bytes())
}

#[cfg(test)]
mod tests;
