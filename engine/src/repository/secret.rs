//! What opens an encrypted repository: the content of a key file, or a passphrase.
//!
//! Files that others may read are refused. Nothing of a secret is in any message.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::cipher::{KEY, Key};
use super::error::RepositoryError;
use super::hex;
use super::summary::Argon2Cost;
use crate::failure::Failure;

/// What the one line of a key file begins with.
const KEY_FILE: &str = "pgstrata-key-1 ";
/// Bytes of a key file: its line.
const KEY_FILE_LENGTH: usize = KEY_FILE.len() + 2 * KEY + 1;
/// Bytes of a passphrase.
const PASSPHRASE_MAX: usize = 4096;
/// Fewer are not taken for a new recipient.
const PASSPHRASE_MIN: usize = 8;

/// What Argon2id may be asked for, by whoever wrote the head.
const MEMORY_KIB: std::ops::RangeInclusive<u32> = 8 << 10..=256 << 10;
const PASSES: std::ops::RangeInclusive<u32> = 1..=16;
const LANES: std::ops::RangeInclusive<u32> = 1..=16;

/// A recipient's secret.
#[derive(Clone)]
pub struct Secret(Kind);

#[derive(Clone)]
enum Kind {
    KeyFile(Key),
    Passphrase(Zeroizing<Vec<u8>>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// What a key file holds.
    ///
    /// # Errors
    /// Where it cannot be read, others may read it, or it is no key file.
    pub fn from_key_file(path: &Path) -> Result<Self, Failure> {
        let content = read(path, "key file", KEY_FILE_LENGTH)?;
        let line = std::str::from_utf8(&content).ok().and_then(|text| text.strip_prefix(KEY_FILE));
        let digits = line.map(|line| line.strip_suffix('\n').unwrap_or(line));
        let Some(key) = digits.and_then(hex::decode) else {
            let what = format!(
                "found {}, expected one line \"{KEY_FILE}\" and 64 hexadecimal digits",
                if line.is_some() { "a key of another form" } else { "no key file of pgstrata" }
            );
            let hint =
                "make key files with `pgstrata key generate FILE`; a passphrase goes with --passphrase-file.";
            return Err(refused(path, what, hint));
        };
        Ok(Self(Kind::KeyFile(Key::new(key))))
    }

    /// The first line of a file, as a passphrase.
    ///
    /// # Errors
    /// Where it cannot be read, others may read it, or its first line is empty or too long.
    pub fn from_passphrase_file(path: &Path) -> Result<Self, Failure> {
        let content = read(path, "passphrase file", PASSPHRASE_MAX + 2)?;
        let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Self::passphrase(line.strip_suffix(b"\r").unwrap_or(line))
            .map_err(|what| refused(path, what, "write the passphrase into the file's first line."))
    }

    /// A passphrase.
    ///
    /// # Errors
    /// In words, why it is none.
    pub fn passphrase(bytes: &[u8]) -> Result<Self, String> {
        match bytes.len() {
            0 => Err("the passphrase is empty".into()),
            1..=PASSPHRASE_MAX => Ok(Self(Kind::Passphrase(Zeroizing::new(bytes.to_vec())))),
            more => Err(format!("the passphrase has {more} bytes, expected at most {PASSPHRASE_MAX}")),
        }
    }

    /// Makes a key file of 256 random bits that only its owner may read. One that is there is left alone and refused.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn generate_key_file(path: &Path) -> Result<(), Failure> {
        let mut line = Zeroizing::new(String::with_capacity(KEY_FILE_LENGTH));
        let key = Key::new(super::random()?);
        line.push_str(KEY_FILE);
        line.push_str(&Zeroizing::new(hex::encode(key.bytes())));
        line.push('\n');
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let mut file = match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let hint = "keys are never overwritten: what they opened would be lost. Choose another name.";
                return Err(refused(path, "there is a file of that name already", hint));
            }
            file => file.map_err(|error| Failure::disk("create file", path, error))?,
        };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all())
        });
        written.map_err(|error| {
            // Half a key opens nothing.
            let _ = std::fs::remove_file(path);
            Failure::disk("write", path, error)
        })
    }

    /// Refuses a passphrase that is too short for a new recipient.
    pub(super) fn check_strength(&self) -> Result<(), Failure> {
        match &self.0 {
            Kind::Passphrase(phrase) if phrase.len() < PASSPHRASE_MIN => {
                let what = format!("it has {} bytes, expected at least {PASSPHRASE_MIN}", phrase.len());
                let hint =
                    "whoever has the repository can try passphrases at leisure: take several random words.";
                Err(RepositoryError::new("passphrase", what, hint).into())
            }
            _ => Ok(()),
        }
    }

    /// As a slot names it.
    pub(super) fn method(&self) -> &'static str {
        match self.0 {
            Kind::KeyFile(_) => KEY_FILE_METHOD,
            Kind::Passphrase(_) => PASSPHRASE_METHOD,
        }
    }

    /// What slot keys are derived from: the key file's 32 bytes, or what Argon2id makes of the passphrase.
    ///
    /// # Errors
    /// In words, why this is asked for in a way that it cannot be had.
    pub(super) fn root(&self, salt: &[u8], cost: Option<&Argon2Cost>) -> Result<Key, String> {
        match (&self.0, cost) {
            (Kind::KeyFile(key), None) => Ok(key.clone()),
            (Kind::Passphrase(phrase), Some(cost)) => {
                let Argon2Cost { memory_kib, passes, lanes } = *cost;
                let bounded =
                    MEMORY_KIB.contains(&memory_kib) && PASSES.contains(&passes) && LANES.contains(&lanes);
                if !bounded {
                    return Err(format!(
                        "found Argon2id with {memory_kib} KiB, {passes} passes and {lanes} lanes, which is out of bounds"
                    ));
                }
                let params = Params::new(memory_kib, passes, lanes, Some(KEY));
                let argon2 = params.map(|params| Argon2::new(Algorithm::Argon2id, Version::V0x13, params));
                let mut root = Zeroizing::new([0; KEY]);
                let made = argon2.and_then(|argon2| argon2.hash_password_into(phrase, salt, &mut root[..]));
                made.map_err(|error| format!("Argon2id: {error}"))?;
                Ok(Key::new(*root))
            }
            (Kind::KeyFile(_), Some(_)) => Err("found a cost for a key file".into()),
            (Kind::Passphrase(_), None) => Err("found no cost for a passphrase".into()),
        }
    }
}

