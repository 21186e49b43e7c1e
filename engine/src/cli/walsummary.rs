//! `pgstrata walsummary`: pg_walsummary's options and its lines, or one JSON object.
//!
//! Files pass by in pieces: what is printed of one is printed before its checksum, its last bytes, was compared. The exit status
//! says whether all was right.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, Read, Stdout, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::summary::{MAGIC, RelationFork, SummaryDecoder, SummaryError, SummaryEvent};
use serde_json::json;

use super::message;
use super::stock::Tool;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// Print the contents of a WAL summary file
#[derive(Debug, Args)]
// As getopt has it, an option may be given twice.
#[command(disable_help_flag = true, args_override_self = true)]
pub(super) struct WalSummaryArgs {
    /// WAL summary files
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// List block numbers individually, not as ranges
    #[arg(short = 'i', long, help_heading = "Options")]
    individual: bool,
    /// Don't list blocks, just parse the files
    #[arg(short = 'q', long, help_heading = "Options")]
    quiet: bool,

    /// Write what the files hold to stdout as one JSON object
    #[arg(long, help_heading = "Engine options")]
    json: bool,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help, help_heading = "Options")]
    help: Option<bool>,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &WalSummaryArgs) -> anyhow::Result<()> {
    let listing: &mut dyn Listing = match args.json {
        true => &mut JsonObject::new(),
        false => &mut Lines { out: BufWriter::new(io::stdout()), fork: None },
    };
    let outcome = print_files(args, listing);
    let told = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let ended = listing.end(told.as_deref()).map_err(|error| {
        // What is read no further is no failure of ours.
        (error.kind() != io::ErrorKind::BrokenPipe).then(|| not_written(&error))
    });
    if let Some(told) = told {
        message::error(&told);
        return outcome;
    }
    match ended {
        Ok(()) | Err(None) => Ok(()),
        Err(Some(error)) => {
            message::error(&format!("{error:#}"));
            Err(error)
        }
    }
}

