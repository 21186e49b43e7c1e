//! Sockets: addresses, options, connecting, and cancelling from any thread.
//!
//! Connecting is non-blocking and driven by readiness, so that a time limit or a cancelled task drops nothing
//! that the kernel still works on. A connected socket has two owners of one open file description: the
//! [`Wire`], which shuts it down, and the transport that reads and writes it.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::Shutdown;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;

use super::hosts::{Host, Target};
use super::settings::ConnectionSettings;
use super::surroundings;

/// One address to try.
#[derive(Clone, Debug)]
pub(super) struct Place {
    address: Address,
    /// `connection to server at "h" (192.0.2.1), port 5432`, as libpq words it.
    pub(super) name: String,
}

#[derive(Clone, Debug)]
enum Address {
    Unix(SockAddr),
    Tcp(SocketAddr),
}

/// Where a host is.
///
/// # Errors
/// The resolver's; never an empty list.
pub(super) async fn places(host: &Host) -> io::Result<Vec<Place>> {
    let port = host.port;
    match &host.target {
        Target::Unix { directory } => {
            let path = host.unix_socket().unwrap_or_default();
            let address = match directory.as_os_str().as_bytes() {
                [b'@', ..] => abstract_address(&path)?,
                _ => SockAddr::unix(&path)?,
            };
            let name = format!("connection to server on socket \"{}\"", path.display());
            Ok(vec![Place { address: Address::Unix(address), name }])
        }
        Target::Tcp { host, address } => {
            let shown = if host.is_empty() { address.clone().unwrap_or_default() } else { host.clone() };
            let wanted = address.as_ref().unwrap_or(host).clone();
            let look_up = move || (wanted.as_str(), port).to_socket_addrs();
            let found = tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)??;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found {
                // The resolver may name an address twice, for instance from /etc/hosts.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            let place = |address: SocketAddr| {
                let ip = address.ip().to_string();
                let ip = if ip == shown { String::new() } else { format!(" ({ip})") };
                let name = format!("connection to server at \"{shown}\"{ip}, port {port}");
                Place { address: Address::Tcp(address), name }
            };
            Ok(addresses.into_iter().map(place).collect())
        }
    }
}

impl Place {
    /// Whether no network lies between.
    pub(super) fn is_unix(&self) -> bool {
        matches!(self.address, Address::Unix(_))
    }
}

/// The operating system user that the process at the other end of a Unix socket runs as.
///
/// # Errors
/// The operating system's, and where that user has no name.
pub(super) fn peer_user(socket: &Socket) -> io::Result<String> {
    let user = rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw();
    surroundings::account(user).map(|(name, _)| name).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("could not look up local user ID {user}"))
    })
}

/// `@name` as socket2 takes it: a leading zero byte stands for the abstract namespace.
fn abstract_address(path: &Path) -> io::Result<SockAddr> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if let Some(first) = name.first_mut() {
        *first = 0;
    }
    SockAddr::unix(OsStr::from_bytes(&name))
}

/// Connects; the socket is left non-blocking.
pub(super) async fn connect(place: &Place, settings: &ConnectionSettings) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    match &place.address {
        Address::Unix(address) => {
            // Such a socket connects at once, or says EAGAIN where the server's queue is full, as to libpq.
            let socket = Socket::new(Domain::UNIX, kind, None)?;
            socket.connect(address)?;
            Ok(socket)
        }
        Address::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), kind, None)?;
            set_options(&socket, settings)?;
            let stream = TcpSocket::from_std_stream(socket.into()).connect(*address).await?;
            Ok(stream.into_std()?.into())
        }
    }
}

fn set_options(socket: &Socket, settings: &ConnectionSettings) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(settings.keepalive.enabled)?;
    if settings.keepalive.enabled {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = settings.keepalive.idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = settings.keepalive.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = settings.keepalive.count {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if settings.tcp_user_timeout.is_some() {
        socket.set_tcp_user_timeout(settings.tcp_user_timeout)?;
    }
    Ok(())
}

/// Makes blocking receives wait for `bytes` (`SO_RCVLOWAT`, socket(7)), which socket2 has no call for.
pub(super) fn set_low_water_mark(socket: &Socket, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the pointer and the length are
    // those of a live integer, which is what this option takes.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            length,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A connection's own reference to its socket.
pub(super) struct Wire {
    socket: OwnedFd,
    cancelled: AtomicBool,
}

impl Wire {
    pub(super) fn new(socket: &Socket) -> io::Result<Arc<Self>> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        Ok(Arc::new(Self { socket, cancelled: AtomicBool::new(false) }))
    }

    /// Ends both directions at once: every blocked or later read and write returns.
    pub(super) fn shut_down(&self) {
        // It fails only on a socket that is not connected any more, which is what is wanted.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// As [`Self::shut_down`], for a connection whose other end may still be sending: the last descriptor that is
    /// closed resets it.
    ///
    /// A reader that has drained the socket while it is shut down announces no new window. Without a reset the server
    /// would wait for room until the kernel forgets the socket, a minute or more, with its walsender and slot active.
    pub(super) fn abandon(&self) {
        // Local sockets know no such thing; there a closed end is seen at once.
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        self.shut_down();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Another descriptor of the same socket, set to block.
    pub(super) fn blocking_socket(&self) -> io::Result<Socket> {
        SockRef::from(&self.socket).set_nonblocking(false)?;
        Ok(Socket::from(self.socket.try_clone()?))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// Ends a connection from any thread: whatever it waits for returns with an error at once.
#[derive(Clone, Debug)]
pub struct CancelHandle {
    pub(super) wire: Arc<Wire>,
}

impl CancelHandle {
    /// Ends the connection. Its owner sees [`super::SessionError::Cancelled`].
    pub fn cancel(&self) {
        self.wire.cancelled.store(true, Ordering::Release);
        self.wire.abandon();
    }
}
