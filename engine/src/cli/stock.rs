//! The program under the name of a stock tool: which one, its command line as getopt_long reads it, and its complaints.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command, FromArgMatches};

use super::getopt::{Misread, spell_out};
use super::message;

/// What `--version` says of the tools that this stands in for: the release whose options and behaviour these are.
const STOCK_VERSION: &str = "18.6";

/// A tool of PostgreSQL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// `pg_basebackup`
    BaseBackup,
    /// `pg_combinebackup`
    CombineBackup,
    /// `pg_receivewal`
    ReceiveWal,
    /// `pg_verifybackup`
    VerifyBackup,
    /// `pg_walsummary`
    WalSummary,
}

/// What a command line comes to.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// These arguments.
    Run(Box<T>),
    /// This goes to stdout, and that is all.
    Print(String),
    /// The complaint for stderr.
    Refuse(String),
}

impl Tool {
    /// All there are.
    pub(super) const ALL: [Tool; 5] =
        [Tool::BaseBackup, Tool::CombineBackup, Tool::ReceiveWal, Tool::VerifyBackup, Tool::WalSummary];

    /// The tool whose name the program was called by, with whatever path.
    pub(super) fn called_as(program: Option<&OsStr>) -> Option<Self> {
        let name = Path::new(program?).file_name()?;
        Self::ALL.into_iter().find(|tool| name == tool.name())
    }

