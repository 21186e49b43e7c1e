//! The one bulk socket: a blocking thread with and without batches, tokio-uring, and epoll, side by side.
//!
//! A thread plays the server and writes 32 KiB `CopyData` messages in pieces of 8 KiB, as a walsender does
//! (`PQ_SEND_BUFFER_SIZE`, `pqcomm.c`). Each receiver walks every frame and touches nothing else. Beside
//! criterion's times, the CPU seconds of the receiving thread for each GiB are printed: a backup client's other
//! work competes for them. Run it on an otherwise idle machine: `cargo bench -p pgstrata-bench --bench socket`.

#![allow(missing_docs, reason = "criterion's macros generate undocumented items")]

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgstrata::connect::{
    BulkReceive, BulkStream, ConnectionSettings, ControlRuntime, CopyEvent, GivenSettings, Purpose, Reply,
    Session, SessionError, Surroundings,
};
use rustix::time::{ClockId, clock_gettime};

const MESSAGE: usize = 32 << 10;
const PIECE: usize = 8 << 10;
/// Bytes of `CopyData` bodies in one measured copy.
const COPY: usize = 256 << 20;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short body");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn greeting() -> Vec<u8> {
    [frame(b'R', &[0; 4]), frame(b'S', b"server_version\x0018.0\0"), frame(b'Z', b"I")].concat()
}

fn message(stream: &mut impl Read, header: usize) -> io::Result<()> {
    let mut bytes = vec![0; header];
    stream.read_exact(&mut bytes)?;
    let length = u32::from_be_bytes(bytes[header - 4..].try_into().expect("four bytes"));
    io::copy(&mut stream.take(u64::from(length) - 4), &mut io::sink()).map(drop)
}

/// Lets the client in and answers each query with one copy.
fn serve(mut stream: impl Read + Write) -> io::Result<()> {
    static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| frame(b'd', &[0x5a; MESSAGE]).repeat(COPY / MESSAGE));
    let copy = &*STREAM;
    message(&mut stream, 4)?;
    stream.write_all(&greeting())?;
    loop {
        message(&mut stream, 5)?;
        stream.write_all(&frame(b'H', &[0; 3]))?;
        for piece in copy.chunks(PIECE) {
            stream.write_all(piece)?;
        }
        stream.write_all(&[frame(b'c', b""), frame(b'C', b"COPY\0"), frame(b'Z', b"I")].concat())?;
    }
}

fn settings(conninfo: &str) -> ConnectionSettings {
    let given = GivenSettings { conninfo: Some(conninfo), user: Some("bench"), ..GivenSettings::default() };
    ConnectionSettings::resolve(&given, &Surroundings::of_process()).expect("settings")
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("nanoseconds")).as_secs_f64()
}

/// A plain receive for whatever has arrived.
struct Plain<S>(S);

impl<S: Read + Send> BulkReceive for Plain<S> {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

/// One way to receive one copy; returns its bytes.
type Receiver<'a> = Box<dyn FnMut() -> Result<usize, SessionError> + 'a>;

fn walk_bulk(mut stream: BulkStream) -> Result<usize, SessionError> {
    let mut bytes = 0;
    loop {
        match stream.next_event()? {
            Some(CopyEvent::Data { chunk, .. }) => bytes += black_box(chunk).len(),
            Some(CopyEvent::End) => break,
            None => drop(stream.receive()?),
        }
    }
    stream.resume()?;
    Ok(bytes)
}

async fn walk_session(session: &mut Session) -> Result<usize, SessionError> {
    let mut bytes = 0;
    session.begin_copy("COPY").await?;
    loop {
        match session.next_event()? {
            Some(CopyEvent::Data { chunk, .. }) => bytes += black_box(chunk).len(),
            Some(CopyEvent::End) => break,
            None => drop(session.receive().await?),
        }
    }
    session.resume().await?;
    Ok(bytes)
}

async fn connect(settings: &ConnectionSettings) -> Session {
    Session::connect(settings, Purpose::Replication, Arc::new(|_| {})).await.expect("a session")
}

/// Opens a session for each copy, as a backup does, and leaves that out of nobody's time: it is microseconds.
fn blocking(settings: &ConnectionSettings) -> Receiver<'_> {
    let runtime = ControlRuntime::new().expect("a runtime");
    Box::new(move || {
        let stream = runtime.block_on(async {
            let mut session = connect(settings).await;
            assert!(matches!(session.begin_copy("COPY").await, Ok(Reply::Copy { .. })));
            session.into_bulk()
        })?;
        walk_bulk(stream)
    })
}

