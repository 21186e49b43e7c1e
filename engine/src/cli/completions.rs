//! `pgstrata completions`: what a shell needs to complete command lines, made from their definition.

use std::io::{self, Write};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command, ValueHint};
use clap_complete::Shell;

use super::stock::Tool;
use super::{definition, message};

/// Print a completion script for a shell
///
/// The script goes to standard output. bash reads it with `source <(pgstrata completions bash)`, or from a file in
/// /usr/share/bash-completion/completions named after the program; zsh from a file `_pgstrata` in its fpath; fish from
/// a file `pgstrata.fish` in ~/.config/fish/completions.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// Complete this tool's command lines instead of pgstrata's, for the links that `pgstrata links` makes
    #[arg(long, value_name = "NAME", value_parser = tools())]
    tool: Option<Tool>,
}

fn tools() -> impl TypedValueParser<Value = Tool> {
    let names = Tool::ALL.map(Tool::name);
    PossibleValuesParser::new(names).map(|name| {
        Tool::ALL.into_iter().find(|tool| tool.name() == name).expect("the parser takes nothing else")
    })
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let outcome = print(args);
    if let Err(error) = &outcome {
        message::error(&format!("{error:#}"));
    }
    outcome
}

fn print(args: &CompletionsArgs) -> anyhow::Result<()> {
    let command = match args.tool {
        None => Some(definition::program()),
        Some(tool) => definition::tool(tool),
    };
    let command = command.context("there is no such command")?;
    io::stdout().write_all(&script(args.shell, command)).context("could not write to standard output")
}

fn script(shell: Shell, command: Command) -> Vec<u8> {
    let name = command.get_name().to_owned();
    let mut command = with_values(command);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    if shell == Shell::Fish {
        // To fish, a bare question mark is a wildcard that matches no file, and an error.
        return String::from_utf8_lossy(&script).replace(" -s ? ", " -s '?' ").into_bytes();
    }
    script
}

/// What options take that the program reads as text, since the messages about other values are the stock tools'.
const VALUES: [(&str, &[&str]); 6] = [
    ("checkpoint", &["fast", "spread"]),
    ("compress", &["gzip", "lz4", "none", "server-gzip", "server-lz4", "server-zstd", "zstd"]),
    ("format", &["plain", "tar"]),
    ("manifest-checksums", &["CRC32C", "NONE", "SHA224", "SHA256", "SHA384", "SHA512"]),
    ("sync-method", &["fsync", "syncfs"]),
    ("wal-method", &["fetch", "none", "stream"]),
];

/// Options, and arguments by the names of their values, that are folders or files.
const PATHS: [(&str, ValueHint); 11] = [
    ("BACKUPDIR", ValueHint::DirPath),
    ("DIR", ValueHint::DirPath),
    ("bin-dir", ValueHint::DirPath),
    ("directory", ValueHint::DirPath),
    ("host", ValueHint::Hostname),
    ("incremental", ValueHint::FilePath),
    ("manifest-path", ValueHint::FilePath),
    ("pgdata", ValueHint::DirPath),
    ("username", ValueHint::Username),
    ("wal-directory", ValueHint::DirPath),
    ("waldir", ValueHint::DirPath),
];

fn with_values(command: Command) -> Command {
    command.mut_args(with_value).mut_subcommands(with_values)
}

fn with_value(argument: Arg) -> Arg {
    let name = match (argument.get_long(), argument.get_value_names()) {
        (Some(long), _) => long.to_owned(),
        (None, Some([name])) => name.to_string(),
        (None, _) => return argument,
    };
    if !argument.get_action().takes_values() {
        return argument;
    }
    if let Some((_, values)) = VALUES.iter().find(|(option, _)| *option == name) {
        // Where the server does not compress, as for WAL, the name of the value does not speak of it.
        let by_server =
            argument.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains("server")));
        let values: Vec<&str> =
            values.iter().copied().filter(|value| by_server || !value.starts_with("server-")).collect();
        return argument.value_parser(PossibleValuesParser::new(values));
    }
    match PATHS.iter().find(|(option, _)| *option == name) {
        Some((_, hint)) => argument.value_hint(*hint),
        None => argument,
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::super::Program;
    use super::*;
    use clap::Parser;

    #[test]
    fn every_shell_gets_a_script_that_names_every_option() {
        for shell in Shell::value_variants() {
            let mut commands = vec![definition::program()];
            commands.extend(Tool::ALL.into_iter().filter_map(definition::tool));
            for command in commands {
                let name = command.get_name().to_owned();
                let options: Vec<String> = command
                    .get_arguments()
                    .chain(command.get_subcommands().flat_map(Command::get_arguments))
                    .filter_map(|argument| argument.get_long().map(str::to_owned))
                    .collect();
                let script = String::from_utf8(script(*shell, command)).expect("text");
                for option in options {
                    assert!(script.contains(&option), "{shell} {name}: {option}");
                }
            }
        }
    }

    #[test]
    fn offered_values_are_taken() {
        for (option, values) in VALUES {
            for value in values {
                let line = format!("pgstrata basebackup -D /b -Ft --{option}={value}");
                let parsed = Program::try_parse_from(line.split(' ')).map(|program| program.command);
                let Ok(super::super::Command::BaseBackup(args)) = parsed else {
                    panic!("{line}: {parsed:?}")
                };
                args.resolve().unwrap_or_else(|error| panic!("{line}: {error:#}"));
            }
        }
    }
}
