//! Data directories made once and copied from then on: `initdb` takes a second, a copy a fraction of it.
//!
//! A template is keyed by the exact version and all options, and appears by a rename, complete or not at all. Copies
//! share the system identifier; a test for which that matters asks for an identity of its own.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use pgstrata::postmaster::{Auth, Cluster, InitOptions, ServerProgram, Unprivileged};
use rustix::fs::FlockOperation;

use crate::scratch;

/// Makes the template with default options: proves that the program runs here.
pub(crate) fn prove(program: &ServerProgram) -> anyhow::Result<()> {
    with_template(program, &InitOptions::default(), |_| Ok(()))
}

/// A new data directory in `dir`, copied from a template.
pub(crate) fn instantiate(
    program: &ServerProgram,
    dir: &Path,
    options: &InitOptions,
) -> anyhow::Result<Cluster> {
    with_template(program, options, |template| copy_tree(template, dir))?;
    let cluster = Cluster::from_backup(program, dir)?;
    Ok(cluster.with_login(&options.superuser, options.auth.password()))
}

fn with_template(
    program: &ServerProgram,
    options: &InitOptions,
    use_it: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let base = scratch::base().join("templates");
    fs::create_dir_all(&base)?;
    Unprivileged::resolve()?.reach(&base.join("x"))?;
    let key = key(program, options);
    let template = base.join(&key);
    if !template.is_dir() {
        let lock = File::create(base.join(format!(".{key}.lock")))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        if !template.is_dir() {
            let unfinished = base.join(format!(".{key}.unfinished"));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            Cluster::init(program, &unfinished, options)?;
            fs::rename(&unfinished, &template)?;
        }
    }
    use_it(&template)
}

/// A file name that differs whenever the directories would.
fn key(program: &ServerProgram, options: &InitOptions) -> String {
    let InitOptions {
        checksums,
        wal_segsize_mb,
        auth,
        locale,
        encoding,
        superuser,
        group_access,
        wal_dir,
        sync: _,
    } = options;
    assert!(wal_dir.is_none(), "a template cannot have its WAL elsewhere");
    let mut key = format!("{}-{locale}-{encoding}-{superuser}", program.version);
    let _ = write!(key, "-k{}-g{}", u8::from(*checksums), u8::from(*group_access));
    if let Some(size) = wal_segsize_mb {
        let _ = write!(key, "-w{size}");
    }
    if let Auth::Password { method, password } = auth {
        let _ = write!(key, "-{method:?}-");
        for byte in password.bytes() {
            let _ = write!(key, "{byte:02x}");
        }
    }
    key
}

/// Copies a directory with owners, modes and times, sharing blocks where the file system can.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let output = Command::new("cp")
        .args(["-a", "--reflink=auto", "--no-target-directory"])
        .args([from, to])
        .stdin(Stdio::null())
        .output()
        .context("cannot run cp")?;
    if !output.status.success() {
        bail!("cp {} {}: {}", from.display(), to.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
