//! The `ssl…` settings, checked and with libpq's defaults filled in.
//!
//! Names files and reads none: which of them exist is asked when a connection is made, as libpq does.

use std::path::PathBuf;

use super::keyword::Lack;
use super::setting_values::{Origin, Values};
use super::settings::Password;
use super::settings_error::SettingsError;
use super::surroundings::Surroundings;

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// Whether the mode is nothing without a root certificate.
    pub(super) fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// `sslcertmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CertificateMode {
    Disable,
    Allow,
    Require,
}

/// `sslrootcert`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Roots {
    /// Nothing given, and no home folder to look in.
    Nowhere,
    /// The system's.
    System,
    /// This file, where it exists.
    File(PathBuf),
}

/// What a TLS connection is made from.
#[derive(Clone, Debug)]
pub(super) struct TlsSettings {
    pub(super) mode: SslMode,
    /// Whether TLS begins with the first byte (`sslnegotiation=direct`).
    pub(super) direct: bool,
    pub(super) roots: Roots,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) key_password: Option<Password>,
    pub(super) certificate_mode: CertificateMode,
    pub(super) crl_file: Option<PathBuf>,
    pub(super) crl_folder: Option<PathBuf>,
    pub(super) sni: bool,
    /// Whether TLS 1.2 and 1.3 may be spoken; at least one of them.
    pub(super) versions: (bool, bool),
}

impl TlsSettings {
    /// `only_unix` says that every host is a Unix socket, where libpq makes no TLS whatever the settings say.
    pub(super) fn resolve(
        values: &Values,
        around: &Surroundings<'_>,
        only_unix: bool,
    ) -> Result<Self, SettingsError> {
        let mode = values.get("sslmode").and_then(|(mode, _)| SslMode::of(mode)).unwrap_or(SslMode::Prefer);
        let direct = values.get("sslnegotiation").is_some_and(|(way, _)| way == "direct");
        if direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            return Err(SettingsError::WeakForDirect { mode: values.text("sslmode").unwrap_or_default() });
        }
        let is_system = values.get("sslrootcert").is_some_and(|(file, _)| file == "system");
        if is_system && mode != SslMode::VerifyFull {
            return Err(SettingsError::WeakForSystem { mode: values.text("sslmode").unwrap_or_default() });
        }
        let in_home = |name: &str| around.home.as_ref().map(|home| home.join(".postgresql").join(name));
        let given = |name: &str| values.text(name).map(PathBuf::from);
        let (crl_file, crl_folder) = (given("sslcrl"), given("sslcrldir"));
        let default_crl = if crl_folder.is_none() { in_home("root.crl") } else { None };
        let roots = match given("sslrootcert").or_else(|| in_home("root.crt")) {
            _ if is_system => Roots::System,
            Some(file) => Roots::File(file),
            None => Roots::Nowhere,
        };
        Ok(Self {
            mode,
            direct,
            roots,
            certificate: given("sslcert").or_else(|| in_home("postgresql.crt")),
            key: given("sslkey").or_else(|| in_home("postgresql.key")),
            key_password: values.text("sslpassword").map(Password::new),
            certificate_mode: match values.get("sslcertmode") {
                Some(("disable", _)) => CertificateMode::Disable,
                Some(("require", _)) => CertificateMode::Require,
                _ => CertificateMode::Allow,
            },
            crl_file: crl_file.or(default_crl),
            crl_folder,
            sni: values.get("sslsni").is_none_or(|(value, _)| value != "0"),
            versions: versions(values, only_unix)?,
        })
    }
}

/// The versions of TLS as libpq names them, oldest first.
const VERSIONS: [&str; 4] = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];

/// Whether 1.2 and 1.3 lie within the given bounds. A lower bound below 1.2 allows more than it asks for.
fn versions(values: &Values, only_unix: bool) -> Result<(bool, bool), SettingsError> {
    let bound = |name| {
        let Some((value, name)) = values.get(name) else { return Ok(None) };
        let place = VERSIONS.iter().position(|version| version.eq_ignore_ascii_case(value));
        let invalid = || SettingsError::Invalid { name, value: value.to_owned() };
        place.map(|place| Some((place, name, value.to_owned()))).ok_or_else(invalid)
    };
    let least = bound("ssl_min_protocol_version")?.map_or(0, |(place, ..)| place);
    let Some((most, name, value)) = bound("ssl_max_protocol_version")? else { return Ok((least <= 2, true)) };
    if least > most {
        return Err(SettingsError::ProtocolRange);
    }
    if most < 2 && !only_unix {
        let (reason, hint) = (Lack::OldTls.name(), Lack::OldTls.hint());
        return Err(SettingsError::Unsupported { name, value, reason, hint });
    }
    Ok((least <= 2, most != 2))
}

/// With the system's roots anyone with any certificate would do, but for its name: nothing less than a full check
/// makes sense then, and it is the default (`conninfo_add_defaults`, `fe-connect.c`).
pub(super) fn strengthen_for_system_roots(values: &mut Values) {
    let is_default =
        values.iter().any(|(keyword, _, origin)| keyword.name == "sslmode" && origin == Origin::Default);
    if is_default && values.get("sslrootcert").is_some_and(|(file, _)| file == "system") {
        values.replace("sslmode", "verify-full");
    }
}
