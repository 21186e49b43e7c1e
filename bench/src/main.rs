//! The program `pgstrata-bench`: pgstrata beside its rivals, on one server, in one run.
//!
//! Parses, sets everything up by itself, measures, prints. Every client is measured as users run it: as a process
//! of its own. Nothing here is tuned for one of the rivals.

mod archive;
mod arguments;
mod backup;
mod basebackup;
mod cache;
mod cluster;
mod combinebackup;
mod compare;
mod copy_binary;
mod dataset;
mod device;
mod environment;
mod impact;
mod incremental;
mod invocation;
mod machine_cpu;
mod many_files;
mod measure;
mod memory;
mod one_run;
mod output;
mod page_cache;
mod pairs;
mod peer;
mod pgbackrest;
mod pgbench;
mod place;
mod program;
mod random;
mod reach;
mod receivewal;
mod repositories;
mod restore;
mod server_cpu;
mod sql;
mod statistics;
mod summary;
mod table;
mod tar;
mod tree;
mod verify;
mod verifybackup;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, Rivalry};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Compare(Rivalry::Basebackup(options)) => basebackup::compare(&options),
        Command::Compare(Rivalry::Tar(options)) => tar::compare(&options),
        Command::Compare(Rivalry::Receivewal(options)) => receivewal::compare(&options),
        Command::Compare(Rivalry::Verifybackup(options)) => verifybackup::compare(&options),
        Command::Compare(Rivalry::Combinebackup(options)) => combinebackup::compare(&options),
        Command::Compare(Rivalry::Backup(options)) => backup::compare(&options),
        Command::Compare(Rivalry::Incremental(options)) => incremental::compare(&options),
        Command::Compare(Rivalry::Restore(options)) => restore::compare(&options),
        Command::Compare(Rivalry::Verify(options)) => verify::compare(&options),
        Command::Impact(options) => impact::measure(&options),
        Command::Memory(options) => memory::measure(&options),
        Command::MeasureOne(one) => measure::measure_here(&one),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgstrata-bench: error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, without those that it repeats already.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.contains(&cause) => text,
        cause if text.is_empty() => cause,
        cause => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow!("no such file").context("cannot open x: no such file").context("cannot begin");
        assert_eq!(told(&error), "cannot begin: cannot open x: no such file");
    }
}
