//! Runs the program under test, and judges how it ended.
//!
//! Every run has a time limit, after which the process is killed by its own id and the test fails: a hang is a failure
//! like any other. The program gets a process group of its own; a process of that group that is still there when the
//! program has ended is an orphan, and fails the test too.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pgstrata::postmaster::Unprivileged;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::collector::Collector;
use crate::terminal::{self, Keyboard};
use crate::{Scratch, artifacts};

/// How long a run may take unless a test says otherwise.
const LIMIT: Duration = Duration::from_secs(300);

/// Prepares to run `pgstrata` with these arguments.
#[must_use]
pub fn pgstrata<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Invocation {
    Invocation::new(artifacts::pgstrata_program(), arguments)
}

/// Prepares to run a copy of `pgstrata` in a scratch directory as the account that servers run as, where that is another
/// one than ours: for what root may do and others may not.
///
/// # Panics
/// Where there is no such account, or it cannot get at the directory.
#[must_use]
pub fn unprivileged_pgstrata<S: AsRef<OsStr>>(
    scratch: &Scratch,
    arguments: impl IntoIterator<Item = S>,
) -> Invocation {
    let program = scratch.join("pgstrata");
    if !program.exists() {
        fs::copy(artifacts::pgstrata_program(), &program).expect("the scratch directory is writable");
    }
    let account = Unprivileged::resolve().unwrap_or_else(|error| panic!("{error}"));
    account.reach(&program).unwrap_or_else(|error| panic!("{error}"));
    let mut command = account.command(&program);
    command.args(arguments);
    Invocation { command, stdout: None, limit: LIMIT }
}

/// A program that is not running yet.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdout: Option<File>,
    limit: Duration,
}

impl Invocation {
    /// Prepares to run any program with nothing of our `PG*` environment and with messages in English.
    #[must_use]
    pub fn new<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
        Self { command, stdout: None, limit: LIMIT }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it with this file mode creation mask.
    #[must_use]
    pub fn umask(mut self, mask: u32) -> Self {
        // SAFETY: umask is async-signal-safe and cannot fail.
        unsafe {
            self.command.pre_exec(move || {
                libc::umask(mask);
                Ok(())
            });
        }
        self
    }

    /// Runs it in a directory.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sends standard output to a file or device instead of collecting it.
    ///
    /// # Panics
    /// Where it cannot be opened.
    #[must_use]
    pub fn stdout_to(mut self, path: &Path) -> Self {
        let file = File::options().write(true).create(true).truncate(true).open(path);
        self.stdout = Some(file.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        self
    }

    /// Kills it, and fails the test, after this time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// As [`Running::wait`].
    #[track_caller]
    #[must_use]
    pub fn run(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn spawn(mut self) -> Running {
        self.command.stderr(Stdio::piped()).process_group(0);
        self.start(None)
    }

    /// Starts it at a terminal: its standard error is what it draws there, and its prompts read the keyboard.
    ///
    /// # Panics
    /// Where it cannot be started, or the system has no terminal left.
    #[track_caller]
    #[must_use]
    pub fn spawn_at_terminal(mut self) -> (Running, Keyboard) {
        let attached = terminal::attach(&mut self.command);
        let (keyboard, screen) = attached.unwrap_or_else(|error| panic!("no terminal: {error}"));
        (self.start(Some(screen)), keyboard)
    }

    #[track_caller]
    fn start(mut self, screen: Option<File>) -> Running {
        let command_line = format!("{:?}", self.command);
        self.command.stdout(self.stdout.map_or_else(Stdio::piped, Stdio::from));
        // A program that was just copied may still be open for writing in a child that another thread has forked and
        // that has not become another program yet.
        let begun = Instant::now();
        let mut child = loop {
            match self.command.spawn() {
                Err(error)
                    if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && begun.elapsed() < Duration::from_secs(10) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                spawned => break spawned.unwrap_or_else(|error| panic!("{command_line}: {error}")),
            }
        };
        // The command holds the other end of the terminal: as long as it does, the screen has no end.
        drop(self.command);
        let pidfd =
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("our own child");
        let stdout = Collector::new(child.stdout.take());
        let stderr = match screen {
            Some(screen) => Collector::new(Some(screen)),
            None => Collector::new(child.stderr.take()),
        };
        Running {
            command_line,
            child,
            pidfd,
            stdout,
            stderr,
            started: Instant::now(),
            limit: self.limit,
            reaped: false,
        }
    }
}

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    command_line: String,
    child: Child,
    pidfd: OwnedFd,
    stdout: Collector,
    stderr: Collector,
    started: Instant,
    limit: Duration,
    reaped: bool,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal; of no effect where it has ended.
    pub fn signal(&self, signal: Signal) {
        // Not yet waited for, the process is there at least as a zombie, so this reaches nobody else.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits until its standard error holds a text.
    ///
    /// # Panics
    /// Where it ends, or its time limit passes, first.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        let found = self.stderr.wait_for(text, self.limit.saturating_sub(self.started.elapsed()));
        assert!(found, "{}: never said {text:?} but:\n{}", self.command_line, self.stderr.text());
    }

    /// What it has said on standard error so far.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// Where it does not end within its limit (it is killed then), or leaves processes behind (they are killed too).
    #[track_caller]
    #[must_use]
    pub fn wait(mut self) -> Finished {
        let in_time = self.ends_within(self.limit.saturating_sub(self.started.elapsed()));
        if !in_time {
            self.signal(Signal::KILL);
        }
        let (status, usage) = self.reap();
        let wall = self.started.elapsed();
        let orphans = kill_group(self.child.id());
        let finished = Finished {
            command_line: self.command_line.clone(),
            status,
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            wall,
            cpu: usage.cpu,
            peak_memory: usage.peak_memory,
        };
        assert!(in_time, "killed, because it did not end within {:?}: {finished}", self.limit);
        assert!(orphans.is_empty(), "left processes behind, {orphans:?}: {finished}");
        finished
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a limit of less than centuries");
            match rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ended => return ended.expect("a process can be waited for") > 0,
            }
        }
    }

    /// Waits for the process, which has ended or is about to, and learns what it used.
    fn reap(&mut self) -> (ExitStatus, Usage) {
        self.reaped = true;
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        let mut status = 0;
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        loop {
            // SAFETY: both pointers are to live variables of the right types; all-zero bytes are a valid `rusage`.
            let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
            if reaped == pid {
                break;
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{}: {error}", self.command_line);
        }
        // SAFETY: it was zeroed, which is a valid value, and then filled by the kernel.
        let usage = unsafe { usage.assume_init() };
        (ExitStatus::from_raw(status), Usage::from(usage))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::KILL);
            self.reap();
            kill_group(self.child.id());
        }
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    command_line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub wall: Duration,
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Peak resident memory in bytes.
    pub peak_memory: u64,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless it exited with 0.
    ///
    /// # Panics
    /// With everything that it said.
    #[track_caller]
    pub fn expect_success(&self) -> &Self {
        assert!(self.status.success(), "expected success: {self}");
        self
    }

    /// Fails the test unless it exited with 1 and said something on standard error.
    ///
    /// # Panics
    /// With everything that it said.
    #[track_caller]
    pub fn expect_failure(&self) -> &Self {
        assert_eq!(self.status.code(), Some(1), "expected exit status 1: {self}");
        assert!(!self.stderr.is_empty(), "failed without a word: {self}");
        // A panic of the program ends with status 101, but one of its threads may not end it.
        assert!(!self.stderr_text().contains("panicked at"), "{self}");
        self
    }

    /// Fails the test unless it was ended by that signal.
    ///
    /// # Panics
    /// With everything that it said.
    #[track_caller]
    pub fn expect_killed_by(&self, signal: Signal) -> &Self {
        assert_eq!(self.status.signal(), Some(signal.as_raw()), "expected to end by {signal:?}: {self}");
        self
    }

    /// Fails the test unless standard error holds the text.
    ///
    /// # Panics
    /// With everything that it said.
    #[track_caller]
    pub fn expect_stderr(&self, text: &str) -> &Self {
        assert!(self.stderr_text().contains(text), "expected {text:?} on standard error: {self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} after {:?}", self.command_line, self.status, self.wall)?;
        writeln!(f, "--- stdout\n{}--- stderr\n{}---", self.stdout_text(), self.stderr_text())
    }
}

