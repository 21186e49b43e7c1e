//! The sockets of a fake server: one thread a connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::message;
use super::script::{Reply, Script, Step};

/// Codes in place of a protocol version: `NEGOTIATE_SSL_CODE`, `NEGOTIATE_GSS_CODE` of src/include/libpq/pqcomm.h.
const ENCRYPTION_REQUESTS: [u32; 2] = [80_877_103, 80_877_104];
/// The longest message taken from a client: a manifest may be uploaded in pieces, no piece is this long.
const LONGEST: usize = 64 << 20;

/// A running fake server. Dropping it ends all connections.
#[derive(Debug)]
pub struct FakeServer {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    script: Script,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queries: Vec<String>,
    connections: Vec<TcpStream>,
    closing: bool,
}

impl FakeServer {
    /// Listens on a free port of the loopback address.
    ///
    /// # Panics
    /// Where the system has no port.
    #[must_use]
    pub fn start(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared = Arc::new(Shared { script, state: Mutex::default() });
        let theirs = Arc::clone(&shared);
        let acceptor = thread::spawn(move || theirs.accept(&listener));
        Self { port, shared, acceptor: Some(acceptor) }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection string.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }

    /// The queries of all connections in the order they came.
    #[must_use]
    pub fn queries(&self) -> Vec<String> {
        self.shared.lock().queries.clone()
    }

    /// How many connections have come.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the fake server panics")
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut sessions = Vec::new();
        for socket in listener.incoming() {
            let mut state = self.lock();
            if state.closing {
                break;
            }
            let Ok(socket) = socket else { continue };
            state.connections.extend(socket.try_clone());
            drop(state);
            let shared = Arc::clone(&self);
            sessions.push(thread::spawn(move || {
                // How the client ends the connection is its own affair.
                let _ = shared.serve(&socket);
                let _ = socket.shutdown(Shutdown::Both);
            }));
        }
        for session in sessions {
            let _ = session.join();
        }
    }

    fn serve(&self, mut socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        while ENCRYPTION_REQUESTS.contains(&read_startup(socket)?) {
            socket.write_all(b"N")?;
        }
        if !play(&self.script.welcome, self.script.major, socket)? {
            return Ok(());
        }
        loop {
            let mut kind = [0];
            socket.read_exact(&mut kind)?;
            let body = read_body(socket)?;
            match kind[0] {
                b'X' => return Ok(()),
                b'Q' => {
                    let query =
                        String::from_utf8_lossy(body.strip_suffix(&[0]).unwrap_or(&body)).into_owned();
                    let reply = self.script.reply_to(&query);
                    self.lock().queries.push(query);
                    if !play(&reply, self.script.major, socket)? {
                        return Ok(());
                    }
                }
                b'c' => {
                    if !play(&self.script.after_copy, self.script.major, socket)? {
                        return Ok(());
                    }
                }
                // Passwords, uploads and standby messages need no answer.
                b'p' | b'd' | b'f' => {}
                other => {
                    let refusal = message::fatal("08P01", &format!("unexpected message {other:#04x}"));
                    socket.write_all(&refusal)?;
                }
            }
        }
    }
}

/// Plays a reply; false where the connection is over.
fn play(reply: &Reply, major: u32, mut socket: &TcpStream) -> io::Result<bool> {
    for step in &reply.steps {
        match step {
            Step::Send(bytes) => socket.write_all(bytes)?,
            Step::Many(files, part) => files.send(*part, major, socket)?,
            Step::Trickle(bytes, pause) => loop {
                thread::sleep(*pause);
                socket.write_all(bytes)?;
            },
            Step::Close => return Ok(false),
            Step::Reset => {
                rustix::net::connect_unspec(socket)?;
                return Ok(false);
            }
            Step::Stall => {
                // Until the client, or the drop of the server, ends the connection; what the client sends meanwhile
                // stays unread.
                let mut events = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::RDHUP)];
                while rustix::event::poll(&mut events, None) == Err(rustix::io::Errno::INTR) {}
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Reads a startup packet and returns its first four bytes.
fn read_startup(socket: &TcpStream) -> io::Result<u32> {
    let body = read_body(socket)?;
    let code = body.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    Ok(u32::from_be_bytes(*code))
}

fn read_body(mut socket: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok().and_then(|length| length.checked_sub(4));
    let length = length.filter(|length| *length <= LONGEST).ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(body)
}
