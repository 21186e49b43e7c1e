//! recv(2) on a blocking socket, in large batches.
//!
//! A server writes its stream in pieces of 8 KiB, and a plain receiver is woken for nearly every one of them. On
//! TCP the kernel can be told to wake it for half a megabyte (`SO_RCVLOWAT`), which costs a third of the CPU
//! seconds at the same or a higher rate (docs/benchmarks.md). A batch that does not fill up must not wait
//! forever: its time is limited, and a stream that does not fill batches is received piece by piece instead.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use socket2::{Domain, Socket};

use super::alarm::Alarm;
use super::bulk::BulkReceive;
use super::socket::set_low_water_mark;

/// Bytes that the kernel gathers before it wakes the receiver. It takes less by itself where its own limits on
/// receive buffers (`tcp_rmem`) are lower.
pub(super) const BATCH: usize = 512 << 10;
/// How long a batch may gather.
const PATIENCE: Duration = Duration::from_millis(20);
/// A single receive of this much says that the stream flows again.
const FLOWING: usize = 64 << 10;

/// What ended a wait.
pub(super) enum Waited {
    /// So many bytes; 0 is the end of the stream.
    Bytes(usize),
    /// The alarm rang.
    Alarm,
    /// The time was over.
    Time,
}

/// A blocking socket.
pub(super) struct SocketReceiver {
    socket: Socket,
    /// Whether the socket heeds a low-water mark: a Unix socket wakes its reader for every piece in any case.
    can_batch: bool,
    batching: bool,
    limit: Option<Duration>,
}

impl SocketReceiver {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let can_batch = socket.domain()? != Domain::UNIX;
        Ok(Self { socket, can_batch, batching: false, limit: None })
    }

    /// Fails with `WouldBlock` where nothing arrives for `limit`.
    pub(super) fn set_limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(limit)?;
        self.limit = limit;
        self.batch(false)
    }

    /// Receives piece by piece from now on: for streams of which each piece is waited for.
    pub(super) fn never_batch(&mut self) -> io::Result<()> {
        self.batch(false)?;
        self.can_batch = false;
        Ok(())
    }

    /// Fails with `WouldBlock` where nothing can be sent for `limit`.
    pub(super) fn set_send_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(limit)
    }

    /// As [`BulkReceive::receive`], but no longer than until `alarm` rings or `deadline` passes.
    pub(super) fn wait(
        &mut self,
        into: &mut [u8],
        alarm: &Alarm,
        deadline: Option<Instant>,
    ) -> io::Result<Waited> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let patience = self.batching.then_some(PATIENCE);
            let timeout = left.into_iter().chain(patience).min();
            let gathering = patience.is_some() && timeout == patience;
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(alarm, PollFlags::IN)];
            match poll(&mut ready, timeout.as_ref()) {
                Ok(0) if !gathering => return Ok(Waited::Time),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !ready[1].revents().is_empty() {
                alarm.silence();
                return Ok(Waited::Alarm);
            }
            // The low-water mark makes the poll wait, not this: it takes what has gathered.
            match rustix::net::recv(&self.socket, &mut *into, RecvFlags::DONTWAIT) {
                Ok((received, _)) => {
                    self.batch(received >= FLOWING)?;
                    return Ok(Waited::Bytes(received));
                }
                Err(rustix::io::Errno::AGAIN) => self.batch(false)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    fn batch(&mut self, batching: bool) -> io::Result<()> {
        if self.can_batch && batching != self.batching {
            set_low_water_mark(&self.socket, if batching { BATCH } else { 1 })?;
            self.socket.set_read_timeout(if batching { Some(PATIENCE) } else { self.limit })?;
            self.batching = batching;
        }
        Ok(())
    }
}

impl BulkReceive for SocketReceiver {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(into) {
                Ok(received) => {
                    self.batch(received >= FLOWING)?;
                    return Ok(received);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.batching && error.kind() == io::ErrorKind::WouldBlock => {
                    self.batch(false)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
