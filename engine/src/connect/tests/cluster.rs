//! A scratch cluster of an installed PostgreSQL server, for these tests alone.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::settings;
use crate::connect::SqlClient;

/// Where distributions install servers, one folder a version.
const INSTALLED: &[&str] = &["/usr/lib/postgresql", "/usr/pgsql"];

/// Whoever may connect how. Roles of the tests are called after their method.
const HBA: &str = "\
local all         postgres                trust
local replication postgres                trust
host  all         cleartext 127.0.0.1/32  password
host  replication cleartext 127.0.0.1/32  password
host  all         md5       127.0.0.1/32  md5
host  replication md5       127.0.0.1/32  md5
host  all         scram     127.0.0.1/32  scram-sha-256
host  replication scram     127.0.0.1/32  scram-sha-256
host  all         trusted   127.0.0.1/32  trust
host  replication trusted   127.0.0.1/32  trust
";

/// A running server, stopped and removed on drop.
pub(super) struct Cluster {
    pub(super) bin: PathBuf,
    pub(super) port: u16,
    server: Child,
    // Last: the server is stopped before its files go.
    folder: TempDir,
}

/// The newest installed server's programs.
fn find_bin() -> Option<PathBuf> {
    let versions = INSTALLED.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut bins: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| ["initdb", "postgres"].iter().all(|program| bin.join(program).is_file()))
        .collect();
    bins.sort();
    bins.pop().map(|(_, bin)| bin)
}

/// A command that does not run as root, which PostgreSQL refuses.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        let (user, group) = nobody();
        command.uid(user).gid(group);
    }
    command.env_clear().env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
    command
}

fn nobody() -> (u32, u32) {
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("nobody:")).expect("an account nobody");
    let mut numbers = line.split(':').skip(2).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn checked(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    /// Makes and starts a cluster, or says why there is none.
    pub(super) fn start() -> Option<Self> {
        let Some(bin) = find_bin() else {
            println!("skipped: no PostgreSQL server in {INSTALLED:?}");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("pgstrata-connect-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if rustix::process::geteuid().is_root() {
            let (user, group) = nobody();
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let data = folder.path().join("data");
        let mut initdb = unprivileged(&bin.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "-D"]).arg(&data);
        checked(&initdb.output().unwrap());
        fs::write(data.join("pg_hba.conf"), HBA).unwrap();

        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let server = unprivileged(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-k"])
            .arg(folder.path())
            .args(["-h", "127.0.0.1", "-c", "fsync=off", "-c", "wal_level=replica"])
            .stderr(log)
            .spawn()
            .unwrap();
        let mut cluster = Self { bin, port, server, folder };
        cluster.wait_until_ready();
        Some(cluster)
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let settings = settings(&self.local());
        while let Err(error) = SqlClient::connect(&settings) {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(self.server.try_wait().unwrap().is_none(), "the server ended: {log}");
            assert!(Instant::now() < deadline, "{error}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection string for the superuser over the Unix socket.
    pub(super) fn local(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.folder.path().display(), self.port)
    }

    /// A connection string for a role over TCP.
    pub(super) fn tcp(&self, role: &str) -> String {
        format!("hostaddr=127.0.0.1 port={} user={role} dbname=postgres", self.port)
    }

    /// A file that only this user may read.
    pub(super) fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut file = fs::File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// Ends the server at once, as `pg_ctl stop -m immediate` does.
    pub(super) fn stop_at_once(&self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap()).unwrap();
        let _ = kill_process(pid, Signal::QUIT);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_at_once();
        let _ = self.server.wait();
    }
}
