//! The definition of each command line, for what is made from it: shell completions and manual pages.
//!
//! Commands and tools are found in the program's own definition, never listed here: what is added there is here too.
//! Hidden commands and options are left out.

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::Program;
use super::stock::Tool;

/// The whole program.
pub(super) fn program() -> Command {
    visible(&Program::command())
}

/// The program under the name of a stock tool; `None` where it has no command to stand in for that tool.
pub(super) fn tool(tool: Tool) -> Option<Command> {
    let program = Program::command();
    let ours = program.get_subcommands().find(|command| is_counterpart(command, tool))?;
    // Read by the program before its options are.
    let version = Arg::new("version")
        .short('V')
        .long("version")
        .action(ArgAction::SetTrue)
        .help("Show the version, then exit");
    Some(visible(ours).name(tool.name()).arg(version))
}

/// Whether a command of ours does what the tool does.
pub(super) fn is_counterpart(command: &Command, tool: Tool) -> bool {
    tool.name().strip_prefix("pg_") == Some(command.get_name())
}

/// A definition without what is hidden.
fn visible(command: &Command) -> Command {
    let mut shown = Command::new(command.get_name().to_owned())
        .disable_help_flag(command.is_disable_help_flag_set())
        .disable_version_flag(command.is_disable_version_flag_set())
        .disable_help_subcommand(command.is_disable_help_subcommand_set())
        .subcommand_required(command.has_subcommands())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        shown = shown.long_about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound_and_complete() {
        program().debug_assert();
        for each in Tool::ALL {
            let definition = tool(each).unwrap_or_else(|| panic!("{} has no command", each.name()));
            definition.clone().debug_assert();
            assert!(definition.get_arguments().all(|argument| !argument.is_hide_set()), "{}", each.name());
            let full = Program::command();
            let full =
                full.get_subcommands().find(|command| is_counterpart(command, each)).expect("as above");
            let shown = full.get_arguments().filter(|argument| !argument.is_hide_set()).count();
            // `--version` on top.
            assert_eq!(definition.get_arguments().count(), shown + 1, "{}", each.name());
        }
    }
}
