//! What goes to stderr, in the voice of the program's name: as `pgstrata`, or as the stock tool that it stands in for
//! (`src/common/logging.c`: prefixes, `detail:` and `hint:` lines, colours by `PG_COLOR` and `PG_COLORS`).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::OnceLock;

use super::plain::plain;

/// Who speaks.
#[derive(Clone, Debug)]
struct Speaker {
    name: &'static str,
    stock: bool,
    colors: Option<Colors>,
}

/// The codes of `Select Graphic Rendition` for each part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Colors {
    error: String,
    warning: String,
    note: String,
    locus: String,
}

static SPEAKER: OnceLock<Speaker> = OnceLock::new();

/// Settles for the whole process under which name it speaks, and whether that is a stock tool's.
pub(super) fn speak_as(name: &'static str, stock: bool) {
    let wanted = match std::env::var("PG_COLOR").as_deref() {
        Ok("always") => true,
        Ok("auto") => std::io::stderr().is_terminal(),
        _ => false,
    };
    let colors = wanted.then(|| Colors::chosen(&std::env::var("PG_COLORS").unwrap_or_default()));
    // Settled once; a second call changes nothing.
    let _ = SPEAKER.set(Speaker { name, stock, colors });
}

fn speaker() -> Cow<'static, Speaker> {
    match SPEAKER.get() {
        Some(speaker) => Cow::Borrowed(speaker),
        None => Cow::Owned(Speaker { name: "pgstrata", stock: false, colors: None }),
    }
}

/// The name that messages begin with, and that servers are told.
pub(super) fn program_name() -> &'static str {
    speaker().name
}

/// Whether the program stands in for a stock tool, whose output others read.
pub(super) fn is_stock() -> bool {
    speaker().stock
}

/// Why the run fails.
pub(super) fn error(text: &str) {
    print(&speaker().say(Some(Severity::Error), text));
}

/// What is not as it should be.
pub(super) fn warning(text: &str) {
    print(&speaker().say(Some(Severity::Warning), text));
}

/// What is being done.
pub(super) fn note(text: &str) {
    print(&speaker().say(None, text));
}

/// A line in nobody's name.
pub(super) fn print(text: &str) {
    // A closed stderr must not end a run.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[derive(Clone, Copy, Debug)]
enum Severity {
    Error,
    Warning,
}

impl Speaker {
    fn say(&self, severity: Option<Severity>, text: &str) -> String {
        let text = without_numbers(&plain(text));
        let mut said = String::with_capacity(text.len() + 40);
        for (number, line) in text.trim_end().lines().enumerate() {
            // Servers put two spaces there; what they say stays as it is.
            let part = |prefix| line.strip_prefix(prefix).filter(|rest| !rest.starts_with(' '));
            let written = if number == 0 {
                self.begin(&mut said);
                if let (Some(severity), Some(colors)) = (severity, &self.colors) {
                    let (code, word) = severity.shown(colors);
                    write!(said, "\x1b[{code}m{word}\x1b[0m{line}")
                } else {
                    write!(said, "{}{line}", severity.map_or("", Severity::word))
                }
            } else if let Some(rest) = part("HINT: ").filter(|_| self.stock) {
                said.push('\n');
                self.begin(&mut said);
                self.aside(&mut said, "hint: ", rest)
            } else if let Some(rest) = part("DETAIL: ").filter(|_| self.stock) {
                said.push('\n');
                self.begin(&mut said);
                self.aside(&mut said, "detail: ", rest)
            } else {
                write!(said, "\n{line}")
            };
            debug_assert!(written.is_ok(), "writing to a String cannot fail");
        }
        said
    }

    fn begin(&self, said: &mut String) {
        let written = match &self.colors {
            Some(colors) => write!(said, "\x1b[{}m{}: \x1b[0m", colors.locus, self.name),
            None => write!(said, "{}: ", self.name),
        };
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }

    fn aside(&self, said: &mut String, word: &str, rest: &str) -> std::fmt::Result {
        match &self.colors {
            Some(colors) => write!(said, "\x1b[{}m{word}\x1b[0m{rest}", colors.note),
            None => write!(said, "{word}{rest}"),
        }
    }
}

/// The system's reasons without the numbers that Rust puts behind them: `No such file or directory (os error 2)`.
fn without_numbers(text: &str) -> String {
    let (mut told, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, behind)) = rest.split_once(" (os error ") {
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        told.push_str(before);
        match behind[digits..].strip_prefix(')') {
            Some(after) if digits > 0 => rest = after,
            _ => {
                told.push_str(" (os error ");
                rest = behind;
            }
        }
    }
    told.push_str(rest);
    told
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        }
    }

    fn shown(self, colors: &Colors) -> (&str, &'static str) {
        match self {
            Severity::Error => (&colors.error, self.word()),
            Severity::Warning => (&colors.warning, self.word()),
        }
    }
}

impl Colors {
    /// The defaults (`SGR_ERROR_DEFAULT` and its siblings), changed by a list such as `error=01;31:note=01;36`.
    fn chosen(list: &str) -> Self {
        let mut colors =
            Self { error: "01;31".into(), warning: "01;35".into(), note: "01;36".into(), locus: "01".into() };
        for (name, code) in list.split(':').filter_map(|item| item.split_once('=')) {
            // A code is numbers; anything else would reach the terminal as it is.
            if !code.bytes().all(|byte| byte.is_ascii_digit() || byte == b';') {
                continue;
            }
            match name {
                "error" => colors.error = code.into(),
                "warning" => colors.warning = code.into(),
                "note" => colors.note = code.into(),
                "locus" => colors.locus = code.into(),
                _ => {}
            }
        }
        colors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "could not do it: ERROR:  no\nDETAIL:  the server's\nHINT: do this\nor that";

    fn speaker(name: &'static str, stock: bool, colors: Option<Colors>) -> Speaker {
        Speaker { name, stock, colors }
    }

    #[test]
    fn each_name_has_its_form() {
        let own = speaker("pgstrata", false, None).say(Some(Severity::Error), TEXT);
        assert_eq!(own, format!("pgstrata: error: {TEXT}"));
        let stock = speaker("pg_basebackup", true, None).say(Some(Severity::Error), TEXT);
        let expected = "pg_basebackup: error: could not do it: ERROR:  no\nDETAIL:  the server's\n\
                        pg_basebackup: hint: do this\nor that";
        assert_eq!(stock, expected);
        assert_eq!(speaker("x", true, None).say(None, "begun\n"), "x: begun");
    }

    #[test]
    fn numbers_of_the_systems_reasons_are_left_out() {
        for (text, told) in [
            ("a: No such file (os error 2)\nHINT: b", "a: No such file\nHINT: b"),
            ("x (os error 2), y (os error 111)", "x, y"),
            ("(os error 2) (os error x) (os error ", "(os error 2) (os error x) (os error "),
        ] {
            assert_eq!(without_numbers(text), told);
        }
    }

    #[test]
    fn colours_are_those_asked_for() {
        let colors = Colors::chosen("error=31:locus=\x1b[2J:warning");
        assert_eq!(colors, Colors { error: "31".into(), ..Colors::chosen("") });
        let said = speaker("x", true, Some(colors)).say(Some(Severity::Error), "a\nHINT: b");
        let expected =
            "\x1b[01mx: \x1b[0m\x1b[31merror: \x1b[0ma\n\x1b[01mx: \x1b[0m\x1b[01;36mhint: \x1b[0mb";
        assert_eq!(said, expected);
    }
}
