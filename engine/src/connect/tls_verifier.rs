//! Whether a server's certificate is trusted, with OpenSSL's meaning as libpq uses it.
//!
//! The TLS library's own verification decides wherever it can. Beside it stand what OpenSSL takes and the library does
//! not: a certificate that is itself in the root file, and certificates of the first version, which have no
//! extensions. The host's name is not checked here but after the handshake, by libpq's rules.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
};

use super::certificate::ServerCertificate;

/// Verifies chains against roots, or nothing.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    trust: Option<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Trust {
    roots: Vec<CertificateDer<'static>>,
    /// None where no root can serve the library.
    chains: Option<Arc<WebPkiServerVerifier>>,
    revocation: bool,
}

impl ChainVerifier {
    /// Takes any certificate.
    pub(super) fn trusting(provider: &CryptoProvider) -> Self {
        Self { trust: None, algorithms: provider.signature_verification_algorithms }
    }

    /// Takes certificates that lead to one of the roots. With revocation lists, each certificate on the way must be in
    /// the care of one of them.
    ///
    /// # Errors
    /// What is wrong with the lists.
    pub(super) fn with_roots(
        roots: Vec<CertificateDer<'static>>,
        lists: Vec<CertificateRevocationListDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let now = UnixTime::now();
        let mut store = RootCertStore::empty();
        // The library takes roots for valid forever, OpenSSL does not.
        let is_valid = |der: &CertificateDer<'_>| {
            ServerCertificate::parse(der).is_none_or(|certificate| certificate.is_valid_at(now))
        };
        store.add_parsable_certificates(roots.iter().filter(|der| is_valid(der)).cloned());
        let revocation = !lists.is_empty();
        let chains = if store.is_empty() {
            None
        } else {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
            let builder = builder.with_crls(lists).enforce_revocation_expiration();
            Some(builder.build().map_err(|error| error.to_string())?)
        };
        let trust = Some(Trust { roots, chains, revocation });
        Ok(Self { trust, algorithms: provider.signature_verification_algorithms })
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = ServerCertificate::parse(certificate).ok_or(CertificateError::BadEncoding)?;
        let (key_algorithm, key) = certificate.public_key().ok_or(CertificateError::BadEncoding)?;
        let known = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let mut algorithms = known.into_iter().flat_map(|(_, algorithms)| algorithms.iter());
        let is_right = algorithms.any(|algorithm| {
            *algorithm.public_key_alg_id() == *key_algorithm
                && algorithm.verify_signature(key, message, signed.signature()).is_ok()
        });
        if is_right {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl Trust {
    /// What the library refuses for its form, and OpenSSL takes.
    fn takes_directly(
        &self,
        der: &CertificateDer<'_>,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> bool {
        let Some(certificate) = ServerCertificate::parse(der) else { return false };
        if self.revocation || !certificate.is_valid_at(now) {
            return false;
        }
        let is_root = self.roots.iter().any(|root| root.as_ref() == der.as_ref());
        if is_root && certificate.is_signed_by(&certificate, algorithms) {
            return true;
        }
        certificate.has_no_extensions()
            && self
                .roots
                .iter()
                .filter_map(|root| ServerCertificate::parse(root))
                .any(|root| root.is_valid_at(now) && certificate.is_signed_by(&root, algorithms))
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let verdict = match &trust.chains {
            Some(chains) => {
                chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        match verdict {
            // The name is the last thing that the library looks at: the chain was right.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            Err(_) if trust.takes_directly(end_entity, now, &self.algorithms) => {
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // RFC 8446, section 4.2.3: these are for certificates alone.
        let is_old = matches!(
            signed.scheme,
            SignatureScheme::RSA_PKCS1_SHA1
                | SignatureScheme::RSA_PKCS1_SHA256
                | SignatureScheme::RSA_PKCS1_SHA384
                | SignatureScheme::RSA_PKCS1_SHA512
        );
        if is_old {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
