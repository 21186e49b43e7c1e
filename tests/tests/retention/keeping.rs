//! The commands on a real server's backups: rules, pins, the configuration file, and the check of a set-up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Source, pgstrata};
use serde_json::Value;

use super::sample::{age, backups, names, verify};

fn ids(found: &Value) -> Vec<String> {
    let backups = found.as_array().expect("a list");
    backups.iter().map(|one| one["backup"].as_str().expect("an id").to_owned()).collect()
}

/// The levels of what a check found, by subject.
fn level<'f>(found: &'f Value, subject: &str) -> &'f str {
    let findings = found["findings"].as_array().expect("a list");
    let finding = findings.iter().find(|finding| finding["subject"] == subject);
    finding.unwrap_or_else(|| panic!("no {subject} in {found}"))["level"].as_str().expect("a word")
}

#[track_caller]
fn refused(finished: &Finished, words: &[&str]) {
    finished.expect_failure().expect_stderr("HINT: ");
    for word in words {
        finished.expect_stderr(word);
    }
}

#[test]
fn rules_pins_and_a_configuration_file() {
    let source = harness::cluster(15).setting("archive_mode", "on").start();
    let repo = source.dir("repo");
    let config = source.dir("pgstrata.toml");
    let written = |text: &str| fs::write(&config, text).expect("written");
    let full = format!(
        "[repository.vault]\nurl = \"{}\"\n\n[cluster.main]\nrepository = \"vault\"\nconninfo = \"{}\"\n\
         compress = \"lz4\"\n\n[cluster.main.retention]\nkeep = 2\n",
        repo.display(),
        source.conninfo()
    );
    written(&full);
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("ours");
    let command = |name: &str| pgstrata([name, "--config"]).arg(&config);
    let nothing = command("check").arg("--json").run();
    assert_eq!(level(&nothing.expect_failure().json_summary(), "repository"), "error");
    pgstrata(["init"]).env("PGSTRATA_CONFIG", &config).run().expect_success();

    // Before the first backup: no error but that WAL goes nowhere.
    let found = command("check").arg("--json").run().expect_failure().json_summary();
    for (subject, expected) in [
        ("repository", "ok"),
        ("writing", "ok"),
        ("clock", "ok"),
        ("last backup", "warning"),
        ("replication", "ok"),
        ("version", "ok"),
        ("wal_level", "ok"),
        ("max_wal_senders", "ok"),
        ("max_replication_slots", "ok"),
        ("data_checksums", "ok"),
        ("archive_mode", "ok"),
        ("archive_command", "error"),
        ("archiver", "ok"),
        ("backup functions", "ok"),
        ("server's clock", "ok"),
        ("identity", "ok"),
        ("space", "ok"),
    ] {
        assert_eq!(level(&found, subject), expected, "{subject}: {found}");
    }
    assert_eq!(names(&repo.join("probes")), Vec::<String>::new());

    // Everything is in the file; a run's own words win. Each stores everything, so that its packs go with it.
    for compress in [None, Some("none"), None, None] {
        let mut run = command("backup").args(["-c", "fast", "--json", "--reuse", "none"]);
        if let Some(compress) = compress {
            run = run.args(["-Z", compress]);
        }
        run.run().expect_success();
    }
    let listed = command("list").args(["--repo", "vault", "--json"]).run().expect_success().json_summary();
    let all = ids(&listed["backups"]);
    let compressions: Vec<_> =
        listed["backups"].as_array().unwrap().iter().map(|one| one["compression"].clone()).collect();
    assert_eq!((all.len(), &compressions[..2]), (4, &["lz4".into(), "none".into()][..]));
    assert_eq!(names(&repo.join("clusters/main/leases")), Vec::<String>::new(), "leases end with their runs");

    pins(&repo, &config, &all);

    let late = || command("expire").args(["--grace", "0"]);
    let planned = late().args(["--dry-run", "--json"]).run().expect_success().json_summary();
    let planned = &planned["clusters"][0];
    assert_eq!(ids(&planned["removed"]), all[1..2]);
    assert_eq!(ids(&planned["kept"]), [&all[..1], &all[2..]].concat());
    assert_eq!(planned["kept"][0]["reasons"], serde_json::json!(["pin"]));
    assert_eq!(backups(&repo), all);
    let packs = names(&repo.join("clusters/main/packs")).len();
    let done = late().arg("--json").run().expect_success().json_summary();
    let done = &done["clusters"][0];
    assert_eq!((ids(&done["removed"]), &done["packs"]), (ids(&planned["removed"]), &planned["packs"]));
    assert_eq!(backups(&repo), [&all[..1], &all[2..]].concat());
    let left = names(&repo.join("clusters/main/packs")).len();
    assert_eq!(packs - left, usize::try_from(done["packs"].as_u64().unwrap()).unwrap());
    assert!(left < packs && names(&repo.join("clusters/main/condemned")).is_empty());

    // Young packs and what a run has staged stay for the grace age.
    command("unpin").args(["--backup", &all[0]]).run().expect_success();
    let strange = repo.join("staging/0123456789abcdef0123456789abcdef.object");
    fs::write(&strange, b"left behind").expect("written");
    let done = command("expire").args(["--keep", "1", "--json"]).run().expect_success().json_summary();
    assert_eq!(ids(&done["clusters"][0]["removed"]), [&*all[0], &*all[2]]);
    assert_eq!((&done["clusters"][0]["packs"], &done["staged"]), (&0.into(), &0.into()));
    assert!(done["clusters"][0]["packs_young"].as_u64().unwrap() > 0 && strange.exists());
    age(&repo);
    let done = late().run();
    done.expect_success().expect_stderr("expired");
    assert!(!strange.exists());
    assert_eq!(backups(&repo), all[3..]);
    // The newest one stays whatever is said.
    late().args(["--keep", "0"]).run().expect_success();
    assert_eq!(backups(&repo), all[3..]);
    assert_eq!(verify(&repo).problems, Vec::<String>::new());
    let copy = source.dir("copy");
    command("restore").arg("--into").arg(&copy).run().expect_success();
    harness::verify_backup(&copy, 15).expect_good();
    harness::compare(&source, &source.boot(&copy));

    mistakes(&source, &repo, &config, &full);
    setups(&source, &repo, &command);
}