    /// The tool's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup",
            Tool::CombineBackup => "pg_combinebackup",
            Tool::ReceiveWal => "pg_receivewal",
            Tool::VerifyBackup => "pg_verifybackup",
            Tool::WalSummary => "pg_walsummary",
        }
    }

    /// The tool's own long options, in the order of its table (`long_options` in its source).
    fn long_options(self) -> &'static [&'static str] {
        match self {
            Tool::BaseBackup => &[
                "help",
                "version",
                "pgdata",
                "format",
                "incremental",
                "checkpoint",
                "create-slot",
                "max-rate",
                "write-recovery-conf",
                "slot",
                "target",
                "tablespace-mapping",
                "wal-method",
                "gzip",
                "compress",
                "label",
                "no-clean",
                "no-sync",
                "dbname",
                "host",
                "port",
                "username",
                "no-password",
                "password",
                "status-interval",
                "verbose",
                "progress",
                "waldir",
                "no-slot",
                "no-verify-checksums",
                "no-estimate-size",
                "no-manifest",
                "manifest-force-encode",
                "manifest-checksums",
                "sync-method",
            ],
            Tool::CombineBackup => &[
                "debug",
                "dry-run",
                "no-sync",
                "output",
                "tablespace-mapping",
                "link",
                "manifest-checksums",
                "no-manifest",
                "sync-method",
                "clone",
                "copy",
                "copy-file-range",
            ],
            Tool::ReceiveWal => &[
                "help",
                "version",
                "directory",
                "dbname",
                "endpos",
                "host",
                "port",
                "username",
                "no-loop",
                "no-password",
                "password",
                "status-interval",
                "slot",
                "verbose",
                "compress",
                "create-slot",
                "drop-slot",
                "if-not-exists",
                "synchronous",
                "no-sync",
            ],
            Tool::VerifyBackup => &[
                "exit-on-error",
                "ignore",
                "manifest-path",
                "format",
                "no-parse-wal",
                "progress",
                "quiet",
                "skip-checksums",
                "wal-directory",
            ],
            Tool::WalSummary => &["individual", "quiet"],
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup [OPTION]...",
            Tool::CombineBackup => "pg_combinebackup [OPTION]... DIRECTORY...",
            Tool::ReceiveWal => "pg_receivewal [OPTION]...",
            Tool::VerifyBackup => "pg_verifybackup [OPTION]... BACKUPDIR",
            Tool::WalSummary => "pg_walsummary [OPTION]... FILE...",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup takes a base backup of a running PostgreSQL server.",
            Tool::CombineBackup => "pg_combinebackup reconstructs full backups from incrementals.",
            Tool::ReceiveWal => "pg_receivewal receives PostgreSQL streaming write-ahead logs.",
            Tool::VerifyBackup => "pg_verifybackup verifies a backup against the backup manifest.",
            Tool::WalSummary => "pg_walsummary prints the contents of a WAL summary file.",
        }
    }

    /// Reads a command line as the tool would: long options may be cut short, values may begin with a dash, help and
    /// version are asked for first or not at all.
    pub(super) fn parse<T: Args + FromArgMatches>(self, arguments: Vec<OsString>) -> Parsed<T> {
        let mut command = self.command::<T>();
        command.build();
        match arguments.get(1).and_then(|first| first.to_str()) {
            Some("--help" | "-?") => return Parsed::Print(command.render_long_help().to_string()),
            Some("--version" | "-V") => {
                let ours = env!("CARGO_PKG_VERSION");
                return Parsed::Print(format!(
                    "{} (PostgreSQL) {STOCK_VERSION} (pgstrata {ours})\n",
                    self.name()
                ));
            }
            _ => {}
        }
        let called = arguments.first().map(|program| program.to_string_lossy().into_owned());
        let called = called.unwrap_or_else(|| self.name().to_owned());
        let name = self.name();
        let hint = format!("{name}: hint: Try \"{name} --help\" for more information.");
        let spelled = match spell_out(&command, self.long_options(), arguments) {
            Ok(spelled) => spelled,
            Err(Misread::Complaint(complaint)) => {
                return Parsed::Refuse(format!("{called}: {complaint}\n{hint}"));
            }
            Err(Misread::HelpTooLate) => return Parsed::Refuse(hint),
            Err(Misread::Operand(first)) => {
                let complaint = format!("too many command-line arguments (first is \"{first}\")");
                return Parsed::Refuse(format!("{name}: error: {complaint}\n{hint}"));
            }
        };
        let matches = command.try_get_matches_from_mut(spelled);
        match matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches)) {
            Ok(arguments) => Parsed::Run(Box::new(arguments)),
            Err(error) => Parsed::Refuse(format!("{}\n{hint}", self.complaint(&error))),
        }
    }

    fn command<T: Args>(self) -> Command {
        let command = Command::new(self.name())
            .about(self.about())
            .override_usage(self.usage())
            .disable_version_flag(true)
            .args_override_self(true)
            .max_term_width(95);
        T::augment_args(command).about(self.about())
    }

    /// What the tool says of a command line that getopt_long has nothing against.
    fn complaint(self, error: &clap::Error) -> String {
        let name = self.name();
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            _ => "",
        };
        // Options are shown with what they take: `--pgdata <DIRECTORY>`.
        let option = text(ContextKind::InvalidArg).split([' ', '=']).next().unwrap_or_default();
        match error.kind() {
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                let value = text(ContextKind::InvalidValue);
                format!("{name}: error: invalid value \"{value}\" for option {option}")
            }
            _ => {
                let whole = error.to_string();
                let first = whole.lines().next().unwrap_or_default();
                format!("{name}: error: {}", first.trim_start_matches("error: "))
            }
        }
    }

    /// Where an operator who took options for what they are not is sent.
    fn see_help(self) -> String {
        let command = match message::is_stock() {
            true => self.name().to_owned(),
            false => format!("pgstrata {}", self.name().trim_start_matches("pg_")),
        };
        format!("Try \"{command} --help\" for more information.")
    }

    /// A refusal of options that do not go together, or of one that is missing.
    pub(super) fn misuse(self, text: &str) -> anyhow::Error {
        anyhow::anyhow!("{text}\nHINT: {}", self.see_help())
    }
}