fn through_runtime(settings: &ConnectionSettings, runtime: ControlRuntime) -> Receiver<'_> {
    let mut session = runtime.block_on(connect(settings));
    Box::new(move || runtime.block_on(walk_session(&mut session)))
}

fn plain<'a, S: Read + Write + Send + 'static>(open: impl Fn() -> io::Result<S> + 'a) -> Receiver<'a> {
    Box::new(move || {
        let begin = || {
            let mut stream = open()?;
            stream.write_all(&[0, 0, 0, 9, 0, 3, 0, 0, 0])?;
            stream.read_exact(&mut vec![0; greeting().len()])?;
            stream.write_all(&frame(b'Q', b"COPY\0"))?;
            Ok::<_, io::Error>(stream)
        };
        let mut stream =
            BulkStream::from_receiver(Box::new(Plain(begin().expect("a session"))), Arc::new(|_| {}));
        assert!(matches!(stream.resume()?, Reply::Copy { .. }));
        walk_bulk(stream)
    })
}

fn receive(c: &mut Criterion) {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = tcp.local_addr().expect("a bound socket").port();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            // The client's end of a connection is an error to the server, and the end of this thread.
            thread::spawn(move || stream.and_then(serve));
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".s.PGSQL.5432");
    let unix = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        for stream in unix.incoming() {
            thread::spawn(move || stream.and_then(serve));
        }
    });

    let over_tcp = settings(&format!("hostaddr=127.0.0.1 port={port}"));
    let over_unix = settings(&format!("host='{}' port=5432", folder.path().display()));
    for (family, settings) in [("tcp", &over_tcp), ("unix", &over_unix)] {
        let open: Receiver<'_> = match family {
            "tcp" => plain(move || TcpStream::connect(("127.0.0.1", port))),
            _ => plain(|| std::os::unix::net::UnixStream::connect(&path)),
        };
        let ring = ControlRuntime::new().expect("a runtime");
        let ring_name = ring.driver().to_string();
        let epoll = ControlRuntime::without_ring().expect("a runtime");
        let ways = [
            ("bulk thread".to_owned(), blocking(settings)),
            ("plain recv".to_owned(), open),
            (format!("session on {ring_name}"), through_runtime(settings, ring)),
            ("session on epoll alone".to_owned(), through_runtime(settings, epoll)),
        ];
        let mut group = c.benchmark_group(format!("socket/{family}"));
        group
            .throughput(Throughput::Bytes(COPY as u64))
            .sample_size(10)
            .measurement_time(Duration::from_secs(8));
        for (name, mut receiver) in ways {
            let (mut copies, before) = (0_u32, cpu_seconds());
            group.bench_function(BenchmarkId::from_parameter(&name), |bencher| {
                bencher.iter(|| {
                    copies += 1;
                    assert_eq!(receiver().expect("a copy"), COPY);
                });
            });
            if copies > 0 {
                let gib = f64::from(copies) * COPY as f64 / f64::from(1 << 30);
                println!(
                    "socket/{family}/{name}: {:.3} CPU seconds of the receiver for each GiB",
                    (cpu_seconds() - before) / gib
                );
            }
        }
        group.finish();
    }
}

criterion_group!(benches, receive);
criterion_main!(benches);
