//! `pgstrata man`: manual pages, made from the definition of the command lines and from what `prose.rs` adds.
//!
//! One page for the program, one for each of its commands, one for each stock tool that it stands in for. Whatever the
//! definition gains is on the pages by itself; a command without prose gets a page without examples.

mod prose;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::stock::Tool;
use super::{definition, message};
use crate::connect::environment_variables;
use prose::Prose;

/// Write manual pages into a folder
///
/// One page for pgstrata, one for each of its commands, and one for each tool that it stands in for: `pgstrata.1`,
/// `pgstrata-basebackup.1`, `pg_basebackup.1` and so on. Pages of those names that are there already are replaced.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder, such as /usr/local/share/man/man1; made where it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &ManArgs) -> anyhow::Result<()> {
    let outcome = write(args);
    if let Err(error) = &outcome {
        message::error(&format!("{error:#}"));
    }
    outcome
}

fn write(args: &ManArgs) -> anyhow::Result<()> {
    let folder = &args.folder;
    fs::create_dir_all(folder)
        .with_context(|| format!("could not create folder \"{}\"", folder.display()))?;
    for page in pages() {
        let path = folder.join(format!("{}.1", page.name));
        fs::write(&path, page.render()?)
            .with_context(|| format!("could not write file \"{}\"", path.display()))?;
        // A reader that has gone away changes nothing about the pages.
        let _ = writeln!(io::stdout(), "{}", path.display());
    }
    Ok(())
}

/// One page.
struct Page {
    /// Of the page.
    name: String,
    /// What is typed.
    typed: String,
    command: Command,
    prose: Option<&'static Prose>,
    /// The names of pages on the same matter.
    related: Vec<String>,
}

fn pages() -> Vec<Page> {
    let program = definition::program();
    let commands: Vec<Command> = program.get_subcommands().cloned().collect();
    // Commands below commands, such as `key list`.
    let nested = |command: &Command| -> Vec<Page> {
        let below = command.get_subcommands().map(|below| Page {
            name: format!("{}-{}-{}", program.get_name(), command.get_name(), below.get_name()),
            typed: format!("{} {} {}", program.get_name(), command.get_name(), below.get_name()),
            command: below.clone(),
            prose: None,
            related: vec![format!("{}-{}", program.get_name(), command.get_name())],
        });
        below.collect()
    };
    let page_of = |command: &Command| format!("{}-{}", program.get_name(), command.get_name());
    let mut pages = vec![Page {
        name: program.get_name().to_owned(),
        typed: program.get_name().to_owned(),
        prose: prose::of(program.get_name()),
        related: commands.iter().map(page_of).collect(),
        command: program.clone(),
    }];
    for command in &commands {
        let counterpart = Tool::ALL.into_iter().find(|tool| definition::is_counterpart(command, *tool));
        let mut related = vec![program.get_name().to_owned()];
        related.extend(counterpart.map(|tool| tool.name().to_owned()));
        pages.push(Page {
            name: page_of(command),
            typed: format!("{} {}", program.get_name(), command.get_name()),
            command: command.clone(),
            prose: prose::of(command.get_name()),
            related,
        });
        pages.extend(nested(command));
    }
    for tool in Tool::ALL {
        let Some(command) = definition::tool(tool) else { continue };
        let ours = commands.iter().find(|command| definition::is_counterpart(command, tool));
        let mut related: Vec<String> = ours.map(page_of).into_iter().collect();
        related.push(page_of(&Command::new("links")));
        pages.push(Page {
            name: tool.name().to_owned(),
            typed: tool.name().to_owned(),
            prose: ours.and_then(|command| prose::of(command.get_name())),
            command,
            related,
        });
    }
    pages
}

impl Page {
    fn render(&self) -> io::Result<Vec<u8>> {
        let about = self.command.get_about().map(ToString::to_string).unwrap_or_default();
        let command = self
            .command
            .clone()
            .about(lower_first(&about))
            .long_about(self.paragraphs(&about).join("\n\n"))
            .override_usage(self.usage())
            .display_name(self.name.clone())
            .bin_name(self.typed.clone());
        let has_commands = self.command.has_subcommands();
        let man = Man::new(command);
        // By hand, since `clap_mangen` leaves an empty date out instead of writing it as empty.
        let (title, version) = (self.name.to_uppercase(), env!("CARGO_PKG_VERSION"));
        let mut page =
            format!(".TH \"{title}\" \"1\" \"\" \"pgstrata {version}\" \"pgstrata Manual\"\n").into_bytes();
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if has_commands {
            man.render_subcommands_section(&mut page)?;
        }
        self.further_sections().to_writer(&mut page)?;
        Ok(page)
    }

