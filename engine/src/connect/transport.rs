//! Reading and writing a connected socket, through the ring or by readiness.
//!
//! Invariant: a read that was begun is never dropped half-way by a caller. Its future lives in here until it
//! completes, because a ring goes on filling the buffer of a dropped read, and those bytes would be lost.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use socket2::{Domain, Socket};
use tokio::net::{TcpStream, UnixStream};

use super::runtime::ring_is_running;
use super::socket::Wire;

enum Stream {
    /// tokio-uring's wrapper serves any stream socket: its reads and writes name nothing but the descriptor.
    Uring(tokio_uring::net::TcpStream),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The result of a read, and the buffer, whose length is what it was.
type Read = (io::Result<usize>, Vec<u8>);

/// A connected socket. Dropping it ends the connection.
pub(super) struct Transport {
    stream: Rc<Stream>,
    wire: Arc<Wire>,
    pending: Option<Pin<Box<dyn Future<Output = Read>>>>,
    /// Whether a write was begun whose end nobody has seen.
    writing: bool,
    /// Whether the connection outlives this transport.
    released: bool,
}

impl Transport {
    /// Takes a connected, non-blocking socket.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let wire = Wire::new(&socket)?;
        let stream = if ring_is_running() {
            // A ring returns EAGAIN from a non-blocking socket instead of waiting.
            socket.set_nonblocking(false)?;
            Stream::Uring(tokio_uring::net::TcpStream::from_std(OwnedFd::from(socket).into()))
        } else if socket.domain()? == Domain::UNIX {
            Stream::Unix(UnixStream::from_std(OwnedFd::from(socket).into())?)
        } else {
            Stream::Tcp(TcpStream::from_std(socket.into())?)
        };
        Ok(Self { stream: Rc::new(stream), wire, pending: None, writing: false, released: false })
    }

    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Reads into `buffer`, which must not be empty, and gives it back with the count of bytes.
    ///
    /// May be dropped and called again: the read goes on, and the next call returns its result. The buffer is
    /// taken only where no read is pending.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let pending = self.pending.get_or_insert_with(|| {
            let (stream, taken) = (Rc::clone(&self.stream), std::mem::take(buffer));
            Box::pin(async move { stream.read(taken).await })
        });
        let (result, taken) = pending.as_mut().await;
        self.pending = None;
        *buffer = taken;
        result
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The socket's; and one of kind `Other` after an earlier write was dropped before its end, as nobody knows
    /// how much of it was sent.
    pub(super) async fn write(&mut self, bytes: BytesMut) -> io::Result<()> {
        if std::mem::replace(&mut self.writing, true) {
            return Err(io::Error::other("an earlier message was sent in part"));
        }
        self.stream.write(bytes).await?;
        self.writing = false;
        Ok(())
    }

    /// Lets go of the socket without ending the connection.
    ///
    /// # Errors
    /// Gives the transport back where a read is pending, which would take bytes away from whoever reads next.
    pub(super) fn release(mut self) -> Result<Arc<Wire>, Self> {
        if self.pending.is_some() || self.writing {
            return Err(self);
        }
        self.released = true;
        Ok(Arc::clone(&self.wire))
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // A read that is still in the ring completes now; the runtime would wait for it forever otherwise.
        if !self.released {
            self.wire.shut_down();
        }
    }
}

impl Stream {
    async fn read(&self, mut buffer: Vec<u8>) -> Read {
        if let Self::Uring(stream) = self {
            return stream.read(buffer).await;
        }
        loop {
            let result = match self {
                Self::Uring(_) => unreachable!("read above"),
                Self::Tcp(stream) => stream.readable().await.and_then(|()| stream.try_read(&mut buffer)),
                Self::Unix(stream) => stream.readable().await.and_then(|()| stream.try_read(&mut buffer)),
            };
            // Readiness may be a false alarm.
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return (result, buffer);
            }
        }
    }

    async fn write(&self, bytes: BytesMut) -> io::Result<()> {
        if let Self::Uring(stream) = self {
            return stream.write_all(Vec::from(bytes)).await.0;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let result = match self {
                Self::Uring(_) => unreachable!("written above"),
                Self::Tcp(stream) => stream.writable().await.and_then(|()| stream.try_write(rest)),
                Self::Unix(stream) => stream.writable().await.and_then(|()| stream.try_write(rest)),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
