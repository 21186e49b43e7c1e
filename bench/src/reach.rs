//! How clients reach the server: by its Unix socket, by TCP, or by TLS with a certificate made for the purpose.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::Context;
use pgstrata::postmaster::{Cluster, Server};

use crate::arguments::Over;
use crate::place::Place;

/// The connection string that both rivals are given.
pub(crate) fn conninfo(over: Over, server: &Server) -> String {
    match over {
        Over::Socket => server.socket_conninfo(),
        Over::Tcp => format!("{} sslmode=disable", server.conninfo()),
        Over::Tls => format!("{} sslmode=require", server.conninfo()),
    }
}

/// The settings that the server needs for it.
pub(crate) fn settings(
    over: Over,
    cluster: &Cluster,
    place: &Place,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    if over != Over::Tls {
        return Ok(Vec::new());
    }
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).context("cannot make a certificate")?;
    let mut settings = vec![("ssl", "on".to_owned())];
    for (setting, name, content) in [
        ("ssl_cert_file", "server.crt", made.cert.pem()),
        ("ssl_key_file", "server.key", made.key_pair.serialize_pem()),
    ] {
        let path = place.dir().join(name);
        let write = || {
            fs::write(&path, &content)?;
            // A server takes no key that others may read.
            fs::set_permissions(&path, Permissions::from_mode(0o600))
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        cluster.run_as().own(&path)?;
        settings.push((setting, path.display().to_string()));
    }
    Ok(settings)
}
