//! The command line: flags → checked configuration → engine call → report. Decides nothing itself.
//!
//! Exit status 0 for success, 1 for every failure; a run that a signal ended dies of that signal, as a shell
//! and its scripts expect.

mod basebackup;
mod connection;
mod demo;
mod open_files;
mod plain;
mod progress;
mod run_basebackup;
mod signals;
mod summary;
mod verifybackup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Take a base backup of a running PostgreSQL server
    #[command(name = "basebackup")]
    BaseBackup(Box<basebackup::BaseBackupArgs>),
    Demo(demo::DemoArgs),
    /// Verify a backup against its manifest
    #[command(name = "verifybackup")]
    VerifyBackup(Box<verifybackup::VerifyBackupArgs>),
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // clap writes help and version to stdout, complaints to stderr.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    open_files::raise_limit();
    let outcome = match &program.command {
        Command::BaseBackup(args) => run_basebackup::run(args),
        Command::Demo(args) => demo::run(args),
        Command::VerifyBackup(args) => verifybackup::run(args),
    };
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
