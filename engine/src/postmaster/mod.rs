//! Finds, makes, starts and stops real PostgreSQL servers.
//!
//! Contract: a [`ServerProgram`] is found on this machine or fetched; a [`Cluster`] is a data directory at rest,
//! new from `initdb` or taken over from a backup; a [`Server`] is a running postmaster, our direct child, which
//! does not outlive this process nor its own handle. Under root everything that belongs to the server runs as an
//! [`Unprivileged`] account, because PostgreSQL refuses to run as root.
//! Speaks no SQL: readiness is read from `postmaster.pid`.

mod cluster;
mod error;
mod fetch;
mod init;
mod keeper;
mod pidfile;
mod port;
mod processes;
mod program;
mod server;
mod unprivileged;

pub use cluster::Cluster;
pub use error::PostmasterError;
pub use init::{Auth, InitOptions, PasswordMethod};
pub use program::{Origin, ServerProgram};
pub use server::{Server, Shutdown};
pub use unprivileged::Unprivileged;
