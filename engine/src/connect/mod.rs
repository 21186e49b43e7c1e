//! Connections to a server: settings as libpq resolves them, sockets, sessions.

mod conninfo;
mod keyword;
mod locale_encoding;
mod passfile;
mod settings;
mod surroundings;

pub use conninfo::ConninfoError;
pub use settings::{ConnectionSettings, GivenSettings, Password, SettingName, SettingsError};
pub use surroundings::Surroundings;
