//! Watches processes by handles that cannot come to mean another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// Waits until all processes have ended; false where the time was up first.
pub(super) fn poll_exit(processes: &[&OwnedFd], limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    for process in processes {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

/// Handles on the processes whose parent is `parent`. Those that end while we look are left out.
pub(super) fn children_of(parent: u32) -> Vec<OwnedFd> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let open = || rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
        let handle = open()?;
        // The number was read before the handle was opened: only now is it sure whose child this is.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (parent_in_stat(&stat)? == parent).then_some(handle)
    })
    .collect()
}

/// The fourth field of proc_pid_stat(5). The second is a name in parentheses that may hold anything.
fn parent_in_stat(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_whatever_the_name() {
        for (stat, expected) in [
            ("12 (postgres) S 7 12 12 0", Some(7)),
            ("12 (a) b) (c) R 99 1", Some(99)),
            ("12 (x) S", None),
            ("", None),
        ] {
            assert_eq!(parent_in_stat(stat), expected, "{stat}");
        }
    }
}
