//! The settings that `-R` leaves: with them the copy starts as a standby of the server it came from.

use crate::connect::ConnectionSettings;
use crate::failure::Failure;

/// The lines for `postgresql.auto.conf`.
///
/// # Errors
/// Where something in it is more than a line.
pub(crate) fn recovery_settings(
    connection: &ConnectionSettings,
    slot: Option<&str>,
) -> Result<String, Failure> {
    let conninfo = connection.primary_conninfo();
    one_line("the connection string, with all that comes from files and the environment,", &conninfo)?;
    let mut text = format!("primary_conninfo = {}\n", config_literal(&conninfo));
    if let Some(slot) = slot {
        one_line("the replication slot's name", slot)?;
        text += &format!("primary_slot_name = {}\n", config_literal(slot));
    }
    Ok(text)
}

/// Refuses what no setting can hold: the server's files of settings have no line break within a value (`guc-file.l`), and
/// one that is written as an escape comes to be a real one with the first `ALTER SYSTEM`.
pub(crate) fn one_line(what: &str, text: &str) -> Result<(), Failure> {
    if !text.contains('\n') {
        return Ok(());
    }
    Err(Failure::Target(format!(
        "{what} has a line break, which no setting of a server can have\n\
         HINT: take it out, or rename what it names. Nothing was made."
    )))
}

/// A string as PostgreSQL's configuration files write it (`guc-file.l`): quotes and backslashes doubled.
pub(crate) fn config_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::{config_literal, one_line};

    #[test]
    fn a_line_break_is_refused_and_not_repeated() {
        one_line("x", "a\tb\r\"'").expect("one line");
        let refused = one_line("the name", "secret\n").expect_err("two").to_string();
        assert!(refused.starts_with("the name has a line break") && refused.contains("HINT:"), "{refused}");
        assert!(!refused.contains("secret"), "{refused}");
    }

    #[test]
    fn quotes_for_the_configuration_file() {
        assert_eq!(config_literal(r"host=a password='it\'s'"), r"'host=a password=''it\\''s'''");
    }
}
