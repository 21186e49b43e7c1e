//! One command as it is measured: a program and its arguments, in an environment that decides nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// A program and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Invocation {
    /// A program without arguments.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new() }
    }

    /// Adds arguments.
    pub(crate) fn with<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The program and its arguments, in order.
    pub(crate) fn words(&self) -> impl Iterator<Item = OsString> {
        [self.program.clone().into_os_string()].into_iter().chain(self.arguments.iter().cloned())
    }

    /// As someone would type it, for messages and for the record.
    pub(crate) fn shown(&self) -> String {
        let words: Vec<String> = self.words().map(|word| shown(&word.to_string_lossy())).collect();
        words.join(" ")
    }
}

/// Takes the caller's PostgreSQL settings and language out of a command's environment: rivals must not differ by them.
pub(crate) fn neutral(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C").env_remove("LANGUAGE");
}

fn shown(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_typed_again() {
        let command = Invocation::new("/bin/x").with(["-d", "host=/tmp port=1", "", "it's"]);
        assert_eq!(command.shown(), r"/bin/x -d 'host=/tmp port=1' '' 'it'\''s'");
    }
}
