//! What is told of files in detail, and what a dry run checks of them: that they are long enough.

use std::path::Path;

use pgstrata_protocol::manifest::ChecksumAlgorithm;

use super::assembly::Content;
use super::plan::Plan;
use super::run::Run;
use super::source_file::SourceFile;
use crate::failure::Failure;

/// A line of a plan is told once it has so many bytes, as the stock tool does.
const LINE: usize = 1024;

/// Compares lengths of sources with what is needed of them.
pub(super) fn check(content: &Content) -> Result<(), Failure> {
    let Content::Blocks { plan, sources, block_size, .. } = content else { return Ok(()) };
    for (number, source) in (0..).zip(sources) {
        let (blocks, reach) = plan.share(number);
        if blocks == 0 {
            continue;
        }
        let expected = source.header + u64::from(reach) * u64::from(*block_size);
        if source.length < expected {
            return Err(Failure::Verification(format!(
                "file \"{}\" is too short: expected {expected}, found {}",
                source.path.display(),
                source.length
            )));
        }
    }
    Ok(())
}

/// Tells how a file is put together (`write_reconstructed_file` and `debug_reconstruction`, `reconstruct.c`).
pub(super) fn tell_plan(
    run: &Run<'_>,
    output: &Path,
    plan: &Plan,
    sources: &[SourceFile],
    block_size: u32,
    checksum: Option<ChecksumAlgorithm>,
) {
    let (reconstruct, filled, read) = match run.config.dry_run {
        true => ("would reconstruct", "would have zero-filled", "would have read"),
        false => ("reconstructing", "zero-filled", "read"),
    };
    let checksum = checksum.unwrap_or(ChecksumAlgorithm::None);
    let tell = |text: &str| run.observer.detail(text);
    tell(&format!("{reconstruct} \"{}\" ({} blocks, checksum {checksum})", output.display(), plan.blocks));
    let mut line = String::new();
    let mut zeros = 0;
    for stretch in &plan.stretches {
        let last = stretch.block + stretch.count - 1;
        let blocks = match stretch.count {
            1 => stretch.block.to_string(),
            _ => format!("{}-{last}", stretch.block),
        };
        let source = stretch.from.and_then(|from| Some((sources.get(usize::from(from.source))?, from.at)));
        line += &match source {
            None => {
                zeros += stretch.count;
                format!(" {blocks}:zero")
            }
            Some((source, at)) => {
                // That of the last block.
                let at = source.header + u64::from(at + stretch.count - 1) * u64::from(block_size);
                format!(" {blocks}:{}@{at}", source.path.display())
            }
        };
        if last + 1 == plan.blocks || line.len() > LINE {
            tell(&format!("reconstruction plan:{line}"));
            line.clear();
        }
    }
    if zeros > 0 {
        tell(&format!("{filled} {zeros} blocks"));
    }
    for (number, source) in (0..).zip(sources) {
        let (blocks, _) = plan.share(number);
        if blocks > 0 {
            tell(&format!("{read} {blocks} blocks from \"{}\"", source.path.display()));
        }
    }
}
