//! A data directory at rest: new from `initdb`, or taken over from a backup.
//!
//! A [`Cluster`] knows the directory, the program that fits it, the account that runs it and how the superuser logs
//! in. Starting it yields a [`Server`]; PostgreSQL's own lock file keeps a second one away from the same directory.
//! Logs and sockets live in a run directory outside the data directory, so that neither ends up in a backup.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{InitOptions, PostmasterError, Server, ServerProgram, Unprivileged, init};

/// Longest path of a socket without its NUL: `sun_path` of sys/un.h holds 108 bytes.
const SOCKET_PATH_MAX: usize = 107;

/// How long a start may take, crash recovery included, unless the caller says otherwise.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// A data directory and what is needed to run it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) program: ServerProgram,
    pub(super) data_dir: PathBuf,
    pub(super) run_as: Unprivileged,
    pub(super) user: String,
    pub(super) password: Option<String>,
    run_dir: Arc<RunDir>,
}

#[derive(Debug)]
enum RunDir {
    /// Removed with the last handle.
    Ours(TempDir),
    Callers(PathBuf),
}

impl Cluster {
    /// Makes a new data directory with `initdb`. `dir` is absent (its parent exists) or empty.
    ///
    /// # Errors
    /// [`PostmasterError::Init`] with what `initdb` said, [`PostmasterError::NotEmpty`], [`PostmasterError::Unreachable`],
    /// [`PostmasterError::NoAccount`] or [`PostmasterError::Io`].
    pub fn init(program: &ServerProgram, dir: &Path, options: &InitOptions) -> Result<Self, PostmasterError> {
        let run_as = Unprivileged::resolve()?;
        let data_dir = std::path::absolute(dir).map_err(PostmasterError::io("resolve", dir))?;
        let run_dir = RunDir::temporary(&run_as)?;
        init::initdb(program, &data_dir, options, &run_as, run_dir.path())?;
        Ok(Self {
            program: program.clone(),
            data_dir,
            run_as,
            user: options.superuser.clone(),
            password: options.auth.password().map(str::to_owned),
            run_dir: Arc::new(run_dir),
        })
    }

    /// Takes over a data directory that someone else made: a restored backup in plain format.
    ///
    /// As root, the directory, its WAL directory and its tablespaces are given to the server's account. A link to one
    /// of those is followed only where it leads to a directory that holds nothing else. The superuser is taken to be
    /// `postgres` without a password; see [`with_login`](Self::with_login).
    ///
    /// # Errors
    /// [`PostmasterError::NotACluster`] where the directory is not one of the program's version, or in use;
    /// [`PostmasterError::ForeignTarget`], [`PostmasterError::Unreachable`] or [`PostmasterError::Io`].
    pub fn from_backup(program: &ServerProgram, dir: &Path) -> Result<Self, PostmasterError> {
        let run_as = Unprivileged::resolve()?;
        let data_dir = fs::canonicalize(dir).map_err(PostmasterError::io("resolve", dir))?;
        check_backup(program, &data_dir)?;
        run_as.reach(&program.postgres())?;
        run_as.reach(&data_dir)?;
        let outside = outside_directories(&data_dir)?;
        for (link, target) in &outside {
            if run_as.account().is_some() {
                run_as.own_tree(target)?;
            }
            run_as.reach(target).map_err(|error| match error {
                PostmasterError::Unreachable { account, blocker, mode, .. } => {
                    PostmasterError::Unreachable { path: link.clone(), account, blocker, mode }
                }
                other => other,
            })?;
        }
        run_as.own_tree(&data_dir)?;
        let run_dir = Arc::new(RunDir::temporary(&run_as)?);
        let user = InitOptions::default().superuser;
        Ok(Self { program: program.clone(), data_dir, run_as, user, password: None, run_dir })
    }

    /// Says how the superuser logs in. Used for connection strings only.
    #[must_use]
    pub fn with_login(mut self, user: &str, password: Option<&str>) -> Self {
        user.clone_into(&mut self.user);
        self.password = password.map(str::to_owned);
        self
    }