fn print_files(args: &WalSummaryArgs, listing: &mut dyn Listing) -> anyhow::Result<()> {
    if args.files.is_empty() {
        return Err(Tool::WalSummary.misuse("no input files specified"));
    }
    for path in &args.files {
        match print_file(args, path, listing) {
            Err(Trouble::File(error)) => return Err(error),
            Err(Trouble::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(Trouble::Output(error)) => return Err(not_written(&error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

enum Trouble {
    File(anyhow::Error),
    Output(io::Error),
}

fn not_written(error: &io::Error) -> anyhow::Error {
    anyhow!("could not write to standard output: {error}")
}

fn print_file(args: &WalSummaryArgs, path: &Path, listing: &mut dyn Listing) -> Result<(), Trouble> {
    let failed = |doing: &str, error: &io::Error| {
        Trouble::File(anyhow!("could not {doing} file \"{}\": {}", path.display(), described(error)))
    };
    let refused = |error: &SummaryError| Trouble::File(anyhow!("{}", complaint(path, error)));
    let mut file = File::open(path).map_err(|error| failed("open", &error))?;
    listing.file(path).map_err(Trouble::Output)?;
    let mut decoder = SummaryDecoder::new();
    let mut piece = vec![0; PIECE];
    let mut run: Option<(u32, u32)> = None;
    loop {
        let length = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", &error)),
        };
        let mut input = &piece[..length];
        while let Some(event) = decoder.next(&mut input).map_err(|error| refused(&error))? {
            let SummaryEvent::Blocks(blocks) = event else {
                if let Some((first, last)) = run.take() {
                    listing.blocks(first, last).map_err(Trouble::Output)?;
                }
                if let SummaryEvent::Fork { fork, limit } = event {
                    listing.fork(fork, limit).map_err(Trouble::Output)?;
                }
                continue;
            };
            if args.quiet {
                continue;
            }
            for block in blocks.iter().map(|block| block.0) {
                run = match run {
                    Some((first, last)) if !args.individual && last.checked_add(1) == Some(block) => {
                        Some((first, block))
                    }
                    Some((first, last)) => {
                        listing.blocks(first, last).map_err(Trouble::Output)?;
                        Some((block, block))
                    }
                    None => Some((block, block)),
                };
            }
        }
    }
    decoder.finish().map_err(|error| refused(&error))
}

/// In pg_walsummary's words where it has some, and then in more detail.
fn complaint(path: &Path, error: &SummaryError) -> String {
    let file = format!("file \"{}\"", path.display());
    let first = match error {
        SummaryError::Magic { found } => {
            format!("{file} has wrong magic number: expected {MAGIC}, found {found}")
        }
        SummaryError::Cut { .. } => format!("{file} ends unexpectedly"),
        SummaryError::ForkNumber { found, .. } => {
            format!("{file} has invalid fork number {}", found.cast_signed())
        }
        SummaryError::ChunkCount { .. } => format!("{file} has oversized chunk size array"),
        SummaryError::ChunkSize { chunk, found, .. } => {
            format!("{file} chunk {chunk} has invalid size {found}")
        }
        SummaryError::Checksum { found, expected, .. } => {
            format!("{file} has wrong checksum: expected {expected:08X}, found {found:08X}")
        }
        SummaryError::Order { .. } | SummaryError::TooLong { .. } | SummaryError::Failed => {
            return format!("{file} is damaged: {error}\nHINT: {HINT}");
        }
    };
    format!("{first}\nDETAIL: {error}\nHINT: {HINT}")
}

const HINT: &str = "it is not, or no longer, a summary that a server wrote; nothing that was read from it is to be believed.";

/// As the system's own tools word it.
fn described(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Where what is read goes.
trait Listing {
    /// A file begins.
    fn file(&mut self, path: &Path) -> io::Result<()>;
    /// A fork of it.
    fn fork(&mut self, fork: RelationFork, limit: Option<BlockNumber>) -> io::Result<()>;
    /// Changed blocks of that, from the first to the last.
    fn blocks(&mut self, first: u32, last: u32) -> io::Result<()>;
    /// All is said; `error` is why it is not all there is.
    fn end(&mut self, error: Option<&str>) -> io::Result<()>;
}

/// pg_walsummary's lines.
struct Lines {
    out: BufWriter<Stdout>,
    fork: Option<RelationFork>,
}

impl Lines {
    fn line(&mut self, what: impl Display) -> io::Result<()> {
        match self.fork {
            Some(fork) => writeln!(self.out, "{fork}: {what}"),
            None => Ok(()),
        }
    }
}

impl Listing for Lines {
    fn file(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn fork(&mut self, fork: RelationFork, limit: Option<BlockNumber>) -> io::Result<()> {
        self.fork = Some(fork);
        // Quiet or not.
        limit.map_or(Ok(()), |limit| self.line(format_args!("limit {limit}")))
    }

    fn blocks(&mut self, first: u32, last: u32) -> io::Result<()> {
        if first == last {
            self.line(format_args!("block {first}"))
        } else {
            self.line(format_args!("blocks {first}..{last}"))
        }
    }

    fn end(&mut self, _: Option<&str>) -> io::Result<()> {
        self.out.flush()
    }
}

/// One object, written as files are read: it is closed whatever happens, and says so.
struct JsonObject {
    out: BufWriter<Stdout>,
    files: usize,
    forks: usize,
    runs: usize,
}

impl JsonObject {
    fn new() -> Self {
        Self { out: BufWriter::new(io::stdout()), files: 0, forks: 0, runs: 0 }
    }

    fn close_fork(&mut self) -> io::Result<()> {
        if self.forks > 0 { self.out.write_all(b"]}") } else { Ok(()) }
    }

    fn close_file(&mut self) -> io::Result<()> {
        self.close_fork()?;
        if self.files > 0 { self.out.write_all(b"]}") } else { Ok(()) }
    }
}

impl Listing for JsonObject {
    fn file(&mut self, path: &Path) -> io::Result<()> {
        self.close_file()?;
        let path = json!(path.to_string_lossy());
        write!(
            self.out,
            "{}{{\"path\":{path},\"forks\":[",
            if self.files == 0 { "{\"files\":[" } else { "," }
        )?;
        (self.files, self.forks) = (self.files + 1, 0);
        Ok(())
    }

    fn fork(&mut self, fork: RelationFork, limit: Option<BlockNumber>) -> io::Result<()> {
        self.close_fork()?;
        let RelationFork { tablespace, database, relation, .. } = fork;
        let (name, limit) = (json!(fork.fork_name()), json!(limit.map(|limit| limit.0)));
        write!(
            self.out,
            "{}{{\"tablespace\":{tablespace},\"database\":{database},\"relation\":{relation},\"fork\":{name},\
             \"limit\":{limit},\"blocks\":[",
            if self.forks == 0 { "" } else { "," }
        )?;
        (self.forks, self.runs) = (self.forks + 1, 0);
        Ok(())
    }

    fn blocks(&mut self, first: u32, last: u32) -> io::Result<()> {
        let comma = if self.runs == 0 { "" } else { "," };
        self.runs += 1;
        write!(self.out, "{comma}[{first},{last}]")
    }

    fn end(&mut self, error: Option<&str>) -> io::Result<()> {
        self.close_file()?;
        self.out.write_all(if self.files == 0 { b"{\"files\":[]" } else { b"]" })?;
        match error {
            None => self.out.write_all(b",\"read\":true}\n")?,
            Some(error) => writeln!(self.out, ",\"read\":false,\"error\":{}}}", json!(error))?,
        }
        self.out.flush()
    }
}
