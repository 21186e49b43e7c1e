//! A running postmaster.
//!
//! Invariants: the postmaster is our direct child from start to end, so its process id cannot be anyone else's; when
//! the handle is gone, so are the postmaster and its backends. Readiness and exit are waited for by condition, each
//! with a limit.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::pidfile::PidFile;
use super::port::ReservedPort;
use super::processes::{children_of, poll_exit};
use super::{Cluster, PostmasterError, ServerProgram, keeper};

/// How often `postmaster.pid` is read while the server starts.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a shutdown may take before the server is killed: a fast one writes a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(120);
/// How long orphaned backends get to notice that their postmaster is gone.
const ORPHANS_WITHIN: Duration = Duration::from_secs(5);
/// How many ports are tried when someone else is faster.
const PORT_ATTEMPTS: u32 = 5;
/// How much of the log an error quotes.
const QUOTED_LINES: usize = 25;
/// What the log says of a port that someone else took (`StreamServerPort` in src/backend/libpq/pqcomm.c).
const PORT_TAKEN: &str = "could not bind IPv4 address";

/// How a server is stopped; see `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients and writes a checkpoint.
    Fast,
    /// Stops at once; the next start runs crash recovery.
    Immediate,
}

impl Shutdown {
    /// The signal that asks a postmaster for it (`pmdie` and its successors in src/backend/postmaster/postmaster.c).
    fn signal(self) -> Signal {
        match self {
            Shutdown::Smart => Signal::TERM,
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        }
    }
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shutdown::Smart => "smart",
            Shutdown::Fast => "fast",
            Shutdown::Immediate => "immediate",
        })
    }
}

/// A running server. Dropping it stops it at once, without a checkpoint.
#[derive(Debug)]
pub struct Server {
    cluster: Cluster,
    port: u16,
    child: Child,
    pidfd: OwnedFd,
}

impl Server {
    pub(super) fn start(
        cluster: &Cluster,
        settings: &[(&str, &str)],
        port: Option<u16>,
        limit: Duration,
    ) -> Result<Self, PostmasterError> {
        let mut attempt = 1;
        loop {
            let log_start = fs::metadata(cluster.log_path()).map_or(0, |meta| meta.len());
            let reserved = ReservedPort::new(port.unwrap_or(0))
                .map_err(PostmasterError::io("reserve a port for its server", &cluster.data_dir))?;
            let mut server = Self::spawn(cluster, settings, reserved.number())?;
            match server.wait_until_ready(limit) {
                Err(PostmasterError::Died { .. })
                    if attempt < PORT_ATTEMPTS
                        && log_since(&cluster.log_path(), log_start).contains(PORT_TAKEN) =>
                {
                    attempt += 1;
                }
                other => return other.map(|()| server),
            }
        }
    }

    fn spawn(cluster: &Cluster, settings: &[(&str, &str)], port: u16) -> Result<Self, PostmasterError> {
        let program = cluster.program.postgres();
        let log_path = cluster.log_path();
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(PostmasterError::io("open the log", &log_path))?;
        let log_again = log.try_clone().map_err(PostmasterError::io("open the log", &log_path))?;

        let mut command = cluster.run_as.command(&program);
        command.stdout(log).stderr(log_again).arg("-D").arg(&cluster.data_dir);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        // A copy of someone's cluster may carry settings that point at the original's places.
        set("external_pid_file", "");
        set("log_destination", "stderr");
        set("logging_collector", "off");
        set("listen_addresses", "127.0.0.1");
        for (name, value) in settings {
            set(name, value);
        }
        set("port", &port.to_string());
        command.arg("-k").arg(cluster.socket_dir());

        let mut child = keeper::spawn(command).map_err(PostmasterError::io("run", &program))?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        match pidfd {
            Ok(pidfd) => Ok(Self { cluster: cluster.clone(), port, child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(PostmasterError::io("watch the process of", &program)(error.into()))
            }
        }
    }

    fn wait_until_ready(&mut self, limit: Duration) -> Result<(), PostmasterError> {
        let started = Instant::now();
        loop {
            let status = PidFile::read(&self.cluster.data_dir).filter(|file| self.is_ours(file));
            if status.as_ref().is_some_and(PidFile::is_ready) {
                return Ok(());
            }
            if let Some(status) = self.wait_for_exit(LOOK_EVERY)? {
                return Err(PostmasterError::Died {
                    dir: self.cluster.data_dir.clone(),
                    status: status.to_string(),
                    log: self.log_tail(QUOTED_LINES),
                    log_path: self.cluster.log_path(),
                });
            }
            if started.elapsed() >= limit {
                let log = self.log_tail(QUOTED_LINES);
                self.end(Shutdown::Immediate, ORPHANS_WITHIN)?;
                return Err(PostmasterError::NotReady {
                    dir: self.cluster.data_dir.clone(),
                    seconds: limit.as_secs(),
                    state: status.map(|file| file.status).unwrap_or_default(),
                    log,
                    log_path: self.cluster.log_path(),
                });
            }
        }
    }

    /// A copied data directory may hold another server's file until ours writes its own.
    fn is_ours(&self, file: &PidFile) -> bool {
        u32::try_from(file.pid).is_ok_and(|pid| pid == self.child.id())
    }

    /// Stops the server and waits until it is gone. On an error it is gone too, killed.
    ///
    /// # Errors
    /// [`PostmasterError::Stuck`] where it did not obey in time.
    pub fn stop(mut self, mode: Shutdown) -> Result<(), PostmasterError> {
        self.end(mode, STOP_WITHIN)
    }

    /// Kills the postmaster with SIGKILL, as a crash would, and waits until its backends are gone as well.
    /// The data directory is left as it is; the next start runs crash recovery.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] where the system refuses.
    pub fn kill(mut self) -> Result<(), PostmasterError> {
        self.kill_with_backends()
    }

    /// Sends the postmaster a signal, such as HUP to read its configuration again.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] where it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), PostmasterError> {
        rustix::process::pidfd_send_signal(&self.pidfd, signal)
            .map_err(|error| PostmasterError::io("signal its server", &self.cluster.data_dir)(error.into()))
    }