/// How a slot's key is wrapped, by name.
pub(super) const KEY_FILE_METHOD: &str = "key-file";
pub(super) const PASSPHRASE_METHOD: &str = "passphrase";

fn refused(path: &Path, what: impl fmt::Display, hint: &'static str) -> Failure {
    RepositoryError::new(path.display(), what, hint).into()
}

/// A small file that nobody else may read.
fn read(path: &Path, kind: &str, most: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error| Failure::disk("read", path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(refused(path, format!("found a folder, expected a {kind}"), "name the file itself."));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let what = format!("the {kind} has permissions {mode:04o}, expected 0600 or less: others may use it");
        let hint =
            "take the others' permissions away (chmod 600), and replace the secret if they have had it.";
        return Err(refused(path, what, hint));
    }
    // Reserved at once, so that nothing of it stays behind in a smaller one.
    let mut content = Zeroizing::new(Vec::with_capacity(most + 1));
    file.take(most as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() > most {
        let hint = "check that this is the file that was meant.";
        return Err(refused(path, format!("found more than {most} bytes, which no {kind} has"), hint));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, content: &[u8], mode: u32) {
        std::fs::write(path, content).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
    }

    #[test]
    fn key_files_are_made_once_and_read_by_their_owner_only() {
        let scratch = tempfile::tempdir().expect("a folder");
        let path = scratch.path().join("key");
        Secret::generate_key_file(&path).expect("made");
        let made = std::fs::read(&path).expect("there");
        assert_eq!((made.len(), made.last()), (KEY_FILE_LENGTH, Some(&b'\n')));
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o600);
        let refused = Secret::generate_key_file(&path).expect_err("there").to_string();
        assert!(refused.contains("never overwritten"), "{refused}");
        assert_eq!(std::fs::read(&path).expect("there"), made);
        let secret = Secret::from_key_file(&path).expect("read");
        assert_eq!(format!("{secret:?}"), "Secret");
        let root = secret.root(b"", None).expect("as it is");
        assert_eq!(hex::encode(root.bytes()).as_bytes(), &made[KEY_FILE.len()..made.len() - 1]);
        write(&path, &made[..made.len() - 1], 0o400);
        Secret::from_key_file(&path).expect("without the line's end");
        for mode in [0o640, 0o604, 0o660, 0o610] {
            write(&path, &made, mode);
            let refused = Secret::from_key_file(&path).map(drop).expect_err("open").to_string();
            assert!(refused.contains(&format!("permissions {mode:04o}")), "{refused}");
            assert!(refused.contains("HINT: "), "{refused}");
        }
        let twice = [&made[..], &made].concat();
        let upper = made.to_ascii_uppercase();
        for (content, words) in [
            (&b""[..], "found no key file"),
            (b"a passphrase", "found no key file"),
            (&made[..50], "found a key of another form"),
            (&upper, "found no key file"),
            (&twice, "found more than"),
            (b"pgstrata-key-1 \xff", "found no key file"),
        ] {
            write(&path, content, 0o600);
            let refused = Secret::from_key_file(&path).map(drop).expect_err("no key").to_string();
            assert!(refused.contains(words) && refused.contains("HINT: "), "{words}: {refused}");
        }
        assert!(Secret::from_key_file(scratch.path()).is_err(), "a folder");
        assert!(Secret::from_key_file(&scratch.path().join("none")).is_err());
    }

    #[test]
    fn a_passphrase_is_a_files_first_line() {
        let scratch = tempfile::tempdir().expect("a folder");
        let path = scratch.path().join("phrase");
        let cost = Argon2Cost { memory_kib: 8 << 10, passes: 1, lanes: 1 };
        let root = |secret: Secret| *secret.root(&[1; 32], Some(&cost)).expect("derived").bytes();
        let expected = root(Secret::passphrase(b"correct horse").expect("one"));
        for content in ["correct horse", "correct horse\n", "correct horse\r\n", "correct horse\nmore\n"] {
            write(&path, content.as_bytes(), 0o600);
            assert_eq!(root(Secret::from_passphrase_file(&path).expect("read")), expected, "{content:?}");
        }
        write(&path, b"correct horse ", 0o600);
        assert_ne!(root(Secret::from_passphrase_file(&path).expect("read")), expected);
        for (content, mode, words) in [
            (vec![], 0o600, "is empty"),
            (b"\nx".to_vec(), 0o600, "is empty"),
            (vec![b'x'; PASSPHRASE_MAX + 1], 0o600, "has 4097 bytes"),
            (vec![b'x'; 10_000], 0o600, "found more than"),
            (b"x".to_vec(), 0o644, "permissions 0644"),
        ] {
            write(&path, &content, mode);
            let refused = Secret::from_passphrase_file(&path).map(drop).expect_err(words).to_string();
            assert!(refused.contains(words) && refused.contains("HINT: "), "{words}: {refused}");
        }
        assert!(Secret::passphrase(b"short").expect("one").check_strength().is_err());
    }

    #[test]
    fn what_a_head_may_ask_of_argon2_is_bounded() {
        let secret = Secret::passphrase(b"correct horse").expect("one");
        let good = Argon2Cost { memory_kib: 8 << 10, passes: 1, lanes: 1 };
        for bad in [
            Argon2Cost { memory_kib: 1, ..good },
            Argon2Cost { memory_kib: u32::MAX, ..good },
            Argon2Cost { passes: 0, ..good },
            Argon2Cost { passes: 17, ..good },
            Argon2Cost { lanes: 0, ..good },
            Argon2Cost { lanes: 1000, ..good },
        ] {
            let refused = secret.root(&[1; 32], Some(&bad)).expect_err("out of bounds");
            assert!(refused.contains("out of bounds"), "{refused}");
        }
        assert!(secret.root(&[1; 32], None).is_err());
        assert!(Secret(Kind::KeyFile(Key::new([1; KEY]))).root(&[1; 32], Some(&good)).is_err());
    }
}
