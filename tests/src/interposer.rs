//! A network in miniature: stands between a client and a server, and fails as told.
//!
//! Forwards TCP both ways. A [`Fault`] strikes one direction of one connection after an exact number of bytes, which
//! makes a cut or a stall in the middle of a stream a repeatable test. Plain threads, two a connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pgstrata::postmaster::Server;

/// How long a test waits for something to pass.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the server to the client.
    ToClient,
    /// From the client to the server.
    ToServer,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Both sides see an orderly end.
    Cut,
    /// Both sides see a reset.
    Reset,
    /// Nothing passes any more in this direction, until [`Interposer::release`]; the connection stays open.
    Stall,
    /// The next byte passes with these bits flipped.
    Flip(u8),
}

/// An [`Action`] and when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which connection, counted from 0 in the order they come; all if `None`.
    pub connection: Option<usize>,
    /// Which direction.
    pub direction: Direction,
    /// After how many bytes of that direction.
    pub after: u64,
    /// What happens then.
    pub action: Action,
}

impl Fault {
    /// Strikes what the server sends on one connection.
    #[must_use]
    pub fn on(connection: usize, after: u64, action: Action) -> Self {
        Self { connection: Some(connection), direction: Direction::ToClient, after, action }
    }
}

/// A running interposer. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Interposer {
    port: u16,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    faults: Vec<Fault>,
    target: u16,
    records: bool,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    connections: Vec<Connection>,
    released: bool,
    closing: bool,
}

#[derive(Debug)]
struct Connection {
    sockets: [TcpStream; 2],
    to_client: u64,
    to_server: u64,
    stalled: bool,
    /// What went to the client, where that is recorded.
    record: Vec<u8>,
}

impl Interposer {
    /// Listens on a free port of the loopback address and forwards to `target` there.
    ///
    /// # Panics
    /// Where the system has no port.
    #[must_use]
    pub fn start(target: u16, faults: &[Fault]) -> Self {
        Self::new(target, faults, false)
    }

    /// Stands in front of a server and keeps what goes to the client: see [`recorded`](Self::recorded).
    #[must_use]
    pub fn recording(server: &Server, faults: &[Fault]) -> Self {
        Self::new(server.port(), faults, true)
    }

