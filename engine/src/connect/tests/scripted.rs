//! What a real server does too rarely to test with: dribbles, stalls, cuts, nonsense.

use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgstrata_protocol::wire::frontend;

use super::scripted_server::{Client, ScriptedServer, copy_out, frame, pattern, ready, row};
use super::{notices, runtimes, settings};
use crate::connect::settings::Wanting;
use crate::connect::{
    AttemptError, BulkReceive, BulkStream, ConnectError, CopyDirection, CopyEvent, Purpose, Reply, Session,
    SessionError,
};
use crate::connect::{login, socket};

async fn connect(server: &ScriptedServer) -> Session {
    Session::connect(&settings(&server.conninfo()), Purpose::Replication, notices().0).await.unwrap()
}

/// Connects, sends a command and gives the socket to a bulk stream at the beginning of its copy.
async fn begin_bulk(server: &ScriptedServer) -> BulkStream {
    let mut session = connect(server).await;
    let Reply::Copy { direction: CopyDirection::Out, .. } = session.begin_copy("BASE_BACKUP").await.unwrap()
    else {
        panic!("no copy")
    };
    session.into_bulk().unwrap()
}

fn read_copy(stream: &mut BulkStream) -> Result<Vec<u8>, SessionError> {
    let mut copied = Vec::new();
    loop {
        match stream.next_event()? {
            Some(CopyEvent::Data { chunk, .. }) => copied.extend_from_slice(chunk),
            Some(CopyEvent::End) => return Ok(copied),
            None => drop(stream.receive()?),
        }
    }
}

#[test]
fn the_startup_packet_says_what_it_should() {
    for runtime in runtimes() {
        let server = ScriptedServer::start(|mut client| {
            let packet = client.let_in();
            let expected = b"\x00\x03\x00\x00user\0u\0database\0replication\0replication\0true\0\
                             application_name\0session tests\0\0";
            assert_eq!(packet, expected, "{}", packet.escape_ascii());
            assert_eq!(client.wait_for_end(), frame(b'X', b""));
        });
        let (sink, seen) = notices();
        runtime.block_on(async {
            let session =
                Session::connect(&settings(&server.conninfo()), Purpose::Replication, sink).await.unwrap();
            assert_eq!(session.server_version().to_string(), "15.4");
            assert_eq!(session.parameter("server_version"), Some("15.4"));
            assert_eq!(*seen.lock().unwrap(), ["WARNING:  welcome"]);
            session.close().await;
        });
        server.join();
    }
}

/// A read that is given up again and again loses nothing, however the stream is cut.
#[test]
fn receives_that_are_given_up_lose_no_byte() {
    for runtime in runtimes() {
        let data = pattern(3000);
        let expected = data.clone();
        let server = ScriptedServer::start(move |mut client| {
            client.let_in();
            assert_eq!(client.query(), "START");
            let mut stream = [frame(b'W', &[0, 0, 0])].concat();
            for body in data.chunks(700) {
                stream.extend(frame(b'd', body));
            }
            stream.extend([frame(b'c', b""), row(b"next"), frame(b'C', b"START\0"), ready()].concat());
            client.dribble(&stream, 37, Duration::from_millis(2));
            let said = client.wait_for_end();
            assert_eq!(said, [frame(b'd', b"status").repeat(said.len() / 11), frame(b'X', b"")].concat());
        });
        runtime.block_on(async {
            let mut session = connect(&server).await;
            let Reply::Copy { direction: CopyDirection::Both, .. } =
                session.begin_copy("START").await.unwrap()
            else {
                panic!("no copy")
            };
            let (mut copied, mut given_up) = (Vec::new(), 0);
            'copy: loop {
                while let Some(event) = session.next_event().unwrap() {
                    match event {
                        CopyEvent::Data { chunk, .. } => copied.extend_from_slice(chunk),
                        CopyEvent::End => break 'copy,
                    }
                }
                let soon = tokio::time::Instant::now() + Duration::from_micros(300);
                while session.receive_until(soon).await.unwrap().is_none() {
                    given_up += 1;
                    // Sending works while the read is pending.
                    let mut out = BytesMut::new();
                    frontend::copy_data(b"status", &mut out).unwrap();
                    session.send(out).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if session
                        .receive_until(tokio::time::Instant::now() + Duration::from_secs(9))
                        .await
                        .unwrap()
                        .is_some()
                    {
                        break;
                    }
                }
            }
            assert_eq!(copied, expected);
            assert!(given_up > 0, "no receive was given up");
            let Reply::Done(done) = session.resume().await.unwrap() else { panic!("not done") };
            assert_eq!(done.results[0].rows, [[Some(b"next".as_slice().into())]]);
            session.close().await;
        });
        server.join();
    }
}

