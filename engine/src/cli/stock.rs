//! The program under the name of a stock tool: which one, its command line as getopt_long reads it, and its complaints.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, Command, FromArgMatches};

use super::message;

/// What `--version` says of the tools that this stands in for: the release whose options and behaviour these are.
const STOCK_VERSION: &str = "18.4";

/// A tool of PostgreSQL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// `pg_basebackup`
    BaseBackup,
    /// `pg_receivewal`
    ReceiveWal,
    /// `pg_verifybackup`
    VerifyBackup,
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
    pub(super) const ALL: [Tool; 3] = [Tool::BaseBackup, Tool::ReceiveWal, Tool::VerifyBackup];

    /// The tool whose name the program was called by, with whatever path.
    pub(super) fn called_as(program: Option<&OsStr>) -> Option<Self> {
        let name = Path::new(program?).file_name()?;
        Self::ALL.into_iter().find(|tool| name == tool.name())
    }

    /// The tool's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup",
            Tool::ReceiveWal => "pg_receivewal",
            Tool::VerifyBackup => "pg_verifybackup",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup [OPTION]...",
            Tool::ReceiveWal => "pg_receivewal [OPTION]...",
            Tool::VerifyBackup => "pg_verifybackup [OPTION]... BACKUPDIR",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Tool::BaseBackup => "pg_basebackup takes a base backup of a running PostgreSQL server.",
            Tool::ReceiveWal => "pg_receivewal receives PostgreSQL streaming write-ahead logs.",
            Tool::VerifyBackup => "pg_verifybackup verifies a backup against the backup manifest.",
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
        let last = arguments.last().map(|last| last.to_string_lossy().into_owned()).unwrap_or_default();
        let hint = format!("{0}: hint: Try \"{0} --help\" for more information.", self.name());
        let spelled = match spell_out(&command, arguments) {
            Ok(spelled) => spelled,
            Err(Misspelled::Complaint(complaint)) => {
                return Parsed::Refuse(format!("{called}: {complaint}\n{hint}"));
            }
            Err(Misspelled::HelpTooLate) => return Parsed::Refuse(hint),
        };
        let matches = command.try_get_matches_from_mut(spelled);
        match matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches)) {
            Ok(arguments) => Parsed::Run(Box::new(arguments)),
            Err(error) => Parsed::Refuse(format!("{}\n{hint}", self.complaint(&error, &called, &last))),
        }
    }

    fn command<T: Args>(self) -> Command {
        let command = Command::new(self.name())
            .about(self.about())
            .override_usage(self.usage())
            .disable_version_flag(true)
            .args_override_self(true)
            .max_term_width(95);
        T::augment_args(command).about(self.about()).mut_args(|argument| match argument.get_action() {
            ArgAction::Set | ArgAction::Append if !argument.is_positional() => {
                argument.allow_hyphen_values(true)
            }
            _ => argument,
        })
    }

    /// What getopt_long, in the name that the program was `called` by, or after it the tool says of a command line that
    /// ends with `last`.
    fn complaint(self, error: &clap::Error, called: &str, last: &str) -> String {
        let name = self.name();
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            _ => "",
        };
        // Options are shown with what they take: `--pgdata <DIRECTORY>`.
        let option = text(ContextKind::InvalidArg).split([' ', '=']).next().unwrap_or_default();
        let value = text(ContextKind::InvalidValue);
        match error.kind() {
            ErrorKind::UnknownArgument if option.starts_with("--") => {
                format!("{called}: unrecognized option '{option}'")
            }
            ErrorKind::UnknownArgument if option.starts_with('-') => {
                let letter = option.chars().nth(1).unwrap_or('-');
                format!("{called}: invalid option -- '{letter}'")
            }
            ErrorKind::UnknownArgument | ErrorKind::TooManyValues if !option.starts_with('-') => {
                let first = if option.is_empty() { value } else { option };
                format!("{name}: error: too many command-line arguments (first is \"{first}\")")
            }
            ErrorKind::TooManyValues => format!("{called}: option '{option}' doesn't allow an argument"),
            ErrorKind::InvalidValue if value.is_empty() && last.starts_with("--") => {
                format!("{called}: option '{option}' requires an argument")
            }
            ErrorKind::InvalidValue if value.is_empty() => {
                let letter = last.chars().next_back().unwrap_or('-');
                format!("{called}: option requires an argument -- '{letter}'")
            }
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                format!("{name}: error: invalid value \"{value}\" for option {option}")
            }
            _ => {
                let whole = error.to_string();
                let first = whole.lines().next().unwrap_or_default();
                format!("{name}: error: {}", first.trim_start_matches("error: "))
            }
        }
    }
}

/// Long options that the stock tools do not have. They must not make a shortened one ambiguous.
const OURS: [&str; 8] =
    ["buffers", "check-pages", "discard", "io", "json", "no-check-wal", "stall-timeout", "workers"];

/// What getopt_long does not take.
enum Misspelled {
    /// Short for several options, or unknown; this is said about it.
    Complaint(String),
    /// `--help` behind other arguments: all that is said is where to find it.
    HelpTooLate,
}

/// Long options that were cut short, in full, where they can only be one of the tool's; else getopt_long's complaint.
fn spell_out(command: &Command, arguments: Vec<OsString>) -> Result<Vec<OsString>, Misspelled> {
    let takes_value = |option: &clap::Arg| option.get_action().takes_values();
    let by_letter = |letter| command.get_arguments().find(|option| option.get_short() == Some(letter));
    let named = |name: &str| {
        if let Some(option) = command.get_arguments().find(|option| option.get_long() == Some(name)) {
            return Ok(Some(option));
        }
        let begins = |option: &&clap::Arg| {
            option.get_long().is_some_and(|long| long.starts_with(name) && !OURS.contains(&long))
        };
        let like_it: Vec<&clap::Arg> = command.get_arguments().filter(begins).collect();
        match like_it.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(*only)),
            several => {
                let names = several.iter().filter_map(|option| option.get_long());
                let names: String = names.map(|long| format!(" '--{long}'")).collect();
                Err(Misspelled::Complaint(format!("option '--{name}' is ambiguous; possibilities:{names}")))
            }
        }
    };
    let mut spelled = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.into_iter();
    spelled.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let mut value_follows = false;
        if text == "--" {
            spelled.push(argument);
            break;
        } else if let Some(long) = text.strip_prefix("--") {
            let (name, value) =
                long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
            if name == "help" {
                // Only the first argument asks for it.
                return Err(Misspelled::HelpTooLate);
            }
            if let Some(option) = named(name)? {
                let full = option.get_long().unwrap_or(name);
                value_follows = value.is_none() && takes_value(option);
                let value = value.map_or(String::new(), |value| format!("={value}"));
                spelled.push(format!("--{full}{value}").into());
            } else {
                spelled.push(argument);
            }
        } else {
            // The first letter that takes a value ends a cluster; the value follows where the cluster ends with it.
            let letters = text.strip_prefix('-').unwrap_or_default();
            let takes = |letter| by_letter(letter).is_some_and(takes_value);
            let value = letters.find(takes);
            if letters[..value.unwrap_or(letters.len())].contains('?') {
                return Err(Misspelled::Complaint("invalid option -- '?'".into()));
            }
            value_follows = value.is_some_and(|at| letters[at..].chars().count() == 1);
            spelled.push(argument);
        }
        if value_follows {
            spelled.extend(arguments.next());
        }
    }
    spelled.extend(arguments);
    Ok(spelled)
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
            ("--stall=1", "pg_basebackup: unrecognized option '--stall'"),
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
