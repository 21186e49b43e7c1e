//! PostgreSQL's own judgement of a backup: `pg_verifybackup`, and `amcheck` on the booted copy.

use std::path::Path;

use anyhow::Context;
use pgstrata::postmaster::{Server, ServerProgram};

use crate::Invocation;
use crate::Sql;

/// What `pg_verifybackup` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is content.
    Good,
    /// It found something; everything it said.
    Bad(String),
    /// There is no program here that understands the backup; the reason.
    Unknown(String),
}

impl Verdict {
    /// Fails the test where the backup is bad; prints why where nobody can tell.
    ///
    /// # Panics
    /// With what `pg_verifybackup` said.
    #[track_caller]
    pub fn expect_good(&self) {
        match self {
            Verdict::Good => {}
            Verdict::Bad(said) => panic!("pg_verifybackup: {said}"),
            Verdict::Unknown(reason) => eprintln!("not checked by pg_verifybackup: {reason}"),
        }
    }
}

/// Has PostgreSQL's `pg_verifybackup` check a backup in plain format that a server of a major version made.
///
/// A program of the same version checks the WAL as well. One of another version can check the files, as long as it
/// reads the manifest: version 1 up to PostgreSQL 16, version 2 from 17 on.
///
/// # Panics
/// Where the program hangs.
#[must_use]
pub fn verify_backup(dir: &Path, major: u32) -> Verdict {
    verify(dir, major, true)
}

/// As [`verify_backup`], but never asks for the WAL: a backup may come without.
///
/// # Panics
/// Where the program hangs.
#[must_use]
pub fn verify_files(dir: &Path, major: u32) -> Verdict {
    verify(dir, major, false)
}

fn verify(dir: &Path, major: u32, with_wal: bool) -> Verdict {
    let programs = ServerProgram::installed();
    let reads = |program: &&ServerProgram| {
        let theirs = program.version.major();
        theirs >= 13 && (theirs >= 17) == (major >= 17) && program.companion("pg_verifybackup").is_some()
    };
    let same = |program: &&ServerProgram| program.version.major() == major;
    let program = programs.iter().filter(reads).find(same).or_else(|| programs.iter().find(reads));
    let Some((program, verifier)) =
        program.and_then(|program| Some((program, program.companion("pg_verifybackup")?)))
    else {
        return Verdict::Unknown(format!(
            "no installed pg_verifybackup reads manifests of PostgreSQL {major}"
        ));
    };
    let mut invocation = Invocation::new(&verifier, [dir]);
    if !with_wal || program.version.major() != major {
        invocation = invocation.arg("--no-parse-wal");
    }
    let finished = invocation.run();
    if finished.status.success() { Verdict::Good } else { Verdict::Bad(finished.to_string()) }
}

/// Checks every B-tree of a copy against its table, and from 14 on every table's pages, with `amcheck`. Installs the
/// extension in each of the copy's databases. Returns how many relations were checked.
///
/// # Errors
/// What `amcheck` found.
pub fn amcheck(copy: &Server) -> anyhow::Result<usize> {
    let sql = Sql::connect(&copy.socket_conninfo())?;
    let mut checked = 0;
    for row in sql.try_rows("SELECT datname FROM pg_database WHERE datallowconn")? {
        let name = row[0].clone().context("a database has a name")?;
        let session = Sql::connect(&copy.database_conninfo(&name))?;
        checked += amcheck_database(&session, copy.program().version.major())
            .with_context(|| format!("database {name}"))?;
    }
    Ok(checked)
}

fn amcheck_database(sql: &Sql, major: u32) -> anyhow::Result<usize> {
    sql.try_execute("CREATE EXTENSION IF NOT EXISTS amcheck")?;
    let btrees = sql.try_rows(
        "SELECT c.oid::regclass, bt_index_check(c.oid, heapallindexed => true)
         FROM pg_class c JOIN pg_am a ON a.oid = relam JOIN pg_index i ON i.indexrelid = c.oid
         WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p' AND indisready AND indisvalid",
    )?;
    if major < 14 {
        return Ok(btrees.len());
    }
    let damage = sql.try_rows(
        "SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v
         WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p'",
    )?;
    anyhow::ensure!(damage.is_empty(), "verify_heapam: {damage:?}");
    let tables =
        sql.try_rows("SELECT oid FROM pg_class WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p'")?;
    Ok(btrees.len() + tables.len())
}
