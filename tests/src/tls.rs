//! A certification authority of the test's own, and servers that show its certificates.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType,
    SerialNumber, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

use crate::{Source, wait_until};

/// Signs certificates.
pub struct Authority {
    certificate: Certificate,
    key: KeyPair,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate alone.
    pub certificate: String,
    /// Its key.
    pub key: String,
    serial: u64,
}

/// What a certificate is to say.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The common name, if any.
    pub common_name: Option<&'a str>,
    /// Alternative names: addresses where they read as such.
    pub names: &'a [&'a str],
    /// Days since it expired.
    pub expired_days_ago: Option<i64>,
    /// How its key signs; ECDSA on P-256 unless said otherwise.
    pub algorithm: Option<&'static SignatureAlgorithm>,
    /// Its number.
    pub serial: u64,
}

impl Identity {
    /// One that another program made.
    #[must_use]
    pub fn from_pem(certificate: String, key: String) -> Self {
        Self { certificate, key, serial: 0 }
    }
}

impl Subject<'_> {
    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = self.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = self
            .names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().expect("an ASCII name")),
            })
            .collect();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(30);
        params.not_after = match self.expired_days_ago {
            Some(days) => now - Duration::days(days),
            None => now + Duration::days(30),
        };
        params.serial_number = Some(SerialNumber::from(self.serial));
        params
    }

    fn key(&self) -> KeyPair {
        match self.algorithm {
            Some(algorithm) => KeyPair::generate_for(algorithm),
            None => KeyPair::generate(),
        }
        .expect("keys can be made")
    }

    /// A certificate that is its own authority, as in many a test system.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn self_signed(&self) -> Identity {
        let mut params = self.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = self.key();
        let certificate = params.self_signed(&key).expect("a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem(), serial: self.serial }
    }
}

impl Authority {
    /// A new authority of that name.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let subject = Subject { common_name: Some(name), serial: 1, ..Subject::default() };
        let mut params = subject.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = subject.key();
        Self { certificate: params.self_signed(&key).expect("a certificate"), key }
    }

    /// Signs a certificate.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn sign(&self, subject: &Subject<'_>) -> Identity {
        let key = subject.key();
        let params = subject.params();
        let certificate = params.signed_by(&key, &self.certificate, &self.key).expect("a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem(), serial: subject.serial }
    }

    /// The root certificate as PEM.
    #[must_use]
    pub fn root(&self) -> String {
        self.certificate.pem()
    }

    /// A revocation list as PEM.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[must_use]
    pub fn revoke(&self, identities: &[&Identity]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |identity: &&Identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: now - Duration::days(1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::days(1),
            next_update: now + Duration::days(30),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: identities.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.certificate, &self.key).expect("a list").pem().expect("PEM")
    }
}

impl Source {
    /// Writes a file that only its owner, the test, may read; returns its path.
    ///
    /// # Panics
    /// Where that fails.
    pub fn client_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir(name);
        fs::create_dir_all(path.parent().expect("a file in the scratch directory")).expect("a folder");
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        path
    }

    /// Replaces `pg_hba.conf`; new connections see it.
    ///
    /// # Panics
    /// Where that fails.
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.data_dir().join("pg_hba.conf"), lines).expect("pg_hba.conf");
        self.reload();
    }

    /// Has the server show this certificate, and take clients' certificates of `clients`' authority.
    ///
    /// # Panics
    /// Where that fails.
    pub fn serve_tls(&self, identity: &Identity, clients: &Authority) {
        let owner = self.data_dir().metadata().expect("the data directory");
        for (name, content) in [
            ("server.crt", &identity.certificate),
            ("server.key", &identity.key),
            ("clients.crt", &clients.root()),
        ] {
            let path = self.data_dir().join(name);
            fs::write(&path, content).expect("a file for the server");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
        }
        let sql = self.sql();
        sql.execute("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'");
        sql.execute("ALTER SYSTEM SET ssl = on");
        drop(sql);
        self.reload();
    }

    /// Has the server do without TLS.
    ///
    /// # Panics
    /// Where that fails.
    pub fn serve_plain(&self) {
        self.sql().execute("ALTER SYSTEM SET ssl = off");
        self.reload();
    }

    fn reload(&self) {
        const LOADED: &str = "SELECT pg_conf_load_time()::text";
        let before: String = self.sql().value(LOADED);
        self.sql().execute("SELECT pg_reload_conf()");
        // A session that was made after the postmaster read its files shows the time when it did.
        wait_until("the server reads its files again", || self.sql().value::<String>(LOADED) != before);
    }
}
