//! `memory`: the peak memory of `pgstrata basebackup` for the same bytes in twenty files and in very many.
//!
//! Both clusters hold the same number of bytes, so that both fill the same buffers and only the number of files
//! differs; see [`crate::many_files`]. The backups are plain, with WAL streamed, and durable.

use anyhow::Context;
use pgstrata::postmaster::{Server, ServerProgram, Shutdown};
use serde::Serialize;

use crate::arguments::MemoryOptions;
use crate::environment::Environment;
use crate::invocation::Invocation;
use crate::output::{Output, giga, mebi};
use crate::pairs::Run;
use crate::place::{self, Place};
use crate::program::Program;
use crate::statistics::Spread;
use crate::summary::shown;
use crate::table::Table;
use crate::tree::Contents;
use crate::{cache, cluster, many_files, measure, one_run, tree};

/// Files in the smaller cluster, besides an empty cluster's own.
const FEW: u32 = 20;

/// One cluster and the runs on it.
#[derive(Debug, Serialize)]
struct Sample {
    /// Files beside those of an empty cluster.
    extra_files: u32,
    /// All files of the copy.
    files: u64,
    /// Their bytes.
    bytes: u64,
    peak_memory_bytes: Spread,
    wall_seconds: Spread,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Document {
    benchmark: &'static str,
    /// How the files came to be.
    files_made: &'static str,
    memory_floor_bytes: u64,
    environment: Environment,
    samples: Vec<Sample>,
}

/// Sets up, measures and tells.
pub(crate) fn measure(options: &MemoryOptions) -> anyhow::Result<()> {
    let common = &options.common;
    let output = Output::open(common.json.as_deref())?;
    let program = Program::obtain(common.pgstrata.as_deref())?;
    let base = place::base(common.dir.as_deref())?;
    let server = match &common.pg_bin {
        Some(dir) => ServerProgram::at(dir)?,
        None => ServerProgram::find_or_fetch(None, &base.join("servers"))?,
    };
    // So that both have the same bytes.
    let pages_each = u64::from(options.files / FEW);
    let many = options.files / FEW * FEW;
    let environment = Environment::of(&base, &server, &program)?;
    output.say(&environment.to_string())?;
    let floor = measure::floor().context("cannot measure a process that does nothing")?;
    let mut samples = Vec::new();
    for (count, pages) in [(FEW, pages_each), (many, 1)] {
        let place = Place::take(&base, &format!("pg{}-memory-{count}x{pages}", server.version))?;
        let cluster = many_files::cluster(&server, &place, count, pages, common.rebuild)?;
        let running = cluster::start(&cluster, &place)?;
        let sample = sample(options, &program, &place, &running, count)?;
        running.stop(Shutdown::Fast)?;
        samples.push(sample);
    }
    output.say(&table(&samples))?;
    output.say(&format!(
        "The files were put into the data directory by hand, while the server was down.\n\
         No process can show less peak memory here than {:.1} MiB.",
        mebi(floor)
    ))?;
    output.finish(&Document {
        benchmark: "memory",
        files_made: "by hand, in base/1, while the server was down",
        memory_floor_bytes: floor,
        environment,
        samples,
    })
}

fn sample(
    options: &MemoryOptions,
    program: &Program,
    place: &Place,
    server: &Server,
    extra_files: u32,
) -> anyhow::Result<Sample> {
    let copy = place.copy();
    let conninfo = server.socket_conninfo();
    let client = Invocation::new(&program.path)
        .with(["basebackup", "-d", &conninfo, "-F", "plain", "-X", "stream", "-c", "fast", "--json"])
        .with(options.common.our_option.iter().cloned())
        .with(["-D".into(), copy.clone().into_os_string()]);
    let (mut runs, mut contents) = (Vec::new(), Contents::default());
    for number in 1..=options.runs {
        let run = one_run::run(&client, Some(server), &copy)?;
        contents = tree::contents(&copy)?;
        tree::remove(&copy)?;
        cache::settle(place.dir())?;
        eprintln!(
            "pgstrata-bench: {extra_files} files, run {number}/{}: {:.1} MiB, {:.2} s",
            options.runs,
            mebi(run.cost.peak_memory_bytes),
            run.cost.wall_seconds
        );
        runs.push(run);
    }
    let spread = |measure: fn(&Run) -> f64| Spread::of(runs.iter().map(measure)).context("no run was made");
    Ok(Sample {
        extra_files,
        files: contents.files,
        bytes: contents.bytes,
        peak_memory_bytes: spread(|run| run.cost.peak_memory_bytes as f64)?,
        wall_seconds: spread(|run| run.cost.wall_seconds)?,
        runs,
    })
}

fn table(samples: &[Sample]) -> String {
    let mut table =
        Table::new(["files", "GB", "peak memory, MiB (min / median / max)", "wall, s (min / median / max)"]);
    for sample in samples {
        let Spread { min, median, max } = sample.peak_memory_bytes;
        let [min, median, max] = [min, median, max].map(|bytes| bytes / f64::from(1 << 20));
        table.row(vec![
            sample.files.to_string(),
            format!("{:.2}", giga(sample.bytes)),
            shown(&Spread { min, median, max }, 1),
            shown(&sample.wall_seconds, 2),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shown_in_mebibytes() {
        let spread = Spread { min: 1_048_576.0, median: 1_572_864.0, max: 2_097_152.0 };
        let sample = Sample {
            extra_files: 20,
            files: 990,
            bytes: 1_660_000_000,
            peak_memory_bytes: spread,
            wall_seconds: Spread { min: 1.0, median: 2.0, max: 3.0 },
            runs: Vec::new(),
        };
        let rendered = table(&[sample]);
        let row = rendered.lines().last().unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1..5], ["990", "1.66", "1.0 / 1.5 / 2.0", "1.00 / 2.00 / 3.00"]);
    }
}
