//! What goes wrong with TLS, in libpq's words where libpq has words for it.

use std::io;
use std::path::PathBuf;

/// Why a connection has no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The server said no.
    #[error(
        "server does not support SSL, but SSL was required\n\
         HINT: set ssl=on on the server, or sslmode=prefer where the network itself is trusted."
    )]
    NotOffered,
    /// The connection ended where the server had to say whether it has TLS.
    #[error("the server did not answer the request for SSL: {0}")]
    NoAnswer(#[source] io::Error),
    /// The server failed before it could answer; what it says is not to be trusted yet.
    #[error(
        "server sent an error response during SSL exchange\nHINT: the server's log says what is wrong with it."
    )]
    ErrorResponse,
    /// No answer of the protocol.
    #[error("received invalid response to SSL negotiation: {}", .0.escape_ascii())]
    InvalidResponse(u8),
    /// Bytes that came before the channel was secure, perhaps from somebody between.
    #[error("received unencrypted data after SSL response")]
    UnencryptedData,
    /// The connection ended within the handshake.
    #[error("SSL SYSCALL error: EOF detected")]
    Eof,
    /// The socket failed within the handshake.
    #[error("SSL SYSCALL error: {0}")]
    Io(#[source] io::Error),
    /// The server's certificate is not to be trusted.
    #[error("SSL error: certificate verify failed: {reason}\nHINT: {hint}")]
    Untrusted {
        /// Why.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The TLS library's own words.
    #[error("SSL error: {0}")]
    Protocol(String),
    /// A direct connection to a server that does not know what is spoken within it.
    #[error("direct SSL connection was established without ALPN protocol negotiation extension")]
    NoAlpn,
    /// The certificate is somebody else's.
    #[error(
        "server certificate for {names} does not match host name \"{host}\"\n\
         HINT: connect to a name that the certificate has, and use hostaddr for the address."
    )]
    WrongHost {
        /// The first name in the certificate, quoted, and how many others there are.
        names: String,
        /// The host.
        host: String,
    },
    /// A certificate without any name.
    #[error("could not get server's host name from server certificate")]
    NoNames,
    /// `hostaddr` alone names no host to compare with.
    #[error("host name must be specified for a verified SSL connection")]
    NoHost,
    /// No file to verify with.
    #[error(
        "root certificate file \"{}\" does not exist\n\
         HINT: either provide the file, use the system's trusted roots with sslrootcert=system, or change sslmode to \
         disable server certificate verification.",
        .0.display()
    )]
    NoRootFile(PathBuf),
    /// No folder where that file could be.
    #[error(
        "could not get home directory to locate root certificate file\n\
         HINT: either provide the file, use the system's trusted roots with sslrootcert=system, or change sslmode to \
         disable server certificate verification."
    )]
    NoHome,
    /// The system has no roots.
    #[error("could not load system root certificate paths: {0}")]
    SystemRoots(String),
    /// A file that cannot be used.
    #[error("could not read {what} file \"{}\": {problem}", path.display())]
    File {
        /// "root certificate", "certificate", "certificate revocation list" or "private key".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate without its key.
    #[error("certificate present, but not private key file \"{}\"", .0.display())]
    NoKeyFile(PathBuf),
    /// A key in a device or folder.
    #[error("private key file \"{}\" is not a regular file", .0.display())]
    KeyNotPlain(PathBuf),
    /// A key that others may read.
    #[error(
        "private key file \"{}\" has group or world access; file must have permissions u=rw (0600) or less if owned by \
         the current user, or permissions u=rw,g=r (0640) or less if owned by root",
        .0.display()
    )]
    KeyTooOpen(PathBuf),
    /// A key that a password protects.
    #[error(
        "private key file \"{}\" is encrypted, and no password was given\n\
         HINT: give it with sslpassword, or decrypt it with \"openssl pkey\" into a file that only its owner may read.",
        .0.display()
    )]
    KeyEncrypted(PathBuf),
    /// A key in the old form of PEM encryption, which hardly protects it.
    #[error(
        "private key file \"{}\": the old form of encryption (Proc-Type: 4,ENCRYPTED) is not supported\n\
         HINT: convert it with \"openssl pkcs8 -topk8\".",
        .0.display()
    )]
    KeyOldEncryption(PathBuf),
    /// Certificate and key of two different owners.
    #[error("certificate does not match private key file \"{}\"", .0.display())]
    KeyMismatch(PathBuf),
    /// `sslcertmode=require`, and the server asked for none.
    #[error("server did not request an SSL certificate")]
    NotAskedForCertificate,
    /// `sslcertmode=require`, and there was none to send.
    #[error("server accepted connection without a valid SSL certificate")]
    NoCertificateSent,
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        use rustls::CertificateError as Bad;
        let rustls::Error::InvalidCertificate(certificate) = error else {
            return Self::Protocol(error.to_string());
        };
        let (reason, hint) = match &certificate {
            Bad::UnknownIssuer => (
                "the server's certificate is signed by none of the root certificates".to_owned(),
                "check that sslrootcert names the authority that signed it.",
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => {
                ("certificate has expired".to_owned(), "renew the server's certificate.")
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                ("certificate is not yet valid".to_owned(), "check the clocks of both machines.")
            }
            Bad::Revoked => {
                ("certificate revoked".to_owned(), "give the server a certificate that is not revoked.")
            }
            Bad::UnknownRevocationStatus => (
                "unable to get certificate CRL".to_owned(),
                "the revocation list must cover every authority between the certificate and its root.",
            ),
            other => (
                rustls::Error::InvalidCertificate(other.clone()).to_string(),
                "check the server's certificate and what sslrootcert names.",
            ),
        };
        Self::Untrusted { reason, hint }
    }
}
