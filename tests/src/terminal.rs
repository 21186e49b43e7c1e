//! A terminal for the program under test: what it draws there, and a keyboard for its prompts.
//!
//! The program leads a session of its own whose controlling terminal is a new pseudo-terminal. Standard error and
//! input are that terminal; so is `/dev/tty`, where prompts for passwords read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Our end of the terminal.
#[derive(Debug)]
pub struct Keyboard(File);

impl Keyboard {
    /// Types, as a user would; `\x03` is the interrupt key.
    ///
    /// # Panics
    /// Where the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("the terminal is open");
    }
}

/// Gives `command` a terminal of 100 columns. Returns its keyboard and what reads what is drawn.
pub(crate) fn attach(command: &mut Command) -> io::Result<(Keyboard, File)> {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointers are to live variables; null asks for no name and the default modes.
    let opened = unsafe {
        libc::openpty(&raw mut ours, &raw mut theirs, std::ptr::null_mut(), std::ptr::null(), &raw const size)
    };
    if opened != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just opened and belong to nobody else.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::CLOEXEC)?;
    let terminal = theirs.as_raw_fd();
    command.stdin(theirs.try_clone()?);
    command.stderr(theirs.try_clone()?);
    // SAFETY: both calls are async-signal-safe. The descriptor stays open: the closure owns it.
    unsafe {
        command.pre_exec(move || {
            let _owned = &theirs;
            if libc::setsid() < 0 || libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let screen = File::from(ours);
    Ok((Keyboard(screen.try_clone()?), screen))
}
