//! `pgstrata wal`: the WAL archive of a repository.

mod check;
mod get;
mod push;
mod receive;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::status;

/// Keep and give back the write-ahead log in a repository
#[derive(Debug, Args)]
pub(super) struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Debug, Subcommand)]
enum WalCommand {
    Push(push::PushArgs),
    Get(get::GetArgs),
    Receive(Box<receive::ReceiveArgs>),
    Check(check::CheckArgs),
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &WalArgs) -> ExitCode {
    match &args.command {
        WalCommand::Push(args) => status(push::run(args)),
        WalCommand::Get(args) => get::run(args),
        WalCommand::Receive(args) => status(receive::run(args)),
        WalCommand::Check(args) => status(check::run(args)),
    }
}

/// The exit status where a command line is refused: for `wal get` one that stops recovery, or a slip in a
/// restore_command would end it.
pub(super) fn status_of_refusal(arguments: &[OsString]) -> ExitCode {
    let mut words = arguments.iter().skip(1).map(OsString::as_os_str);
    if words.next() == Some("wal".as_ref()) && words.next() == Some("get".as_ref()) {
        return ExitCode::from(get::STOPS_RECOVERY);
    }
    ExitCode::FAILURE
}
