//! What manual pages say beyond the definition of the command lines: descriptions, examples, environment, files.

/// Stands for what is typed to run the program: `pgstrata basebackup` or `pg_basebackup`.
pub(super) const TYPED: &str = "{typed}";

/// What is said about a command, under both of its names.
#[derive(Debug)]
pub(super) struct Prose {
    /// Paragraphs.
    pub(super) description: &'static [&'static str],
    /// What for, and the command line.
    pub(super) examples: &'static [(&'static str, &'static str)],
    /// What a signal does, where it is something else than usual.
    pub(super) on_signal: Option<&'static str>,
}

/// What there is to say about a command of that name.
pub(super) fn of(command: &str) -> Option<&'static Prose> {
    PROSE.iter().find(|(name, _)| *name == command).map(|(_, prose)| prose)
}

pub(super) const EXIT_STATUS: [(&str, &str); 2] = [
    ("0", "Everything that was asked for is done, and durable where that was asked for."),
    ("1", "Anything else. What failed, and what to do next, is on standard error."),
];

pub(super) const SIGNALS: &str = "A run that SIGINT or SIGTERM ends stops its connections and removes what it made, then dies of \
     that signal. A second signal ends it at once.";

pub(super) const CONNECTION_ENVIRONMENT: [(&str, &str); 6] = [
    ("PGSERVICEFILE", "The file in which services are looked up, instead of the one in the home folder."),
    ("PGSYSCONFDIR", "The folder of the file pg_service.conf that holds for all users."),
    ("PGREQUIRESSL", "1 is an old way to say PGSSLMODE=require."),
    ("PGDATESTYLE", "The session's DateStyle."),
    ("PGTZ", "The session's TimeZone."),
    ("PGGEQO", "The session's geqo."),
];

pub(super) const COLOUR_ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PG_COLOR",
        "always, auto (where standard error is a terminal) or never: whether messages are coloured.",
    ),
    ("PG_COLORS", "The colours, such as error=01;31:warning=01;35:note=01;36:locus=01."),
];

pub(super) const CONNECTION_FILES: [(&str, &str); 5] = [
    (
        "~/.pgpass",
        "Passwords, a line each: host:port:database:user:password. Ignored where others may read it.",
    ),
    ("~/.pg_service.conf", "Services: named groups of connection settings."),
    (
        "~/.postgresql/root.crt",
        "The certification authorities that servers' certificates are checked against.",
    ),
    ("~/.postgresql/root.crl", "Certificates that these authorities have revoked."),
    ("~/.postgresql/postgresql.crt, postgresql.key", "The client's certificate and its key."),
];

