//! Sessions against a scripted server, and against a real one where one is installed.

mod cluster;
mod real_server;
mod scripted;
mod scripted_server;

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use super::{ConnectionSettings, ControlRuntime, GivenSettings, NoticeSink, Surroundings};

/// Both ways to drive sockets.
fn runtimes() -> [ControlRuntime; 2] {
    [ControlRuntime::new().unwrap(), ControlRuntime::without_ring().unwrap()]
}

/// Settings from a connection string and nothing else.
fn settings(conninfo: &str) -> ConnectionSettings {
    let nothing = |_: &str| None::<OsString>;
    let around =
        Surroundings { variable: &nothing, os_user: None, home: None, socket_directory: "/nowhere".into() };
    let given = GivenSettings {
        conninfo: Some(conninfo),
        program: Some("session tests"),
        ..GivenSettings::default()
    };
    ConnectionSettings::resolve(&given, &around).unwrap()
}

/// A sink for notices and where they go.
fn notices() -> (NoticeSink, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    (Arc::new(move |notice| sink.lock().unwrap().push(notice.to_string())), seen)
}
