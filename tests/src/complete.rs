//! Complete installations of PostgreSQL, beside the bare servers of [`servers`](crate::servers): with every client tool,
//! and built with lz4 and zstd.
//!
//! An installed one is taken where the machine has one. Of the versions that a Debian release does not have, the packages
//! of the release that has them are fetched and unpacked into a folder below cargo's target directory, with all libraries
//! down to the C library. Their programs run by the folder's own dynamic loader: nothing is installed, nobody has to be
//! root, and no path has to be mapped.
//!
//! Where packages come from is what the machine's own apt is configured with; only the release is another one. A version
//! appears by one rename, complete or not at all, and a lock lets one process at a time fetch.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use pgstrata::postmaster::ServerProgram;
use rustix::fs::FlockOperation;

use crate::scratch;

/// The releases of Debian to look for a major version in, first the one that is likelier to have it.
const RELEASES: [(u32, &[&str]); 2] = [(17, &["trixie"]), (18, &["sid", "forky"])];

/// What PostgreSQL's packages depend on and its programs do without: taken for installed, they are not fetched.
const NOT_NEEDED: [&str; 6] =
    ["postgresql-common", "postgresql-client-common", "ssl-cert", "tzdata", "locales", "adduser"];

/// Debian's keys, as the package `debian-archive-keyring` has them everywhere.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the programs themselves go, beside the scripts that run them.
const PROGRAMS: &str = ".programs";

/// PostgreSQL with all of its programs.
#[derive(Debug)]
pub struct Complete {
    program: ServerProgram,
}

impl Complete {
    /// The server, for [`ClusterBuilder::complete`](crate::ClusterBuilder::complete).
    #[must_use]
    pub fn server(&self) -> &ServerProgram {
        &self.program
    }

    /// The folder of the programs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.program.bin_dir
    }

    /// The path of a tool such as `pg_combinebackup`, to be run as it is.
    ///
    /// # Panics
    /// Where this version has no such tool.
    #[track_caller]
    #[must_use]
    pub fn tool(&self, name: &str) -> PathBuf {
        self.program.companion(name).unwrap_or_else(|| panic!("{}: no {name}", self.program))
    }
}

/// The complete PostgreSQL of a major version; where there is none, prints why, for the test to be skipped.
#[must_use]
pub fn complete(major: u32) -> Option<&'static Complete> {
    static FOUND: [OnceLock<Result<Complete, String>>; 3] = [const { OnceLock::new() }; 3];
    let place = major.checked_sub(15 + u32::from(major > 15)).filter(|place| *place < 3);
    let place = place.unwrap_or_else(|| panic!("no complete PostgreSQL {major} is known"));
    let found = FOUND[place as usize].get_or_init(|| find(major).map_err(|error| format!("{error:#}")));
    match found {
        Ok(complete) => Some(complete),
        Err(reason) => {
            eprintln!("skipped: no complete PostgreSQL {major} here: {reason}");
            None
        }
    }
}

fn find(major: u32) -> anyhow::Result<Complete> {
    let has_tools = |program: &ServerProgram| {
        let tools = ["pg_basebackup", "pg_verifybackup", "pg_waldump"];
        program.version.major() == major && tools.iter().all(|tool| program.companion(tool).is_some())
    };
    if let Some(program) = ServerProgram::installed().into_iter().find(has_tools) {
        return Ok(Complete { program });
    }
    let Some((_, releases)) = RELEASES.iter().find(|(known, _)| *known == major) else {
        bail!("none is installed");
    };
    let cache = scratch::server_cache();
    let home = cache.join(format!("complete-{major}"));
    if !home.is_dir() {
        fs::create_dir_all(&cache)?;
        let lock = File::create(cache.join(".complete.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        if !home.is_dir() {
            fetch(major, releases, &home)?;
        }
    }
    let program = ServerProgram::at(&bin_dir(&home, major))?;
    ensure!(has_tools(&program), "{program}: some of its tools are missing");
    Ok(Complete { program })
}

fn bin_dir(home: &Path, major: u32) -> PathBuf {
    home.join(format!("usr/lib/postgresql/{major}/bin"))
}

/// Fetches and unpacks a version into `home`. The caller holds the lock.
fn fetch(major: u32, releases: &[&str], home: &Path) -> anyhow::Result<()> {
    let work = home.with_extension("unfinished");
    if work.exists() {
        // Left by a process that was killed.
        fs::remove_dir_all(&work)?;
    }
    let archive = configured_archive()?;
    let mut refused = Vec::new();
    for release in releases {
        match fetch_from(&archive, release, major, &work) {
            Ok(unpacked) => {
                fs::rename(&unpacked, home)?;
                fs::remove_dir_all(&work)?;
                return Ok(());
            }
            Err(error) => refused.push(format!("{release}: {error:#}")),
        }
        fs::remove_dir_all(&work)?;
    }
    bail!("{}", refused.join("; "))
}

/// The address that this machine's apt gets its own release of Debian from.
fn configured_archive() -> anyhow::Result<String> {
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = system.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"'))
    };
    let codename = field("VERSION_CODENAME").unwrap_or_default();
    ensure!(field("ID") == Some("debian"), "this is no Debian, whose packages would be fetched");
    let files = run(Command::new("apt-get").args(["--print-uris", "update"]))?;
    let index = format!("/dists/{codename}/InRelease'");
    let archive = files.lines().find_map(|line| line.strip_prefix('\'')?.split_once(&index));
    let (archive, _) =
        archive.with_context(|| format!("apt is not configured to get {codename} from anywhere"))?;
    Ok(archive.to_owned())
}

