//! Explains, in words for the operator, why the kernel refused a ring or the registration of its buffers.

use crate::buffer::BufferPool;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::io;

/// Whether the pool's buffers are registered with the ring, which spares pinning them for each operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// They are.
    Yes,
    /// Plain operations are used instead, for this reason.
    No(String),
}

/// Whether registering `pool` is worth a try, or why not.
pub(super) fn worth_trying(pool: &BufferPool) -> Result<(), String> {
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK));
    decide(pool.count().saturating_mul(pool.buffer_size()), memlock_limit(), privileged)
}

/// The limit is the user's, not the process's, and a ring's own memory counts too (from kernel 6.14 on). A
/// registration that takes most of it would starve the rings that are opened next, so it may take a quarter.
fn decide(bytes: usize, limit: Option<u64>, privileged: bool) -> Result<(), String> {
    match limit {
        Some(limit) if !privileged && bytes as u64 > limit / 4 => Err(format!(
            "{bytes} bytes of buffers are more than a quarter of the locked-memory limit of {limit} bytes (ulimit -l)"
        )),
        _ => Ok(()),
    }
}

/// Why registering `pool` failed with `error`.
pub(super) fn refused(error: &io::Error, pool: &BufferPool) -> String {
    let bytes = pool.count().saturating_mul(pool.buffer_size());
    why_not_registered(error, bytes, memlock_limit())
}

/// The soft limit on locked memory, in bytes; none when it is unlimited.
pub(super) fn memlock_limit() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

fn why_not_registered(error: &io::Error, bytes: usize, limit: Option<u64>) -> String {
    match (error.raw_os_error().map(Errno::from_raw_os_error), limit) {
        (Some(Errno::NOMEM), Some(limit)) => format!(
            "{bytes} bytes of buffers exceed what the locked-memory limit of {limit} bytes leaves (ulimit -l)"
        ),
        (Some(Errno::INVAL), _) => format!("the kernel does not take that many buffers or bytes: {error}"),
        _ => format!("registering {bytes} bytes of buffers failed: {error}"),
    }
}

/// Why creating a ring failed with `error`.
pub(super) fn why_no_ring(error: &io::Error) -> String {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    explain_ring_error(error, setting.as_deref().map(str::trim))
}

fn explain_ring_error(error: &io::Error, setting: Option<&str>) -> String {
    match (error.raw_os_error().map(Errno::from_raw_os_error), setting) {
        (Some(Errno::NOSYS), _) => "the kernel has no io_uring, or a sandbox hides it".to_owned(),
        (Some(Errno::PERM), Some(value @ ("1" | "2"))) => {
            format!("disabled by kernel.io_uring_disabled={value}")
        }
        (Some(Errno::PERM | Errno::ACCESS), _) => {
            format!("forbidden, as container sandboxes (seccomp) often do: {error}")
        }
        (Some(Errno::NOMEM), _) => {
            format!("out of memory, or over the locked-memory limit (ulimit -l): {error}")
        }
        _ => format!("creating a ring failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_leaves_room_under_the_limit() {
        let rows = [
            (1 << 20, None, false, true),
            (1 << 20, Some(8 << 20), false, true),
            (2 << 20, Some(8 << 20), false, true),
            ((2 << 20) + 1, Some(8 << 20), false, false),
            (64 << 20, Some(8 << 20), true, true),
            (4096, Some(0), false, false),
        ];
        for (bytes, limit, privileged, expected) in rows {
            let decision = decide(bytes, limit, privileged);
            assert_eq!(decision.is_ok(), expected, "{bytes} {limit:?} {privileged}: {decision:?}");
        }
    }

    #[test]
    fn a_refused_registration_names_the_limit() {
        let rows: [(i32, Option<u64>, &str); 4] = [
            (libc::ENOMEM, Some(65536), "locked-memory limit of 65536 bytes"),
            (libc::ENOMEM, None, "failed: Cannot allocate memory"),
            (libc::EINVAL, Some(65536), "does not take that many"),
            (libc::EFAULT, None, "failed: Bad address"),
        ];
        for (errno, limit, expected) in rows {
            let why = why_not_registered(&io::Error::from_raw_os_error(errno), 1 << 20, limit);
            assert!(why.contains(expected), "{errno}: {why}");
        }
    }

    #[test]
    fn a_refused_ring_names_who_refuses() {
        let rows = [
            (libc::EPERM, Some("2"), "kernel.io_uring_disabled=2"),
            (libc::EPERM, Some("1"), "kernel.io_uring_disabled=1"),
            (libc::EPERM, Some("0"), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, None, "no io_uring"),
            (libc::ENOMEM, Some("0"), "ulimit -l"),
            (libc::EMFILE, Some("0"), "creating a ring failed"),
        ];
        for (errno, setting, expected) in rows {
            let why = explain_ring_error(&io::Error::from_raw_os_error(errno), setting);
            assert!(why.contains(expected), "{errno} {setting:?}: {why}");
        }
    }
}