    /// Keeps the log and the sockets in `dir`, which is created where absent, instead of a temporary directory.
    /// A path that is too long for a socket is used for neither.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] or [`PostmasterError::Unreachable`].
    pub fn with_run_dir(mut self, dir: &Path) -> Result<Self, PostmasterError> {
        let dir = std::path::absolute(dir).map_err(PostmasterError::io("resolve", dir))?;
        if dir.as_os_str().len() + "/.s.PGSQL.65535.lock".len() <= SOCKET_PATH_MAX {
            self.run_as.reach(&dir)?;
            if dir.is_dir() {
                self.run_as.own(&dir)?;
            } else {
                self.run_as.create_dir(&dir)?;
            }
            self.run_dir = Arc::new(RunDir::Callers(dir));
        }
        Ok(self)
    }

    /// Starts the server on a free port of the loopback address and in a socket directory of its own, and waits until
    /// it accepts connections. `settings` go to its command line and outrank its configuration files.
    ///
    /// # Errors
    /// [`PostmasterError::Died`] or [`PostmasterError::NotReady`] with the end of the server's log.
    pub fn start(&self, settings: &[(&str, &str)]) -> Result<Server, PostmasterError> {
        self.start_within(settings, READY_WITHIN)
    }

    /// As [`start`](Self::start), with the time that it may take to become ready, crash recovery included.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_within(
        &self,
        settings: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Server, PostmasterError> {
        Server::start(self, settings, None, limit)
    }

    /// As [`start`](Self::start), on a given port, as after a restart.
    ///
    /// # Errors
    /// As [`start`](Self::start); also where the port is taken.
    pub fn start_on(&self, port: u16, settings: &[(&str, &str)]) -> Result<Server, PostmasterError> {
        Server::start(self, settings, Some(port), READY_WITHIN)
    }

    /// The data directory, absolute.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The program that runs it.
    #[must_use]
    pub fn program(&self) -> &ServerProgram {
        &self.program
    }

    /// The account that runs it.
    #[must_use]
    pub fn run_as(&self) -> &Unprivileged {
        &self.run_as
    }

    /// The superuser's name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The superuser's password, where it needs one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The directory of sockets.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// The server's log; each start appends to it.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.run_dir.path().join("postgres.log")
    }
}

impl RunDir {
    fn temporary(run_as: &Unprivileged) -> Result<Self, PostmasterError> {
        // The system's temporary directory may be long or closed to the server's account.
        let preferred = std::env::temp_dir();
        let fits = preferred.as_os_str().len() <= 64 && run_as.reach(&preferred.join("x")).is_ok();
        let base = if fits { preferred } else { PathBuf::from("/tmp") };
        let dir = tempfile::Builder::new()
            .prefix("pgstrata-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&base)
            .map_err(PostmasterError::io("create a directory in it", &base))?;
        run_as.own(dir.path())?;
        Ok(Self::Ours(dir))
    }

    fn path(&self) -> &Path {
        match self {
            RunDir::Ours(dir) => dir.path(),
            RunDir::Callers(dir) => dir,
        }
    }
}

fn check_backup(program: &ServerProgram, data_dir: &Path) -> Result<(), PostmasterError> {
    let expected = program.version.major().to_string();
    let path = data_dir.join("PG_VERSION");
    let found = match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == expected => None,
        Ok(text) => Some(format!("version {:?}", text.trim_end())),
        Err(error) => Some(error.to_string()),
    };
    if let Some(found) = found {
        return Err(PostmasterError::NotACluster { path, found, expected: format!("version {expected:?}") });
    }
    // Before anything changes hands: a backup holds no lock file, a data directory in use does.
    let path = data_dir.join("postmaster.pid");
    if path.exists() {
        let (found, expected) = ("a server's lock file".to_owned(), "none, as in a backup".to_owned());
        return Err(PostmasterError::NotACluster { path, found, expected });
    }
    let path = data_dir.join("global/pg_control");
    match fs::metadata(&path) {
        Ok(meta) if meta.is_file() => Ok(()),
        other => Err(PostmasterError::NotACluster {
            path,
            found: other.map_or_else(|error| error.to_string(), |meta| format!("{:?}", meta.file_type())),
            expected: "the control file".to_owned(),
        }),
    }
}