    fn new(target: u16, faults: &[Fault], records: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let state = Arc::new(State {
            faults: faults.to_vec(),
            target,
            records,
            progress: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&state);
        let acceptor = thread::spawn(move || theirs.accept(&listener));
        Self { port, state, acceptor: Some(acceptor) }
    }

    /// Stands in front of a server.
    #[must_use]
    pub fn before(server: &Server, faults: &[Fault]) -> Self {
        Self::start(server.port(), faults)
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's connection string, leading through here.
    #[must_use]
    pub fn conninfo(&self, server: &Server) -> String {
        let conninfo =
            server.conninfo().replace(&format!("port={}", server.port()), &format!("port={}", self.port));
        // Faults are placed by counting bytes: the first is the first message's, no answer to a request for TLS.
        format!("{conninfo} sslmode=disable")
    }

    /// How many connections have come.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.lock().connections.len()
    }

    /// How many bytes of a connection have passed in a direction.
    #[must_use]
    pub fn passed(&self, connection: usize, direction: Direction) -> u64 {
        self.state.lock().connections.get(connection).map_or(0, |connection| connection.passed(direction))
    }

    /// What has gone to the client of a connection, faults and all, where it is recorded.
    #[must_use]
    pub fn recorded(&self, connection: usize) -> Vec<u8> {
        self.state
            .lock()
            .connections
            .get(connection)
            .map_or(Vec::new(), |connection| connection.record.clone())
    }

    /// Waits until that many bytes of a connection have passed.
    ///
    /// # Panics
    /// Where they do not for long.
    #[track_caller]
    pub fn wait_for_passed(&self, connection: usize, direction: Direction, bytes: u64) {
        let reached = |connection: &Connection| connection.passed(direction) >= bytes;
        assert!(self.wait_for(connection, reached), "{bytes} bytes did not pass connection {connection}");
    }

    /// Waits until a [`Action::Stall`] has struck a connection.
    ///
    /// # Panics
    /// Where it does not for long.
    #[track_caller]
    pub fn wait_for_stall(&self, connection: usize) {
        assert!(
            self.wait_for(connection, |connection| connection.stalled),
            "connection {connection} did not stall"
        );
    }

    /// Ends all stalls, present and future.
    pub fn release(&self) {
        self.state.lock().released = true;
        self.state.changed.notify_all();
    }

    /// Cuts every connection that is open; new ones may come.
    pub fn cut_all(&self) {
        for connection in &self.state.lock().connections {
            connection.close();
        }
    }

    fn wait_for(&self, connection: usize, reached: impl Fn(&Connection) -> bool) -> bool {
        let waiting = |progress: &mut Progress| !progress.connections.get(connection).is_some_and(&reached);
        let waited = self.state.changed.wait_timeout_while(self.state.lock(), PATIENCE, waiting);
        let progress = waited.expect("no thread of the interposer panics").0;
        progress.connections.get(connection).is_some_and(reached)
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        self.state.lock().closing = true;
        self.release();
        self.cut_all();
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Connection {
    fn passed(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToClient => self.to_client,
            Direction::ToServer => self.to_server,
        }
    }

    fn close(&self) {
        for socket in &self.sockets {
            // Already closed by its peer: as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no thread of the interposer panics")
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut pumps = Vec::new();
        for client in listener.incoming() {
            if self.lock().closing {
                break;
            }
            // A server that is gone refuses; the client then sees its own connection end.
            let Ok(client) = client else { continue };
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)) else { continue };
            match self.connect(client, server) {
                Ok(both) => pumps.extend(both),
                Err(error) => eprintln!("interposer: {error}"),
            }
        }
        for pump in pumps {
            let _ = pump.join();
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) -> io::Result<[JoinHandle<()>; 2]> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let sockets = [client.try_clone()?, server.try_clone()?];
        let upstream = (client.try_clone()?, server.try_clone()?);
        let mut progress = self.lock();
        let number = progress.connections.len();
        progress.connections.push(Connection {
            sockets,
            to_client: 0,
            to_server: 0,
            stalled: false,
            record: Vec::new(),
        });
        drop(progress);
        self.changed.notify_all();
        let pump = |from: TcpStream, to: TcpStream, direction| {
            let state = Arc::clone(self);
            thread::spawn(move || state.pump(number, direction, from, to))
        };
        let (from_client, to_server) = upstream;
        Ok([pump(server, client, Direction::ToClient), pump(from_client, to_server, Direction::ToServer)])
    }

    fn pump(&self, number: usize, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
        let mut faults: Vec<Fault> = self.faults.clone();
        faults.retain(|fault| {
            fault.direction == direction && fault.connection.is_none_or(|only| only == number)
        });
        faults.sort_by_key(|fault| fault.after);
        let mut faults = faults.into_iter().peekable();
        let (mut passed, mut flip) = (0_u64, 0_u8);
        let mut buffer = vec![0; 64 << 10];
        loop {
            while let Some(fault) = faults.next_if(|fault| fault.after <= passed) {
                match fault.action {
                    Action::Flip(bits) => flip ^= bits,
                    Action::Stall => self.stall(number),
                    Action::Cut => return self.lock().connections[number].close(),
                    Action::Reset => return self.reset(number),
                }
            }
            // Up to the next fault and no further; one byte where it is to be flipped.
            let until_fault = faults.peek().map_or(u64::MAX, |fault| fault.after - passed);
            let limit = if flip == 0 { until_fault } else { 1 };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(buffer.len());
            let count = match from.read(&mut buffer[..limit]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            buffer[0] ^= std::mem::take(&mut flip);
            if to.write_all(&buffer[..count]).is_err() {
                // Nobody is there any more. A network would tell the sender by a reset.
                return self.reset(number);
            }
            passed += u64::try_from(count).expect("a buffer's length");
            let mut progress = self.lock();
            let connection = &mut progress.connections[number];
            match direction {
                Direction::ToClient => {
                    connection.to_client = passed;
                    if self.records {
                        connection.record.extend_from_slice(&buffer[..count]);
                    }
                }
                Direction::ToServer => connection.to_server = passed,
            }
            drop(progress);
            self.changed.notify_all();
        }
        // One side is done sending; the other may still answer.
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn stall(&self, number: usize) {
        let mut progress = self.lock();
        progress.connections[number].stalled = true;
        self.changed.notify_all();
        let released = self.changed.wait_while(progress, |progress| !progress.released);
        released.expect("no thread of the interposer panics").connections[number].stalled = false;
    }

    fn reset(&self, number: usize) {
        for socket in &self.lock().connections[number].sockets {
            // connect(2) to AF_UNSPEC dissolves an association; TCP sends a reset then, without waiting for the
            // other handles on this socket to be closed.
            let _ = rustix::net::connect_unspec(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends 1000 bytes to whoever comes, and then whatever it receives.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                thread::spawn(move || {
                    let content: Vec<u8> = (0..250_u8).cycle().take(1000).collect();
                    client.write_all(&content)?;
                    io::copy(&mut client.try_clone()?, &mut client)
                });
            }
        });
        port
    }

    fn connect(interposer: &Interposer) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, interposer.port())).unwrap()
    }

    #[test]
    fn forwards_both_ways() {
        let interposer = Interposer::start(echo(), &[]);
        let mut client = connect(&interposer);
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!((all.len(), &all[1000..]), (1005, &b"hello"[..]));
        assert_eq!(interposer.passed(0, Direction::ToClient), 1005);
    }

    #[test]
    fn each_fault_strikes_its_connection_after_its_bytes() {
        let faults = [Fault::on(0, 333, Action::Cut), Fault::on(1, 500, Action::Flip(0x81))];
        let interposer = Interposer::start(echo(), &faults);
        let mut all = Vec::new();
        connect(&interposer).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 333);

        let mut all = [0; 1000];
        connect(&interposer).read_exact(&mut all).unwrap();
        let wrong: Vec<usize> = (0..1000).filter(|at| all[*at] != u8::try_from(at % 250).unwrap()).collect();
        assert_eq!((wrong, all[500]), (vec![500], 0x81));
    }

    #[test]
    fn a_reset_is_no_orderly_end() {
        let interposer = Interposer::start(echo(), &[Fault::on(0, 10, Action::Reset)]);
        let error = connect(&interposer).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_stall_holds_until_released() {
        let interposer = Interposer::start(echo(), &[Fault::on(0, 100, Action::Stall)]);
        let mut client = connect(&interposer);
        let mut all = [0; 1000];
        client.read_exact(&mut all[..100]).unwrap();
        interposer.wait_for_stall(0);
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(client.read(&mut all[100..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.set_read_timeout(None).unwrap();
        interposer.release();
        client.read_exact(&mut all[100..]).unwrap();
    }
}
