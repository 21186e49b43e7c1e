//! One run of one client, with the accounts of everyone who works for it.

use std::path::Path;

use pgstrata::postmaster::Server;

use crate::compare::own_report;
use crate::invocation::Invocation;
use crate::machine_cpu::MachineCpu;
use crate::measure;
use crate::pairs::Run;
use crate::server_cpu::ServerCpu;
use crate::tree;

/// Runs a client that works with `server`, if any, and on the files below `files`.
pub(crate) fn run(client: &Invocation, server: Option<&Server>, files: &Path) -> anyhow::Result<Run> {
    let server_cpu = server.map(|server| ServerCpu::begin(server.pid())).transpose()?;
    let machine_cpu = MachineCpu::begin()?;
    let finished = measure::run(client)?;
    let machine_cpu_seconds = machine_cpu.end()?;
    let server_cpu_seconds = server_cpu.map(ServerCpu::end).transpose()?;
    let bytes = tree::contents(files)?.bytes;
    let report = own_report(&finished.stdout);
    Ok(Run { cost: finished.cost, server_cpu_seconds, machine_cpu_seconds, bytes, report })
}