    /// `NAME [OPTION]... ARGUMENT`.
    fn usage(&self) -> String {
        let mut usage = format!("{} [OPTION]...", self.typed);
        if self.command.has_subcommands() {
            return format!("{} COMMAND [OPTION]...\n{0} COMMAND --help\n{0} --version", self.typed);
        }
        for argument in self.command.get_positionals() {
            let names = argument.get_value_names().unwrap_or_default();
            usage.extend(names.iter().map(|name| format!(" {name}")));
        }
        usage
    }

    fn paragraphs(&self, about: &str) -> Vec<String> {
        let Some(prose) = self.prose else {
            let long = self.command.get_long_about().map(ToString::to_string);
            return vec![long.unwrap_or_else(|| format!("{about}."))];
        };
        prose.description.iter().map(|paragraph| paragraph.replace(prose::TYPED, &self.typed)).collect()
    }

    /// What `clap_mangen` has no sections for.
    fn further_sections(&self) -> Roff {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        for (status, meaning) in prose::EXIT_STATUS {
            item(&mut roff, [bold(status)], meaning);
        }
        let on_signal = self.prose.and_then(|prose| prose.on_signal);
        roff.control("PP", []);
        roff.text([roman(on_signal.unwrap_or(prose::SIGNALS))]);
        if self.command.get_arguments().any(|argument| argument.get_long() == Some("dbname")) {
            roff.control("SH", ["ENVIRONMENT"]);
            for (variable, keyword) in environment_variables() {
                item(
                    &mut roff,
                    [bold(variable)],
                    &format!(
                        "The connection's {keyword}, where neither an option nor the connection string gives it."
                    ),
                );
            }
            for (variable, meaning) in prose::CONNECTION_ENVIRONMENT {
                item(&mut roff, [bold(variable)], meaning);
            }
            coloured(&mut roff);
            roff.control("SH", ["FILES"]);
            for (file, meaning) in prose::CONNECTION_FILES {
                item(&mut roff, [italic(file)], meaning);
            }
        } else {
            roff.control("SH", ["ENVIRONMENT"]);
            coloured(&mut roff);
        }
        if let Some(prose) = self.prose.filter(|prose| !prose.examples.is_empty()) {
            roff.control("SH", ["EXAMPLES"]);
            for (number, (purpose, line)) in prose.examples.iter().enumerate() {
                if number > 0 {
                    roff.control("PP", []);
                }
                if !purpose.is_empty() {
                    roff.text([roman(*purpose)]);
                    roff.control("PP", []);
                }
                roff.control("RS", ["4"]);
                roff.control("nf", []);
                roff.text([roman(line.replace(prose::TYPED, &self.typed))]);
                roff.control("fi", []);
                roff.control("RE", []);
            }
        }
        roff.control("SH", ["SEE ALSO"]);
        let mut names: Vec<Inline> = Vec::new();
        for name in &self.related {
            if !names.is_empty() {
                names.push(roman(", "));
            }
            names.extend([bold(name.as_str()), roman("(1)")]);
        }
        roff.text(names);
        roff
    }
}

fn coloured(roff: &mut Roff) {
    for (variable, meaning) in prose::COLOUR_ENVIRONMENT {
        item(roff, [bold(variable)], meaning);
    }
}

fn item(roff: &mut Roff, tag: [Inline; 1], meaning: &str) {
    roff.control("TP", []);
    roff.text(tag);
    roff.text([roman(meaning)]);
}

/// As manuals have it behind the name.
fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_on_its_page() {
        for page in pages() {
            let text = String::from_utf8(page.render().expect("memory")).expect("text");
            let text = text.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "");
            assert!(text.contains(".SH SYNOPSIS") && text.contains(".SH \"EXIT STATUS\""), "{text}");
            for argument in page.command.get_arguments() {
                let help =
                    argument.get_help().unwrap_or_else(|| panic!("{}: {}", page.name, argument.get_id()));
                assert!(!help.to_string().is_empty());
                let Some(long) = argument.get_long() else { continue };
                let tag = match argument.get_short() {
                    Some(short) => format!("-{short}, --{long}"),
                    None => format!("\n--{long}"),
                };
                assert!(text.contains(&tag), "{}: {tag}", page.name);
            }
        }
    }

    #[test]
    fn tools_and_their_commands_have_examples() {
        for page in pages().iter().filter(|page| page.name.starts_with("pg_")) {
            let text = String::from_utf8(page.render().expect("memory")).expect("text");
            assert!(text.contains(".SH EXAMPLES") && text.contains(&page.typed), "{text}");
            assert!(!text.contains(prose::TYPED), "{text}");
        }
    }
}
