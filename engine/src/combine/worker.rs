//! A worker: finds out what files are made of, reads it, checks it, and hands it to where it goes.

use std::path::PathBuf;
use std::sync::Arc;

use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm, ManifestFile, ModifiedTime};
use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::page::PAGE_SIZE;

use super::assembly::{Assembly, Content, Destination, Sums};
use super::config::{CopyMethod, SyncMethod};
use super::dry;
use super::jobs::Job;
use super::known_files::KnownFiles;
use super::observer::CombineProgress;
use super::plan::Planner;
use super::report::{Clock, Moment};
use super::run::Run;
use super::source_file::{Incremental, SourceFile};
use super::task::{Task, incremental_path};
use super::transfer::{Pass, Transfer};
use super::within_kernel;
use crate::failure::Failure;
use crate::pipeline::FileSender;
use crate::verify::Tree;

/// One worker.
pub(super) struct Worker<'a> {
    run: &'a Run<'a>,
    /// The backups' folders.
    trees: Vec<Tree<'a>>,
    /// How bytes get to files; none in a dry run.
    transfer: Option<Transfer<'a>>,
    clock: Clock<'a>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(run: &'a Run<'a>, files: Option<FileSender>) -> Self {
        let trees =
            run.chain.backups.iter().map(|backup| Tree::new(std::os::fd::AsFd::as_fd(&backup.folder)));
        let transfer = files.map(|files| Transfer::new(run, files));
        Self { run, trees: trees.collect(), transfer, clock: Clock::start(&run.times) }
    }

    /// Works until nothing is left.
    pub(super) fn run(mut self) {
        loop {
            self.clock.book(Moment::Files);
            let job = self.run.jobs.take();
            self.clock.book(Moment::Idle);
            let outcome = match job {
                None => return,
                Some(Job::Part(assembly, part)) => self.part(&assembly, part),
                Some(Job::Files(tasks)) => {
                    let done = tasks.into_iter().try_for_each(|task| self.file(task));
                    self.run.jobs.looked();
                    done
                }
            };
            match outcome {
                Ok(()) | Err(Failure::Stopped) => {}
                Err(failure) => self.run.stop.throw(failure),
            }
        }
    }

    fn file(&mut self, task: Task) -> Result<(), Failure> {
        if self.run.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let content = if task.incremental { self.reconstruct(&task)? } else { self.whole(&task)? };
        let Some(assembly) = self.assemble(task, content)? else { return Ok(()) };
        if !assembly.is_cut() {
            return match assembly.claim_part() {
                Some(part) => self.part(&assembly, part),
                None => Ok(()),
            };
        }
        let assembly = Arc::new(assembly);
        self.run.jobs.share(&assembly);
        // Not the next file before this one is dealt with: large ones hold memory.
        while let Some(part) = assembly.claim_part() {
            self.part(&assembly, part)?;
        }
        Ok(())
    }

    fn whole(&mut self, task: &Task) -> Result<Content, Failure> {
        let last = self.run.chain.backups.len() - 1;
        SourceFile::open(self.run.chain, &mut self.trees, last, &task.path).map(Content::Whole)
    }

    /// Looks for the blocks of an incremental file, from the newest backup to the oldest.
    fn reconstruct(&mut self, task: &Task) -> Result<Content, Failure> {
        let chain = self.run.chain;
        let partial = incremental_path(&task.path);
        let last = chain.backups.len() - 1;
        let newest = SourceFile::open(chain, &mut self.trees, last, &partial)?;
        let newest = Incremental::read(newest, chain)?;
        self.check_size(&newest.source, &partial)?;
        let mut planner = Planner::new(&newest.numbers, newest.truncation_length);
        let mut sources = vec![newest.source];
        for backup in (0..last).rev() {
            if let Some(full) = SourceFile::open_if_there(chain, &mut self.trees, backup, &task.path)? {
                let block_size = chain.geometry.block_size();
                let plan = planner.full(full.length, block_size);
                if plan.is_last_source {
                    return Ok(Content::Whole(full));
                }
                self.check_size(&full, &task.path)?;
                sources.push(full);
                let relation = RelationFile::parse(&task.path).filter(|_| block_size as usize == PAGE_SIZE);
                // By the cluster's own size of segments, which a build can choose.
                let segment_blocks = chain.geometry.segment_blocks();
                let first_block =
                    relation.map(|relation| BlockNumber(relation.segment.saturating_mul(segment_blocks)));
                return Ok(Content::Blocks { plan, sources, block_size, first_block });
            }
            let older = SourceFile::open(chain, &mut self.trees, backup, &partial)?;
            let older = Incremental::read(older, chain)?;
            self.check_size(&older.source, &partial)?;
            planner.incremental(&older.numbers);
            sources.push(older.source);
        }
        let oldest = sources.last().map_or(PathBuf::new(), |source| source.path.clone());
        Err(Failure::Verification(format!(
            "full backup contains unexpected incremental file \"{}\"",
            oldest.display()
        )))
    }

    /// Decides where a file goes and what its bytes are summed up for. None in a dry run.
    fn assemble(&mut self, task: Task, content: Content) -> Result<Option<Assembly>, Failure> {
        let run = self.run;
        let config = run.config;
        let (length, blocks) = match &content {
            Content::Whole(source) => (source.length, None),
            Content::Blocks { plan, block_size, .. } => {
                (u64::from(plan.blocks) * u64::from(*block_size), Some(plan.blocks))
            }
        };
        let wanted = config.manifest.filter(|algorithm| task.summed && *algorithm != ChecksumAlgorithm::None);
        let mut sums = Sums { wanted, ..Sums::default() };
        if let (Content::Whole(source), true) = (&content, task.summed) {
            sums = self.known(source, &task.path, wanted)?;
        }
        let reads = match (&content, config.method) {
            (_, CopyMethod::Copy) | (Content::Blocks { .. }, CopyMethod::Link) => true,
            // What need not be read is not read to be compared either.
            _ => sums.wanted.is_some(),
        };
        if !reads {
            sums.expected = None;
        }
        if run.observer.wants_details() {
            self.tell(&task, &content, &sums);
        }
        let (Some(folder), Some(transfer)) = (&task.folder, &self.transfer) else {
            dry::check(&content)?;
            run.tally.count(blocks.is_some(), &content);
            return Ok(None);
        };
        let shown = folder.path.join(&task.name);
        let destination = match (&content, config.method) {
            (Content::Whole(source), CopyMethod::Link) => {
                run.tally.linked(length);
                Destination::InPlace(within_kernel::link(source, folder, &task.name)?)
            }
            (Content::Whole(source), CopyMethod::Clone) => {
                let file = within_kernel::create(folder, &task.name, run.file_mode)?;
                within_kernel::clone_whole(source, &file, &shown)?;
                run.tally.shared(length);
                Destination::InPlace(file)
            }
            (_, CopyMethod::Copy) | (Content::Blocks { .. }, CopyMethod::Link) => {
                Destination::Writer(transfer.begin(folder, &task.name, length))
            }
            (_, CopyMethod::CopyFileRange | CopyMethod::Clone) => {
                Destination::File(within_kernel::create(folder, &task.name, run.file_mode)?)
            }
        };
        run.tally.count(blocks.is_some(), &content);
        Ok(Some(Assembly::new(task.path, content, length, destination, sums)))
    }

    /// What the manifest of the backup that a whole file comes from says of it.
    fn known(
        &self,
        source: &SourceFile,
        path: &[u8],
        wanted: Option<ChecksumAlgorithm>,
    ) -> Result<Sums, Failure> {
        let sums = Sums { wanted, ..Sums::default() };
        let Some(manifest) = &self.run.chain.backups[source.backup].known else { return Ok(sums) };
        let Some(known) = manifest.get(path) else {
            if wanted.is_some() {
                self.run.observer.warning(&format!(
                    "manifest file \"{}\" contains no entry for file \"{}\"",
                    manifest.path.display(),
                    super::as_path(path).display()
                ));
            }
            return Ok(sums);
        };
        self.check_size(source, path)?;
        let reused = known.checksum.filter(|(algorithm, _)| Some(*algorithm) == wanted);
        Ok(Sums {
            expected: known.checksum.filter(|_| self.run.config.verify),
            wanted: wanted.filter(|_| reused.is_none()),
            reused,
        })
    }

    /// Compares a source's length with what its backup's manifest says: a full file that was cut would be taken for one that
    /// the server extended later.
    fn check_size(&self, source: &SourceFile, path: &[u8]) -> Result<(), Failure> {
        let manifest =
            self.run.chain.backups[source.backup].known.as_ref().filter(|_| self.run.config.verify);
        match manifest.and_then(|manifest| Some((manifest, manifest.get(path)?.size))) {
            Some((manifest, expected)) if expected != source.length => {
                Err(differs(source, manifest, &format!("{} bytes", source.length), &expected.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn tell(&self, task: &Task, content: &Content, sums: &Sums) {
        let output = self.run.shown(&task.path);
        let dry = self.run.config.dry_run;
        match content {
            Content::Whole(source) => {
                let what = format!("\"{}\" to \"{}\"", source.path.display(), output.display());
                let how = match (self.run.config.method.strategy(), sums.wanted, dry) {
                    (Some(strategy), ..) => format!(" using strategy {strategy}"),
                    (None, Some(algorithm), false) => format!(" and checksumming with {algorithm}"),
                    (None, ..) => String::new(),
                };
                let verb = if dry { "would copy" } else { "copying" };
                self.run.observer.detail(&format!("{verb} {what}{how}"));
            }
            Content::Blocks { plan, sources, block_size, .. } => {
                dry::tell_plan(self.run, &output, plan, sources, *block_size, sums.wanted);
            }
        }
    }

    /// Makes a part of a file; with the last one the file is complete.
    fn part(&mut self, assembly: &Assembly, part: usize) -> Result<(), Failure> {
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        self.clock.book(Moment::Files);
        let (begin, end) = assembly.range(part);
        let mut pass = Pass { assembly, begin, end, sums: assembly.sums.begin() };
        let is_only = !assembly.is_cut();
        match &assembly.destination {
            Destination::Writer(output) => {
                transfer.through_writer(&mut pass, output, is_only, &mut self.clock)?;
            }
            Destination::File(file) => {
                transfer.only_read(&mut pass, &mut self.clock)?;
                transfer.within_kernel(assembly, file, (begin, end), &mut self.clock)?;
            }
            Destination::InPlace(_) => transfer.only_read(&mut pass, &mut self.clock)?,
        }
        let sums = pass.sums.into_iter().map(Checksum::finish).collect();
        let Some(end) = assembly.complete(part, sums) else { return Ok(()) };
        if let (Some((algorithm, found, expected)), Content::Whole(source)) = (end.differs, &assembly.content)
            && let Some(manifest) = &self.run.chain.backups[source.backup].known
        {
            let found = format!("{algorithm} checksum {found}");
            return Err(differs(source, manifest, &found, &expected.to_string()));
        }
        self.end(assembly, is_only)?;
        let modified = self.run.now();
        self.run.note(ManifestFile {
            path: assembly.path.clone(),
            size: assembly.length,
            modified: ModifiedTime(modified),
            checksum: end.checksum,
        })?;
        CombineProgress::add(&self.run.progress.files, 1);
        Ok(())
    }

    /// Gives a file its length and makes it durable, or has its writer do so.
    fn end(&mut self, assembly: &Assembly, is_only: bool) -> Result<(), Failure> {
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        let file = match &assembly.destination {
            Destination::Writer(_) if is_only => return Ok(()),
            Destination::Writer(output) => return transfer.end(output, assembly.length, &mut self.clock),
            Destination::File(file) => {
                // A file that ends with zeros got nothing there.
                file.set_len(assembly.length).map_err(|error| {
                    Failure::disk("set the length of", self.run.shown(&assembly.path), error)
                })?;
                file
            }
            Destination::InPlace(file) => file,
        };
        if self.run.config.sync == Some(SyncMethod::Fsync) {
            file.sync_all().map_err(|error| Failure::disk("sync", self.run.shown(&assembly.path), error))?;
            self.clock.book(Moment::Write);
        }
        Ok(())
    }
}

fn differs(source: &SourceFile, manifest: &KnownFiles, found: &str, expected: &str) -> Failure {
    Failure::Verification(format!(
        "file \"{}\" has {found}, but \"{}\" expects {expected}\n\
         HINT: the backup was changed, or is damaged; --no-verify-checksums takes it as it is.",
        source.path.display(),
        manifest.path.display()
    ))
}