const PROSE: [(&str, Prose); 9] = [
    (
        "pgstrata",
        Prose {
            description: &[
                "pgstrata takes physical backups of running PostgreSQL servers as fast as the server can send them, \
                 verifies them while they arrive, and leaves the page cache alone.",
                "Its commands take the options of PostgreSQL's own tools. Called by the name of one of those, as by a \
                 link that pgstrata-links(1) makes, the program is that tool.",
            ],
            examples: &[
                ("See it work, on a server of its own:", "pgstrata demo"),
                ("Put it in the place of PostgreSQL's tools:", "pgstrata links /usr/local/pgstrata/bin"),
            ],
            on_signal: None,
        },
    ),
    (
        "basebackup",
        Prose {
            description: &[
                "{typed} takes a base backup of a running PostgreSQL server of version 13 or newer, as files in a directory (plain \
                 format) or as tar archives, compressed if wanted, with the WAL that it needs. Other clients of the server \
                 are not disturbed. The connection is made by a user who may replicate, and pg_hba.conf must permit it.",
                "While the backup arrives, every file is verified against the server's manifest, and every record of the \
                 streamed WAL by its checksum. A backup that does not match, or is not durable, never reports success: \
                 until then a plain backup has no global/pg_control and a tar backup no base.tar.",
            ],
            examples: &[
                (
                    "A backup of a server, with the WAL it needs:",
                    "{typed} -D /backup/monday -c fast -h db1 -U replicator",
                ),
                (
                    "Archives that two threads compress with zstd:",
                    "{typed} -D /backup/monday -F tar --compress=zstd:level=1,workers=2 -h db1 -U replicator",
                ),
                (
                    "A new standby with a slot of its own:",
                    "{typed} -D /var/lib/postgresql/standby -R -C -S standby1 -h db1 -U replicator",
                ),
                (
                    "A tablespace that goes elsewhere:",
                    "{typed} -D /backup/monday -T /srv/space=/backup/space -h db1 -U replicator",
                ),
            ],
            on_signal: None,
        },
    ),
    (
        "combinebackup",
        Prose {
            description: &[
                "{typed} puts a full backup and the incremental ones that build on it together: the result is the last of \
                 them, as a full backup that a server starts from. Name them in the order in which they were taken. All \
                 must be in plain format. The full backup is not changed, and neither are the others.",
                "Files are put together on all cores. What is read whole is compared with the checksums of its backup's \
                 manifest, and pages of files that are put together with their own, where the cluster has page checksums.",
            ],
            examples: &[
                (
                    "Put a week together:",
                    "{typed} -o /restore/friday /backup/sunday /backup/tuesday /backup/friday",
                ),
                (
                    "Share what is the same with the backups, on btrfs or XFS:",
                    "{typed} --copy-file-range -o /backup/new /backup/sunday /backup/monday",
                ),
                (
                    "A tablespace goes elsewhere:",
                    "{typed} -T /backup/space=/srv/space -o /restore/monday /backup/sunday /backup/monday",
                ),
            ],
            on_signal: None,
        },
    ),
    (
        "walsummary",
        Prose {
            description: &[
                "{typed} prints what WAL summary files say, those that servers from PostgreSQL 17 on keep in pg_wal/summaries where \
                 summarize_wal is on: which blocks of which relation forks a range of the write-ahead log changed, and to how many \
                 blocks a fork was cut in it (its limit; 0 where it was made or dropped).",
                "Each line names the tablespace, the database, the relation's file number and the fork. A file's checksum is its last \
                 bytes: where the exit status is not 0, what was printed is not to be believed.",
            ],
            examples: &[
                (
                    "What a summary says:",
                    "{typed} pg_wal/summaries/0000000100000000010000280000000002000028.summary",
                ),
                ("Whether all of them are whole:", "{typed} -q pg_wal/summaries/*.summary"),
            ],
            on_signal: None,
        },
    ),
    (
        "verifybackup",
        Prose {
            description: &[
                "{typed} verifies a base backup, plain or tar and compressed or not, against the manifest that the server made \
                 for it: that every file is there and no other, that sizes and checksums agree, and that the WAL that the \
                 backup needs is there and right, record by record. pg_waldump is not needed.",
                "Configuration files that restoring changes are not counted as foreign: postgresql.auto.conf, \
                 recovery.signal and standby.signal. Whether the server that took the backup had read its data right it \
                 cannot tell; restore backups now and then.",
            ],
            examples: &[
                ("Verify a backup:", "{typed} /backup/monday"),
                (
                    "Verify one whose manifest was kept elsewhere:",
                    "{typed} -m /safe/monday.manifest /backup/monday",
                ),
                ("Leave out a file, and WAL:", "{typed} -n -i postgresql.conf /backup/monday"),
            ],
            on_signal: None,
        },
    ),
    (
        "receivewal",
        Prose {
            description: &[
                "{typed} receives the write-ahead log of a running PostgreSQL server as it is made, and writes it to a folder, \
                 segment by segment, for point-in-time recovery. The segment that is being written has the suffix .partial. \
                 It goes on where it stopped, follows the server to a new timeline, and connects again where the connection \
                 is lost.",
                "Without a replication slot the server may remove WAL before it was received.",
            ],
            examples: &[
                (
                    "Make a slot, then receive WAL for good:",
                    "{typed} -S archive --create-slot -h db1 -U replicator\n{typed} -S archive -D /wal -h db1 -U replicator",
                ),
                (
                    "Receive compressed segments up to a position:",
                    "{typed} -D /wal -Z gzip -E 0/5000000 -h db1 -U replicator",
                ),
            ],
            on_signal: Some(
                "Once WAL is being received, SIGINT and SIGTERM are the usual way to end: what has come is made durable, and the \
                 status is 0.",
            ),
        },
    ),
    (
        "links",
        Prose {
            description: &[
                "Makes symbolic links to this program in a folder, by the names of the tools of PostgreSQL that it stands in \
                 for. With that folder first in PATH, scripts and managers that call those tools call this program, which \
                 then takes their options, speaks in their names and ends with their statuses.",
                "Links that are there already are left as they are. Anything else by those names is never replaced.",
            ],
            examples: &[("", "pgstrata links /usr/local/pgstrata/bin\nPATH=/usr/local/pgstrata/bin:$PATH")],
            on_signal: None,
        },
    ),
    (
        "completions",
        Prose {
            description: &[
                "Prints a script with which a shell completes the command lines of pgstrata, or with --tool those of a stock \
                 tool's name, options and their values included.",
            ],
            examples: &[
                ("bash, for this session:", "source <(pgstrata completions bash)"),
                (
                    "bash, for everybody:",
                    "cd /usr/share/bash-completion/completions\npgstrata completions bash > pgstrata\n\
                     pgstrata completions bash --tool pg_basebackup > pg_basebackup",
                ),
                ("zsh:", "pgstrata completions zsh > /usr/local/share/zsh/site-functions/_pgstrata"),
                ("fish:", "pgstrata completions fish > ~/.config/fish/completions/pgstrata.fish"),
            ],
            on_signal: None,
        },
    ),
    (
        "man",
        Prose {
            description: &[
                "Writes these manual pages: one for pgstrata, one for each of its commands, and one for each tool of PostgreSQL \
                 that it stands in for. Pages of the same names are replaced.",
            ],
            examples: &[("", "pgstrata man /usr/local/share/man/man1")],
            on_signal: None,
        },
    ),
];
