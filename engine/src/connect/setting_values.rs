//! The value of every keyword, gathered by precedence and checked against what this program can do.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use super::conninfo;
use super::keyword::{self, KEYWORDS, Keyword, Lack, Rule};
use super::service_file;
use super::settings::GivenSettings;
use super::settings_error::{SettingName, SettingsError};
use super::surroundings::Surroundings;

/// Where a setting came from, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Given,
    Variable(&'static str),
    Default,
}

/// The values of all keywords, by their place in [`KEYWORDS`].
pub(super) struct Values(Vec<Option<(String, Origin)>>);

impl Values {
    fn set(&mut self, keyword: &Keyword, value: &str, origin: Origin) {
        let at = KEYWORDS.iter().position(|known| known.name == keyword.name).expect("from the table");
        // Empty is as good as absent: pg_basebackup drops it, and libpq's own uses treat it so.
        self.0[at] = (!value.is_empty()).then(|| (value.to_owned(), origin));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static Keyword, &str, Origin)> {
        let values = KEYWORDS.iter().zip(&self.0);
        values.filter_map(|(keyword, value)| {
            value.as_ref().map(|(value, origin)| (keyword, value.as_str(), *origin))
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<(&str, SettingName)> {
        self.iter()
            .find(|(keyword, ..)| keyword.name == name)
            .map(|(keyword, value, origin)| (value, setting_name(keyword, origin)))
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|(value, _)| value.to_owned())
    }

    /// As `pqParseIntParam` reads numbers: white space around, a sign, 32 bits.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i32>, SettingsError> {
        let Some((value, _)) = self.get(name) else { return Ok(None) };
        self.integer_in(name, value).map(Some)
    }

    /// As [`Self::integer`], of an item in the value of `name`, which is given.
    pub(super) fn integer_in(&self, name: &str, text: &str) -> Result<i32, SettingsError> {
        let name = self.get(name).map(|(_, name)| name);
        text.trim_ascii().parse().map_err(|_| match name {
            Some(name) => SettingsError::NotInteger { name, value: text.to_owned() },
            None => SettingsError::Port(text.to_owned()),
        })
    }

    /// Puts another default in the place of a keyword's own.
    pub(super) fn replace(&mut self, name: &str, value: &str) {
        if let Some(keyword) = keyword::find(name) {
            self.set(keyword, value, Origin::Default);
        }
    }

    pub(super) fn seconds(&self, name: &str) -> Result<Option<Duration>, SettingsError> {
        let positive = self.integer(name)?.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
        Ok(positive.map(Duration::from_secs))
    }
}

fn setting_name(keyword: &Keyword, origin: Origin) -> SettingName {
    let variable = match origin {
        Origin::Variable(variable) => Some(variable),
        Origin::Given | Origin::Default => None,
    };
    SettingName { keyword: keyword.name, variable }
}

/// Flags, then the connection string, then its service, then the environment, then defaults.
///
/// The service file is the one file that is read for it.
pub(super) fn gather(given: &GivenSettings<'_>, around: &Surroundings<'_>) -> Result<Values, SettingsError> {
    let mut values = Values(KEYWORDS.iter().map(|_| None).collect());
    for (keyword, value) in conninfo::parse(given.conninfo.unwrap_or_default())? {
        values.set(keyword, &value, Origin::Given);
    }
    let flags =
        [("host", given.host), ("port", given.port), ("user", given.user), ("dbname", given.database)];
    for (name, value) in flags {
        if let (Some(keyword), Some(value)) = (keyword::find(name), value.filter(|value| !value.is_empty())) {
            values.set(keyword, value, Origin::Given);
        }
    }
    let service =
        values.text("service").map_or_else(|| variable_text("PGSERVICE", around), |name| Ok(Some(name)));
    if let Some(service) = service?.filter(|service| !service.is_empty()) {
        let file = match values.text("servicefile") {
            Some(file) => Some(file),
            None => variable_text("PGSERVICEFILE", around)?,
        };
        let places = service_file::Places {
            file: file.map(Into::into),
            home: around.home.as_deref(),
            system: variable_text("PGSYSCONFDIR", around)?.map(Into::into),
        };
        for (keyword, value) in service_file::look_up(&service, &places)? {
            if values.get(keyword.name).is_none() {
                values.set(keyword, &value, Origin::Given);
            }
        }
    }
    for (at, keyword) in KEYWORDS.iter().enumerate() {
        if values.0[at].is_some() {
            continue;
        }
        if let Some((variable, value)) = variable_of(keyword, around)? {
            values.set(keyword, &value, Origin::Variable(variable));
        }
        if let (None, Some(default)) = (&values.0[at], keyword.default) {
            values.set(keyword, default, Origin::Default);
        }
    }
    for (keyword, value, origin) in values.iter() {
        if value.contains('\0') {
            return Err(SettingsError::ZeroByte(setting_name(keyword, origin)));
        }
    }
    Ok(values)
}

fn variable_text(variable: &'static str, around: &Surroundings<'_>) -> Result<Option<String>, SettingsError> {
    let value = (around.variable)(variable).map(OsString::into_string);
    value.transpose().map_err(|_| SettingsError::NotUtf8(variable))
}

fn variable_of(
    keyword: &Keyword,
    around: &Surroundings<'_>,
) -> Result<Option<(&'static str, String)>, SettingsError> {
    let Some(variable) = keyword.variable else { return Ok(None) };
    if let Some(value) = variable_text(variable, around)? {
        return Ok(Some((variable, value)));
    }
    // The one old variable that libpq still heeds.
    let required = |value: &OsStr| value.as_encoded_bytes().starts_with(b"1");
    if keyword.name == "sslmode" && (around.variable)("PGREQUIRESSL").is_some_and(|value| required(&value)) {
        return Ok(Some(("PGREQUIRESSL", "require".to_owned())));
    }
    Ok(None)
}

/// Refuses a value that asks for what is not there.
pub(super) fn check(
    keyword: &Keyword,
    value: &str,
    origin: Origin,
    only_unix: bool,
) -> Result<(), SettingsError> {
    let name = setting_name(keyword, origin);
    let refuse = |lack: Lack| {
        // libpq makes no TLS on a Unix socket whatever the settings say, and documents it.
        if lack.is_of_tls() && only_unix {
            return Ok(());
        }
        let hidden = matches!(keyword.name, "scram_client_key" | "scram_server_key" | "oauth_client_secret");
        let value = if hidden { "(hidden)" } else { value }.to_owned();
        Err(SettingsError::Unsupported { name, value, reason: lack.name(), hint: lack.hint() })
    };
    match keyword.rule {
        Rule::Used => Ok(()),
        Rule::OneOf(values) if values.contains(&value) => Ok(()),
        Rule::Later(_) if keyword.default == Some(value) => Ok(()),
        Rule::Later(lack) => refuse(lack),
        Rule::Only { honoured, .. } if honoured.contains(&value) => Ok(()),
        Rule::Only { later, lack, .. } if later.contains(&value) => refuse(lack),
        Rule::OneOf(_) | Rule::Only { .. } => Err(SettingsError::Invalid { name, value: value.to_owned() }),
    }
}
