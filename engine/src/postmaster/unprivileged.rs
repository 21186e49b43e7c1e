//! The account that server programs run as.
//!
//! PostgreSQL refuses to run as root. When we are root, every server program is started as `postgres`, else as
//! `nobody`, without supplementary groups, and what it needs to write is given to that account. When we are not
//! root, everything is ours and nothing changes hands.
//! Never changes the credentials of this process.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PostmasterError;

/// Accounts to try, in order, when we are root.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// How server programs are started so that they do not run as root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unprivileged {
    account: Option<Account>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Unprivileged {
    /// Decides who runs the servers that this process starts.
    ///
    /// # Errors
    /// [`PostmasterError::NoAccount`] when we are root and no unprivileged account exists.
    pub fn resolve() -> Result<Self, PostmasterError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { account: None });
        }
        let passwd = Path::new("/etc/passwd");
        let text = fs::read(passwd).map_err(PostmasterError::io("read the account list", passwd))?;
        find_account(&String::from_utf8_lossy(&text), &ACCOUNTS)
            .map(|account| Self { account: Some(account) })
            .ok_or_else(|| PostmasterError::NoAccount { tried: ACCOUNTS.join(", ") })
    }

    /// The account's name, or `None` where servers run as the caller.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.account.as_ref().map(|account| account.name.as_str())
    }

    /// A command that runs as the server's account, in `/`, with messages in English, no input, and nothing of the
    /// caller's `PG*` environment.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env_remove("LANGUAGE").current_dir("/").stdin(Stdio::null());
        if let Some(account) = &self.account {
            // The standard library drops supplementary groups when root sets a user id.
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Gives one file or directory (a link itself, never its target) to the server's account.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] naming the path.
    pub fn own(&self, path: &Path) -> Result<(), PostmasterError> {
        let Some(account) = &self.account else { return Ok(()) };
        lchown(path, Some(account.uid), Some(account.gid))
            .map_err(PostmasterError::io("give it to the server's account", path))
    }

    /// Gives a directory and all below it to the server's account, following no link.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] naming the path that failed.
    pub fn own_tree(&self, root: &Path) -> Result<(), PostmasterError> {
        if self.account.is_none() {
            return Ok(());
        }
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            self.own(&path)?;
            let is_dir = fs::symlink_metadata(&path).map_err(PostmasterError::io("look at", &path))?.is_dir();
            if is_dir {
                for entry in fs::read_dir(&path).map_err(PostmasterError::io("list", &path))? {
                    pending.push(entry.map_err(PostmasterError::io("list", &path))?.path());
                }
            }
        }
        Ok(())
    }

    /// Creates a directory with mode 0700, owned by the server's account. Its parent must exist.
    ///
    /// # Errors
    /// [`PostmasterError::Io`] naming the path, also where it exists already.
    pub fn create_dir(&self, path: &Path) -> Result<(), PostmasterError> {
        fs::DirBuilder::new().mode(0o700).create(path).map_err(PostmasterError::io("create", path))?;
        self.own(path)
    }

    /// Checks that the server's account can search every directory above `path`.
    ///
    /// # Errors
    /// [`PostmasterError::Unreachable`] naming the first directory that is closed to it.
    pub fn reach(&self, path: &Path) -> Result<(), PostmasterError> {
        let Some(account) = &self.account else { return Ok(()) };
        let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        let path = path.map_err(PostmasterError::io("resolve", Path::new(".")))?;
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        for dir in above {
            let meta = match fs::metadata(dir) {
                Ok(meta) => meta,
                // What does not exist yet is created by us, with a mode of our choice.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(PostmasterError::io("look at", dir)(error)),
            };
            if !account.may_search(&meta) {
                return Err(PostmasterError::Unreachable {
                    path: path.clone(),
                    account: account.name.clone(),
                    blocker: dir.to_owned(),
                    mode: meta.mode() & 0o7777,
                });
            }
        }
        Ok(())
    }

    /// Picks a directory for scratch data: `preferred` where the server's account can reach it, else one of our own
    /// under `/var/tmp` or `/tmp`. Creates it, mode 0755.
    ///
    /// # Errors
    /// Why `preferred` does not do, when nothing else does either.
    pub fn scratch_base(&self, preferred: &Path) -> Result<PathBuf, PostmasterError> {
        let first = match self.reach(&preferred.join("x")) {
            Ok(()) => match self.make_base(preferred) {
                Ok(()) => return Ok(preferred.to_owned()),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let own = format!("pgstrata-{}", rustix::process::geteuid().as_raw());
        for shared in ["/var/tmp", "/tmp"] {
            let base = Path::new(shared).join(&own);
            if self.reach(&base.join("x")).is_ok() && self.make_base(&base).is_ok() {
                return Ok(base);
            }
        }
        Err(first)
    }

    fn make_base(&self, base: &Path) -> Result<(), PostmasterError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(base)
            .map_err(PostmasterError::io("create", base))?;
        // In a folder that everyone may write to, someone else may have been first.
        let meta = fs::symlink_metadata(base).map_err(PostmasterError::io("look at", base))?;
        let ours = meta.uid() == rustix::process::geteuid().as_raw();
        if !meta.is_dir() || !ours || meta.mode() & 0o022 != 0 {
            return Err(PostmasterError::Unsafe {
                path: base.to_owned(),
                found: format!("owner {}, mode {:06o}", meta.uid(), meta.mode()),
            });
        }
        // The mode above went through our umask, which may close it to everyone else.
        if meta.mode() & 0o055 != 0o055 {
            fs::set_permissions(base, Permissions::from_mode(0o755))
                .map_err(PostmasterError::io("open to everyone", base))?;
        }
        self.reach(&base.join("x"))
    }
}