struct Usage {
    cpu: Duration,
    peak_memory: u64,
}

impl From<libc::rusage> for Usage {
    fn from(usage: libc::rusage) -> Self {
        let time = |time: libc::timeval| {
            let (seconds, micros) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
            Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_micros(micros.unwrap_or(0))
        };
        // getrusage(2): ru_maxrss is in KiB.
        let peak_memory = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
        Self { cpu: time(usage.ru_utime) + time(usage.ru_stime), peak_memory }
    }
}

/// Kills what is left of a process group whose leader has ended, and names it. The group's number is not given to
/// another process as long as the group has members.
fn kill_group(group: u32) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let handle = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (group_in_stat(&stat)? == group).then_some(())?;
        rustix::process::pidfd_send_signal(handle, Signal::KILL).ok()?;
        Some(stat.split(' ').take(2).collect::<Vec<_>>().join(" "))
    })
    .collect()
}

/// The fifth field of proc_pid_stat(5), where the process is no zombie. The second is a name in parentheses that may
/// hold anything.
fn group_in_stat(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.next().filter(|state| *state != "Z")?;
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Invocation {
        Invocation::new(Path::new("/bin/sh"), ["-c", script])
    }

    #[test]
    fn output_status_and_use_are_collected() {
        let finished = shell("echo out; echo err >&2; exit 1").run();
        assert_eq!((finished.stdout_text().as_str(), finished.stderr_text().as_str()), ("out\n", "err\n"));
        finished.expect_failure().expect_stderr("err");
        assert!(finished.peak_memory > 100_000, "{}", finished.peak_memory);
        shell("true").run().expect_success();
    }

    #[test]
    fn signals_reach_a_program_that_said_it_is_ready() {
        let running = shell("echo ready >&2; exec sleep 600").spawn();
        running.wait_for_stderr("ready");
        assert!(running.is_running());
        running.signal(Signal::TERM);
        running.wait().expect_killed_by(Signal::TERM);
    }

    #[test]
    fn a_program_at_a_terminal_draws_on_it_and_reads_its_keyboard() {
        let script = "test -t 2 && printf 'name? ' > /dev/tty; read name < /dev/tty; echo \"$name\"; stty size >&2 <&2";
        let (running, mut keyboard) = shell(script).spawn_at_terminal();
        running.wait_for_stderr("name? ");
        keyboard.type_text("postgres\n");
        let finished = running.wait();
        assert_eq!(finished.expect_success().stdout_text(), "postgres\n");
        finished.expect_stderr("30 100");
        let (running, mut keyboard) = shell("echo ready >&2; exec sleep 600").spawn_at_terminal();
        running.wait_for_stderr("ready");
        keyboard.type_text("\x03");
        running.wait().expect_killed_by(Signal::INT);
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_hang_fails() {
        let _ = shell("exec sleep 600").limit(Duration::from_millis(50)).run();
    }

    #[test]
    #[should_panic(expected = "left processes behind")]
    fn an_orphan_fails() {
        let _ = shell("sleep 600 & true").run();
    }
}
