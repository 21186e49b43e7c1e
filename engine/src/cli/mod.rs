//! The command line: flags → checked configuration → engine call → report. Decides nothing itself.
//!
//! Called by the name of a stock tool, the program is that tool (`stock.rs`).
//!
//! Exit status 0 for success, 1 for every failure but those of `wal get` (`wal/get.rs`); a run that a signal ended dies of that signal, as a shell
//! and its scripts expect.

mod age;
mod backup;
mod basebackup;
mod check;
mod combinebackup;
mod completions;
mod configuration;
mod connection;
mod definition;
mod demo;
mod expire;
mod getopt;
mod init;
mod int_option;
mod key;
mod key_options;
mod links;
mod list;
mod man;
mod message;
mod open_files;
mod pin;
mod plain;
mod progress;
mod receivewal;
mod recovery_target;
mod repository;
mod restore;
mod run_basebackup;
mod signals;
mod stock;
mod summary;
mod verify;
mod verifybackup;
mod wal;
mod walsummary;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::stock::{Tool, settle};
use crate::failure::Failure;

/// A high-throughput, storage-side backup engine for PostgreSQL
#[derive(Debug, Parser)]
#[command(name = "pgstrata", version, disable_help_subcommand = true, max_term_width = 100)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(Box<backup::BackupArgs>),
    /// Take a base backup of a running PostgreSQL server
    #[command(name = "basebackup")]
    BaseBackup(Box<basebackup::BaseBackupArgs>),
    Check(Box<check::CheckArgs>),
    /// Reconstruct a full backup from incremental ones
    #[command(name = "combinebackup")]
    CombineBackup(Box<combinebackup::CombineBackupArgs>),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Demo(demo::DemoArgs),
    Expire(expire::ExpireArgs),
    Init(init::InitArgs),
    Key(key::KeyArgs),
    Links(links::LinksArgs),
    /// Receive the write-ahead log of a running PostgreSQL server
    #[command(name = "receivewal")]
    ReceiveWal(Box<receivewal::ReceiveWalArgs>),
    List(list::ListArgs),
    Pin(pin::PinArgs),
    Restore(Box<restore::RestoreArgs>),
    Show(list::ShowArgs),
    Unpin(pin::UnpinArgs),
    Verify(verify::VerifyArgs),
    /// Verify a backup against its manifest
    #[command(name = "verifybackup")]
    VerifyBackup(Box<verifybackup::VerifyBackupArgs>),
    Wal(wal::WalArgs),
    /// Print the contents of a WAL summary file
    #[command(name = "walsummary")]
    WalSummary(walsummary::WalSummaryArgs),
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = match Tool::called_as(arguments.first().map(OsString::as_os_str)) {
        Some(tool) => as_tool(tool, arguments),
        None => as_ourselves(arguments),
    };
    match command {
        Ok(command) => run(&command),
        Err(status) => status,
    }
}

fn as_ourselves(arguments: Vec<OsString>) -> Result<Command, ExitCode> {
    message::speak_as("pgstrata", false);
    let refused = wal::status_of_refusal(&arguments);
    Program::try_parse_from(arguments).map(|program| program.command).map_err(|error| {
        // clap writes help and version to stdout, complaints to stderr; these in the program's name, as all others.
        if error.to_string().starts_with("error: ") {
            eprint!("pgstrata: ");
        }
        let _ = error.print();
        if error.use_stderr() { refused } else { ExitCode::SUCCESS }
    })
}

fn as_tool(tool: Tool, arguments: Vec<OsString>) -> Result<Command, ExitCode> {
    message::speak_as(tool.name(), true);
    match tool {
        Tool::BaseBackup => settle(tool.parse(arguments)).map(Command::BaseBackup),
        Tool::CombineBackup => settle(tool.parse(arguments)).map(Command::CombineBackup),
        Tool::ReceiveWal => settle(tool.parse(arguments)).map(Command::ReceiveWal),
        Tool::VerifyBackup => settle(tool.parse(arguments)).map(Command::VerifyBackup),
        Tool::WalSummary => settle(tool.parse(arguments)).map(|arguments| Command::WalSummary(*arguments)),
    }
}

fn run(command: &Command) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    open_files::raise_limit();
    let outcome = match command {
        Command::Backup(args) => backup::run(args),
        Command::BaseBackup(args) => run_basebackup::run(args),
        Command::Check(args) => check::run(args),
        Command::CombineBackup(args) => combinebackup::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Expire(args) => expire::run(args),
        Command::Init(args) => init::run(args),
        Command::Key(args) => key::run(args),
        Command::Links(args) => links::run(args),
        Command::ReceiveWal(args) => receivewal::run(args),
        Command::List(args) => list::list(args),
        Command::Pin(args) => pin::pin(args),
        Command::Restore(args) => restore::run(args),
        Command::Show(args) => list::show(args),
        Command::Unpin(args) => pin::unpin(args),
        Command::Verify(args) => verify::run(args),
        Command::VerifyBackup(args) => verifybackup::run(args),
        // Recovery reads more than success and failure from the exit status.
        Command::Wal(args) => return wal::run(args),
        Command::WalSummary(args) => walsummary::run(args),
    };
    status(outcome)
}

fn status(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(Failure::Signal(signal)) = error.downcast_ref() {
                signals::die_of(*signal);
            }
            ExitCode::FAILURE
        }
    }
}
