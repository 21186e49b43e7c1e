//! Words the `BASE_BACKUP` command for a server's version (`repl_gram.y`, `basebackup.c: parse_basebackup_options`).

use crate::manifest::ChecksumAlgorithm;
use crate::version::ServerVersion;

/// The first version with the parenthesised option list and typed archive messages.
const OPTION_LIST_SINCE: u32 = 15;

/// The first version that takes incremental backups (`MINIMUM_VERSION_FOR_WAL_SUMMARIES`, `pg_basebackup.c`).
const INCREMENTAL_SINCE: u32 = 17;

/// The longest label in bytes: the server takes at most `MAXPGPATH` (`do_pg_backup_start`).
const MAX_LABEL: usize = 1024;

/// The transfer rates that the server takes, in kB/s (`MAX_RATE_LOWER`, `MAX_RATE_UPPER`, `basebackup.h`).
const MAX_RATE: std::ops::RangeInclusive<u32> = 32..=1_048_576;

/// What to ask of the server.
///
/// The server is asked to wait for its WAL archive only where the WAL that the backup needs comes no other way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Send only what changed since the backup whose manifest was uploaded; 17 and newer.
    pub incremental: bool,
    /// The label that `backup_label` carries; a single line.
    pub label: String,
    /// Ask for size estimates, which makes the server walk its files before it starts.
    pub progress: bool,
    /// Checkpoint at once rather than spread out.
    pub fast_checkpoint: bool,
    /// Have the needed WAL segments appended to the base archive ("fetch").
    pub include_wal: bool,
    /// A limit in kB/s, 32 to 1048576.
    pub max_rate_kb: Option<u32>,
    /// Have the server write `tablespace_map` in place of symbolic links.
    pub tablespace_map: bool,
    /// Ask for a manifest.
    pub manifest: Option<ManifestOptions>,
    /// Have the server wait until the WAL that the backup needs is archived. Pointless where that WAL comes along.
    pub wait_for_archive: bool,
    /// Have the server check page checksums as it reads; it does by default.
    pub verify_checksums: bool,
    /// Have the server compress the archives; 15 and newer.
    pub compression: Option<ServerCompression>,
    /// Where the server is to put the backup.
    pub target: BackupTarget,
}

/// What the server is to compress with. It judges both words itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCompression {
    /// The method's name.
    pub method: String,
    /// Its options, as written behind the colon.
    pub detail: Option<String>,
}

/// Where a backup goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackupTarget {
    /// To the client.
    #[default]
    Client,
    /// To a target of the server's own; 15 and newer. It judges both words itself.
    Server {
        /// `server`, `blackhole`, or what an extension adds.
        name: String,
        /// What stands behind the colon.
        detail: Option<String>,
    },
}

/// What the manifest shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestOptions {
    /// How files are checked; `None` leaves their checksums out, as `Some(ChecksumAlgorithm::None)` does.
    pub checksums: Option<ChecksumAlgorithm>,
    /// Write every path in hexadecimal, not only those that are no UTF-8.
    pub force_encode: bool,
}

impl Default for ManifestOptions {
    /// What servers do unasked: CRC-32C.
    fn default() -> Self {
        Self { checksums: Some(ChecksumAlgorithm::Crc32c), force_encode: false }
    }
}

