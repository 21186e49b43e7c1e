//! Whether backups make a chain: control files, labels and manifests, in the order in which pg_combinebackup looks at them
//! and in its words (`src/bin/pg_combinebackup/pg_combinebackup.c`).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pgstrata_protocol::Lsn;
use pgstrata_protocol::control::{CONTROL_FILE_SIZE, ControlFile, ControlFileError};
use pgstrata_protocol::incremental::Geometry;

use super::config::CombineConfig;
use super::known_files::KnownFiles;
use super::label::ChainLink;
use super::observer::CombineObserver;
use crate::failure::Failure;
use crate::verify::open_base;

/// The first version that takes incremental backups.
const FIRST_VERSION: u32 = 17;
/// As much of a label as the stock tool takes: `MAXPGPATH` and 10,000 bytes more.
const MOST_LABEL: u64 = 10_000 + 1024;
const MOST_VERSION: u64 = 128;

/// Backups that build on each other.
#[derive(Debug)]
pub(super) struct Chain {
    /// The full one first.
    pub(super) backups: Vec<Backup>,
    /// `backup_label` of the last.
    pub(super) label: Vec<u8>,
    pub(super) system_identifier: u64,
    pub(super) geometry: Geometry,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Backup {
    pub(super) path: PathBuf,
    pub(super) folder: OwnedFd,
    /// None where it has no manifest.
    pub(super) known: Option<KnownFiles>,
    /// Where it starts: pages that were changed since may have been torn when they were read.
    pub(super) start: Lsn,
    /// Whether its pages carry checksums.
    pub(super) page_checksums: bool,
}

impl Chain {
    /// Looks at all backups.
    pub(super) fn examine(config: &CombineConfig, observer: &dyn CombineObserver) -> Result<Self, Failure> {
        let paths = &config.backups;
        let last = paths.last().ok_or_else(|| Failure::Target("no input directories specified".into()))?;
        read_version(last, observer)?;
        let controls = read_controls(paths, observer)?;
        let control = controls[controls.len() - 1];
        let system_identifier = control.system_identifier;
        let (links, label) = read_labels(paths, observer)?;
        let known: Vec<_> =
            paths.iter().map(|path| KnownFiles::read(path, observer)).collect::<Result<_, _>>()?;
        for (path, known) in paths.iter().zip(&known) {
            if let Some(known) = known.as_ref().filter(|known| known.system_identifier != system_identifier) {
                return Err(Failure::Verification(format!(
                    "{}: manifest system identifier is {}, but control file has {system_identifier}",
                    control_path(path).display(),
                    known.system_identifier
                )));
            }
        }
        let (block, segment) = (u64::from(control.block_size), u64::from(control.segment_blocks));
        let geometry = Geometry::new(block, block * segment)
            .map_err(|error| Failure::Target(format!("{}: {error}", control_path(last).display())))?;
        let backups = paths.iter().zip(known).zip(controls).zip(links);
        let backups = backups.map(|(((path, known), control), link)| {
            let page_checksums = control.data_checksum_version != 0;
            Ok(Backup {
                path: path.clone(),
                folder: open_base(path)?,
                known,
                start: link.start,
                page_checksums,
            })
        });
        Ok(Self { backups: backups.collect::<Result<_, Failure>>()?, label, system_identifier, geometry })
    }

    /// The backup that becomes a full one.
    pub(super) fn last(&self) -> &Backup {
        &self.backups[self.backups.len() - 1]
    }
}

fn control_path(backup: &Path) -> PathBuf {
    backup.join("global/pg_control")
}

/// Reads a file that has at most so many bytes.
fn read_small(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(|error| Failure::disk("open file", path, error))?;
    let mut content = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut content);
    read.map_err(|error| Failure::disk("read file", path, error))?;
    if content.len() as u64 > most {
        return Err(Failure::Target(format!("file \"{}\" is too large", path.display())));
    }
    Ok(content)
}

/// The major version that the last backup is of.
fn read_version(backup: &Path, observer: &dyn CombineObserver) -> Result<(), Failure> {
    let path = backup.join("PG_VERSION");
    let content = read_small(&path, MOST_VERSION)?;
    let refused = |why: &str| Failure::Target(format!("{}: {why}", path.display()));
    let digits = content.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let version = std::str::from_utf8(&content[..digits]).ok().and_then(|text| text.parse::<u32>().ok());
    match (version, content.get(digits)) {
        (Some(version), Some(b'\n')) => {
            if observer.wants_details() {
                observer.detail(&format!("read server version {version} from file \"{}\"", path.display()));
            }
            if version < FIRST_VERSION {
                return Err(refused(&format!(
                    "server version too old\nHINT: it is of PostgreSQL {version}; incremental backups are taken \
                     from {FIRST_VERSION} on."
                )));
            }
            Ok(())
        }
        (Some(0..10), Some(b'.')) => Err(refused("server version too old")),
        _ => Err(refused("could not parse version number")),
    }
}