/// Prints what is to be printed, complains, or hands the arguments on.
pub(super) fn settle<T>(parsed: Parsed<T>) -> Result<Box<T>, std::process::ExitCode> {
    match parsed {
        Parsed::Run(arguments) => Ok(arguments),
        Parsed::Print(text) => {
            use std::io::Write;
            // A reader that has gone away has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Err(std::process::ExitCode::SUCCESS)
        }
        Parsed::Refuse(text) => {
            message::print(&text);
            Err(std::process::ExitCode::FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::basebackup::BaseBackupArgs;
    use super::super::verifybackup::VerifyBackupArgs;
    use super::*;

    fn parse<T: Args + FromArgMatches>(tool: Tool, line: &str) -> Parsed<T> {
        tool.parse(std::iter::once(tool.name()).chain(line.split_whitespace()).map(OsString::from).collect())
    }

    #[test]
    fn names_are_found_behind_any_path() {
        for (program, tool) in [
            ("pg_basebackup", Some(Tool::BaseBackup)),
            ("/usr/local/bin/pg_verifybackup", Some(Tool::VerifyBackup)),
            ("pg_receivewal", Some(Tool::ReceiveWal)),
            ("/x/pg_combinebackup", Some(Tool::CombineBackup)),
            ("/x/pg_walsummary", Some(Tool::WalSummary)),
            ("./pgstrata", None),
            ("pg_basebackup.old", None),
            ("", None),
        ] {
            assert_eq!(Tool::called_as(Some(OsStr::new(program))), tool, "{program}");
        }
        assert_eq!(Tool::called_as(None), None);
    }

    #[test]
    fn command_lines_are_read_as_getopt_reads_them() {
        for line in [
            "-D /b -Xs -cfast -P",
            "--pgdata=/b --wal-method stream --check=fast",
            "-D/b -l -label --label=--x",
            "-D/b -l --check --no-sl",
            "-PvD /b --stat 5 --json",
            "-D /a -D /b -Ft -Fp",
        ] {
            let Parsed::Run(arguments) = parse::<BaseBackupArgs>(Tool::BaseBackup, line) else {
                panic!("{line} was refused");
            };
            arguments.resolve().unwrap_or_else(|error| panic!("{line}: {error:#}"));
        }
    }

    #[test]
    fn complaints_are_getopts() {
        let hint = "\npg_basebackup: hint: Try \"pg_basebackup --help\" for more information.";
        for (line, expected) in [
            ("--nonsense", "pg_basebackup: unrecognized option '--nonsense'"),
            ("-y", "pg_basebackup: invalid option -- 'y'"),
            ("--no-s", "pg_basebackup: option '--no-s' is ambiguous; possibilities: '--no-sync' '--no-slot'"),
            ("-PD", "pg_basebackup: option requires an argument -- 'D'"),
            ("--stall=1", "pg_basebackup: unrecognized option '--stall=1'"),
            ("--pgdata", "pg_basebackup: option '--pgdata' requires an argument"),
            ("--no-sync=1", "pg_basebackup: option '--no-sync' doesn't allow an argument"),
            ("-D /b extra", "pg_basebackup: error: too many command-line arguments (first is \"extra\")"),
        ] {
            match parse::<BaseBackupArgs>(Tool::BaseBackup, line) {
                Parsed::Refuse(said) => assert_eq!(said, format!("{expected}{hint}"), "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        match parse::<VerifyBackupArgs>(Tool::VerifyBackup, "/a /b") {
            Parsed::Refuse(said) => {
                let expected = "pg_verifybackup: error: too many command-line arguments (first is \"/b\")";
                assert!(said.starts_with(expected), "{said}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn help_and_version_come_first() {
        let Parsed::Print(version) = parse::<BaseBackupArgs>(Tool::BaseBackup, "--version") else {
            panic!("no version");
        };
        assert!(version.starts_with("pg_basebackup (PostgreSQL) 18."), "{version}");
        let Parsed::Print(help) = parse::<VerifyBackupArgs>(Tool::VerifyBackup, "-?") else {
            panic!("no help");
        };
        assert!(help.contains("Usage: pg_verifybackup [OPTION]... BACKUPDIR"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 95), "{help}");
    }
}
