//! Makes new data directories with `initdb`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{PostmasterError, ServerProgram, Unprivileged};

/// From this version on, `initdb` switches checksums on by itself and knows `--no-data-checksums`.
const CHECKSUMS_BY_DEFAULT: u32 = 18;

/// How a new data directory is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InitOptions {
    /// Data page checksums.
    pub checksums: bool,
    /// Size of a WAL segment in MiB, a power of two from 1 to 1024; PostgreSQL's 16 if `None`.
    pub wal_segsize_mb: Option<u32>,
    /// Who may log in, over sockets and TCP, replication included.
    pub auth: Auth,
    /// The locale's name. `C` is there on every machine.
    pub locale: String,
    /// The encoding of the template databases.
    pub encoding: String,
    /// The superuser's name.
    pub superuser: String,
    /// Lets the group read the data directory (mode 0750).
    pub group_access: bool,
    /// Puts `pg_wal` elsewhere, behind a symbolic link. Absolute; made by `initdb` where absent.
    pub wal_dir: Option<PathBuf>,
    /// Waits until the new files are on disk.
    pub sync: bool,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            checksums: true,
            wal_segsize_mb: None,
            auth: Auth::Trust,
            locale: "C".to_owned(),
            encoding: "UTF8".to_owned(),
            superuser: "postgres".to_owned(),
            group_access: false,
            wal_dir: None,
            sync: false,
        }
    }
}

/// How clients prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Auth {
    /// Whoever reaches the server may log in as anyone.
    #[default]
    Trust,
    /// By the superuser's password.
    Password {
        /// How the password travels.
        method: PasswordMethod,
        /// The superuser's password.
        password: String,
    },
}

/// How a password travels; the names are those of `pg_hba.conf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PasswordMethod {
    /// `scram-sha-256`.
    ScramSha256,
    /// `md5`; the password is stored as MD5 too.
    Md5,
    /// `password`, in clear.
    Clear,
}

impl PasswordMethod {
    fn in_pg_hba(self) -> &'static str {
        match self {
            PasswordMethod::ScramSha256 => "scram-sha-256",
            PasswordMethod::Md5 => "md5",
            PasswordMethod::Clear => "password",
        }
    }
}

impl Auth {
    /// The superuser's password, where there is one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        match self {
            Auth::Trust => None,
            Auth::Password { password, .. } => Some(password),
        }
    }
}

/// Runs `initdb` on `dir`, which is absent or empty, as the server's account.
pub(super) fn initdb(
    program: &ServerProgram,
    dir: &Path,
    options: &InitOptions,
    run_as: &Unprivileged,
    run_dir: &Path,
) -> Result<(), PostmasterError> {
    run_as.reach(&program.initdb())?;
    run_as.reach(dir)?;
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            // initdb would refuse too, but only after the directory had changed hands.
            if let Some(entry) = entries.next() {
                let found = entry.map_err(PostmasterError::io("list", dir))?.file_name();
                let found = found.to_string_lossy().into_owned();
                return Err(PostmasterError::NotEmpty { path: dir.to_owned(), found });
            }
            run_as.own(dir)?;
        }
        // The parent need not be writable for the server's account.
        Err(error) if error.kind() == ErrorKind::NotFound => run_as.create_dir(dir)?,
        Err(error) => return Err(PostmasterError::io("list", dir)(error)),
    }
    let mut initdb = run_as.command(&program.initdb());
    initdb.arg("-D").arg(dir).arg("-U").arg(&options.superuser);
    initdb.arg(format!("--locale={}", options.locale)).arg(format!("--encoding={}", options.encoding));
    if options.checksums {
        initdb.arg("--data-checksums");
    } else if program.version.major() >= CHECKSUMS_BY_DEFAULT {
        initdb.arg("--no-data-checksums");
    }
    if let Some(size) = options.wal_segsize_mb {
        initdb.arg(format!("--wal-segsize={size}"));
    }
    if let Some(wal_dir) = &options.wal_dir {
        if !wal_dir.exists() {
            run_as.create_dir(wal_dir)?;
        }
        initdb.arg("-X").arg(wal_dir);
    }
    if options.group_access {
        initdb.arg("--allow-group-access");
    }
    if !options.sync {
        initdb.arg("--no-sync");
    }
    let password_file = run_dir.join("password");
    match &options.auth {
        Auth::Trust => {
            initdb.arg("--auth=trust");
        }
        Auth::Password { method, password } => {
            initdb.arg(format!("--auth={}", method.in_pg_hba())).arg("--pwfile").arg(&password_file);
            // In a directory that is closed to others; owned by the account that has to read it.
            fs::write(&password_file, format!("{password}\n"))
                .map_err(PostmasterError::io("write", &password_file))?;
            run_as.own(&password_file)?;
        }
    }
    let output = initdb.output().map_err(PostmasterError::io("run", &program.initdb()));
    if options.auth != Auth::Trust {
        fs::remove_file(&password_file).map_err(PostmasterError::io("remove", &password_file))?;
    }
    let output = output?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(PostmasterError::Init {
        dir: dir.to_owned(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&said).trim_end().to_owned(),
    })
}
