//! The settings that `-R` leaves: with them the copy starts as a standby of the server it came from.

use crate::connect::ConnectionSettings;

/// The lines for `postgresql.auto.conf`.
pub(crate) fn recovery_settings(connection: &ConnectionSettings, slot: Option<&str>) -> String {
    let mut text = format!("primary_conninfo = {}\n", config_literal(&connection.primary_conninfo()));
    if let Some(slot) = slot {
        text += &format!("primary_slot_name = {}\n", config_literal(slot));
    }
    text
}

/// A string as PostgreSQL's configuration files write it (`guc-file.l`): quotes and backslashes doubled.
pub(crate) fn config_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::config_literal;

    #[test]
    fn quotes_for_the_configuration_file() {
        assert_eq!(config_literal(r"host=a password='it\'s'"), r"'host=a password=''it\\''s'''");
    }
}
