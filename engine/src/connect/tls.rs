//! The TLS side of a connection: bytes of the wire in, bytes of the conversation out, and the other way.
//!
//! Sans-IO: the asynchronous transport, and later the bulk stream's thread, move the bytes and hand this state from the
//! one to the other. The only place that knows the TLS library's connection.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};

use super::certificate::ServerCertificate;
use super::client_certificate::ClientCertificate;
use super::tls_error::TlsError;
use super::tls_settings::{Roots, SslMode, TlsSettings};
use super::tls_verifier::ChainVerifier;

/// What is spoken within (`PG_ALPN_PROTOCOL`, `libpq/pqcomm.h`).
const ALPN: &[u8] = b"postgresql";

/// No sane certificate, key or revocation list is larger.
const LARGEST_FILE: u64 = 64 << 20;

/// A TLS connection, from its first handshake message on.
pub(super) struct Tls {
    connection: ClientConnection,
    certificate: Arc<ClientCertificate>,
    /// What went wrong after bytes that are still to be handed out.
    fault: Option<rustls::Error>,
    closed: bool,
}

impl Tls {
    /// Reads the files that the settings name and begins a connection to `host`, the name and not the address.
    pub(super) fn begin(settings: &TlsSettings, host: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = verifier(settings, &provider)?;
        let certificate = Arc::new(ClientCertificate::load(settings, &provider)?);
        let versions: &[&SupportedProtocolVersion] = match settings.versions {
            (true, true) => &[&TLS13, &TLS12],
            (true, false) => &[&TLS12],
            (false, _) => &[&TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&certificate) as Arc<_>);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection has a state of its own: there is nothing to resume.
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(host.to_owned()).ok();
        let is_name = matches!(name, Some(ServerName::DnsName(_)));
        config.enable_sni = settings.sni && is_name;
        // An address is never sent; which one stands here is of no account.
        let name = name.unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()));
        let connection = ClientConnection::new(Arc::new(config), name)?;
        Ok(Self { connection, certificate, fault: None, closed: false })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes handshake messages off the front of `wire`, up to the handshake's end.
    pub(super) fn shake_hands(&mut self, wire: &mut &[u8]) -> Result<(), TlsError> {
        while !wire.is_empty() && self.is_handshaking() {
            self.connection.read_tls(wire).map_err(TlsError::Io)?;
            self.connection.process_new_packets()?;
        }
        Ok(())
    }

    /// What is to be sent before anything is received.
    pub(super) fn take_output(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out)?;
        }
        Ok(out)
    }

    /// What libpq checks once the handshake is over: the protocol within and, for `verify-full`, the host's name.
    pub(super) fn check(&self, settings: &TlsSettings, host: &str) -> Result<(), TlsError> {
        if settings.direct && self.connection.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::NoAlpn);
        }
        if settings.mode != SslMode::VerifyFull {
            return Ok(());
        }
        if host.is_empty() {
            return Err(TlsError::NoHost);
        }
        let certificate = self.server_certificate().and_then(|der| ServerCertificate::parse(der));
        certificate.ok_or(TlsError::NoNames)?.check_host(host)
    }

    /// What `sslcertmode` demands once the server lets the client in.
    pub(super) fn check_client_certificate(&self, settings: &TlsSettings) -> Result<(), TlsError> {
        self.certificate.check(settings.certificate_mode)
    }

    /// `tls-server-end-point`, where the server's certificate names a hash function.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let der = self.server_certificate()?;
        ServerCertificate::parse(der)?.end_point(der)
    }

    fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// Encrypts messages for the wire, behind what the protocol itself still has to say.
    pub(super) fn encrypt(&mut self, mut plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = self.take_output()?;
        while !plain.is_empty() {
            // It takes what its own bounded buffer has room for.
            let taken = self.connection.writer().write(plain)?;
            plain = &plain[taken..];
            while self.connection.wants_write() {
                self.connection.write_tls(&mut out)?;
            }
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(out)
    }

    /// Decrypts from the front of `wire` into `plain` until either is used up, and returns the count of bytes. 0 asks
    /// for more of the wire, unless the stream [is closed](Self::is_closed).
    pub(super) fn decrypt(&mut self, wire: &mut &[u8], plain: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            while filled < plain.len() && !self.closed {
                match self.connection.reader().read(&mut plain[filled..]) {
                    Ok(0) => self.closed = true,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if filled == plain.len() || self.closed {
                return Ok(filled);
            }
            if let Some(fault) = self.fault.take_if(|_| filled == 0) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, TlsError::from(fault)));
            }
            if wire.is_empty() || self.fault.is_some() {
                return Ok(filled);
            }
            self.connection.read_tls(wire)?;
            self.fault = self.connection.process_new_packets().err();
        }
    }

    /// Whether the server said that nothing follows.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Received bytes that are not decrypted yet, and the state that decrypts them.
