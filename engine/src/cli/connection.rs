//! The connection options, which all programs share, and the password prompt.

use anyhow::Context;
use clap::Args;

use crate::connect::{ConnectionSettings, GivenSettings, Surroundings};

/// How to reach the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection options")]
pub(super) struct ConnectionArgs {
    /// Connection string or URI
    #[arg(short = 'd', long, value_name = "CONNSTR")]
    dbname: Option<String>,
    /// Database server host or socket directory
    #[arg(short = 'h', long, value_name = "HOSTNAME")]
    host: Option<String>,
    /// Database server port number
    #[arg(short = 'p', long, value_name = "PORT")]
    port: Option<String>,
    /// Connect as specified database user
    #[arg(short = 'U', long, value_name = "NAME")]
    username: Option<String>,
    /// Never prompt for password
    #[arg(short = 'w', long, overrides_with = "password")]
    no_password: bool,
    /// Force password prompt (should happen automatically)
    #[arg(short = 'W', long)]
    password: bool,
}

impl ConnectionArgs {
    /// Resolves options, connection string, environment and defaults. Asks for a password with `-W`.
    pub(super) fn resolve(&self, program: &str) -> anyhow::Result<ConnectionSettings> {
        self.resolve_with(None, program)
    }

    /// The same with a connection string for where none was given.
    pub(super) fn resolve_with(
        &self,
        conninfo: Option<&str>,
        program: &str,
    ) -> anyhow::Result<ConnectionSettings> {
        let given = GivenSettings {
            conninfo: self.dbname.as_deref().or(conninfo),
            host: self.host.as_deref(),
            port: self.port.as_deref(),
            user: self.username.as_deref(),
            database: None,
            program: Some(program),
        };
        let settings = ConnectionSettings::resolve(&given, &Surroundings::of_process())?;
        if self.password { ask(settings) } else { Ok(settings) }
    }

    /// Whether any of the options is given.
    pub(super) fn is_given(&self) -> bool {
        let texts = [&self.dbname, &self.host, &self.port, &self.username];
        texts.iter().any(|text| text.is_some()) || self.no_password || self.password
    }

    /// Whether a password may be asked for when the server wants one.
    pub(super) fn may_ask(&self) -> bool {
        !self.no_password && !self.password
    }
}

/// Asks for the password on the terminal.
pub(super) fn ask(settings: ConnectionSettings) -> anyhow::Result<ConnectionSettings> {
    let password = rpassword::prompt_password("Password: ")
        .context("could not read the password from the terminal\nHINT: set PGPASSWORD or a password file.")?;
    Ok(settings.with_password(password))
}
