//! A terminal for the program under test: what it draws there, and a keyboard for its prompts.
//!
//! The program leads a session of its own whose controlling terminal is a new pseudo-terminal. Standard error and
//! input are that terminal; so is `/dev/tty`, where prompts for passwords read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::wait_until;

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

    /// Types a secret and Enter, once the terminal no longer shows what is typed.
    ///
    /// # Panics
    /// Where it goes on to show it.
    #[track_caller]
    pub fn type_secret(&mut self, secret: &str) {
        wait_until("the terminal hides what is typed", || !self.echoes());
        self.type_text(&format!("{secret}\n"));
    }

    /// Whether the terminal shows what is typed.
    ///
    /// # Panics
    /// Where the terminal is gone.
    #[must_use]
    pub fn echoes(&self) -> bool {
        let mut modes = std::mem::MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: the descriptor is open, and the pointer is to a live variable of the right type.
        let read = unsafe { libc::tcgetattr(self.0.as_raw_fd(), modes.as_mut_ptr()) };
        assert_eq!(read, 0, "{}", io::Error::last_os_error());
        // SAFETY: it was zeroed, which is a valid value, and then filled.
        unsafe { modes.assume_init() }.c_lflag & libc::ECHO != 0
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
