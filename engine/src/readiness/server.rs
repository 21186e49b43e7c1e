//! The server: whether it can be reached in both ways, and whether its settings and its user's rights are enough.

use std::sync::Arc;

use pgstrata_protocol::ServerVersion;
use pgstrata_protocol::replication::IdentifySystem;
use pgstrata_protocol::replication::command::identify_system;

use super::ServerSays;
use super::finding::Findings;
use super::repository::{SKEW, local_now};
use crate::connect::{ConnectionSettings, ControlRuntime, Purpose, Session, SqlClient};
use crate::repository::Store;

/// A backup has one connection for the data and one for the WAL.
const SENDERS: i64 = 2;

/// Looks at it. `None` where no replication connection is to be had.
pub(super) fn look(
    settings: &ConnectionSettings,
    store: Option<&Arc<dyn Store>>,
    findings: &mut Findings,
) -> Option<ServerSays> {
    let system = match identify(settings) {
        Ok((version, system)) => {
            findings.ok("replication", format!("connected as user \"{}\"", settings.user()));
            supported(version, findings);
            Some(system)
        }
        Err(reason) => {
            let hint =
                "the user needs LOGIN and REPLICATION, and pg_hba.conf a line for database replication.";
            let (text, hint) = reason.split_once("\nHINT: ").unwrap_or((&reason, hint));
            findings.error("replication", text, hint);
            None
        }
    };
    // Replication connections name no database, so a backup's settings may have none.
    let sql = match settings.database() {
        Some(_) => settings.clone(),
        None => settings.clone().with_database("postgres"),
    };
    let mut database_bytes = None;
    match SqlClient::connect(&sql) {
        Err(error) => {
            let text = error.to_string();
            let hint =
                "a backup does not need it, these checks do: let the user connect to database postgres.";
            let (text, hint) = text.split_once("\nHINT: ").unwrap_or((&text, hint));
            findings.warning("SQL", text, hint);
        }
        Ok(client) => {
            let mut asked = Asked { client, findings };
            asked.settings();
            asked.archiving(store);
            asked.rights();
            asked.clock();
            database_bytes = asked.database_bytes();
            asked.client.close();
        }
    }
    system.map(|system| ServerSays { system, database_bytes })
}

fn identify(settings: &ConnectionSettings) -> Result<(ServerVersion, u64), String> {
    let runtime = ControlRuntime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let session = Session::connect(settings, Purpose::Replication, Arc::new(|_| {})).await;
        let mut session = session.map_err(|error| error.to_string())?;
        let results = session.simple_query(&identify_system()).await.map_err(|error| error.to_string())?;
        let result = results.first().ok_or("IDENTIFY_SYSTEM has no result")?;
        let system = IdentifySystem::from_result(result).map_err(|error| error.to_string())?;
        let version = session.server_version();
        session.close().await;
        Ok((version, system.system_identifier))
    })
}

fn supported(version: ServerVersion, findings: &mut Findings) {
    let oldest = ServerVersion::OLDEST_SUPPORTED;
    if version < oldest {
        findings.error(
            "version",
            format!("PostgreSQL {version} is not supported, expected {} or newer", oldest.major()),
            "use the tools of the server's own version.",
        );
    } else {
        findings.ok("version", format!("PostgreSQL {version}"));
    }
}

struct Asked<'f> {
    client: SqlClient,
    findings: &'f mut Findings,
}

