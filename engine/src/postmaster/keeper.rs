//! The thread that all postmasters are started from.
//!
//! Linux sends a child's parent-death signal when the *thread* that forked it ends, so a server started by a short
//! thread would stop with it. Here one thread starts them all and ends only with the process: a server then stops
//! when, and only when, its handle is dropped or this process is gone, however it went.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use rustix::process::Signal;

type Job = (Command, Sender<io::Result<Child>>);

/// What an orphaned postmaster is sent: QUIT is its immediate shutdown, in which it ends its own children too.
const ON_PARENT_DEATH: Signal = Signal::QUIT;

/// Starts a postmaster that does not outlive this process, in a process group of its own, so that a Ctrl-C meant for
/// us does not reach it.
pub(super) fn spawn(mut command: Command) -> io::Result<Child> {
    command.process_group(0);
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(ON_PARENT_DEATH))?;
        // If our parent died before that call, no signal will come.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls may be made. The closure makes two plain system
    // calls, allocates nothing and takes no lock; its error is a bare code.
    unsafe { command.pre_exec(before_exec) };
    let (answer, answered) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts servers is gone");
    keeper()?
        .send((command, answer))
        .map_err(|_| io::Error::other("the thread that starts servers is gone"))?;
    answered.recv().map_err(gone)?
}

fn keeper() -> io::Result<Sender<Job>> {
    static KEEPER: OnceLock<Sender<Job>> = OnceLock::new();
    if let Some(jobs) = KEEPER.get() {
        return Ok(jobs.clone());
    }
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::Builder::new().name("postmaster-keeper".to_owned()).spawn(move || {
        for (mut command, answer) in queue {
            // The asker may have gone; then the child is ours to end.
            if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    })?;
    // Should two callers race here, the loser's thread ends at once, before it started anything.
    Ok(KEEPER.get_or_init(|| jobs).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_survives_the_thread_that_asked_for_it() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut child = thread::spawn(move || spawn(command)).join().unwrap().unwrap();
        // A second round trip through the keeper: the first asker is long gone.
        let mut second = spawn(Command::new("true")).unwrap();
        assert!(second.wait().unwrap().success());
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