pub(super) struct TlsStream {
    pub(super) tls: Tls,
    pub(super) wire: Vec<u8>,
    pub(super) at: usize,
    pub(super) filled: usize,
}

impl TlsStream {
    /// Makes room for `bytes` of the wire at a time; what is received stays.
    pub(super) fn enlarge(&mut self, bytes: usize) {
        if bytes > self.wire.len() {
            self.wire.resize(bytes, 0);
        }
    }

    /// Decrypts what is received. 0 asks for more, unless the stream is closed.
    pub(super) fn decrypt(&mut self, plain: &mut [u8]) -> io::Result<usize> {
        let mut wire = &self.wire[self.at..self.filled];
        let result = self.tls.decrypt(&mut wire, plain);
        self.at = self.filled - wire.len();
        result
    }
}

fn verifier(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<ChainVerifier, TlsError> {
    match &settings.roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
                let reasons =
                    if reasons.is_empty() { "there are none".to_owned() } else { reasons.join("; ") };
                return Err(TlsError::SystemRoots(reasons));
            }
            ChainVerifier::with_roots(found.certs, Vec::new(), provider).map_err(TlsError::SystemRoots)
        }
        Roots::File(path) if fs::metadata(path).is_ok() => {
            let what = "root certificate";
            let bad = |problem| TlsError::File { what, path: path.clone(), problem };
            let roots: Vec<CertificateDer<'static>> = read_all(path).map_err(bad)?;
            if roots.is_empty() {
                return Err(bad("no certificate in it".to_owned()));
            }
            let lists = revocation_lists(settings)?;
            ChainVerifier::with_roots(roots, lists, provider).map_err(bad)
        }
        Roots::File(path) if settings.mode.verifies() => Err(TlsError::NoRootFile(path.clone())),
        Roots::Nowhere if settings.mode.verifies() => Err(TlsError::NoHome),
        Roots::File(_) | Roots::Nowhere => Ok(ChainVerifier::trusting(provider)),
    }
}

/// The revocation lists of the settings' file and folder. Whichever does not exist counts as none.
fn revocation_lists(settings: &TlsSettings) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bad = |path: &Path, problem| TlsError::File {
        what: "certificate revocation list",
        path: path.to_owned(),
        problem,
    };
    let mut lists = Vec::new();
    if let Some(path) = settings.crl_file.as_deref().filter(|path| path.exists()) {
        lists.extend(read_all(path).map_err(|problem| bad(path, problem))?);
    }
    if let Some(folder) = settings.crl_folder.as_deref().filter(|folder| folder.exists()) {
        let entries = fs::read_dir(folder).map_err(|error| bad(folder, error.to_string()))?;
        for entry in entries {
            let path = entry.map_err(|error| bad(folder, error.to_string()))?.path();
            if is_hashed_list(&path) {
                lists.extend(read_all(&path).map_err(|problem| bad(&path, problem))?);
            }
        }
    }
    Ok(lists)
}

/// `c_rehash` names lists by the hash of their issuer, `12ab34cd.r0`, and OpenSSL reads no others.
fn is_hashed_list(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".r"));
    name.is_some_and(|(hash, number)| {
        hash.len() == 8
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Every item of that kind in a PEM file.
fn read_all<T: PemObject>(path: &Path) -> Result<Vec<T>, String> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LARGEST_FILE).read_to_end(&mut text).map_err(|error| error.to_string())?;
    T::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| error.to_string())
}
