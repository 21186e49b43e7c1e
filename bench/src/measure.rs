//! Runs one client and measures it: wall time, CPU seconds, peak memory.
//!
//! Every client is started by a small helper process, this program again. Linux lets a child that execs inherit the
//! peak memory of the process it came from (`exec_mmap` in fs/exec.c keeps the largest resident set of the old
//! address space), so a client started by the benchmark itself could never show less than the benchmark. The helper
//! has just begun and is small; what remains as a floor is measured by [`floor`] and reported.
//!
//! The helper waits for one child only, so that its `RUSAGE_CHILDREN` is that child's usage together with that of
//! all processes the child itself waited for, such as the WAL receiver of pg_basebackup. Kernel workers of an
//! `io_uring` are threads of the client and count as its own. Peak memory is that of the largest process, not a sum.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::arguments::MeasureOne;
use crate::invocation::{Invocation, neutral};

/// What one run of a client cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Seconds from its start to its end.
    pub(crate) wall_seconds: f64,
    /// CPU seconds outside the kernel.
    pub(crate) user_seconds: f64,
    /// CPU seconds in the kernel.
    pub(crate) system_seconds: f64,
    /// The largest resident set of any of its processes, in bytes.
    pub(crate) peak_memory_bytes: u64,
}

impl Cost {
    /// All CPU seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// How a run ended.
#[derive(Debug, Serialize, Deserialize)]
struct Ending {
    cost: Cost,
    /// The exit code, or none if a signal ended it.
    code: Option<i32>,
    signal: Option<i32>,
}

/// A successful run.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What it cost.
    pub(crate) cost: Cost,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
}

/// Runs a client to its end. One that fails is an error that quotes it.
pub(crate) fn run(client: &Invocation) -> anyhow::Result<Finished> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let said = tempfile::tempdir().context("cannot create a temporary directory")?;
    let (stdout, stderr) = (said.path().join("stdout"), said.path().join("stderr"));
    let mut helper = Command::new(&exe);
    helper.arg("measure-one").arg("--stdout").arg(&stdout).arg("--stderr").arg(&stderr).arg("--");
    helper.args(client.words());
    neutral(&mut helper);
    let output = helper
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", exe.display()))?;
    if !output.status.success() {
        bail!("measuring {} failed ({})", client.shown(), output.status);
    }
    let ending: Ending = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("expected a measurement of {}", client.shown()))?;
    let read = |path: &Path| {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match (ending.code, ending.signal) {
        (Some(0), _) => Ok(Finished { cost: ending.cost, stdout: read(&stdout)? }),
        (Some(code), _) => {
            bail!("{} ended with exit code {code}:\n{}", client.shown(), read(&stderr)?.trim_end())
        }
        (None, signal) => bail!(
            "{} was ended by signal {}:\n{}",
            client.shown(),
            signal.unwrap_or_default(),
            read(&stderr)?.trim_end()
        ),
    }
}

/// The peak memory that any client shows at least, in bytes: what a client that does nothing shows.
pub(crate) fn floor() -> anyhow::Result<u64> {
    Ok(run(&Invocation::new("true"))?.cost.peak_memory_bytes)
}

/// The helper's side: runs the command and prints how it ended.
pub(crate) fn measure_here(one: &MeasureOne) -> anyhow::Result<()> {
    let create =
        |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
    let (program, arguments) = one.command.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(create(&one.stdout)?).stderr(create(&one.stderr)?);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let status = child.wait().with_context(|| format!("cannot wait for {}", program.display()))?;
    let wall_seconds = began.elapsed().as_secs_f64();
    let ending =
        Ending { cost: cost_of_children(wall_seconds), code: status.code(), signal: status.signal() };
    serde_json::to_writer(std::io::stdout(), &ending).context("cannot print the measurement")?;
    std::io::stdout().flush().context("cannot print the measurement")
}

fn cost_of_children(wall_seconds: f64) -> Cost {
    // SAFETY: getrusage fills the whole structure that it is given, and an all-zero rusage is a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Cost {
        wall_seconds,
        user_seconds: seconds(usage.ru_utime),
        system_seconds: seconds(usage.ru_stime),
        // Linux counts ru_maxrss in KiB.
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }
}
