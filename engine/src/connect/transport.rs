//! Reading and writing a connected socket, through the ring or by readiness, in clear or through TLS.
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
use super::tls::{Tls, TlsStream};
use super::tls_error::TlsError;

/// What is received at a time before it is decrypted: several records, which have up to 16 KiB each.
const WIRE_BUFFER: usize = 128 << 10;

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
    tls: Option<Box<TlsStream>>,
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
        let stream = Rc::new(stream);
        Ok(Self { stream, wire, tls: None, pending: None, writing: false, released: false })
    }

    /// Shakes hands; from then on reads and writes are those of the conversation within.
    ///
    /// # Errors
    /// What went wrong. The server has been told by then, where it can be.
    pub(super) async fn begin_tls(&mut self, mut tls: Tls) -> Result<(), TlsError> {
        let mut wire = vec![0; WIRE_BUFFER];
        let (mut at, mut filled) = (0, 0);
        loop {
            let out = tls.take_output().map_err(TlsError::Io)?;
            if !out.is_empty() {
                self.write_wire(out).await.map_err(TlsError::Io)?;
            }
            if !tls.is_handshaking() {
                self.tls = Some(Box::new(TlsStream { tls, wire, at, filled }));
                return Ok(());
            }
            filled = read_wire(&self.stream, &mut self.pending, &mut wire).await.map_err(TlsError::Io)?;
            if filled == 0 {
                return Err(TlsError::Eof);
            }
            let mut rest = &wire[..filled];
            if let Err(error) = tls.shake_hands(&mut rest) {
                // The server's log should say why; whether it can be told is of no account here.
                if let Ok(alert) = tls.take_output() {
                    let _ = self.write_wire(alert).await;
                }
                return Err(error);
            }
            at = filled - rest.len();
        }
    }

    /// The TLS state, once it is there.
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref().map(|stream| &stream.tls)
    }

    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Reads into `buffer`, which must not be empty, and gives it back with the count of bytes.
    ///
    /// May be dropped and called again: the read goes on, and the next call returns its result. The buffer is
    /// taken only where no read is pending.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let Some(secure) = &mut self.tls else {
            return read_wire(&self.stream, &mut self.pending, buffer).await;
        };
        loop {
            // While a read is pending its buffer is not here, and everything received before is decrypted.
            if self.pending.is_none() {
                let decrypted = secure.decrypt(buffer)?;
                if decrypted > 0 || secure.tls.is_closed() {
                    return Ok(decrypted);
                }
                (secure.at, secure.filled) = (0, 0);
            }
            let received = read_wire(&self.stream, &mut self.pending, &mut secure.wire).await?;
            (secure.at, secure.filled) = (0, received);
            if received == 0 {
                return Ok(0);
            }
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The socket's; and one of kind `Other` after an earlier write was dropped before its end, as nobody knows
    /// how much of it was sent.
    pub(super) async fn write(&mut self, bytes: BytesMut) -> io::Result<()> {
        match &mut self.tls {
            None => self.write_wire(Vec::from(bytes)).await,
            Some(secure) => {
                let out = secure.tls.encrypt(&bytes)?;
                self.write_wire(out).await
            }
        }
    }

    async fn write_wire(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if std::mem::replace(&mut self.writing, true) {
            return Err(io::Error::other("an earlier message was sent in part"));
        }
        self.stream.write(bytes).await?;
        self.writing = false;
        Ok(())
    }

    /// Lets go of the socket, and of the TLS state, without ending the connection.
    ///
    /// # Errors
    /// Gives the transport back where a read is pending, which would take bytes away from whoever reads next.
    pub(super) fn release(mut self) -> Result<(Arc<Wire>, Option<Box<TlsStream>>), Self> {
        if self.pending.is_some() || self.writing {
            return Err(self);
        }
        self.released = true;
        Ok((Arc::clone(&self.wire), self.tls.take()))
    }
}

/// Goes on with the pending read, or begins one into `buffer`.
async fn read_wire(
    stream: &Rc<Stream>,
    pending: &mut Option<Pin<Box<dyn Future<Output = Read>>>>,
    buffer: &mut Vec<u8>,
) -> io::Result<usize> {
    let reading = pending.get_or_insert_with(|| {
        let (stream, taken) = (Rc::clone(stream), std::mem::take(buffer));
        Box::pin(async move { stream.read(taken).await })
    });
    let (result, taken) = reading.as_mut().await;
    *pending = None;
    *buffer = taken;
    result
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

    async fn write(&self, bytes: Vec<u8>) -> io::Result<()> {
        if let Self::Uring(stream) = self {
            return stream.write_all(bytes).await.0;
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