/// The directories that a data directory's links lead to: its WAL and its tablespaces. Each must look its part, for
/// they change owner: a link from a doubtful backup must not give `/etc` away.
fn outside_directories(data_dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>, PostmasterError> {
    let mut found = Vec::new();
    let mut follow = |link: PathBuf, expected: &'static str, belongs: fn(&[u8]) -> bool| {
        let meta = fs::symlink_metadata(&link).map_err(PostmasterError::io("look at", &link))?;
        if !meta.is_symlink() {
            return Ok(());
        }
        let target = fs::canonicalize(&link).map_err(PostmasterError::io("follow the link", &link))?;
        for entry in fs::read_dir(&target).map_err(PostmasterError::io("list", &target))? {
            let name = entry.map_err(PostmasterError::io("list", &target))?.file_name();
            if !belongs(name.as_encoded_bytes()) {
                let found = name.to_string_lossy().into_owned();
                return Err(PostmasterError::ForeignTarget { link, target, found, expected });
            }
        }
        found.push((link, target));
        Ok(())
    };
    follow(data_dir.join("pg_wal"), "WAL", is_wal_name)?;
    let tablespaces = data_dir.join("pg_tblspc");
    for entry in fs::read_dir(&tablespaces).map_err(PostmasterError::io("list", &tablespaces))? {
        let link = entry.map_err(PostmasterError::io("list", &tablespaces))?.path();
        let is_oid = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if link.file_name().is_some_and(is_oid) {
            follow(link, "PG_<version> directories", |name| name.starts_with(b"PG_"))?;
        }
    }
    Ok(found)
}

/// Segments, histories and backup labels begin with eight hexadecimal digits; beside them are two folders.
fn is_wal_name(name: &[u8]) -> bool {
    name == b"archive_status"
        || name == b"summaries"
        || name.starts_with(b"xlogtemp.")
        || name.get(..8).is_some_and(|head| head.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn data_dir() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["global", "pg_tblspc", "pg_wal"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        dir
    }

    #[test]
    fn links_are_followed_only_to_what_looks_its_part() {
        let (data, outside) = (data_dir(), tempfile::tempdir().unwrap());
        let link = data.path().join("pg_tblspc/16384");
        symlink(outside.path(), &link).unwrap();
        fs::create_dir(outside.path().join("PG_17_202406281")).unwrap();
        let target = fs::canonicalize(outside.path()).unwrap();
        assert_eq!(outside_directories(data.path()).unwrap(), [(link, target)]);
        fs::write(outside.path().join("passwd"), "").unwrap();
        let error = outside_directories(data.path()).unwrap_err();
        assert!(
            matches!(&error, PostmasterError::ForeignTarget { found, .. } if found == "passwd"),
            "{error}"
        );
    }

    #[test]
    fn names_of_wal_are_told_from_others() {
        for (name, expected) in [
            ("000000010000000000000001", true),
            ("00000002.history", true),
            ("000000010000000000000001.00000028.backup", true),
            ("archive_status", true),
            ("summaries", true),
            ("passwd", false),
            ("deadbee", false),
            ("", false),
        ] {
            assert_eq!(is_wal_name(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_backup_of_the_version_is_refused() {
        let data = data_dir();
        let program = ServerProgram {
            bin_dir: "/nowhere".into(),
            version: pgstrata_protocol::ServerVersion(170_010),
            origin: super::super::Origin::Named,
        };
        let found = |dir: &Path| check_backup(&program, dir).map_err(|error| error.to_string());
        assert!(found(data.path()).unwrap_err().contains("No such file"));
        fs::write(data.path().join("PG_VERSION"), "16\n").unwrap();
        assert!(found(data.path()).unwrap_err().contains("version \"16\", expected version \"17\""));
        fs::write(data.path().join("PG_VERSION"), "17\n").unwrap();
        assert!(found(data.path()).unwrap_err().contains("pg_control"));
        fs::write(data.path().join("global/pg_control"), "").unwrap();
        assert_eq!(found(data.path()), Ok(()));
        fs::write(data.path().join("postmaster.pid"), "1\n").unwrap();
        assert!(found(data.path()).unwrap_err().contains("lock file"));
    }
}
