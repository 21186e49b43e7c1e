//! A server, a repository, and what a backup in it holds, read back through its maps.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata::postmaster::Server;
use pgstrata::repository::{BLOCK, BackupChoice, FileRecord, FrameDecoder, LocalStore, Manifest, Repository};
use pgstrata_protocol::names::RelationFile;
use pgstrata_tests as harness;
use pgstrata_tests::{Invocation, Source, pgstrata};
use serde_json::Value;

/// A server whose data directory stands still unless a test changes it.
pub(crate) struct Sample {
    pub(crate) source: Source,
    pub(crate) repo: PathBuf,
}

impl Sample {
    pub(crate) fn of(source: Source) -> Self {
        let repo = source.dir("repo");
        pgstrata(["init", "--repo"]).arg(&repo).run().expect_success();
        Self { source, repo }
    }

    pub(crate) fn command(&self, name: &str) -> Invocation {
        pgstrata([name, "--repo"]).arg(&self.repo)
    }

    pub(crate) fn run_of(&self, cluster: &str, options: &[&str]) -> Invocation {
        self.run_at(&self.source, cluster, options)
    }

    /// A backup of some server into this repository.
    pub(crate) fn run_at(&self, server: &Server, cluster: &str, options: &[&str]) -> Invocation {
        let conninfo = server.socket_conninfo();
        let run =
            self.command("backup").args(["--cluster", cluster, "-c", "fast", "--json", "-d", &conninfo]);
        let run = run.arg("-D").arg(server.cluster().data_dir()).args(options);
        let says = |option: &&str| ["--changes", "--full"].contains(option);
        if options.iter().any(says) { run } else { run.args(["--changes", "auto"]) }
    }

    pub(crate) fn backup_of(&self, cluster: &str, options: &[&str]) -> Value {
        self.run_of(cluster, options).run().expect_success().json_summary()
    }

    pub(crate) fn backup(&self, options: &[&str]) -> Value {
        self.backup_of("main", options)
    }

    pub(crate) fn restore_of(&self, cluster: &str, name: &str) -> PathBuf {
        let into = self.source.dir(name);
        let mut run = self.command("restore").args(["--cluster", cluster, "--into"]).arg(&into);
        for (oid, location) in self.spaces() {
            let place = self.source.dir(&format!("{name} space {oid}"));
            run = run.arg("-T").arg(format!("{location}={}", place.display()));
        }
        run.run().expect_success();
        into
    }

    /// Tablespaces that there are, and where.
    fn spaces(&self) -> Vec<(String, String)> {
        let rows = self.source.sql().rows(
            "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'",
        );
        let text = |value: &Option<String>| value.clone().unwrap();
        rows.iter().map(|row| (text(&row[0]), text(&row[1]))).collect()
    }

    pub(crate) fn manifest(&self, cluster: &str, id: &str) -> Manifest {
        let repository = Repository::open(Arc::new(LocalStore::new(&self.repo))).expect("opened");
        let choice = BackupChoice::Id(id.parse().unwrap());
        repository.backup(&cluster.parse().unwrap(), choice).expect("a backup")
    }

    #[track_caller]
    pub(crate) fn expect_same(&self, summary: &Value) {
        let differences = self.differences(summary);
        assert!(differences.is_empty(), "{}\n{summary}", differences.join("\n"));
    }

    /// Relation files of a backup that are not what lies in the data directory now, page by page. Nothing may have been
    /// written there since the backup began.
    pub(crate) fn differences(&self, summary: &Value) -> Vec<String> {
        self.differences_from(summary, self.source.data_dir())
    }