/// Options that no server of this version takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The server knows no backup manifests.
    #[error("server version {found} is not supported, expected {oldest} or newer\n\
             HINT: Upgrade the server, or use the pg_basebackup of its own version.",
            oldest = ServerVersion::OLDEST_SUPPORTED.major())]
    UnsupportedServer {
        /// The server's version.
        found: ServerVersion,
    },
    /// A label that the server refuses.
    #[error("backup label has {found} bytes, expected at most {MAX_LABEL}")]
    LabelTooLong {
        /// Its length.
        found: usize,
    },
    /// A label that would add lines to `backup_label`, or that ends early.
    #[error(
        "backup label {found:?} holds a line break or NUL\n\
             HINT: The label becomes a line of the file backup_label; keep it to one line."
    )]
    LabelNotOneLine {
        /// The label.
        found: String,
    },
    /// A transfer rate that the server refuses.
    #[error("transfer rate of {found} kB/s is out of range, expected {} to {}", MAX_RATE.start(), MAX_RATE.end())]
    MaxRate {
        /// The rate.
        found: u32,
    },
    /// The server keeps no summaries of its WAL.
    #[error(
        "server does not support incremental backup\n\
         HINT: Servers have it from version {INCREMENTAL_SINCE} on; leave --incremental out."
    )]
    Incremental,
    /// The server cannot compress.
    #[error(
        "server does not support server-side compression\n\
         HINT: Servers have it from version {OPTION_LIST_SINCE} on; let the client compress, with --compress=client-METHOD."
    )]
    Compression,
    /// The server has no targets of its own.
    #[error(
        "backup targets are not supported by this server version\n\
         HINT: Servers have them from version {OPTION_LIST_SINCE} on; leave --target out."
    )]
    Target,
}

/// Options in the order of writing: a keyword with or without a value.
enum Value {
    None,
    Number(u32),
    Text(&'static str),
    Quoted(String),
}

impl BaseBackupOptions {
    /// The command for a server of this version.
    pub fn command(&self, version: ServerVersion) -> Result<String, CommandError> {
        self.check(version)?;
        let options = if version.major() >= OPTION_LIST_SINCE { self.listed() } else { self.spelled_out() };
        let words: Vec<String> = options
            .into_iter()
            .map(|(keyword, value)| match value {
                Value::None => keyword.to_owned(),
                Value::Number(number) => format!("{keyword} {number}"),
                Value::Text(text) => format!("{keyword} '{text}'"),
                // The replication grammar knows doubled quotes and nothing else (`repl_scanner.l`).
                Value::Quoted(text) => format!("{keyword} '{}'", text.replace('\'', "''")),
            })
            .collect();
        if version.major() >= OPTION_LIST_SINCE {
            Ok(format!("BASE_BACKUP ( {} )", words.join(", ")))
        } else {
            Ok(format!("BASE_BACKUP {}", words.join(" ")))
        }
    }

    /// Whether a server of this version takes these options.
    pub fn check(&self, version: ServerVersion) -> Result<(), CommandError> {
        if version < ServerVersion::OLDEST_SUPPORTED {
            return Err(CommandError::UnsupportedServer { found: version });
        }
        if self.incremental && version.major() < INCREMENTAL_SINCE {
            return Err(CommandError::Incremental);
        }
        if self.label.len() > MAX_LABEL {
            return Err(CommandError::LabelTooLong { found: self.label.len() });
        }
        if self.label.contains(['\n', '\r', '\0']) {
            return Err(CommandError::LabelNotOneLine { found: self.label.clone() });
        }
        if version.major() < OPTION_LIST_SINCE {
            if self.target != BackupTarget::Client {
                return Err(CommandError::Target);
            }
            if self.compression.is_some() {
                return Err(CommandError::Compression);
            }
        }
        match self.max_rate_kb {
            Some(found) if !MAX_RATE.contains(&found) => Err(CommandError::MaxRate { found }),
            _ => Ok(()),
        }
    }

