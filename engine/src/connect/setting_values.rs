//! The value of every keyword, gathered by precedence and checked against what this program can do.

use std::ffi::OsStr;
use std::time::Duration;

use super::conninfo;
use super::keyword::{self, KEYWORDS, Keyword, Lack, Rule};
use super::settings::{GivenSettings, Target};
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
        let Some((value, name)) = self.get(name) else { return Ok(None) };
        let number = value.trim_ascii().parse();
        number.map(Some).map_err(|_| SettingsError::NotInteger { name, value: value.to_owned() })
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

/// Flags, then the connection string, then the environment, then defaults.
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

fn variable_of(
    keyword: &Keyword,
    around: &Surroundings<'_>,
) -> Result<Option<(&'static str, String)>, SettingsError> {
    let Some(variable) = keyword.variable else { return Ok(None) };
    if let Some(value) = (around.variable)(variable) {
        let value = value.into_string().map_err(|_| SettingsError::NotUtf8(variable))?;
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
    target: &Target,
) -> Result<(), SettingsError> {
    let name = setting_name(keyword, origin);
    let refuse = |lack: Lack| {
        // libpq makes no TLS on a Unix socket whatever the settings say, and documents it.
        if lack == Lack::Tls && matches!(target, Target::Unix { .. }) && keyword.name != "channel_binding" {
            return Ok(());
        }
        let hidden = matches!(
            keyword.name,
            "sslpassword" | "scram_client_key" | "scram_server_key" | "oauth_client_secret"
        );
        let value = if hidden { "(hidden)" } else { value }.to_owned();
        Err(SettingsError::Unsupported { name, value, reason: lack.name(), hint: lack.hint() })
    };
    match keyword.rule {
        Rule::Used => Ok(()),
        Rule::Later(_) if keyword.default == Some(value) => Ok(()),
        Rule::Later(lack) => refuse(lack),
        Rule::Only { honoured, .. } if honoured.contains(&value) => Ok(()),
        Rule::Only { later, lack, .. } if later.contains(&value) => refuse(lack),
        Rule::Only { .. } => Err(SettingsError::Invalid { name, value: value.to_owned() }),
    }
}