impl Account {
    /// Whether the search bit that applies to this account is set. Access control lists are not consulted.
    fn may_search(&self, meta: &Metadata) -> bool {
        let search_bit = if meta.uid() == self.uid {
            0o100
        } else if meta.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        meta.mode() & search_bit != 0
    }
}

/// Finds the first of `names` in the text of a passwd(5) file. Root under another name does not count.
fn find_account(passwd: &str, names: &[&str]) -> Option<Account> {
    names.iter().find_map(|name| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == *name).then_some(())?;
            let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account { name: (*name).to_owned(), uid, gid })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_come_from_passwd_in_order_and_are_never_root() {
        let nobody = Some(Account { name: "nobody".into(), uid: 65534, gid: 65533 });
        for (text, expected) in [
            ("root:x:0:0::/:/bin/sh\nnobody:x:65534:65533:n:/:/bin/false\n", nobody.clone()),
            ("postgres:x:0:0::/:/bin/sh\nnobody:x:65534:65533::/:", nobody.clone()),
            ("postgres:x:many:1::/:\nnobody:x:65534:65533::/:", nobody),
            (
                "nobody:x:65534:65534::/:\npostgres:x:101:104:P,,,:/var:/bin/bash",
                Some(Account { name: "postgres".into(), uid: 101, gid: 104 }),
            ),
            ("postgresql:x:5:5::/:/\n:::\n\n", None),
        ] {
            assert_eq!(find_account(text, &ACCOUNTS), expected, "{text:?}");
        }
    }

    #[test]
    fn a_closed_parent_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        // An account that owns nothing here, whoever runs the test.
        let account = Account { name: "stranger".into(), uid: u32::MAX - 2, gid: u32::MAX - 2 };
        let stranger = Unprivileged { account: Some(account) };
        match stranger.reach(&closed.join("pgdata")) {
            Err(PostmasterError::Unreachable { blocker, mode, .. }) => {
                assert_eq!((blocker, mode), (fs::canonicalize(&closed).unwrap(), 0o700));
            }
            other => panic!("{other:?}"),
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).unwrap();
        stranger.reach(&closed.join("pgdata")).unwrap();
    }
}
