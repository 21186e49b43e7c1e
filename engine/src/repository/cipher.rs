//! The cipher of one object: AES-256-GCM under a key that no other object has. docs/repository-format.md, *Encryption*,
//! has the bytes.
//!
//! Sans-IO. Invariant: a key and a nonce come together once. An object's key is derived from the data key, from 256
//! random bits of the object's own, and from its name; its nonces are the numbers of its frames.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY: usize = 32;
/// Bytes that a frame is longer for its authentication.
pub(super) const TAG: usize = 16;
/// Bytes of the salt behind an encrypted object's prologue.
pub(super) const SALT: usize = 32;

/// The footer's number; no object has so many frames.
pub(super) const FOOTER: u32 = u32::MAX;

/// What an object's key is derived for.
const OBJECT_KEY: &[u8] = b"pgstrata 1 object key";

/// Bytes that open something. Shown to nobody, and wiped when dropped.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<[u8; KEY]>);

impl Key {
    pub(super) fn new(bytes: [u8; KEY]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// HKDF-SHA-256 of `secret` and `salt` for what `info` says.
    pub(super) fn derive(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Self {
        let mut bytes = Zeroizing::new([0; KEY]);
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
        let derived = derived.expand(info, hkdf::HKDF_SHA256).and_then(|key| key.fill(&mut bytes[..]));
        derived.expect("32 bytes are as many as the hash has");
        Self(bytes)
    }

    pub(super) fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, self.bytes()).expect("a key has 32 bytes"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Bytes that were not sealed with this key, for this place, or are not what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAuthentic;

/// Seals and opens the frames of one object.
pub(super) struct ObjectCipher {
    key: LessSafeKey,
    /// Prologue, the frame's number, the object's name.
    associated: Vec<u8>,
    number: std::ops::Range<usize>,
}

impl ObjectCipher {
    /// The cipher of the object of this name that begins with these bytes, the salt being the last of them.
    pub(super) fn new(data_key: &Key, prologue: &[u8], name: &str) -> Self {
        let salt = &prologue[prologue.len() - SALT..];
        let key = Key::derive(data_key.bytes(), salt, &[OBJECT_KEY, b"\0", name.as_bytes()]);
        let number = prologue.len()..prologue.len() + 4;
        let associated = [prologue, &[0; 4], name.as_bytes()].concat();
        Self { key: key.cipher(), associated, number }
    }

    fn associated(&self, number: u32, beside: &[u8]) -> Aad<Vec<u8>> {
        let mut associated = Vec::with_capacity(self.associated.len() + beside.len());
        associated.extend_from_slice(&self.associated);
        associated[self.number.clone()].copy_from_slice(&number.to_le_bytes());
        associated.extend_from_slice(beside);
        Aad::from(associated)
    }

    /// Seals `plain` into `sealed`, which is [`TAG`] bytes longer. No number is to come twice.
    pub(super) fn seal(&self, number: u32, beside: &[u8], plain: &[u8], sealed: &mut [u8]) {
        let (ciphertext, tag) = sealed.split_at_mut(plain.len());
        let associated = self.associated(number, beside);
        let done = self.key.seal_out_of_place_scatter(nonce(number), associated, plain, ciphertext, &[], tag);
        done.expect("a frame is shorter than what the cipher takes");
    }

    /// Seals all of `sealed` but its last [`TAG`] bytes where it lies, and puts the tag there.
    pub(super) fn seal_in_place(&self, number: u32, sealed: &mut [u8]) {
        let (bytes, place) = sealed.split_at_mut(sealed.len() - TAG);
        let tag = self.key.seal_in_place_separate_tag(nonce(number), self.associated(number, &[]), bytes);
        place.copy_from_slice(tag.expect("a frame is shorter than what the cipher takes").as_ref());
    }

    /// Opens sealed bytes where they lie, and returns those that were sealed.
    ///
    /// # Errors
    /// Where they are not authentic; what `sealed` holds then is nothing.
    pub(super) fn open<'s>(
        &self,
        number: u32,
        beside: &[u8],
        sealed: &'s mut [u8],
    ) -> Result<&'s [u8], NotAuthentic> {
        let opened = self.key.open_in_place(nonce(number), self.associated(number, beside), sealed);
        opened.map(|plain| &*plain).map_err(|_| NotAuthentic)
    }
}

impl fmt::Debug for ObjectCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectCipher")
    }
}

/// The number, and zeros.
fn nonce(number: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;

    fn sequence<const N: usize>(first: u8) -> [u8; N] {
        std::array::from_fn(|place| first + u8::try_from(place).expect("short"))
    }

    /// Against values that Python's cryptography computed from the format's text.
    #[test]
    fn objects_are_what_the_format_says() {
        let mut prologue = b"PGSTRATA\x01\x00\x04\x01\x01\x00\x00\x00".to_vec();
        prologue.extend_from_slice(&sequence::<16>(0x40));
        prologue.extend_from_slice(&sequence::<32>(0xb0));
        let cipher =
            ObjectCipher::new(&Key::new(sequence(0x90)), &prologue, "clusters/main/identity.00000000");
        let mut sealed = vec![0; 8 + TAG];
        cipher.seal(3, &[], b"pgstrata", &mut sealed);
        assert_eq!(hex::encode(&sealed), "9986c0f49c2e187377de5d8cc76d95f1d6e9c17dc22a25c8");
        let mut in_place = [&b"pgstrata"[..], &[0; TAG]].concat();
        cipher.seal_in_place(3, &mut in_place);
        assert_eq!(in_place, sealed);
        assert_eq!(cipher.open(3, &[], &mut sealed).expect("authentic"), b"pgstrata");
        let head = [&64u64.to_le_bytes()[..], &[0; 16]].concat();
        let mut footer = [0; TAG];
        cipher.seal(FOOTER, &head, &[], &mut footer);
        assert_eq!(hex::encode(&footer), "3bf5a5a102a5420b84ae35e95326dea2");
        assert_eq!(cipher.open(FOOTER, &head, &mut footer).expect("authentic"), b"");
    }

    #[test]
    fn no_key_is_shown() {
        let key = Key::new([0x5a; KEY]);
        let cipher = ObjectCipher::new(&key, &[0x5a; 64], "x");
        assert_eq!(format!("{key:?} {cipher:?}"), "Key ObjectCipher");
    }
}
