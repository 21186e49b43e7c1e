//! Connections to a server: settings as libpq resolves them, sockets, TLS, sessions.
//!
//! The only place that knows tokio-uring. [`Session`] speaks asynchronously in a [`ControlRuntime`];
//! [`BulkStream`] takes a session's socket over for the one big copy and blocks; [`SqlClient`] blocks for SQL.

mod alarm;
mod bulk;
mod bulk_socket;
mod certificate;
mod client_certificate;
mod conninfo;
mod error;
mod exchange;
mod hosts;
mod keyword;
mod locale_encoding;
mod login;
mod passfile;
mod runtime;
mod server_choice;
mod service_file;
mod session;
mod setting_values;
mod settings;
mod settings_error;
mod socket;
mod sql;
mod surroundings;
mod tls;
mod tls_error;
mod tls_settings;
mod tls_verifier;
mod transport;

pub use alarm::Alarm;
pub use bulk::{BulkReceive, BulkStream, Heard};
pub use conninfo::{ConninfoError, conninfo_has_secret};
pub use error::{AttemptError, ConnectError, FailedAttempt, SessionError};
pub use exchange::{CopyDirection, CopyEvent, NoticeSink, Reply};
pub use keyword::environment_variables;
pub use runtime::{ControlRuntime, SocketDriver};
pub use service_file::ServiceError;
pub use session::{CopyInError, Purpose, Session};
pub use settings::{ConnectionSettings, GivenSettings, Password};
pub use settings_error::{SettingName, SettingsError};
pub use socket::CancelHandle;
pub use sql::{SqlClient, SqlConnectError};
pub use surroundings::Surroundings;
pub use tls_error::TlsError;

#[cfg(test)]
mod tests;
