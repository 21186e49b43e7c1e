//! A server that says what a test tells it to, cut where the test cuts it.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A listening server; its script runs on a thread of its own for the first connection.
pub(super) struct ScriptedServer {
    pub(super) port: u16,
    thread: JoinHandle<()>,
}

/// The server's end of a connection.
pub(super) struct Client(pub(super) TcpStream);

impl ScriptedServer {
    pub(super) fn start(script: impl FnOnce(Client) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            script(Client(stream));
        });
        Self { port, thread }
    }

    pub(super) fn conninfo(&self) -> String {
        format!("hostaddr=127.0.0.1 port={} user=u sslmode=disable", self.port)
    }

    /// Waits for the script's end and passes its panic on.
    pub(super) fn join(self) {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Client {
    /// Lets the client in without a password; returns its startup packet.
    pub(super) fn let_in(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.0.read_exact(&mut packet).unwrap();
        self.send(&[
            frame(b'R', &0_i32.to_be_bytes()),
            frame(b'S', b"server_version\x0015.4\0"),
            frame(b'N', b"SWARNING\0VWARNING\0C01000\0Mwelcome\0\0"),
            frame(b'K', &[0, 0, 0, 1, 9, 9, 9, 9]),
            ready(),
        ]);
        packet
    }

    /// The text of the next query.
    pub(super) fn query(&mut self) -> String {
        let (tag, body) = self.message();
        assert_eq!(tag, b'Q');
        String::from_utf8(body).unwrap().trim_end_matches('\0').to_owned()
    }

    pub(super) fn message(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.0.read_exact(&mut body).unwrap();
        (header[0], body)
    }

    pub(super) fn send(&mut self, frames: &[Vec<u8>]) {
        self.0.write_all(&frames.concat()).unwrap();
    }

    /// Sends piece by piece, so that the client's reads end anywhere.
    pub(super) fn dribble(&mut self, bytes: &[u8], piece: usize, pause: Duration) {
        for piece in bytes.chunks(piece) {
            self.0.write_all(piece).unwrap();
            thread::sleep(pause);
        }
    }

    /// Waits until the client has ended the connection; returns what it said before.
    pub(super) fn wait_for_end(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            // It may have left bytes unread, which resets the connection.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            result => drop(result.unwrap()),
        }
        rest
    }
}

pub(super) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

pub(super) fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

pub(super) fn copy_out() -> Vec<u8> {
    frame(b'H', &[0, 0, 0])
}

/// One row of one column.
pub(super) fn row(value: &[u8]) -> Vec<u8> {
    let mut description = vec![0, 1];
    description.extend_from_slice(b"c\0");
    description.extend_from_slice(&[0; 18]);
    let mut row = vec![0, 1];
    row.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
    row.extend_from_slice(value);
    [frame(b'T', &description), frame(b'D', &row), frame(b'C', b"SELECT\0")].concat()
}

/// `count` bytes that no shift or gap leaves the same.
pub(super) fn pattern(count: usize) -> Vec<u8> {
    (0..count as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]).collect()
}