/// Fetches from one release and unpacks; returns the folder with everything in it.
fn fetch_from(archive: &str, release: &str, major: u32, work: &Path) -> anyhow::Result<PathBuf> {
    for folder in ["sources", "lists/partial", "archives/partial", "root"] {
        fs::create_dir_all(work.join(folder))?;
    }
    let signed = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
    let source = format!("Types: deb\nURIs: {archive}\nSuites: {release}\nComponents: main\n{signed}");
    fs::write(work.join("sources/debian.sources"), source)?;
    let status = NOT_NEEDED.map(|package| {
        format!(
            "Package: {package}\nStatus: install ok installed\nVersion: 9999\nArchitecture: all\n\
             Maintainer: nobody\nDescription: taken for installed\n\n"
        )
    });
    fs::write(work.join("status"), status.concat())?;
    run(apt(work).arg("update"))?;
    run(apt(work).args(["--yes", "--download-only", "install"]).arg(format!("postgresql-{major}")))?;

    let root = work.join("root");
    for entry in fs::read_dir(work.join("archives"))? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").args([&package, &root]))?;
        }
    }
    make_runnable(&bin_dir(&root, major), &root)?;
    Ok(root)
}

/// An `apt-get` that knows nothing but the source, the lists and the packages in the folder.
fn apt(work: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("--quiet");
    for (name, value) in [
        ("Dir::Etc::sourcelist", Path::new("/dev/null")),
        ("Dir::Etc::sourceparts", &work.join("sources")),
        ("Dir::State::lists", &work.join("lists")),
        ("Dir::State::status", &work.join("status")),
        ("Dir::State::extended_states", &work.join("extended_states")),
        ("Dir::Cache", work),
        ("Dir::Cache::archives", &work.join("archives")),
    ] {
        apt.arg("--option").arg(format!("{name}={}", value.display()));
    }
    for option in [
        "APT::Install-Recommends=false",
        // Without it, packages are received by an account that does not reach the folder.
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        "Acquire::http::Timeout=20",
        "Acquire::Retries=1",
    ] {
        apt.args(["--option", option]);
    }
    apt.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// Puts a script in each program's place that runs it by the folder's own dynamic loader and libraries. A program finds its
/// siblings and its data from the name that it is called by, and gets the script's.
fn make_runnable(bin_dir: &Path, root: &Path) -> anyhow::Result<()> {
    let libraries = root.join("usr/lib");
    let loader = fs::read_dir(&libraries)?
        .filter_map(|entry| fs::read_dir(entry.ok()?.path()).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("ld-linux") && name.contains(".so.")
        })
        .context("the C library's package holds no dynamic loader")?;
    let loader = loader.strip_prefix(root)?;
    let folder = loader.parent().context("a file lies in a folder")?;
    let programs = bin_dir.join(PROGRAMS);
    let names: Vec<_> =
        fs::read_dir(bin_dir)?.map(|entry| Ok(entry?.file_name())).collect::<anyhow::Result<_>>()?;
    fs::create_dir(&programs)?;
    for name in names {
        let script = bin_dir.join(&name);
        fs::rename(&script, programs.join(&name))?;
        // usr/lib/postgresql/N/bin is five folders below the root.
        let text = format!(
            "#!/bin/sh\nhere=${{0%/*}}\nroot=$here/../../../../..\n\
             exec \"$root/{}\" --library-path \"$root/{}\" --argv0 \"$0\" \"$here/{PROGRAMS}/{}\" \"$@\"\n",
            loader.display(),
            folder.display(),
            name.display(),
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Runs a program and returns its standard output, or fails with what it said last.
fn run(mut command: impl std::borrow::BorrowMut<Command>) -> anyhow::Result<String> {
    let command = command.borrow_mut();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> =
            said.lines().filter(|line| line.starts_with("E:") || !said.contains("E:")).collect();
        bail!("{program}: {}: {}", output.status, errors.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
