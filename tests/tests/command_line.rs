//! What is made from the definition of the command lines, in the programs that read it: completions in real shells, manual
//! pages through real formatters. And docs/compatibility.md, whose tables must have every option that the programs'
//! own help shows, and no other.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgstrata_tests as harness;
use pgstrata_tests::{Invocation, Scratch};

/// The commands of the program that stand in for a tool, with the tool's name: those that `pgstrata links` links.
fn tools() -> Vec<(String, String)> {
    let scratch = Scratch::new();
    let links = scratch.join("bin");
    harness::pgstrata(["links"]).arg(&links).run().expect_success();
    let names = fs::read_dir(&links).expect("links").map(|link| link.expect("a link").file_name());
    let names = names.map(|name| name.into_string().expect("ASCII"));
    names.map(|name| (name["pg_".len()..].to_owned(), name)).collect()
}

/// Runs a program, or says that it is not there.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// What a shell's script says to standard output, which must be all that it says.
fn shell(program: &Path, arguments: &[&str], script: &Path) -> String {
    let mut run = Invocation::new(program, arguments);
    run = run.arg(script);
    let finished = run.run();
    assert_eq!(finished.expect_success().stderr_text(), "", "{finished}");
    finished.stdout_text()
}

/// The long options that a help text shows.
fn options_in_help(command: &[&str]) -> BTreeSet<String> {
    let help = harness::pgstrata(command).arg("--help").run();
    let help = help.expect_success().stdout_text();
    let mut found = BTreeSet::new();
    for line in help.lines() {
        let line = line.trim_start();
        // `-D, --pgdata <DIRECTORY>`, or without the letter.
        let long = match line.strip_prefix('-') {
            Some(rest) if rest.starts_with('-') => Some(rest),
            Some(rest) => rest.get(1..).and_then(|rest| rest.strip_prefix(", -")),
            None => None,
        };
        if let Some(long) = long {
            let name = long.trim_start_matches('-').split([' ', '=', '[']).next().unwrap_or_default();
            found.insert(format!("--{name}"));
        }
    }
    assert!(found.contains("--help"), "{help}");
    found
}