fn pins(repo: &Path, config: &Path, all: &[String]) {
    let command = |name: &str| pgstrata([name, "--config"]).arg(config);
    let pin = |backup: &str| command("pin").args(["--backup", backup]);
    pin(&all[0]).args(["--reason", "audit", "--until", "2099-01-01"]).run().expect_success();
    let shown = command("show").args(["--backup", &all[0]]).run();
    let shown = shown.expect_success().stdout_text();
    assert!(shown.contains("pinned       until 2099-01-01 00:00:00Z: audit"), "{shown}");
    let listed = command("list").run().expect_success().stdout_text();
    assert_eq!(listed.lines().filter(|line| line.ends_with("  pinned")).count(), 1, "{listed}");
    refused(&pin(&all[1]).args(["--until", "2020-01-01"]).run(), &["has passed"]);
    refused(&pin("20200101T000000Z-00000000").run(), &["has no backup 20200101T000000Z-00000000"]);
    refused(&command("unpin").args(["--backup", &all[1]]).run(), &["is not pinned"]);
    let text = pin(&all[1]).args(["--until", "soon"]).run();
    text.expect_failure().expect_stderr("invalid time \"soon\"");
    assert_eq!(names(&repo.join("clusters/main/pins")).len(), 1);
}

fn mistakes(source: &Source, repo: &Path, config: &Path, full: &str) {
    let listed = |arguments: &[&str]| pgstrata(["list", "--config"]).arg(config).args(arguments).run();
    fs::write(config, format!("{full}keep_fro = \"1d\"\n")).expect("written");
    refused(&listed(&[]), &["line 11", "unknown field `keep_fro`"]);
    refused(&pgstrata(["list", "--config", "/nowhere.toml"]).run(), &["/nowhere.toml"]);
    let open = full.replace("conninfo = \"", "conninfo = \"password=secret ");
    fs::write(config, &open).expect("written");
    fs::set_permissions(config, fs::Permissions::from_mode(0o644)).expect("ours");
    refused(&listed(&[]), &["line 6", "there is a password in it", "0600"]);
    assert!(!listed(&[]).stderr_text().contains("secret"));
    fs::write(config, full).expect("written");
    // A name of the file wins over a folder, which has a spelling of its own.
    let beside = source.dir("beside");
    fs::create_dir_all(beside.join("vault")).expect("made");
    let list =
        |name: &str| pgstrata(["list", "--repo", name, "--config"]).arg(config).current_dir(&beside).run();
    list("vault").expect_success();
    refused(&list("./vault"), &["there is no repository"]);
    let none = |name: &str| pgstrata([name]).env("PGSTRATA_CONFIG", "").run();
    refused(&none("list"), &["no repository is named", "--repo"]);
    refused(&none("show"), &["no cluster is named", "--cluster"]);
    let plain = pgstrata(["verify", "--repo"]).arg(repo).run();
    plain.expect_success();
}

fn setups(source: &Source, repo: &Path, command: &dyn Fn(&str) -> Invocation) {
    let found = |run: Invocation| run.arg("--json").run().json_summary();
    let sql = source.sql();
    let set = |name: &str, value: &str| {
        sql.try_rows(&format!("ALTER SYSTEM SET {name} = '{value}'")).expect("set");
        sql.try_rows("SELECT pg_reload_conf()").expect("reloaded");
        let shown = || sql.value::<String>(&format!("SHOW {name}"));
        harness::wait_until(name, || shown() == value);
    };
    set("archive_command", &format!("pgstrata wal push --repo {} --cluster main %p", repo.display()));
    assert_eq!(level(&found(command("check")), "archive_command"), "ok");
    set("archive_command", "pgstrata wal push --repo /elsewhere --cluster main %p");
    assert_eq!(level(&found(command("check")), "archive_command"), "warning");
    set("archive_command", "false");
    sql.try_rows("SELECT pg_switch_wal()").expect("switched");
    let failed = "SELECT failed_count > 0 FROM pg_stat_archiver";
    harness::wait_until("a failure", || sql.value::<String>(failed) == "t");
    let failing = found(command("check"));
    assert_eq!((level(&failing, "archive_command"), level(&failing, "archiver")), ("warning", "error"));
    set("archive_command", "true");
    let succeeded = "SELECT coalesce(last_archived_time > last_failed_time, false) FROM pg_stat_archiver";
    harness::wait_until("a success", || sql.value::<String>(succeeded) == "t");
    let done = command("check").run();
    done.expect_success().expect_stderr("no errors");
    // A user who may not, and a server that is not there.
    sql.try_rows("CREATE ROLE nobody LOGIN").expect("made");
    let poor = found(command("check").args(["-U", "nobody"]));
    assert_eq!((level(&poor, "replication"), level(&poor, "backup functions")), ("error", "warning"));
    let away = command("check").args(["-d", "host=127.0.0.1 port=1"]).run();
    refused(&away, &["backups of this set-up fail"]);
    // Another server under this name.
    let another = harness::cluster(17).own_identity().start();
    let mixed = found(command("check").args(["-d", &another.conninfo()]));
    assert_eq!((level(&mixed, "identity"), level(&mixed, "version")), ("error", "ok"));
}