/// The control files, in the order of the backups.
fn read_controls(paths: &[PathBuf], observer: &dyn CombineObserver) -> Result<Vec<ControlFile>, Failure> {
    let mut controls: Vec<ControlFile> = Vec::new();
    let mut mixed = false;
    for path in paths.iter().rev() {
        let path = control_path(path);
        if observer.wants_details() {
            observer.detail(&format!("reading \"{}\"", path.display()));
        }
        let content = match read_small(&path, CONTROL_FILE_SIZE as u64) {
            Err(Failure::Disk { action: "open file", source, .. }) => {
                return Err(Failure::Target(format!(
                    "could not open file \"{}\" for reading: {source}",
                    path.display()
                )));
            }
            read => read?,
        };
        let refused = |why: String| Failure::Verification(format!("{}: {why}", path.display()));
        let control = ControlFile::parse(&content).map_err(|error| match error {
            ControlFileError::Checksum { .. } => refused(format!(
                "CRC is incorrect\nHINT: {error}; the file is damaged, or the backup is not a finished one."
            )),
            ControlFileError::Version { .. } => {
                refused(format!("unexpected control file version\nHINT: {error}"))
            }
            ControlFileError::Length { .. } => refused(error.to_string()),
        })?;
        if let Some(last) = controls.first() {
            if control.system_identifier != last.system_identifier {
                return Err(refused(format!(
                    "expected system identifier {}, but found {}",
                    last.system_identifier, control.system_identifier
                )));
            }
            if (control.block_size, control.segment_blocks) != (last.block_size, last.segment_blocks) {
                return Err(refused(format!(
                    "expected {} blocks of {} bytes in a segment, but found {} of {}",
                    last.segment_blocks, last.block_size, control.segment_blocks, control.block_size
                )));
            }
            mixed |= last.data_checksum_version != 0
                && last.data_checksum_version != control.data_checksum_version;
        }
        controls.push(control);
    }
    if observer.wants_details() {
        observer.detail(&format!("system identifier is {}", controls[0].system_identifier));
    }
    if mixed {
        observer.warning(
            "only some backups have checksums enabled\n\
             HINT: Disable, and optionally reenable, checksums on the output directory to avoid failures.",
        );
    }
    controls.reverse();
    Ok(controls)
}

/// Where each backup starts, and the label of the last.
fn read_labels(
    paths: &[PathBuf],
    observer: &dyn CombineObserver,
) -> Result<(Vec<ChainLink>, Vec<u8>), Failure> {
    let mut links: Vec<ChainLink> = Vec::new();
    let mut label = None;
    let mut expected = None;
    for (number, backup) in paths.iter().enumerate().rev() {
        let path = backup.join("backup_label");
        if observer.wants_details() {
            observer.detail(&format!("reading \"{}\"", path.display()));
        }
        let content = read_small(&path, MOST_LABEL)?;
        let link = ChainLink::parse(&content)
            .map_err(|why| Failure::Target(format!("{}: {why}", path.display())))?;
        check_link(&link, number, backup, expected)?;
        expected = link.previous;
        links.push(link);
        label.get_or_insert(content);
    }
    links.reverse();
    Ok((links, label.unwrap_or_default()))
}

fn check_link(
    link: &ChainLink,
    number: usize,
    backup: &Path,
    expected: Option<(Lsn, pgstrata_protocol::TimelineId)>,
) -> Result<(), Failure> {
    let refused = |what: String| Err(Failure::Target(format!("backup at \"{}\" {what}", backup.display())));
    match (number, link.previous) {
        (0, Some(_)) => {
            return refused(
                "is an incremental backup, but the first backup should be a full backup\n\
                 HINT: name the full backup first, then the others in the order in which they were taken."
                    .into(),
            );
        }
        (1.., None) => {
            return refused(
                "is a full backup, but only the first backup should be a full backup\n\
                 HINT: what was taken before it is not needed: begin with it."
                    .into(),
            );
        }
        _ => {}
    }
    match expected {
        Some((_, timeline)) if link.timeline != timeline => {
            refused(format!("starts on timeline {}, but expected {timeline}", link.timeline))
        }
        Some((start, _)) if link.start != start => refused(format!(
            "starts at LSN {}, but expected {start}\n\
             HINT: a backup is missing before the one behind it, or is named out of order.",
            link.start
        )),
        _ => Ok(()),
    }
}
