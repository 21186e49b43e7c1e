//! Reserves a TCP port for a server that is about to start.
//!
//! A socket that is bound with `SO_REUSEADDR` and never listens keeps the kernel from handing the same port to anyone
//! else who asks for any free one, yet lets the postmaster, which sets that option too (`StreamServerPort` in
//! src/backend/libpq/pqcomm.c), bind and listen on it. Someone may still name the port outright, so whoever starts a
//! server tries again with another.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

/// A port on the loopback address that nobody else is given while this lives.
#[derive(Debug)]
pub(super) struct ReservedPort {
    number: u16,
    _socket: Socket,
}

impl ReservedPort {
    /// Reserves `wanted`, or any free port for 0.
    pub(super) fn new(wanted: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, wanted).into())?;
        let bound = socket.local_addr()?.as_socket();
        let number = bound.map(|address| address.port()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { number, _socket: socket })
    }

    /// The port.
    pub(super) fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_reserved_port_is_ours_alone_until_a_server_listens() {
        let reserved = ReservedPort::new(0).unwrap();
        // The standard library's listener sets SO_REUSEADDR, as the postmaster does.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, reserved.number())).unwrap();
        assert!(ReservedPort::new(reserved.number()).is_err(), "someone listens");
        drop(listener);
        for _ in 0..200 {
            assert_ne!(ReservedPort::new(0).unwrap().number(), reserved.number());
        }
    }
}
