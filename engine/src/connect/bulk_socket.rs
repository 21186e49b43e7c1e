//! recv(2) on a blocking socket, in large batches.
//!
//! A server writes its stream in pieces of 8 KiB, and a plain receiver is woken for nearly every one of them. On
//! TCP the kernel can be told to wake it for half a megabyte (`SO_RCVLOWAT`), which costs a third of the CPU
//! seconds at the same or a higher rate (docs/benchmarks.md). A batch that does not fill up must not wait
//! forever: its time is limited, and a stream that does not fill batches is received piece by piece instead.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use socket2::{Domain, Socket};

use super::bulk::BulkReceive;
use super::socket::set_low_water_mark;

/// Bytes that the kernel gathers before it wakes the receiver. It takes less by itself where its own limits on
/// receive buffers (`tcp_rmem`) are lower.
pub(super) const BATCH: usize = 512 << 10;
/// How long a batch may gather.
const PATIENCE: Duration = Duration::from_millis(20);
/// A single receive of this much says that the stream flows again.
const FLOWING: usize = 64 << 10;

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
