//! Manifests that say what is not so, in repositories whose every hash is right.

use std::path::Path;

use serde_json::{Value, json};

use super::super::container::{FrameKind, ObjectKind};
use super::super::local::LocalStore;
use super::super::manifest::ManifestWriter;
use super::super::names::PackId;
use super::super::object_writer::ObjectWriter;
use super::super::records::{FolderRecord, PackRecord};
use super::*;
use crate::restore::{RestoreConfig, RestoreOptions, RestoreResources, run};

/// A backup of two packs: one that is not needed and not there, and one with two frames of 100 bytes.
struct Sample {
    folders: Vec<&'static str>,
    files: Vec<(&'static str, Extent)>,
    packs: Vec<PackRecord>,
    summary: Value,
}

fn backup() -> BackupId {
    BackupId { seconds: 1_795_676_451, random: 1 }
}

fn cluster() -> ClusterName {
    "main".parse().expect("valid")
}

fn extent(pack: u32, offset: u32) -> Extent {
    Extent { block: 0, count: 1, pack, frame: 0, offset }
}

/// Writes the backup, changed as `change` says, and a file of 10 bytes for each of its files.
fn write(root: &Path, change: fn(&mut Sample)) -> Repository {
    write_of(FrameKind::Data, root, change)
}

fn write_of(kind: FrameKind, root: &Path, change: fn(&mut Sample)) -> Repository {
    let repository = Repository::init(Arc::new(LocalStore::new(root))).expect("made");
    write_into(repository, kind, root, change)
}

fn write_into(repository: Repository, kind: FrameKind, root: &Path, change: fn(&mut Sample)) -> Repository {
    let cluster = cluster();
    repository.claim_identity(&cluster, 7).expect("free");
    let pack = |number| PackId { backup: backup(), number };
    let mut object =
        ObjectWriter::begin(&repository, ObjectKind::Pack, &cluster.pack(pack(1))).expect("begun");
    object.frame(kind, &[b'x'; 100]).expect("written");
    object.frame(kind, &[b'y'; 100]).expect("written");
    let built = object.publish().expect("published").expect("free");
    let there = PackRecord {
        id: pack(1),
        length: built.length,
        frames: built.frames,
        checksum: built.checksum,
        needed: true,
    };
    let location = root.join("space");
    let mut sample = Sample {
        folders: vec!["base", "global", "pg_tblspc", "pg_tblspc/9/PG_15_1"],
        files: vec![
            ("base/1", extent(1, 0)),
            ("pg_tblspc/9/PG_15_1/2", extent(1, 50)),
            ("global/pg_control", extent(1, 90)),
            ("backup_manifest", extent(1, 0)),
        ],
        packs: vec![PackRecord { id: pack(0), needed: false, ..there }, there],
        summary: json!({
            "cluster": "main", "backup": backup().to_string(), "parent": null, "program": "x", "source": "stream",
            "server_version": "15", "system_identifier": "7", "wal_segment_size": 1, "start_lsn": "0/1",
            "start_timeline": 1, "end_lsn": "0/2", "end_timeline": 1, "label": "", "started": 1, "ended": 2,
            "compression": "none", "folder_mode": 0o700, "files": 0, "bytes": 0, "wal_bytes": 0, "stored_bytes": 0,
            "tablespaces": [{ "oid": 9, "location": location }], "requires": [],
        }),
    };
    change(&mut sample);
    sample.summary["files"] = sample.files.len().into();
    let mut manifest = ManifestWriter::begin(&repository, &cluster.manifest(backup())).expect("begun");
    for (path, extent) in sample.files {
        let (path, map) = (path.as_bytes().to_vec(), vec![extent]);
        let file = FileRecord { path, mode: 0o600, owner: 0, size: 10, modified: 0, map };
        manifest.file(&file).expect("valid");
    }
    let folder = |path: &&str| FolderRecord { path: path.as_bytes().to_vec(), mode: 0o700, owner: 0 };
    let folders: Vec<_> = sample.folders.iter().map(folder).collect();
    let summary = serde_json::from_value(sample.summary).expect("a summary");
    let published = manifest.commit(&folders, &sample.packs, &summary);
    published.expect("published").expect("free");
    repository
}

fn problems(repository: &Repository) -> Vec<String> {
    let config = CheckConfig { repository: repository.clone(), cluster: None, workers: 1 };
    check(&config, &Stop::new()).expect("readable").problems
}

fn restore(repository: &Repository, target: &Path) -> Result<(), String> {
    let config = RestoreConfig {
        repository: repository.clone(),
        cluster: cluster(),
        backup: BackupChoice::Latest,
        target: target.to_owned(),
        tablespace_mapping: Vec::new(),
        recovery: None,
        options: RestoreOptions::default(),
        resources: RestoreResources::for_cores(1),
    };
    // That files belong to root, whoever restores as root is told.
    let warned = |text: &str| assert!(text.contains("belong to root"), "{text}");
    run(&config, &warned, &Stop::new()).map(drop).map_err(|failure| failure.to_string())
}

mod encrypted;

#[test]
fn packs_that_are_not_needed_need_not_exist() {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(scratch.path(), |_| {});
    assert_eq!(problems(&repository), Vec::<String>::new());
    let target = scratch.path().join("copy");
    restore(&repository, &target).expect("whole");
    let copied = std::fs::read(target.join("pg_tblspc/9/PG_15_1/2")).expect("there");
    assert_eq!(copied, [b'x'; 10]);
}

#[test]
fn manifests_that_lie_are_found_by_verify_and_refused_by_restore() {
    type Change = fn(&mut Sample);
    let cases: [(Change, &str); 14] = [
        (|s| s.files.push(("base/1", extent(1, 0))), "file \"base/1\" comes twice"),
        (|s| s.summary["folder_owner"] = 1.into(), "of owner 1 of 0"),
        (|s| s.files[0].1.pack = 0, "which its table says is not needed"),
        (|s| s.packs[0].needed = true, "it is missing"),
        (|s| s.files[0].1.offset = 100, "byte 100 of frame 0"),
        (|s| s.packs[0].id = s.packs[1].id, "comes twice in its table"),
        (
            |s| {
                s.summary["tablespaces"] =
                    json!([{ "oid": 9, "location": "a" }, { "oid": 9, "location": "b" }]);
            },
            "tablespace 9 comes twice",
        ),
        (|s| s.files.retain(|(path, _)| *path != "global/pg_control"), "it has no \"global/pg_control\""),
        (|s| s.files.truncate(3), "it has no \"backup_manifest\""),
        (|s| s.folders.retain(|path| *path != "base"), "\"base/1\" lies in a folder that is not listed"),
        (|s| s.folders.push("pg_tblspc/9/PG_15_1"), "comes twice"),
        (|s| s.files.push(("pg_tblspc/9/authorized_keys", extent(1, 0))), "such as PG_15"),
        (|s| s.folders.push("pg_tblspc/9/.ssh"), "such as PG_15"),
        (|s| s.summary["requires"] = json!(["more"]), "requires \"more\""),
    ];
    for (change, words) in cases {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = write(scratch.path(), change);
        let found = problems(&repository).join("\n");
        assert!(found.contains(words), "{words}: {found}");
        let target = scratch.path().join("copy");
        // What no extent names is not looked for by a restore.
        if words == "it is missing" {
            continue;
        }
        let refused = restore(&repository, &target).expect_err(words);
        assert!(refused.contains(words), "{words}: {refused}");
        assert!(!target.exists() && !scratch.path().join("space").exists(), "{words}");
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(scratch.path(), |s| s.summary["system_identifier"] = "8".into());
    assert!(problems(&repository).join("\n").contains("it is of system 8, expected 7"));
}

#[test]
fn a_packs_frames_are_data() {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write_of(FrameKind::Summary, scratch.path(), |_| {});
    assert!(problems(&repository).join("\n").contains("frame 0 holds no data"));
    let refused = restore(&repository, &scratch.path().join("copy")).expect_err("no data");
    assert!(refused.contains("frame 0 holds no data"), "{refused}");
}