    /// As [`differences`](Self::differences), for another data directory.
    pub(crate) fn differences_from(&self, summary: &Value, data: &Path) -> Vec<String> {
        let stored = &summary["stored"];
        let manifest = self.manifest(stored["cluster"].as_str().unwrap(), stored["backup"].as_str().unwrap());
        let mut reader = MapReader { manifest: &manifest, frames: HashMap::new() };
        let (mut found, mut differences) = (Vec::new(), Vec::new());
        manifest
            .each_file(|file| {
                if RelationFile::parse(&file.path).is_some() {
                    found.push(file);
                }
                Ok(())
            })
            .expect("files");
        let mut there = relation_files(data);
        for file in found {
            let path = String::from_utf8(file.path.clone()).unwrap();
            let Some(place) = there.remove(&path) else {
                differences.push(format!("{path}: gone from the data directory"));
                continue;
            };
            let (stored, expected) = (reader.content(&file), fs::read(place).unwrap());
            if stored.len() != expected.len() {
                differences.push(format!("{path}: {} bytes, expected {}", stored.len(), expected.len()));
            }
            let page = usize::try_from(BLOCK).unwrap();
            for (block, (stored, expected)) in stored.chunks(page).zip(expected.chunks(page)).enumerate() {
                if stored != expected && !is_unlogged_cache(stored, expected) {
                    let at: Vec<_> = stored
                        .iter()
                        .zip(expected)
                        .enumerate()
                        .filter(|(_, (a, b))| a != b)
                        .map(|(at, _)| at)
                        .collect();
                    let lsn = |page: &[u8]| {
                        let half = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
                        format!("{:X}/{:X}", half(0), half(4))
                    };
                    differences.push(format!(
                        "{path}: block {block} differs in {} bytes from byte {}: {} in the backup, {} now",
                        at.len(),
                        at[0],
                        lsn(stored),
                        lsn(expected)
                    ));
                }
            }
        }
        // What is in a backup is no more than a server takes into one: temporary and unlogged relations are left out.
        let missing = there.into_keys().filter(|path| !is_left_out(data, path));
        differences.extend(missing.map(|path| format!("{path}: missing in the backup")));
        differences
    }
}

/// A server that writes nothing by itself.
pub(crate) fn quiet(major: u32) -> harness::ClusterBuilder {
    harness::cluster(major)
        .setting("autovacuum", "off")
        .setting("bgwriter_lru_maxpages", "0")
        .setting("checkpoint_timeout", "1h")
        .setting("checkpoint_completion_target", "0")
}

/// Whether both are the first page of an SP-GiST index and come from one record: which pages it filled last is noted there without
/// WAL (`SpGistUpdateMetaPage`), and after a crash, too, an older note is what there is.
fn is_unlogged_cache(one: &[u8], other: &[u8]) -> bool {
    // SPGIST_MAGIC_NUMBER (`access/spgist_private.h`), behind the page's header.
    let is_meta = |page: &[u8]| page[24..28] == 0xBA0B_ABEE_u32.to_le_bytes();
    is_meta(one) && is_meta(other) && one[..8] == other[..8]
}

/// The init fork of an unlogged relation lies beside what is left out.
fn is_left_out(data: &Path, path: &str) -> bool {
    let file = RelationFile::parse(path.as_bytes()).expect("a relation's");
    let folder = data.join(path).parent().unwrap().to_owned();
    folder.join(format!("{}_init", file.relation)).exists()
}

fn relation_files(data: &Path) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    let mut add = |folder: PathBuf, prefix: String| {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            let path = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
            if RelationFile::parse(path.as_bytes()).is_some() {
                found.insert(path, entry.path());
            }
        }
    };
    let folders = |folder: PathBuf| -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
        let named = |entry: fs::DirEntry| (entry.path(), entry.file_name().into_string().unwrap());
        entries.map(named).filter(|(path, _)| path.is_dir()).collect()
    };
    add(data.join("global"), "global".into());
    for (folder, name) in folders(data.join("base")) {
        add(folder, format!("base/{name}"));
    }
    for (space, oid) in folders(data.join("pg_tblspc")) {
        for (version, name) in folders(space) {
            for (folder, database) in folders(version) {
                add(folder, format!("pg_tblspc/{oid}/{name}/{database}"));
            }
        }
    }
    found
}

struct MapReader<'a> {
    manifest: &'a Manifest,
    frames: HashMap<u32, HashMap<u32, Vec<u8>>>,
}

impl MapReader<'_> {
    /// A file's bytes, as its map says.
    fn content(&mut self, file: &FileRecord) -> Vec<u8> {
        let mut content = Vec::new();
        for extent in &file.map {
            let (mut left, mut frame, mut offset) =
                (usize::try_from(extent.length(file.size)).unwrap(), extent.frame, extent.offset as usize);
            let manifest = self.manifest;
            let frames = self.frames.entry(extent.pack).or_insert_with(|| {
                let object = manifest.open_pack(extent.pack).expect("a pack");
                let mut decoder = FrameDecoder::new().unwrap();
                let mut frame =
                    |number| object.frame(number, &mut Vec::new(), &mut decoder).expect("a frame").to_vec();
                (0..u32::try_from(object.frames().len()).unwrap())
                    .map(|number| (number, frame(number)))
                    .collect()
            });
            while left > 0 {
                let bytes = &frames[&frame][offset..];
                let taken = bytes.len().min(left);
                assert!(taken > 0, "a map that ends in a frame");
                content.extend_from_slice(&bytes[..taken]);
                (left, frame, offset) = (left - taken, frame + 1, 0);
            }
        }
        content
    }
}
