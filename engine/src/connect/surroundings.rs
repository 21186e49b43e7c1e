//! What settings are resolved against: environment variables, the operating system user, well-known folders.
//!
//! Gathered in one place and passed in, so that resolving is a pure function of its arguments.

use std::env;
use std::ffi::{CStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where Debian's and Red Hat's servers put their sockets.
const PACKAGED_SOCKETS: &str = "/var/run/postgresql";
/// `DEFAULT_PGSOCKET_DIR` of `pg_config_manual.h`, for servers built from source.
const BUILT_SOCKETS: &str = "/tmp";

/// The process' surroundings, or invented ones for a test.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The name of the operating system user, where it has one.
    pub os_user: Option<String>,
    /// The user's home folder, where `.pgpass` is looked for.
    pub home: Option<PathBuf>,
    /// The folder of the Unix socket to connect to when no host is given.
    pub socket_directory: PathBuf,
}

impl Surroundings<'static> {
    /// Those of this process.
    ///
    /// The socket folder is `/var/run/postgresql` where that exists and `/tmp` otherwise. It is never looked
    /// for in both: anyone may put a socket into `/tmp` while the server is down, and collect passwords.
    #[must_use]
    pub fn of_process() -> Self {
        let account = account(rustix::process::geteuid().as_raw());
        let home = env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let (os_user, account_home) = account.unzip();
        let socket_directory = match Path::new(PACKAGED_SOCKETS) {
            packaged if packaged.is_dir() => packaged,
            _ => Path::new(BUILT_SOCKETS),
        };
        Self {
            variable: &|name| env::var_os(name),
            os_user,
            home: home.or(account_home),
            socket_directory: socket_directory.to_owned(),
        }
    }
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("os_user", &self.os_user)
            .field("home", &self.home)
            .field("socket_directory", &self.socket_directory)
            .finish_non_exhaustive()
    }
}

/// Name and home folder of a user, as the system's account databases have them.
pub(super) fn account(user: u32) -> Option<(String, PathBuf)> {
    // 64 KiB holds any sane entry; a larger one counts as none.
    let mut strings = vec![0 as libc::c_char; 64 << 10];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live, writable memory of the sizes given, for the duration of the call.
    let status = unsafe {
        libc::getpwuid_r(user, entry.as_mut_ptr(), strings.as_mut_ptr(), strings.len(), &raw mut found)
    };
    if status != 0 || found.is_null() {
        return None;
    }
    // SAFETY: getpwuid_r returned 0 and set `found`, so it has filled `entry` with pointers to
    // NUL-terminated strings in `strings`, which is still alive and not borrowed mutably.
    let (name, home) = unsafe {
        let entry = entry.assume_init_ref();
        (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir))
    };
    Some((name.to_str().ok()?.to_owned(), PathBuf::from(home.to_str().ok()?)))
}
