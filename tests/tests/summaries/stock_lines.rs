//! pg_walsummary's lines, and what they come to when files are laid over each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pgstrata_protocol::summary::BlockReferences;
use pgstrata_tests::Invocation;

/// By `TS n, DB n, REL n, FORK name`: the limit, and the blocks.
pub(crate) type Forks = BTreeMap<String, (Option<u32>, BTreeSet<u32>)>;

/// What a table says; forks of which nothing is known left out, as no line tells of them.
pub(crate) fn of_table(table: &BlockReferences) -> Forks {
    let all = table.sorted().map(|(fork, found)| {
        let blocks = found.blocks(..).map(|block| block.0).collect::<BTreeSet<_>>();
        (fork.to_string(), (found.limit().map(|limit| limit.0), blocks))
    });
    all.filter(|(_, (limit, blocks))| limit.is_some() || !blocks.is_empty()).collect()
}

/// What the stock tool says of these files, each laid over those before: a limit cuts, blocks are added.
pub(crate) fn of_files(tool: &Path, files: &[PathBuf]) -> Forks {
    let mut forks = Forks::new();
    for file in files {
        let finished = Invocation::new(tool, ["-i"]).arg(file).run();
        for line in finished.expect_success().stdout_text().lines() {
            let (fork, what) = line.split_once(": ").expect("a fork");
            let (kind, number) = what.split_once(' ').expect("a number");
            let number = number.parse().expect("a number");
            let (limit, blocks) = forks.entry(fork.to_owned()).or_default();
            match kind {
                "limit" if limit.is_none_or(|before| number < before) => {
                    *limit = Some(number);
                    blocks.retain(|block| *block < number);
                }
                "limit" => {}
                "block" => {
                    blocks.insert(number);
                }
                other => panic!("{other}"),
            }
        }
    }
    forks
}
