//! Command lines as `getopt_long` (glibc) reads them for the stock tools, spelled out for clap: long options in full, each
//! with its value, and operands behind them.
//!
//! Complaints are getopt's, about the first word that it does not take. Performs no I/O.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// What a command line cannot be taken for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misread {
    /// getopt says this.
    Complaint(String),
    /// `--help` or `--version` behind other arguments: all that is said is where to find help.
    HelpTooLate,
    /// This is the first operand that there is no place for.
    Operand(String),
}

/// Spells out a command line whose first word is the program. `long_options` are the tool's own in its order; only those
/// may be cut short, so that options it does not have make none of them ambiguous.
pub(super) fn spell_out(
    command: &Command,
    long_options: &[&'static str],
    arguments: Vec<OsString>,
) -> Result<Vec<OsString>, Misread> {
    let reader = Reader { command, long_options };
    let mut arguments = arguments.into_iter();
    let mut spelled: Vec<OsString> = arguments.next().into_iter().collect();
    let mut operands = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"--" => break,
            [b'-', b'-', long @ ..] => spelled.push(reader.long(long, &mut arguments)?),
            [b'-', letters @ ..] if !letters.is_empty() => {
                reader.short(letters, &mut arguments, &mut spelled)?;
            }
            _ => operands.push(argument),
        }
    }
    operands.extend(arguments);
    let takes_any = |operand: &Arg| operand.get_num_args().is_some_and(|range| range.max_values() > 1);
    let places = command.get_positionals().count();
    if let Some(first) = operands.get(places).filter(|_| !command.get_positionals().any(takes_any)) {
        return Err(Misread::Operand(first.to_string_lossy().into_owned()));
    }
    if !operands.is_empty() {
        spelled.push("--".into());
        spelled.append(&mut operands);
    }
    Ok(spelled)
}

struct Reader<'a> {
    command: &'a Command,
    long_options: &'a [&'static str],
}

impl Reader<'_> {
    /// `--name`, `--name=value` or `--name value`, the dashes left out.
    fn long(&self, text: &[u8], rest: &mut impl Iterator<Item = OsString>) -> Result<OsString, Misread> {
        let equals = text.iter().position(|byte| *byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let name = String::from_utf8_lossy(name);
        let unknown = || {
            let shown = String::from_utf8_lossy(text);
            Misread::Complaint(format!("unrecognized option '--{shown}'"))
        };
        let name = self.full_name(&name, text)?.ok_or_else(unknown)?;
        if matches!(name, "help" | "version") {
            return Err(Misread::HelpTooLate);
        }
        let option = self.command.get_arguments().find(|option| option.get_long() == Some(name));
        match (takes_value(option.ok_or_else(unknown)?), value) {
            (true, Some(value)) => Ok(with_value(name, value)),
            (true, None) => match rest.next() {
                Some(value) => Ok(with_value(name, value.as_bytes())),
                None => Err(Misread::Complaint(format!("option '--{name}' requires an argument"))),
            },
            (false, None) => Ok(format!("--{name}").into()),
            (false, Some(_)) => {
                Err(Misread::Complaint(format!("option '--{name}' doesn't allow an argument")))
            }
        }
    }

    /// The option that a name, or its beginning, stands for. Complaints show all of the word, its value too.
    fn full_name<'a>(&'a self, name: &str, word: &[u8]) -> Result<Option<&'a str>, Misread> {
        let ours = self.command.get_arguments().filter_map(Arg::get_long);
        let known = self.long_options.iter().copied();
        // The tool's own names first: `help` is one of clap's, too, and not every tool takes it here.
        let exact = known.clone().chain(ours.filter(|long| *long != "help")).find(|long| *long == name);
        let like_it: Vec<&str> = known.filter(|long| long.starts_with(name)).collect();
        match (exact, like_it.as_slice()) {
            (Some(exact), _) => Ok(Some(exact)),
            (None, []) => Ok(None),
            (None, [only]) => Ok(Some(only)),
            (None, several) => {
                let names: String = several.iter().map(|long| format!(" '--{long}'")).collect();
                let shown = String::from_utf8_lossy(word);
                Err(Misread::Complaint(format!("option '--{shown}' is ambiguous; possibilities:{names}")))
            }
        }
    }

    /// Letters behind one dash. The first that takes a value ends them: what follows is the value, or else the next word.
    fn short(
        &self,
        mut letters: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
        spelled: &mut Vec<OsString>,
    ) -> Result<(), Misread> {
        while let [letter, behind @ ..] = letters {
            let letter = char::from(*letter);
            let known = self.command.get_arguments().find(|option| option.get_short() == Some(letter));
            let known = known.filter(|_| letter != '?').and_then(|option| Some((option, option.get_long()?)));
            let Some((option, name)) = known else {
                return Err(Misread::Complaint(format!("invalid option -- '{letter}'")));
            };
            if !takes_value(option) {
                spelled.push(format!("--{name}").into());
                letters = behind;
                continue;
            }
            let value = match behind {
                [] => rest.next(),
                value => Some(OsStr::from_bytes(value).to_owned()),
            };
            let missing = || Misread::Complaint(format!("option requires an argument -- '{letter}'"));
            spelled.push(with_value(name, value.ok_or_else(missing)?.as_bytes()));
            return Ok(());
        }
        Ok(())
    }
}