/// Large batches, small dribbles and the messages around the copy arrive alike.
#[test]
fn a_bulk_stream_goes_on_where_the_session_stopped() {
    for runtime in runtimes() {
        let data = pattern(5 << 20);
        let expected = data.clone();
        let server = ScriptedServer::start(move |mut client| {
            client.let_in();
            client.query();
            let body: Vec<u8> = data.chunks(32 << 10).flat_map(|body| frame(b'd', body)).collect();
            // The copy begins in the same bytes as its announcement, and ends in the same as what follows.
            let start = [row(b"start"), copy_out(), body[..1000].to_vec()].concat();
            client.send(&[start, body[1000..4 << 20].to_vec()]);
            client.dribble(&body[4 << 20..(4 << 20) + 9000], 300, Duration::from_millis(1));
            client.send(&[
                body[(4 << 20) + 9000..].to_vec(),
                frame(b'c', b""),
                copy_out(),
                frame(b'd', b"second"),
            ]);
            client.send(&[frame(b'c', b""), row(b"end"), frame(b'C', b"BASE_BACKUP\0"), ready()]);
            assert_eq!(client.wait_for_end(), frame(b'X', b""));
        });
        let stream = runtime.block_on(begin_bulk(&server));
        // The stream needs no runtime any more.
        drop(runtime);
        let mut stream = thread::spawn(move || {
            let mut stream = stream;
            assert_eq!(read_copy(&mut stream).unwrap(), expected);
            stream
        })
        .join()
        .unwrap();
        let Reply::Copy { direction: CopyDirection::Out, .. } = stream.resume().unwrap() else {
            panic!("no copy")
        };
        assert_eq!(read_copy(&mut stream).unwrap(), b"second");
        let Reply::Done(done) = stream.resume().unwrap() else { panic!("not done") };
        assert_eq!(done.results[0].rows, [[Some(b"end".as_slice().into())]]);
        stream.close();
        server.join();
    }
}