impl Asked<'_> {
    /// The first row's values as text; what the server refuses becomes a warning.
    fn row(&mut self, subject: &'static str, sql: &str) -> Option<Vec<Option<String>>> {
        match self.client.query(sql) {
            Ok(results) => {
                let row = results.first()?.rows.first()?;
                let text = |value: &Option<bytes::Bytes>| {
                    value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
                };
                Some(row.iter().map(text).collect())
            }
            Err(error) => {
                let hint =
                    "let the user read it, or leave it: pg_monitor and pg_read_all_settings are enough.";
                self.findings.warning(subject, format!("it cannot be asked: {error}"), hint);
                None
            }
        }
    }

    fn value(&mut self, subject: &'static str, sql: &str) -> Option<String> {
        self.row(subject, sql)?.into_iter().next().flatten()
    }

    fn number(&mut self, subject: &'static str, sql: &str) -> Option<i64> {
        self.value(subject, sql)?.parse().ok()
    }

    fn settings(&mut self) {
        if let Some(level) = self.value("wal_level", "SHOW wal_level") {
            if level == "minimal" {
                let hint = "set wal_level = replica and restart the server.";
                self.findings.error("wal_level", "it is minimal, expected replica or logical", hint);
            } else {
                self.findings.ok("wal_level", level);
            }
        }
        let senders = "SELECT current_setting('max_wal_senders')::int - \
                       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')";
        self.room("max_wal_senders", senders, SENDERS);
        let slots = "SELECT current_setting('max_replication_slots')::int - \
                     (SELECT count(*) FROM pg_replication_slots)";
        self.room("max_replication_slots", slots, 1);
        match self.value("data_checksums", "SHOW data_checksums").as_deref() {
            Some("on") => self.findings.ok("data_checksums", "on"),
            Some(other) => self.findings.warning(
                "data_checksums",
                format!("{other}: pages that the server's disks damage go into backups unseen"),
                "enable them with pg_checksums while the server is down.",
            ),
            None => {}
        }
        if self.value("full_page_writes", "SHOW full_page_writes").as_deref() == Some("off") {
            let text = "off: a server that crashes, and a backup of a standby, may have torn pages";
            self.findings.warning("full_page_writes", text, "set full_page_writes = on.");
        }
    }

    fn room(&mut self, subject: &'static str, sql: &str, needed: i64) {
        let Some(free) = self.number(subject, sql) else { return };
        if free < needed {
            let hint = format!("raise {subject}, or end what holds the others.");
            self.findings.error(subject, format!("{free} are free, expected {needed}"), hint);
        } else {
            self.findings.ok(subject, format!("{free} are free"));
        }
    }

    fn archiving(&mut self, store: Option<&Arc<dyn Store>>) {
        let subject = "archive_mode";
        let Some(mode) = self.value(subject, "SHOW archive_mode") else { return };
        if mode == "off" {
            let text = "off: backups can be restored as they are, and to no later time";
            return self.findings.warning(subject, text, "set archive_mode = on and an archive_command.");
        }
        self.findings.ok(subject, mode);
        let subject = "archive_command";
        let Some(command) = self.value(subject, "SHOW archive_command") else { return };
        // Before 15 there is none.
        let library = self.value(subject, "SELECT current_setting('archive_library', true)");
        let to_us = command.contains("pgstrata") && command.contains("wal") && command.contains("push");
        let address = store.map(|store| store.address()).unwrap_or_default();
        let to_another = command.contains("--repo") && !address.is_empty() && !command.contains(&address);
        if let Some(library) = library.filter(|library| !library.is_empty()) {
            self.findings.warning(
                subject,
                format!("WAL is archived by library \"{library}\", not by pgstrata"),
                "its archive must be there when a backup is restored to a later time.",
            );
        } else if command.is_empty() || command == "(disabled)" {
            let text =
                "archive_mode is on and there is no archive_command: the server keeps all WAL for good";
            self.findings.error(subject, text, "set archive_command.");
        } else if !to_us {
            self.findings.warning(
                subject,
                format!("WAL goes elsewhere: {command}"),
                "its archive must be there when a backup is restored to a later time.",
            );
        } else if to_another {
            self.findings.warning(
                subject,
                format!("it does not name {address}: {command}"),
                "see whether WAL goes to the repository that the backups go to.",
            );
        } else {
            self.findings.ok(subject, command);
        }
        let subject = "archiver";
        let sql = "SELECT failed_count, last_failed_wal, coalesce(last_failed_time > last_archived_time, \
                   last_failed_time IS NOT NULL) FROM pg_stat_archiver";
        let Some(row) = self.row(subject, sql) else { return };
        let [failed, name, failing] =
            [0, 1, 2].map(|column| row.get(column).cloned().flatten().unwrap_or_default());
        if failing == "t" {
            self.findings.error(
                subject,
                format!("it failed {failed} times, with {name} last, and has not succeeded since"),
                "the server's log has what the command said; until it succeeds, the server keeps all WAL.",
            );
        } else {
            self.findings.ok(subject, format!("{failed} failures, none since it last succeeded"));
        }
    }

    /// What the local source would need beside; backups by stream do without.
    fn rights(&mut self) {
        let subject = "backup functions";
        let sql = "SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc \
                   WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN \
                   ('pg_backup_start', 'pg_backup_stop', 'pg_start_backup', 'pg_stop_backup')";
        match self.value(subject, sql).as_deref() {
            Some("t") => self.findings.ok(subject, "the user may call them"),
            Some(_) => self.findings.warning(
                subject,
                "the user may not call them: backups by stream work, those by a local source do not",
                "grant EXECUTE on pg_backup_start and pg_backup_stop (pg_start_backup and pg_stop_backup before 15).",
            ),
            None => {}
        }
    }

    fn clock(&mut self) {
        let subject = "server's clock";
        let now = local_now();
        let Some(found) = self.number(subject, "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint")
        else {
            return;
        };
        let skew = now.abs_diff(u64::try_from(found).unwrap_or_default());
        if skew > SKEW {
            self.findings.warning(
                subject,
                format!("it differs from this machine's by {} seconds", skew),
                "set both by NTP: recovery to a time goes by the server's.",
            );
        } else {
            self.findings.ok(subject, "it agrees with this machine's");
        }
    }

    fn database_bytes(&mut self) -> Option<u64> {
        let sql = "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database \
                   WHERE has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')";
        u64::try_from(self.number("space", sql)?).ok()
    }
}