    /// 15 and newer: generic options.
    fn listed(&self) -> Vec<(&'static str, Value)> {
        let mut options = Vec::new();
        if self.incremental {
            options.push(("INCREMENTAL", Value::None));
        }
        options.push(("LABEL", Value::Quoted(self.label.clone())));
        let mut add = |wanted: bool, keyword, value| {
            if wanted {
                options.push((keyword, value));
            }
        };
        add(self.progress, "PROGRESS", Value::None);
        add(self.include_wal, "WAL", Value::None);
        add(self.fast_checkpoint, "CHECKPOINT", Value::Text("fast"));
        add(!self.wait_for_archive, "WAIT", Value::Number(0));
        add(self.max_rate_kb.is_some(), "MAX_RATE", Value::Number(self.max_rate_kb.unwrap_or_default()));
        add(self.tablespace_map, "TABLESPACE_MAP", Value::None);
        add(!self.verify_checksums, "VERIFY_CHECKSUMS", Value::Number(0));
        options.extend(self.manifest_options());
        let mut add = |keyword, text: &str| options.push((keyword, Value::Quoted(text.to_owned())));
        match &self.target {
            BackupTarget::Client => add("TARGET", "client"),
            BackupTarget::Server { name, detail } => {
                add("TARGET", name);
                detail.iter().for_each(|detail| add("TARGET_DETAIL", detail));
            }
        }
        if let Some(ServerCompression { method, detail }) = &self.compression {
            add("COMPRESSION", method);
            detail.iter().for_each(|detail| add("COMPRESSION_DETAIL", detail));
        }
        options
    }

    /// 13 and 14: one keyword of the grammar each.
    fn spelled_out(&self) -> Vec<(&'static str, Value)> {
        let mut options = vec![("LABEL", Value::Quoted(self.label.clone()))];
        let mut add = |wanted: bool, keyword, value| {
            if wanted {
                options.push((keyword, value));
            }
        };
        add(self.progress, "PROGRESS", Value::None);
        add(self.include_wal, "WAL", Value::None);
        add(self.fast_checkpoint, "FAST", Value::None);
        add(!self.wait_for_archive, "NOWAIT", Value::None);
        add(self.max_rate_kb.is_some(), "MAX_RATE", Value::Number(self.max_rate_kb.unwrap_or_default()));
        add(self.tablespace_map, "TABLESPACE_MAP", Value::None);
        add(!self.verify_checksums, "NOVERIFY_CHECKSUMS", Value::None);
        options.extend(self.manifest_options());
        options
    }