fn takes_value(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append)
}

fn with_value(name: &str, value: &[u8]) -> OsString {
    let mut text = format!("--{name}=").into_bytes();
    text.extend_from_slice(value);
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<String>, Misread> {
        let command = Command::new("tool")
            .arg(Arg::new("target").long("target").short('t').action(ArgAction::Set))
            .arg(Arg::new("tar").long("tar").action(ArgAction::SetTrue))
            .arg(Arg::new("verbose").long("verbose").short('v').action(ArgAction::SetTrue))
            .arg(Arg::new("tarnish").long("tarnish").action(ArgAction::SetTrue))
            .arg(Arg::new("help").long("help").short('?').action(ArgAction::Help))
            .arg(Arg::new("place"));
        let words = std::iter::once("tool").chain(line.split(' ')).map(OsString::from).collect();
        let spelled = spell_out(&command, &["help", "target", "tar", "verbose"], words)?;
        Ok(spelled.into_iter().skip(1).map(|word| word.into_string().expect("UTF-8")).collect())
    }

    #[test]
    fn everything_is_spelled_out() {
        for (line, expected) in [
            ("-v -tx", "--verbose --target=x"),
            ("-vt x", "--verbose --target=x"),
            ("-t -v --verb", "--target=-v --verbose"),
            ("--targ x --target=--y", "--target=x --target=--y"),
            ("--target -? --tar", "--target=-? --tar"),
            ("--tarnish", "--tarnish"),
            ("a=b -v", "--verbose -- a=b"),
            ("-v -- -v", "--verbose -- -v"),
            ("- -v", "--verbose -- -"),
            ("--target= -v", "--target= --verbose"),
        ] {
            let expected: Vec<&str> = expected.split(' ').collect();
            assert_eq!(read(line).expect(line), expected, "{line}");
        }
        // Not every path is text.
        let word = OsString::from_vec(b"-t/\xff".to_vec());
        let command = Command::new("x").arg(Arg::new("t").long("target").short('t').action(ArgAction::Set));
        let spelled = spell_out(&command, &["target"], vec!["x".into(), word]).expect("read");
        assert_eq!(spelled[1].as_bytes(), b"--target=/\xff");
    }

    #[test]
    fn complaints_are_about_the_first_word_that_is_wrong() {
        for (line, expected) in [
            ("--nonsense=1 -y", "unrecognized option '--nonsense=1'"),
            ("--tarn", "unrecognized option '--tarn'"),
            ("-vy", "invalid option -- 'y'"),
            ("-v?", "invalid option -- '?'"),
            ("--ta", "option '--ta' is ambiguous; possibilities: '--target' '--tar'"),
            ("--ta=1", "option '--ta=1' is ambiguous; possibilities: '--target' '--tar'"),
            ("-vt", "option requires an argument -- 't'"),
            ("--targ", "option '--target' requires an argument"),
            ("--verb=1", "option '--verbose' doesn't allow an argument"),
        ] {
            assert_eq!(read(line), Err(Misread::Complaint(expected.into())), "{line}");
        }
        assert_eq!(read("-v --hel"), Err(Misread::HelpTooLate));
        assert_eq!(read("a b -- -c"), Err(Misread::Operand("b".into())));
    }
}
