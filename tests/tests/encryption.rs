//! An encrypted repository as its operator has it: recipients, their keys, and what can be read without one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::repositories::expect_refused;
use pgstrata_tests::{Finished, Invocation, Scratch, Source, Workload, pgstrata};
use serde_json::Value;

/// What no file of an encrypted repository may hold.
const MARKER: &str = "the quick brown fox owes 4711 to nobody";
const DATABASE: &str = "very_secret_database_name";

fn command<const N: usize>(name: [&str; N], repo: &Path) -> Invocation {
    pgstrata(name).arg("--repo").arg(repo)
}

fn with_key(run: Invocation, key: &Path) -> Invocation {
    run.arg("--key-file").arg(key)
}

fn generate(path: &Path) -> PathBuf {
    pgstrata(["key", "generate"]).arg(path).run().expect_success();
    path.to_owned()
}

fn private(path: PathBuf, content: &str) -> PathBuf {
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn backup(source: &Source, repo: &Path) -> Invocation {
    let run = command(["backup"], repo).args(["--cluster", "main", "-c", "fast", "-Z", "none", "--json"]);
    run.args(["-d", &source.conninfo()])
}

fn stored(finished: &Finished) -> String {
    let summary = finished.expect_success().json_summary();
    summary["stored"]["backup"].as_str().expect("an id").to_owned()
}

fn restore(repo: &Path, into: &Path) -> Invocation {
    command(["restore"], repo).args(["--cluster", "main", "--into"]).arg(into)
}

/// Every file below a folder. What vanishes meanwhile is passed over.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Which of the words lie in any file of a folder.
fn found(folder: &Path, words: &[&str]) -> Vec<String> {
    let contents: Vec<_> = files(folder).iter().filter_map(|path| fs::read(path).ok()).collect();
    let lies = |word: &&&str| contents.iter().any(|content| holds(content, word.as_bytes()));
    words.iter().filter(lies).map(|word| (*word).to_owned()).collect()
}

fn holds(mut content: &[u8], word: &[u8]) -> bool {
    // The first byte is looked for, which is fast, and the rest compared.
    while let Some(at) = content.iter().position(|byte| *byte == word[0]) {
        if content[at..].starts_with(word) {
            return true;
        }
        content = &content[at + 1..];
    }
    false
}

/// What lies in every backup of the source.
const WORDS: [&str; 8] = [
    MARKER,
    DATABASE,
    "pg_control",
    "backup_label",
    "base/1/",
    "backup_manifest",
    "START WAL LOCATION",
    "PG_VERSION",
];

#[test]
fn each_recipient_restores_what_nobody_else_can_read() {
    let source = harness::cluster(15).with(Workload::empty()).start();
    let sql = source.sql();
    sql.execute(&format!("CREATE DATABASE {DATABASE}"));
    sql.execute(&format!("CREATE TABLE debts AS SELECT 1 AS day, '{MARKER}'::text AS note"));
    let (repo, plain) = (source.dir("repo"), source.dir("plain"));
    let key = generate(&source.dir("operator.key"));
    let phrase = private(source.dir("phrase"), "correct horse battery staple\n");
    let init = with_key(command(["init"], &repo), &key).args(["--label", "operator"]).run();
    init.expect_success().expect_stderr("encrypted repository made");
    let first = stored(&with_key(backup(&source, &repo), &key).run());

    // A second recipient, and a new data key, which both have.
    let add = with_key(command(["key", "add"], &repo), &key).arg("--new-passphrase-file").arg(&phrase);
    let added = add.args(["--label", "escrow", "--json"]).run().expect_success().json_summary();
    assert_eq!((&added["slot"], &added["head"], &added["data_key"]), (&2.into(), &1.into(), &1.into()));
    let rotated = command(["key", "rotate", "--json"], &repo).env("PGSTRATA_KEY_FILE", &key).run();
    assert_eq!(rotated.expect_success().json_summary()["data_key"], 2);
    sql.execute(&format!("INSERT INTO debts VALUES (2, '{MARKER} but me')"));
    // What it keeps until it is packed is not in the repository, not even while it runs.
    let scratch = source.dir("scratch");
    fs::create_dir(&scratch).unwrap();
    let running =
        backup(&source, &repo).env("PGSTRATA_KEY_FILE", &key).env("TMPDIR", &scratch).args(["-r", "16M"]);
    let running = running.spawn();
    harness::wait_until("WAL is received", || {
        files(&scratch).iter().any(|path| path.parent().unwrap().ends_with("pg_wal"))
    });
    assert!(
        files(&repo.join("staging")).iter().all(|path| path.extension().is_some_and(|end| end == "object"))
    );
    assert_eq!(found(&repo, &WORDS), Vec::<String>::new());
    let second = stored(&running.wait());
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left");
    drop(sql);

    let listed = command(["key", "list", "--json"], &repo).run().expect_success().json_summary();
    let slots: Vec<_> = listed["key_slots"].as_array().unwrap().iter().collect();
    let words =
        |slot: &Value| [&slot["method"], &slot["label"]].map(|word| word.as_str().unwrap().to_owned());
    assert_eq!(words(slots[0]), ["key-file", "operator"]);
    assert_eq!(words(slots[1]), ["passphrase", "escrow"]);
    assert_eq!(
        (&listed["head"], &listed["data_key"], &listed["old_heads"]),
        (&2.into(), &2.into(), &Value::Array(vec![]))
    );
    let shown = command(["key", "list"], &repo).run().expect_success().stdout_text();
    assert!(shown.contains("escrow") && shown.lines().count() == 2, "{shown}");
    let heads: Vec<_> = fs::read_dir(&repo).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(heads.iter().any(|name| name == "pgstrata-repository.00000002"), "{heads:?}");
    assert!(!heads.iter().any(|name| name == "pgstrata-repository.00000000"), "{heads:?}");

    // Nothing of it can be read; what is searched for is there where nothing is encrypted.
    command(["init"], &plain).run().expect_success();
    backup(&source, &plain).run().expect_success();
    let everything = found(&plain, &WORDS);
    assert!(
        everything.contains(&MARKER.to_owned()) && everything.contains(&DATABASE.to_owned()),
        "{everything:?}"
    );
    assert!(everything.contains(&"START WAL LOCATION".to_owned()), "{everything:?}");
    assert_eq!(found(&repo, &WORDS), Vec::<String>::new());

    // By the recipient who came later: what was there before, and what came after the rotation.
    let rows = |copy: &Path| {
        let server = source.boot(copy);
        let rows =
            harness::sql(&server).value::<i64>("SELECT count(*) FROM debts WHERE note LIKE '%nobody%'");
        if rows == 2 {
            harness::compare(&source, &server);
        }
        rows
    };
    let copy = source.dir("first");
    let run = restore(&repo, &copy).args(["--backup", &first]).arg("--passphrase-file").arg(&phrase).run();
    run.expect_success();
    harness::verify_backup(&copy, 15).expect_good();
    assert_eq!(rows(&copy), 1);
    let copy = source.dir("second");
    let run = restore(&repo, &copy).args(["--backup", &second]);
    run.env("PGSTRATA_PASSPHRASE", "correct horse battery staple").run().expect_success();
    harness::verify_backup(&copy, 15).expect_good();
    assert_eq!(rows(&copy), 2);

    for run in
        [command(["list"], &repo), command(["verify"], &repo), command(["show", "--cluster", "main"], &repo)]
    {
        with_key(run, &key).run().expect_success();
    }
    for run in [
        command(["list"], &repo),
        command(["verify"], &repo),
        command(["show", "--cluster", "main"], &repo),
        backup(&source, &repo),
        restore(&repo, &source.dir("none")),
    ] {
        expect_refused(
            &run.run(),
            &["is encrypted, and no key is given", "--key-file", "PGSTRATA_PASSPHRASE"],
        );
    }
    assert!(!source.dir("none").exists());

    // Taken out, the second recipient opens nothing.
    with_key(command(["key", "remove", "2"], &repo), &key)
        .run()
        .expect_success()
        .expect_stderr("data key 3 begun");
    let refused = restore(&repo, &source.dir("none")).arg("--passphrase-file").arg(&phrase).run();
    expect_refused(&refused, &["the passphrase does not open this repository", "pgstrata key list"]);
    let last = with_key(command(["key", "remove", "1"], &repo), &key).run();
    expect_refused(&last, &["slot 1 is the last"]);
    let verified = with_key(command(["verify", "--json"], &repo), &key).run().expect_success().json_summary();
    assert_eq!((&verified["backups"], &verified["problem_count"]), (&2.into(), &0.into()));
}

#[test]
fn keys_that_are_wrong_or_lie_open_are_refused() {
    let scratch = Scratch::new();
    let [repo, plain] = ["repo", "plain"].map(|name| scratch.join(name));
    let [key, other] = ["key", "other"].map(|name| generate(&scratch.join(name)));
    let again = pgstrata(["key", "generate"]).arg(&key).run();
    expect_refused(&again, &["there is a file of that name already", "never overwritten"]);
    with_key(command(["init"], &repo), &key).run().expect_success();
    command(["init"], &plain).run().expect_success();
    let list = |repo: &Path, key: &Path| with_key(command(["list"], repo), key).run();
    list(&repo, &key).expect_success();
    expect_refused(&list(&repo, &other), &["the key file does not open this repository"]);
    expect_refused(&list(&plain, &key), &["a key is given, and the repository is not encrypted"]);
    let phrase = private(scratch.join("phrase"), "correct horse battery staple");
    let run = command(["list"], &repo).arg("--passphrase-file").arg(&phrase).run();
    expect_refused(&run, &["the passphrase does not open this repository"]);
    expect_refused(&list(&repo, &phrase), &["found no key file of pgstrata", "pgstrata key generate"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    expect_refused(&list(&repo, &key), &["permissions 0640, expected 0600 or less", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let both = command(["list"], &repo).env("PGSTRATA_KEY_FILE", &key).env("PGSTRATA_PASSPHRASE", "x").run();
    expect_refused(&both, &["are both set"]);
    // An option counts before the environment.
    let run = with_key(command(["list"], &repo), &key).env("PGSTRATA_PASSPHRASE", "x").run();
    run.expect_success();
    let two = with_key(command(["list"], &repo), &key).arg("--passphrase-file").arg(&phrase).run();
    assert!(!two.status.success(), "{two}");
    let keyless = command(["key", "rotate"], &repo).run();
    expect_refused(&keyless, &["a recipient's key is needed"]);
    let empty = with_key(command(["key", "add"], &repo), &key).run();
    assert!(!empty.status.success(), "{empty}");
    let json = with_key(command(["list", "--json"], &repo), &other).run();
    assert!(json.expect_failure().stdout_text().contains("does not open this repository"), "{json}");
    // No part of a key is in anything that is said.
    let digits = fs::read_to_string(&other).unwrap();
    let digits = digits.trim().rsplit(' ').next().unwrap();
    let said = format!("{json}{}", list(&repo, &other));
    assert!(!said.contains(&digits[..8]), "{said}");
    let shown = command(["key", "list"], &plain).run();
    shown.expect_success().expect_stderr("the repository is not encrypted");
}

#[test]
fn a_passphrase_is_asked_for_at_a_terminal() {
    let scratch = Scratch::new();
    let repo = scratch.join("repo");
    let (running, mut keyboard) = command(["init", "--ask-passphrase"], &repo).spawn_at_terminal();
    running.wait_for_stderr("New passphrase: ");
    keyboard.type_secret("correct horse battery");
    running.wait_for_stderr("New passphrase again: ");
    keyboard.type_secret("correct horse battery");
    let finished = running.wait();
    finished.expect_success();
    assert!(!finished.stderr_text().contains("correct horse"), "{finished}");
    for (phrase, good) in [("correct horse battery", true), ("correct house battery", false)] {
        let (running, mut keyboard) = command(["list"], &repo).spawn_at_terminal();
        running.wait_for_stderr("Passphrase of the repository: ");
        keyboard.type_secret(phrase);
        let finished = running.wait();
        if good {
            finished.expect_success();
        } else {
            expect_refused(&finished, &["the passphrase does not open this repository"]);
        }
    }
    // Without a terminal nobody is asked.
    expect_refused(&command(["list"], &repo).run(), &["no key is given"]);
    let nobody = command(["init", "--ask-passphrase"], &scratch.join("other")).run();
    expect_refused(&nobody, &["standard input is no terminal"]);
    assert!(!scratch.join("other").exists());
}