    /// The same words in both grammars.
    fn manifest_options(&self) -> Vec<(&'static str, Value)> {
        let Some(manifest) = self.manifest else { return Vec::new() };
        let algorithm = manifest.checksums.unwrap_or(ChecksumAlgorithm::None);
        vec![
            ("MANIFEST", Value::Text(if manifest.force_encode { "force-encode" } else { "yes" })),
            ("MANIFEST_CHECKSUMS", Value::Text(algorithm.name())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> BaseBackupOptions {
        BaseBackupOptions {
            incremental: false,
            label: "it's".into(),
            progress: false,
            fast_checkpoint: false,
            include_wal: false,
            max_rate_kb: None,
            tablespace_map: false,
            manifest: None,
            wait_for_archive: false,
            verify_checksums: true,
            compression: None,
            target: BackupTarget::Client,
        }
    }

    fn compressed(method: &str, detail: Option<&str>) -> BaseBackupOptions {
        let compression = ServerCompression { method: method.into(), detail: detail.map(Into::into) };
        BaseBackupOptions { compression: Some(compression), ..options() }
    }

    fn sent_to(name: &str, detail: Option<&str>) -> BaseBackupOptions {
        let target = BackupTarget::Server { name: name.into(), detail: detail.map(Into::into) };
        BaseBackupOptions { target, ..options() }
    }

    fn everything() -> BaseBackupOptions {
        BaseBackupOptions {
            progress: true,
            fast_checkpoint: true,
            include_wal: true,
            max_rate_kb: Some(32),
            tablespace_map: true,
            manifest: Some(ManifestOptions {
                checksums: Some(ChecksumAlgorithm::Sha256),
                force_encode: true,
            }),
            wait_for_archive: false,
            verify_checksums: false,
            ..options()
        }
    }

    #[test]
    fn words_for_each_grammar() {
        let no_sums = Some(ManifestOptions { checksums: None, force_encode: false });
        for (options, version, command) in [
            (options(), 150_000, "BASE_BACKUP ( LABEL 'it''s', WAIT 0, TARGET 'client' )"),
            (options(), 140_023, "BASE_BACKUP LABEL 'it''s' NOWAIT"),
            (
                everything(),
                180_006,
                "BASE_BACKUP ( LABEL 'it''s', PROGRESS, WAL, CHECKPOINT 'fast', WAIT 0, MAX_RATE 32, TABLESPACE_MAP, \
                 VERIFY_CHECKSUMS 0, MANIFEST 'force-encode', MANIFEST_CHECKSUMS 'SHA256', TARGET 'client' )",
            ),
            (
                everything(),
                130_000,
                "BASE_BACKUP LABEL 'it''s' PROGRESS WAL FAST NOWAIT MAX_RATE 32 TABLESPACE_MAP NOVERIFY_CHECKSUMS \
                 MANIFEST 'force-encode' MANIFEST_CHECKSUMS 'SHA256'",
            ),
            (
                BaseBackupOptions { wait_for_archive: true, ..options() },
                170_000,
                "BASE_BACKUP ( LABEL 'it''s', TARGET 'client' )",
            ),
            (BaseBackupOptions { wait_for_archive: true, ..options() }, 140_000, "BASE_BACKUP LABEL 'it''s'"),
            (
                BaseBackupOptions { manifest: no_sums, ..options() },
                160_000,
                "BASE_BACKUP ( LABEL 'it''s', WAIT 0, MANIFEST 'yes', MANIFEST_CHECKSUMS 'NONE', TARGET 'client' )",
            ),
            (
                compressed("zstd", Some("level=3,workers=2")),
                150_000,
                "BASE_BACKUP ( LABEL 'it''s', WAIT 0, TARGET 'client', COMPRESSION 'zstd', \
                 COMPRESSION_DETAIL 'level=3,workers=2' )",
            ),
            (
                compressed("gzip", None),
                180_000,
                "BASE_BACKUP ( LABEL 'it''s', WAIT 0, TARGET 'client', COMPRESSION 'gzip' )",
            ),
            (
                BaseBackupOptions { incremental: true, ..options() },
                170_000,
                "BASE_BACKUP ( INCREMENTAL, LABEL 'it''s', WAIT 0, TARGET 'client' )",
            ),
            (
                sent_to("blackhole", None),
                150_000,
                "BASE_BACKUP ( LABEL 'it''s', WAIT 0, TARGET 'blackhole' )",
            ),
            (
                sent_to("server", Some("/a'b")),
                160_000,
                "BASE_BACKUP ( LABEL 'it''s', WAIT 0, TARGET 'server', TARGET_DETAIL '/a''b' )",
            ),
        ] {
            assert_eq!(options.command(ServerVersion(version)).as_deref(), Ok(command));
        }
    }

    #[test]
    fn refuses_what_the_server_would() {
        let label = |label: String| BaseBackupOptions { label, ..options() };
        let rate = |rate| BaseBackupOptions { max_rate_kb: Some(rate), ..options() };
        for (options, version, error) in [
            (options(), 120_022, CommandError::UnsupportedServer { found: ServerVersion(120_022) }),
            (label("x".repeat(1025)), 150_000, CommandError::LabelTooLong { found: 1025 }),
            (label("a\nb".into()), 150_000, CommandError::LabelNotOneLine { found: "a\nb".into() }),
            (label("a\0b".into()), 150_000, CommandError::LabelNotOneLine { found: "a\0b".into() }),
            (rate(31), 150_000, CommandError::MaxRate { found: 31 }),
            (rate(1_048_577), 140_000, CommandError::MaxRate { found: 1_048_577 }),
            (BaseBackupOptions { incremental: true, ..options() }, 169_999, CommandError::Incremental),
            (compressed("gzip", None), 140_023, CommandError::Compression),
            (sent_to("blackhole", None), 140_023, CommandError::Target),
        ] {
            assert_eq!(options.command(ServerVersion(version)), Err(error));
        }
        assert!(label("x".repeat(1024)).command(ServerVersion(150_000)).is_ok());
        assert!(rate(1_048_576).command(ServerVersion(150_000)).is_ok());
    }
}