#[test]
fn a_refusal_after_the_copy_carries_the_results_before_it() {
    let [runtime, _] = runtimes();
    let server = ScriptedServer::start(|mut client| {
        client.let_in();
        client.query();
        client.send(&[copy_out(), frame(b'd', b"x"), frame(b'c', b""), row(b"end")]);
        client.send(&[frame(b'E', b"SERROR\0VERROR\0CXX001\0Mchecksum\0\0"), ready()]);
        assert_eq!(client.query(), "again");
        client.send(&[row(b"fine"), ready()]);
        client.wait_for_end();
    });
    runtime.block_on(async {
        let mut session = connect(&server).await;
        session.begin_copy("BASE_BACKUP").await.unwrap();
        while let None | Some(CopyEvent::Data { .. }) = session.next_event().unwrap() {
            let _ = session.receive_until(tokio::time::Instant::now()).await;
        }
        match session.resume().await {
            Err(SessionError::Server { error, results }) => {
                assert_eq!(error.sqlstate(), "XX001");
                assert_eq!(results[0].rows, [[Some(b"end".as_slice().into())]]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(session.simple_query("again").await.unwrap()[0].rows.len(), 1);
    });
    server.join();
}

#[test]
fn connections_that_are_cut_or_cancelled_wake_their_owner() {
    type Script = fn(Client);
    type Expected = fn(&SessionError) -> bool;
    let scripts: [(&str, Script, Expected); 4] = [
        (
            "closed within a message",
            |mut client| client.send(&[copy_out(), vec![b'd', 0, 0, 0, 9, 1]]),
            |error| matches!(error, SessionError::Closed { .. }),
        ),
        (
            "ended by the server",
            |mut client| client.send(&[copy_out(), frame(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0")]),
            |error| error.server_error().is_some_and(|error| error.sqlstate() == "57P01"),
        ),
        (
            "no protocol",
            |mut client| client.send(&[copy_out(), b"HTTP/1.1 400".to_vec()]),
            |error| matches!(error, SessionError::Wire(_)),
        ),
        (
            "out of step",
            |mut client| client.send(&[copy_out(), ready()]),
            |error| matches!(error, SessionError::Reply(_)),
        ),
    ];
    for (name, script, expected) in scripts {
        for runtime in runtimes() {
            let answer = move |mut client: Client| {
                client.let_in();
                client.query();
                script(client);
            };
            let server = ScriptedServer::start(answer);
            runtime.block_on(async {
                let mut session = connect(&server).await;
                session.begin_copy("COPY").await.unwrap();
                let error = loop {
                    match session.next_event() {
                        Ok(Some(_)) => {}
                        Ok(None) => match session.receive().await {
                            Ok(_) => {}
                            Err(error) => break error,
                        },
                        Err(error) => break error,
                    }
                };
                assert!(expected(&error), "{name}: {error:?}");
            });
            server.join();
            let server = ScriptedServer::start(answer);
            let mut stream = runtime.block_on(begin_bulk(&server));
            let error = read_copy(&mut stream).unwrap_err();
            assert!(expected(&error), "{name}: {error:?}");
            server.join();
        }
    }
}

#[test]
fn cancelling_wakes_a_blocked_receive() {
    for runtime in runtimes() {
        let silent = || {
            ScriptedServer::start(|mut client| {
                client.let_in();
                client.query();
                client.send(&[copy_out()]);
                client.wait_for_end();
            })
        };
        let server = silent();
        runtime.block_on(async {
            let mut session = connect(&server).await;
            session.begin_copy("COPY").await.unwrap();
            let cancel = session.cancel_handle();
            let (waiting, is_waiting) = mpsc::channel();
            let canceller = thread::spawn(move || {
                is_waiting.recv().unwrap();
                cancel.cancel();
            });
            // The receive is in the kernel's hands once it has been given up without a byte.
            assert!(matches!(
                session.receive_until(tokio::time::Instant::now() + Duration::from_millis(20)).await,
                Ok(None)
            ));
            waiting.send(()).unwrap();
            assert!(matches!(session.receive().await, Err(SessionError::Cancelled)));
            assert!(matches!(session.send(BytesMut::from(&b"x"[..])).await, Err(SessionError::Cancelled)));
            canceller.join().unwrap();
        });
        server.join();

        let server = silent();
        let mut stream = runtime.block_on(begin_bulk(&server));
        let cancel = stream.cancel_handle().unwrap();
        let blocked = thread::spawn(move || read_copy(&mut stream));
        cancel.cancel();
        assert!(matches!(blocked.join().unwrap(), Err(SessionError::Cancelled)));
        server.join();
    }
}

#[test]
fn a_stalled_bulk_stream_is_given_up() {
    for first in [1, 300 << 10] {
        let [runtime, _] = runtimes();
        let server = ScriptedServer::start(move |mut client| {
            client.let_in();
            client.query();
            client.send(&[copy_out(), frame(b'd', &pattern(first))]);
            client.wait_for_end();
        });
        let mut stream = runtime.block_on(begin_bulk(&server));
        let limit = Duration::from_millis(150);
        stream.set_stall_limit(Some(limit)).unwrap();
        let begun = Instant::now();
        assert!(
            matches!(read_copy(&mut stream), Err(SessionError::Stalled { limit: found }) if found == limit)
        );
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
        drop(stream);
        server.join();
    }
}

#[test]
fn a_silent_server_is_given_up_after_the_connect_timeout() {
    // The kernel completes the connection, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for runtime in runtimes() {
        let settings = settings(&format!("host=127.0.0.1 port={port} user=u connect_timeout=1"));
        let begun = Instant::now();
        let error = runtime.block_on(Session::connect(&settings, Purpose::Sql, notices().0)).unwrap_err();
        let ConnectError::Failed { attempts } = &error else { panic!("{error}") };
        assert!(matches!(attempts[..], [ref attempt] if matches!(attempt.reason, AttemptError::Timeout)));
        assert_eq!(
            error.to_string(),
            format!("connection to server at \"127.0.0.1\", port {port} failed: timeout expired")
        );
        // Dropping the runtime waits for the ring: it must not still hold the abandoned read.
        drop(runtime);
        let elapsed = begun.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&elapsed), "{elapsed:?}");
    }
}

/// Which failures lead to the next address, which to the next server, and which are final.
#[test]
fn the_next_address_or_server_is_tried() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for runtime in runtimes() {
        let starting = ScriptedServer::start(|mut client| {
            client.send(&[frame(b'E', b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0")]);
        });
        let ready = ScriptedServer::start(|mut client| {
            client.let_in();
        });
        let refusing = ScriptedServer::start(|mut client| {
            client.send(&[frame(b'E', b"SFATAL\0VFATAL\0C28000\0Mno\0\0")]);
        });
        let ready_again = ScriptedServer::start(|mut client| {
            client.let_in();
        });
        let hosts = |ports: &[u16]| {
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            let hosts = vec!["127.0.0.1"; ports.len()].join(",");
            settings(&format!("hostaddr={hosts} port={} user=u sslmode=disable", ports.join(",")))
        };
        runtime.block_on(async {
            let wanted = hosts(&[free, starting.port, ready.port, free]);
            Session::connect(&wanted, Purpose::Sql, notices().0).await.unwrap();

            // A refusal is final.
            let wanted = hosts(&[free, refusing.port, free]);
            let error = Session::connect(&wanted, Purpose::Sql, notices().0).await.unwrap_err();
            let ConnectError::Failed { attempts } = error else { panic!("{error}") };
            assert_eq!(attempts.len(), 2);

            // A host name with two addresses.
            let wanted = hosts(&[free, ready_again.port]);
            let mut places = Vec::new();
            for host in &wanted.hosts {
                places.extend(socket::places(host).await.unwrap());
            }
            let mut failed = Vec::new();
            let sink = notices().0;
            let opened = login::open_host(
                &wanted.hosts[0],
                places,
                &wanted,
                Purpose::Sql,
                Wanting::Any,
                &sink,
                &mut failed,
            );
            opened.await.unwrap();
            assert_eq!(failed.len(), 1);
        });
        for server in [starting, ready, refusing, ready_again] {
            server.join();
        }
    }
}

/// What a server may say to a request for TLS, and what is made of it.
#[test]
fn answers_to_a_request_for_tls() {
    const REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    fn asked(client: &mut Client) {
        let mut request = [0; 8];
        client.0.read_exact(&mut request).unwrap();
        assert_eq!(request, REQUEST);
    }
    type Script = fn(Client);
    let scripts: [(&str, Script, &str); 7] = [
        (
            "prefer",
            |mut client| {
                asked(&mut client);
                client.send(&[b"N".to_vec()]);
                client.let_in();
            },
            "",
        ),
        (
            "require",
            |mut client| {
                asked(&mut client);
                client.send(&[b"N".to_vec()]);
                client.wait_for_end();
            },
            "server does not support SSL, but SSL was required",
        ),
        (
            "prefer",
            |mut client| {
                asked(&mut client);
                client.send(&[frame(b'E', b"SFATAL\0\0")]);
                client.wait_for_end();
            },
            "server sent an error response during SSL exchange",
        ),
        (
            "prefer",
            |mut client| {
                asked(&mut client);
                client.send(&[b"Sinjected".to_vec()]);
                client.wait_for_end();
            },
            "received unencrypted data after SSL response",
        ),
        (
            "prefer",
            |mut client| {
                asked(&mut client);
                client.send(&[b"HTTP".to_vec()]);
                client.wait_for_end();
            },
            "received invalid response to SSL negotiation: H",
        ),
        ("prefer", |mut client| asked(&mut client), "the server did not answer the request for SSL"),
        (
            "require",
            |mut client| {
                asked(&mut client);
                client.send(&[b"S".to_vec()]);
                // A handshake record: kind, version, length.
                let mut header = [0; 5];
                client.0.read_exact(&mut header).unwrap();
                assert_eq!(header[0], 22);
                let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
                client.0.read_exact(&mut hello).unwrap();
                client.send(&[b"this is no TLS".to_vec()]);
                client.wait_for_end();
            },
            "SSL error: ",
        ),
    ];
    for (mode, script, expected) in scripts {
        for runtime in runtimes() {
            let server = ScriptedServer::start(script);
            let wanted = settings(&format!("{} sslmode={mode}", server.conninfo()));
            let connected = runtime.block_on(Session::connect(&wanted, Purpose::Sql, notices().0));
            match connected {
                Ok(session) => {
                    assert_eq!(expected, "", "{mode}");
                    drop(session);
                }
                Err(error) => {
                    let error = error.to_string();
                    let (_, reason) = error.split_once(" failed: ").unwrap();
                    assert!(!expected.is_empty() && reason.starts_with(expected), "{mode}: {error}");
                }
            }
            server.join();
        }
    }
}

#[test]
fn failures_to_connect_name_the_place() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(format!(".s.PGSQL.{free}"));
    for (conninfo, message) in [
        (
            format!("host=nowhere hostaddr=127.0.0.1 port={free} user=u"),
            format!(
                "connection to server at \"nowhere\" (127.0.0.1), port {free} failed: Connection refused"
            ),
        ),
        (
            format!("host={} port={free} user=u", folder.path().display()),
            format!("connection to server on socket \"{}\" failed: No such file", socket.display()),
        ),
        (
            format!("host=@{} port={free} user=u", folder.path().display()),
            format!("connection to server on socket \"@{}\" failed: Connection refused", socket.display()),
        ),
        (
            "host=name.invalid user=u".to_owned(),
            "could not translate host name \"name.invalid\" to address: ".to_owned(),
        ),
    ] {
        for runtime in runtimes() {
            let settings = settings(&conninfo);
            let connecting = Session::connect(&settings, Purpose::Sql, notices().0);
            let error = runtime.block_on(connecting).unwrap_err().to_string();
            assert!(error.starts_with(&message), "{conninfo}: {error}");
        }
    }
}

#[test]
fn a_cancelled_copy_does_not_leave_the_server_waiting_for_room() {
    for runtime in runtimes() {
        let (full, wait) = mpsc::channel();
        let server = ScriptedServer::start(move |mut client| {
            client.let_in();
            client.query();
            client.send(&[copy_out()]);
            let piece = frame(b'd', &[0; 64 << 10]);
            client.0.set_nonblocking(true).unwrap();
            // The last frame is cut wherever there was no more room.
            while client.0.write(&piece).is_ok() {}
            client.0.set_nonblocking(false).unwrap();
            client.0.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
            full.send(()).unwrap();
            let refused = loop {
                if let Err(error) = client.0.write(&piece) {
                    break error;
                }
            };
            let told = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&refused.kind());
            assert!(told, "{refused}");
        });
        let mut stream = runtime.block_on(begin_bulk(&server));
        wait.recv().unwrap();
        while stream.next_event().unwrap().is_some() {}
        let handle = stream.cancel_handle().unwrap();
        let mut socket = handle.wire.blocking_socket().unwrap();
        handle.cancel();
        // Everything that has come is drained: an unread byte would make the kernel reset the connection by itself.
        while socket.read(&mut vec![0; 1 << 20]).unwrap() > 0 {}
        let ended = stream.receive();
        assert!(matches!(ended, Err(SessionError::Cancelled)), "{ended:?}");
        drop((stream, handle, socket));
        server.join();
    }
}

#[test]
fn an_interrupted_or_finished_source_of_other_bytes() {
    struct Recorded(Vec<u8>, usize);
    impl BulkReceive for Recorded {
        fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    let reply = [copy_out(), frame(b'd', b"abc"), frame(b'c', b""), frame(b'C', b"COPY\0"), ready()].concat();
    for piece in [1, 2, 7, 1000] {
        let mut stream = BulkStream::from_receiver(Box::new(Recorded(reply.clone(), piece)), notices().0);
        assert!(stream.cancel_handle().is_none());
        assert!(matches!(stream.resume().unwrap(), Reply::Copy { .. }));
        assert_eq!(read_copy(&mut stream).unwrap(), b"abc");
        assert!(matches!(stream.resume().unwrap(), Reply::Done(done) if done.tags == ["COPY"]));
        assert!(
            matches!(stream.receive(), Err(SessionError::Closed { position }) if position == reply.len() as u64)
        );
    }
}
