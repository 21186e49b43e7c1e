//! What libpq reads in a server's certificate: its names, its key, the hash that binds a channel to it.
//!
//! Names are compared as `fe-secure-common.c` and `fe-secure-openssl.c` compare them, which is neither RFC 6125 nor
//! what TLS libraries do: a wildcard stands for one whole label, and the common name counts where no alternative
//! name of the host's kind is present.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::UnixTime;
use x509_cert::Certificate;
use x509_cert::der::asn1::{ContextSpecific, ObjectIdentifier};
use x509_cert::der::{Decode as _, Encode as _, SliceReader, TagNumber};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::tls_error::TlsError;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// A certificate that can be read.
#[derive(Debug)]
pub(super) struct ServerCertificate(Certificate);

impl ServerCertificate {
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        Certificate::from_der(der).ok().map(Self)
    }

    /// # Errors
    /// [`TlsError::WrongHost`] or [`TlsError::NoNames`].
    pub(super) fn check_host(&self, host: &str) -> Result<(), TlsError> {
        let address = address_of(host);
        let (mut examined, mut ask_common_name) = (Vec::new(), true);
        let names = self.0.tbs_certificate.get::<SubjectAltName>().ok().flatten();
        for name in names.map(|(_, SubjectAltName(names))| names).unwrap_or_default() {
            let matches = match &name {
                GeneralName::DnsName(name) => {
                    ask_common_name &= address.is_some();
                    examined.push(name.as_str().to_owned());
                    name_matches(name.as_str().as_bytes(), host)
                }
                GeneralName::IpAddress(octets) => {
                    ask_common_name &= address.is_none();
                    let found = address_from(octets.as_bytes());
                    examined.push(found.map_or("(invalid address)".to_owned(), |found| found.to_string()));
                    found.is_some() && found == address
                }
                _ => false,
            };
            if matches {
                return Ok(());
            }
        }
        if ask_common_name && let Some(name) = self.common_name() {
            if name_matches(&name, host) {
                return Ok(());
            }
            examined.push(String::from_utf8_lossy(&name).into_owned());
        }
        let others = match examined.len() {
            0 => return Err(TlsError::NoNames),
            1 => String::new(),
            2 => " (and 1 other name)".to_owned(),
            count => format!(" (and {} other names)", count - 1),
        };
        let names = format!("\"{}\"{others}", examined[0]);
        Err(TlsError::WrongHost { names, host: host.to_owned() })
    }

    /// The first common name's bytes, in whatever encoding.
    fn common_name(&self) -> Option<Vec<u8>> {
        let names = self.0.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
        names.into_iter().find(|name| name.oid == COMMON_NAME).map(|name| name.value.value().to_vec())
    }

    /// `tls-server-end-point` of RFC 5929: a hash of the whole certificate, by its signature's hash function but
    /// SHA-256 where that is MD5 or SHA-1; `None` where the signature has none.
    pub(super) fn end_point(&self, der: &[u8]) -> Option<Vec<u8>> {
        let signature = &self.0.signature_algorithm;
        let hash = if signature.oid == RSASSA_PSS { pss_hash(signature)? } else { signature.oid };
        let algorithm = match hash.to_string().as_str() {
            // MD5 and SHA-1, with RSA, with ECDSA, and by themselves.
            "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.3.14.3.2.26" => {
                &digest::SHA256
            }
            "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => &digest::SHA224,
            "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => &digest::SHA384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => &digest::SHA512,
            _ => return None,
        };
        Some(digest::digest(algorithm, der).as_ref().to_vec())
    }

    /// The public key: its algorithm as signatures' verifiers name it, and its bits.
    pub(super) fn public_key(&self) -> Option<(Vec<u8>, &[u8])> {
        let key: &SubjectPublicKeyInfoOwned = &self.0.tbs_certificate.subject_public_key_info;
        Some((algorithm_content(&key.algorithm)?, key.subject_public_key.as_bytes()?))
    }

    pub(super) fn is_valid_at(&self, now: UnixTime) -> bool {
        let validity = &self.0.tbs_certificate.validity;
        let now = Duration::from_secs(now.as_secs());
        validity.not_before.to_unix_duration() <= now && now <= validity.not_after.to_unix_duration()
    }

    /// Whether this is a certificate of the first version, which has no extensions: what `openssl x509 -req` makes
    /// unless it is told otherwise, and many a server has.
    pub(super) fn has_no_extensions(&self) -> bool {
        self.0.tbs_certificate.extensions.as_ref().is_none_or(Vec::is_empty)
    }

    /// Whether `authority` may sign certificates and signed this one.
    pub(super) fn is_signed_by(&self, authority: &Self, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let constraints = authority.0.tbs_certificate.get::<BasicConstraints>().ok().flatten();
        let may_sign = authority.has_no_extensions() || constraints.is_some_and(|(_, basic)| basic.ca);
        // Constraints on names are beyond this: who has any gets no certificate signed here.
        let is_constrained = authority.0.tbs_certificate.extensions.iter().flatten().any(|extension| {
            extension.critical && !matches!(extension.extn_id.to_string().as_str(), "2.5.29.19" | "2.5.29.15")
        });
        let same_name = self.0.tbs_certificate.issuer == authority.0.tbs_certificate.subject;
        let (Ok(signed), Some(algorithm), Some((key_algorithm, key)), Some(signature)) = (
            self.0.tbs_certificate.to_der(),
            algorithm_content(&self.0.signature_algorithm),
            authority.public_key(),
            self.0.signature.as_bytes(),
        ) else {
            return false;
        };
        may_sign
            && !is_constrained
            && same_name
            && algorithms.all.iter().any(|known| {
                *known.signature_alg_id() == *algorithm
                    && *known.public_key_alg_id() == *key_algorithm
                    && known.verify_signature(key, &signed, signature).is_ok()
            })
    }
}

/// The content of an `AlgorithmIdentifier`, without the header of its sequence.
fn algorithm_content(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let mut content = algorithm.oid.to_der().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        content.extend(parameters.to_der().ok()?);
    }
    Some(content)
}

/// The hash function in the parameters of an RSASSA-PSS signature (RFC 4055), SHA-1 where they name none.
fn pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let parameters = signature.parameters.as_ref()?;
    let mut reader = SliceReader::new(parameters.value()).ok()?;
    let hash =
        ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(&mut reader, TagNumber::N0).ok()?;
    Some(hash.map_or(ObjectIdentifier::new_unwrap("1.3.14.3.2.26"), |hash| hash.value.oid))
}

/// The address that a host is, if it is one.
fn address_of(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

fn address_from(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// Whether a certificate's name stands for the host: the same, or `*.domain` for one label before the domain.
fn name_matches(name: &[u8], host: &str) -> bool {
    let host = host.as_bytes();
    if name.contains(&0) {
        return false;
    }
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match name.strip_prefix(b"*") {
        Some(domain @ [b'.', _, ..]) if host.len() > domain.len() => {
            let (label, rest) = host.split_at(host.len() - domain.len());
            rest.eq_ignore_ascii_case(domain) && !label.contains(&b'.')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, host, expected) in [
            ("db.example", "db.example", true),
            ("DB.example", "db.EXAMPLE", true),
            ("db.example", "db.example.com", false),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*", "example", false),
            ("*.", "a.", false),
            ("d*.example", "db.example", false),
            ("*.*.example", "a.b.example", false),
            ("db.example\0.evil", "db.example", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("", "db", false),
        ] {
            assert_eq!(name_matches(name.as_bytes(), host), expected, "{name} {host}");
        }
    }
}