    /// Whether the postmaster still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !poll_exit(&[&self.pidfd], Duration::ZERO).unwrap_or(false)
    }

    /// The postmaster's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The TCP port on 127.0.0.1; the socket's name carries it too.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory, as a cluster that can be started again once this server has stopped.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The program that runs.
    #[must_use]
    pub fn program(&self) -> &ServerProgram {
        &self.cluster.program
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.cluster.data_dir
    }

    /// The directory of the server's Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.cluster.socket_dir()
    }

    /// The file that the server logs to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.cluster.log_path()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.cluster.log_path(), lines)
    }

    /// A connection string over TCP for the superuser and the database `postgres`.
    #[must_use]
    pub fn conninfo(&self) -> String {
        self.conninfo_by("127.0.0.1", "postgres")
    }

    /// A connection string over the Unix socket for the superuser and the database `postgres`.
    #[must_use]
    pub fn socket_conninfo(&self) -> String {
        self.database_conninfo("postgres")
    }

    /// A connection string over the Unix socket for the superuser and any database.
    #[must_use]
    pub fn database_conninfo(&self, database: &str) -> String {
        self.conninfo_by(&self.socket_dir().to_string_lossy(), database)
    }

    fn conninfo_by(&self, host: &str, database: &str) -> String {
        let (host, user, database) = (quoted(host), quoted(&self.cluster.user), quoted(database));
        let mut text = format!("host={host} port={} user={user} dbname={database}", self.port);
        if let Some(password) = &self.cluster.password {
            let _ = write!(text, " password={}", quoted(password));
        }
        text
    }

    fn end(&mut self, mode: Shutdown, limit: Duration) -> Result<(), PostmasterError> {
        if self.wait_for_exit(Duration::ZERO)?.is_some() {
            return Ok(());
        }
        self.signal(mode.signal())?;
        if self.wait_for_exit(limit)?.is_some() {
            return Ok(());
        }
        let log = self.log_tail(QUOTED_LINES);
        self.kill_with_backends()?;
        Err(PostmasterError::Stuck {
            dir: self.cluster.data_dir.clone(),
            seconds: limit.as_secs(),
            mode,
            log,
        })
    }

    fn kill_with_backends(&mut self) -> Result<(), PostmasterError> {
        if self.wait_for_exit(Duration::ZERO)?.is_some() {
            return Ok(());
        }
        // Stopped, it starts no further backend that we would not know of.
        self.signal(Signal::STOP)?;
        let backends = children_of(self.child.id());
        self.signal(Signal::KILL)?;
        let fail = |error| PostmasterError::io("wait for its server", &self.cluster.data_dir)(error);
        self.child.wait().map_err(fail)?;
        let backends: Vec<&OwnedFd> = backends.iter().collect();
        if !poll_exit(&backends, ORPHANS_WITHIN).map_err(fail)? {
            for backend in &backends {
                // Those that have ended in the meantime need no signal.
                let _ = rustix::process::pidfd_send_signal(backend, Signal::KILL);
            }
            poll_exit(&backends, ORPHANS_WITHIN).map_err(fail)?;
        }
        Ok(())
    }

    fn wait_for_exit(&mut self, limit: Duration) -> Result<Option<ExitStatus>, PostmasterError> {
        let exited = poll_exit(&[&self.pidfd], limit)
            .and_then(|exited| if exited { self.child.wait().map(Some) } else { Ok(None) });
        exited.map_err(|error| PostmasterError::io("wait for its server", &self.cluster.data_dir)(error))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end(Shutdown::Immediate, ORPHANS_WITHIN) {
            tracing::warn!(%error, "a server did not stop when it was dropped");
        }
    }
}

fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn log_since(path: &Path, start: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

fn log_tail(path: &Path, lines: usize) -> String {
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    let text = log_since(path, size.saturating_sub(64 << 10));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_connection_string_are_quoted() {
        for (value, expected) in [
            ("postgres", "postgres"),
            ("/tmp/a-b", "/tmp/a-b"),
            ("", "''"),
            ("a b", "'a b'"),
            (r"o'\x", r"'o\'\\x'"),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }

    #[test]
    fn the_end_of_a_log_is_quoted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"one\ntwo\n\xffthree\n").unwrap();
        assert!(log_tail(file.path(), 2).starts_with("two\n"));
        assert_eq!(log_tail(Path::new("/nonexistent"), 5), "");
    }
}