#[test]
fn bash_completes_both_names() {
    let Some(bash) = installed("bash") else { return };
    let scratch = Scratch::new();
    let script = scratch.join("script");
    let made = |arguments: &[&str]| {
        let finished = harness::pgstrata(["completions", "bash"]).args(arguments).run();
        finished.expect_success().stdout_text()
    };
    // Calls the registered function as bash does.
    let mut text = String::from(
        "compopt() { :; }\n\
         try() {\n\
           COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n\
           local registered; registered=$(complete -p \"$1\") || exit 1\n\
           registered=${registered##*-F }; \"${registered%% *}\" \"$1\" \"${@: -1}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"\n\
           echo \"${COMPREPLY[*]}\"\n\
         }\n",
    );
    text.push_str(&made(&[]));
    let mut expected = Vec::new();
    let mut try_out = |text: &mut String, words: &str, answer: &str| {
        text.push_str(&format!("try {words}\n"));
        expected.push((words.to_owned(), answer.to_owned()));
    };
    try_out(&mut text, "pgstrata base", "basebackup");
    try_out(&mut text, "pgstrata basebackup --format ''", "plain tar");
    try_out(&mut text, "pgstrata basebackup -D /b --wal-me", "--wal-method");
    try_out(&mut text, "pgstrata completions --tool pg_base", "pg_basebackup");
    for (_, tool) in tools() {
        text.push_str(&made(&["--tool", &tool]));
        try_out(&mut text, &format!("{tool} --versi"), "--version");
    }
    try_out(&mut text, "pg_basebackup -X ''", "fetch none stream");
    try_out(&mut text, "pg_basebackup -Z server-z", "server-zstd");
    try_out(&mut text, "pg_verifybackup --no-p", "--no-parse-wal");
    fs::write(&script, text).expect("the scratch directory is writable");
    let said = shell(&bash, &["--norc"], &script);
    let found: Vec<(String, String)> = expected
        .iter()
        .zip(said.lines())
        .map(|((words, _), line)| (words.clone(), line.to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn other_shells_take_their_scripts() {
    let scratch = Scratch::new();
    let script = |shell: &str, tool: Option<&str>| {
        let path = scratch.join(&format!("{shell}-{}", tool.unwrap_or("pgstrata")));
        let mut run = harness::pgstrata(["completions", shell]);
        if let Some(tool) = tool {
            run = run.args(["--tool", tool]);
        }
        fs::write(&path, &run.run().expect_success().stdout).expect("the scratch directory is writable");
        path
    };
    if let Some(fish) = installed("fish") {
        let mut text = fs::read_to_string(script("fish", None)).expect("text");
        text.push_str(&fs::read_to_string(script("fish", Some("pg_basebackup"))).expect("text"));
        text.push_str("\ncomplete -C 'pgstrata basebackup --wal-m'\ncomplete -C 'pg_basebackup --format '\n");
        let path = scratch.join("fish-all");
        fs::write(&path, text).expect("the scratch directory is writable");
        let said = Invocation::new(&fish, ["--no-config"]).arg(&path).env("HOME", scratch.path()).run();
        assert_eq!(said.expect_success().stderr_text(), "", "{said}");
        let words: Vec<String> = said
            .stdout_text()
            .lines()
            .filter_map(|line| line.split('\t').next().map(str::to_owned))
            .collect();
        assert_eq!(words, ["--wal-method", "plain", "tar"]);
    }
    if let Some(zsh) = installed("zsh") {
        for tool in [None, Some("pg_basebackup"), Some("pg_verifybackup")] {
            let name = tool.unwrap_or("pgstrata");
            let path = script("zsh", tool);
            let registers = scratch.join("register");
            let text = format!(
                "autoload -U compinit; compinit -u -D; source {}; print $_comps[{name}]\n",
                path.display()
            );
            fs::write(&registers, text).expect("the scratch directory is writable");
            assert_eq!(shell(&zsh, &["-f"], &registers), format!("_{name}\n"));
        }
    }
}

#[test]
fn manual_pages_render_without_a_warning() {
    let scratch = Scratch::new();
    let folder = scratch.join("man1");
    let finished = harness::pgstrata(["man"]).arg(&folder).run();
    let said = finished.expect_success().stdout_text();
    assert_eq!(said.lines().count(), fs::read_dir(&folder).expect("pages").count(), "{finished}");
    // Once more replaces them.
    harness::pgstrata(["man"]).arg(&folder).run().expect_success();
    let mut pages = vec![("pgstrata".to_owned(), BTreeSet::new())];
    for (command, tool) in tools() {
        let options = options_in_help(&[&command]);
        pages.push((format!("pgstrata-{command}"), options.clone()));
        pages.push((tool, options));
    }
    for command in [
        "backup",
        "check",
        "completions",
        "demo",
        "expire",
        "init",
        "key",
        "links",
        "list",
        "man",
        "pin",
        "restore",
        "show",
        "unpin",
        "verify",
        "wal",
    ] {
        pages.push((format!("pgstrata-{command}"), options_in_help(&[command])));
    }
    for (command, commands) in [
        ("key", &["add", "generate", "list", "remove", "rotate"][..]),
        ("wal", &["check", "get", "push", "receive"]),
    ] {
        for below in commands {
            pages.push((format!("pgstrata-{command}-{below}"), options_in_help(&[command, below])));
        }
    }
    assert_eq!(pages.len(), said.lines().count(), "{said}");
    let formatters = [
        ("groff", &["-man", "-ww", "-Tutf8", "-P-cbou"][..]),
        ("man", &["--warnings", "-E", "UTF-8", "-l"]),
        ("mandoc", &["-W", "error", "-T", "utf8"]),
    ];
    for (program, arguments) in formatters {
        let Some(formatter) = installed(program) else { continue };
        for (page, options) in &pages {
            let path = folder.join(format!("{page}.1"));
            let output = Command::new(&formatter)
                .args(arguments)
                .arg(&path)
                .env("LC_ALL", "C.UTF-8")
                .env("MANWIDTH", "200")
                .env("MANPAGER", "cat")
                .output()
                .expect("it is installed");
            assert!(output.status.success() && output.stderr.is_empty(), "{program} {page}: {output:?}");
            // Bold is a letter twice with a backspace between where it is not an escape sequence.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let text = without_overstrikes(&text);
            for option in options {
                assert!(text.contains(option.as_str()), "{program} {page}: {option}\n{text}");
            }
        }
    }
}

fn without_overstrikes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{8}' => drop(plain.pop()),
            '\u{1b}' => drop(letters.by_ref().find(char::is_ascii_alphabetic)),
            _ => plain.push(letter),
        }
    }
    plain
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let scratch = Scratch::new();
    let file = scratch.join("file");
    fs::write(&file, "").expect("the scratch directory is writable");
    let finished = harness::pgstrata([OsStr::new("man"), file.join("man1").as_os_str()]).run();
    finished.expect_failure().expect_stderr("could not create folder");
    harness::pgstrata(["completions", "tcsh"]).run().expect_failure();
    harness::pgstrata(["completions", "bash", "--tool", "pg_dump"]).run().expect_failure();
}

/// The options in the first column of the tables of a section: those in backquotes that begin with two dashes.
fn options_in_document(text: &str, section: &str) -> BTreeSet<String> {
    let heading = format!("## {section}");
    let begin = text.lines().skip_while(|line| *line != heading).skip(1);
    let rows = begin.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned);
    words.filter(|word| word.starts_with("--")).collect()
}

#[test]
fn the_compatibility_page_has_every_option() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
    let page = fs::read_to_string(path).expect("the page");
    for (command, tool) in tools() {
        let mut expected = options_in_help(&[&command]);
        // Of the tool's name alone.
        expected.insert("--version".to_owned());
        let documented = options_in_document(&page, &tool);
        let missing: Vec<&String> = expected.difference(&documented).collect();
        assert!(missing.is_empty(), "{tool}: not on the page: {missing:?}");
        // What help does not show, the program has to know at least, to refuse it by name.
        for option in documented.difference(&expected) {
            let finished = harness::pgstrata([&command, &format!("{option}=x")]).run();
            let said = finished.expect_failure().stderr_text();
            assert!(
                !said.contains("unexpected argument"),
                "{tool}: on the page, and no option: {option}: {said}"
            );
        }
    }
}
