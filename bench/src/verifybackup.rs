//! `compare verifybackup`: pg_verifybackup against pgstrata, both on one finished backup, without parsing WAL.
//!
//! The backup is taken by pg_basebackup, plain or tar, so that it is the other program's own work that both judge. The
//! server is stopped before anything is measured. Where the rival is too old to read tar, there is no rival, and said so.

use std::path::PathBuf;

use pgstrata::postmaster::Shutdown;

use crate::arguments::{Format, VerifybackupOptions};
use crate::cache::{self, Cache};
use crate::cluster;
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::measure;
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::tree;

/// The first release whose pg_verifybackup reads tar.
const READS_TAR: u32 = 18;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &VerifybackupOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up(&options.compare)?;
    let stock = comparison.peer.require_verifybackup()?.to_owned();
    let (place, common) = (&comparison.place, &options.compare.common);
    let size = options.compare.size_gb.0;
    let cluster = cluster::compared(&comparison.peer.server, place, size, common.rebuild)?;
    let copy = place.copy();
    let server = cluster::start(&cluster, place)?;
    let conninfo = server.socket_conninfo();
    let (format, benchmark) = match options.format {
        Format::Plain => ("plain", "verifybackup"),
        Format::Tar => ("tar", "verifybackup of tar"),
    };
    let take = Invocation::new(&comparison.peer.basebackup)
        .with(["-d", &conninfo, "-c", "fast", "-F", format, "-D"])
        .with([copy.clone()]);
    measure::run(&take)?;
    server.stop(Shutdown::Fast)?;
    cache::settle(place.dir())?;

    let stock = Invocation::new(stock).with(["-n".into(), copy.clone().into_os_string()]);
    let ours = Invocation::new(&comparison.program.path)
        .with(["verifybackup", "-n", "--json"])
        .with(common.our_option.iter().cloned())
        .with([copy.clone()]);
    let subject = subject(benchmark, &stock, &ours, tree::contents(&copy)?);
    let mut contest = Verifications { copy: copy.clone(), stock, ours };
    let version = comparison.peer.server.version;
    if options.format == Format::Tar && version.major() < READS_TAR {
        let reason = format!(
            "pg_verifybackup {version} reads no archives, that of {READS_TAR} is the first that does"
        );
        comparison.run_alone(&subject, &mut contest, &reason)?;
    } else {
        comparison.run(&subject, &mut contest, "pg_verifybackup")?;
    }
    tree::remove(&copy)
}

struct Verifications {
    copy: PathBuf,
    stock: Invocation,
    ours: Invocation,
}

impl Contest for Verifications {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        cache.prepare(&self.copy)
    }

    fn run(&mut self, side: Side, _cache: Cache) -> anyhow::Result<Run> {
        let client = match side {
            Side::Stock => &self.stock,
            Side::Ours => &self.ours,
        };
        one_run::run(client, None, &self.copy)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        // Nothing was written.
        Ok(())
    }
}
