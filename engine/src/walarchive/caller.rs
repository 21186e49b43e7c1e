//! The process that runs restore_command: whoever outlives it must not touch what the next server reads.
//!
//! A server that dies at once leaves its restore_command behind, and where that is slow, another server may run by the time
//! it is done. It would find a file of another wish under the name that its own command is to write.

use std::fs;

use rustix::process::{Pid, getppid};

use crate::failure::Failure;

/// A shell stands between the server and us, unless it has become us.
const BETWEEN: usize = 2;

/// Who called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Our parent and its own, as far as the server.
    line: Vec<i32>,
}

impl Caller {
    /// Whoever called us, as things are.
    pub(super) fn now() -> Self {
        let mut line = Vec::new();
        let mut next = Pid::as_raw(getppid());
        // What is above the server or is the first process tells nothing.
        while next > 1 && line.len() < BETWEEN {
            line.push(next);
            match parent_of(next) {
                Some((name, parent)) if name != "postgres" && name != "postmaster" => next = parent,
                _ => break,
            }
        }
        Self { line }
    }

    /// Refuses to go on where the caller has ended.
    pub(super) fn expect_alive(&self) -> Result<(), Failure> {
        // A parent that ends gives its children to another one, and so does its own.
        let now = Self::now();
        if now == *self {
            return Ok(());
        }
        Err(Failure::Target(format!(
            "the process that asked for this file has ended (found {:?}, expected {:?})\n\
             HINT: nothing was changed; the next server asks for itself.",
            now.line, self.line
        )))
    }
}

/// A process' name and its parent (`/proc/PID/stat`, proc(5)).
fn parent_of(pid: i32) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((name.to_owned(), parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_is_there_is_the_same() {
        let caller = Caller::now();
        caller.expect_alive().expect("the test's own parent lives");
        let own = std::process::id();
        let own = parent_of(i32::try_from(own).expect("a process id")).expect("we are there");
        assert_eq!(own.1, Pid::as_raw(getppid()));
        let other = Caller { line: vec![i32::MAX] };
        let refused = other.expect_alive().expect_err("another parent").to_string();
        assert!(refused.contains("has ended") && refused.contains("HINT:"), "{refused}");
    }
}
