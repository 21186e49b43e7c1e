//! The client's certificate and key: where they are, who may read them, whether the server asked.
//!
//! Follows `initialize_SSL` of libpq's `fe-secure-openssl.c`: a certificate file that does not exist means none, a
//! certificate without its key is an error, and so is a key that others may read.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::settings::Password;
use super::tls_error::TlsError;
use super::tls_settings::{CertificateMode, TlsSettings};

/// What is shown to a server that asks, and whether one asked.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    key: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
    sent: AtomicBool,
}

impl ClientCertificate {
    /// Reads what the settings name.
    pub(super) fn load(settings: &TlsSettings, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let path = settings.certificate.as_deref();
        let key = match path.filter(|_| settings.certificate_mode != CertificateMode::Disable) {
            Some(path) => load(path, settings, provider)?,
            None => None,
        };
        Ok(Self { key, asked: AtomicBool::new(false), sent: AtomicBool::new(false) })
    }

    /// What `sslcertmode=require` demands of a connection by the time the server lets the client in.
    pub(super) fn check(&self, mode: CertificateMode) -> Result<(), TlsError> {
        if mode != CertificateMode::Require {
            Ok(())
        } else if !self.asked.load(Ordering::Relaxed) {
            Err(TlsError::NotAskedForCertificate)
        } else if !self.sent.load(Ordering::Relaxed) {
            Err(TlsError::NoCertificateSent)
        } else {
            Ok(())
        }
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        let key = self.key.as_ref()?;
        self.sent.store(key.key.choose_scheme(schemes).is_some(), Ordering::Relaxed);
        Some(Arc::clone(key))
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

fn load(
    path: &Path,
    settings: &TlsSettings,
    provider: &CryptoProvider,
) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let what = "certificate";
    let unreadable = |problem: String| TlsError::File { what, path: path.to_owned(), problem };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(error.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable("no certificate in it".to_owned()));
    }
    let Some(key_path) = settings.key.as_deref() else {
        return Err(TlsError::NoKeyFile("postgresql.key".into()));
    };
    let password = settings.key_password.as_ref().map(Password::reveal);
    let key = load_key(key_path, password)?;
    let bad_key = |error: rustls::Error| TlsError::File {
        what: "private key",
        path: key_path.to_owned(),
        problem: error.to_string(),
    };
    let key = CertifiedKey::new(chain, provider.key_provider.load_private_key(key).map_err(bad_key)?);
    match key.keys_match() {
        // Some certificates cannot be compared, and the server will tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(Some(Arc::new(key)))
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch(key_path.to_owned())),
        // A certificate of the first version, which the library does not read. The server will tell.
        Err(_) => Ok(Some(Arc::new(key))),
    }
}

/// PKCS#8's own encryption (RFC 8018, PBES2), as `openssl genpkey` and `openssl pkcs8` write it.
fn decrypt(text: &[u8], password: &str) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let start = text.find("-----BEGIN ENCRYPTED PRIVATE KEY").unwrap_or_default();
    let (_, document) = SecretDocument::from_pem(&text[start..]).map_err(|error| error.to_string())?;
    let key = EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(|error| error.to_string())?;
    let key = key.decrypt(password).map_err(|_| "it cannot be decrypted with sslpassword".to_owned())?;
    Ok(key.as_bytes().to_vec())
}

fn load_key(path: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable = |problem: String| TlsError::File { what: "private key", path: path.to_owned(), problem };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TlsError::NoKeyFile(path.to_owned()));
        }
        Err(error) => return Err(unreadable(error.to_string())),
    };
    if !metadata.is_file() {
        return Err(TlsError::KeyNotPlain(path.to_owned()));
    }
    // Root's files may be readable by a group, for keys that several services share.
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(TlsError::KeyTooOpen(path.to_owned()));
    }
    let text = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    if has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::KeyOldEncryption(path.to_owned()));
    }
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") {
        let password = password.ok_or_else(|| TlsError::KeyEncrypted(path.to_owned()))?;
        let decrypted = decrypt(&text, password).map_err(unreadable)?;
        return PrivateKeyDer::try_from(decrypted).map_err(|error| unreadable(error.to_owned()));
    }
    if has(b"-----BEGIN") {
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| unreadable(error.to_string()))
    } else {
        PrivateKeyDer::try_from(text).map_err(|error| unreadable(error.to_owned()))
    }
}
