//! The list of files, walked once and passed on while it is walked.
//!
//! Names come sorted, folder by folder, so that the next backup finds the same small files beside each other, and their
//! frames again. Which share one is decided as for a stream. A folder of more names than [`LISTED`] is sorted in parts of so many.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crossbeam::channel::Sender;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::owners::Owners;
use super::rules::{self, Rules};
use crate::basebackup::Observer;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::repository::FolderRecord;
use crate::sink::{Archive, GROUP, LARGE, ends_group, split};
use crate::stop::Stop;
use crate::tracking::{FileFacts, Plan, Planner};

/// Works that wait for a reader.
pub(crate) const FOUND_QUEUE: usize = 64;
/// Names that are sorted together.
const LISTED: usize = 1 << 18;
/// Folders in folders, at most: far more than PostgreSQL makes, and each is open while it is walked.
const DEPTH: usize = 128;
/// Files that are not read, and extents of their maps, that go to a reader at once.
const UNREAD: usize = 1024;
const UNREAD_EXTENTS: usize = 1 << 16;
const TABLESPACES: &[u8] = b"pg_tblspc";
/// The first version that lists tablespaces in place among the others.
const FIRST_IN_PLACE: u32 = 16;
const CONTROL_FILE: &[u8] = b"global/pg_control";

/// Files that one reader reads one after the other: a large one, or small ones that share a frame.
pub(crate) type Work = Vec<Found>;

/// A file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it lies.
    pub(super) folder: Arc<Folder>,
    /// Its name there.
    pub(super) name: Vec<u8>,
    /// Its path as the manifest names it.
    pub(super) path: Vec<u8>,
    /// What becomes of it.
    pub(super) plan: Plan,
}

/// Walks a data directory and its tablespaces.
pub(crate) struct Walker<'a> {
    rules: Rules,
    works: Sender<Work>,
    /// Bytes of a frame.
    buffer_size: u64,
    observer: &'a dyn Observer,
    stop: &'a Stop<Failure>,
    owners: Owners,
    folders: Vec<FolderRecord>,
    /// Says what is kept of an older backup, where there is one.
    planner: Option<Planner>,
    small: Work,
    small_bytes: u64,
    /// Of these, files that are read, and extents of those that are not.
    small_read: usize,
    small_extents: usize,
}

/// The archive that is walked.
struct Root {
    /// What paths are called in the manifest, ahead of their own.
    prefix: Vec<u8>,
    is_base: bool,
}

/// Names of one folder, one behind the other.
#[derive(Default)]
struct Listing {
    text: Vec<u8>,
    /// Where each begins and ends.
    names: Vec<(u32, u32)>,
    /// Whether the folder has no more.
    whole: bool,
}

impl<'a> Walker<'a> {
    /// A walker that passes works on, small files as many as share a frame of `buffer_size` bytes.
    pub(crate) fn new(
        rules: Rules,
        (works, owners): (Sender<Work>, Owners),
        planner: Option<Planner>,
        buffer_size: u64,
        observer: &'a dyn Observer,
        stop: &'a Stop<Failure>,
    ) -> Self {
        Self {
            rules,
            works,
            buffer_size,
            observer,
            stop,
            owners,
            folders: Vec::new(),
            planner,
            small: Vec::new(),
            small_bytes: 0,
            small_read: 0,
            small_extents: 0,
        }
    }

    /// Walks all archives, the data directory last. Returns the folders that belong to the backup.
    pub(crate) fn walk(
        mut self,
        base: &Arc<Folder>,
        archives: &[Archive],
    ) -> Result<Vec<FolderRecord>, Failure> {
        for archive in archives {
            match archive.tablespace {
                None => {
                    self.folder(&Root { prefix: Vec::new(), is_base: true }, base, b"", 0)?;
                }
                Some(oid) => self.tablespace(base, oid)?,
            }
        }
        self.end_small()?;
        Ok(self.folders)
    }

    fn tablespace(&mut self, base: &Folder, oid: u32) -> Result<(), Failure> {
        let location = base.path.join(format!("pg_tblspc/{oid}"));
        let root = Root { prefix: format!("pg_tblspc/{oid}/").into_bytes(), is_base: false };
        let space = match Folder::open(&location) {
            // Dropped meanwhile.
            Err(Failure::Disk { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            opened => opened?,
        };
        let version = self.rules.version_folder.clone();
        let Some(facts) = look(&space, &version)? else { return Ok(()) };
        if FileType::from_raw_mode(facts.st_mode) != FileType::Directory {
            return Err(Failure::Target(format!(
                "\"{}\" is no folder\nHINT: is that a tablespace of this server?",
                space.path.join(OsStr::from_bytes(&version)).display()
            )));
        }
        self.enter(&root, &space, &version, &version, &facts, 0)
    }

    /// Notes a folder and walks what is in it, unless it has gone.
    fn enter(
        &mut self,
        root: &Root,
        parent: &Folder,
        name: &[u8],
        path: &[u8],
        facts: &Stat,
        depth: usize,
    ) -> Result<(), Failure> {
        let place = parent.path.join(OsStr::from_bytes(name));
        if depth > DEPTH {
            return Err(Failure::Target(format!(
                "\"{}\" lies in more than {DEPTH} folders\nHINT: a server makes no such folders; move it out of the \
                 data directory.",
                place.display()
            )));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(&parent.handle, name, flags, Mode::empty()) {
            // A database or a tablespace that was dropped.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened.map_err(|error| unreadable("open folder", &place, error))?,
        };
        self.note(root, path, facts.st_mode & 0o777, facts);
        let folder = Arc::new(Folder { handle: handle.into(), path: place });
        self.folder(root, &folder, path, depth)
    }

    fn note(&mut self, root: &Root, path: &[u8], mode: u32, facts: &Stat) {
        let owner = self.owners.number(facts.st_uid, facts.st_gid);
        self.folders.push(FolderRecord { path: [&root.prefix, path].concat(), mode, owner });
    }

    fn folder(
        &mut self,
        root: &Root,
        folder: &Arc<Folder>,
        path: &[u8],
        depth: usize,
    ) -> Result<(), Failure> {
        let failed = |error| unreadable("list folder", &folder.path, error);
        let mut names = Dir::read_from(folder.handle.as_fd()).map_err(failed)?;
        loop {
            let listing = Listing::read(&mut names).map_err(failed)?;
            for at in 0..listing.names.len() {
                self.entry(root, folder, path, &listing, at, depth)?;
            }
            if listing.whole {
                return Ok(());
            }
        }
    }

    fn entry(
        &mut self,
        root: &Root,
        folder: &Arc<Folder>,
        parent: &[u8],
        listing: &Listing,
        at: usize,
        depth: usize,
    ) -> Result<(), Failure> {
        let name = listing.name(at);
        if rules::is_skipped(name) {
            return Ok(());
        }
        let (relations, database) = self.rules.relations(parent);
        if relations
            && let Some(number) = rules::number_without_init(name)
            && has_init(folder, listing, number)?
        {
            return Ok(());
        }
        if database && rules::is_temporary_relation(name) {
            return Ok(());
        }
        let path = if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() };
        if root.is_base && path == CONTROL_FILE {
            // It comes last.
            return Ok(());
        }
        let Some(facts) = look(folder, name)? else { return Ok(()) };
        let (kind, mode) = (FileType::from_raw_mode(facts.st_mode), facts.st_mode & 0o777);
        let own_mode = if kind == FileType::Directory { mode } else { self.rules.folder_mode };
        let is_place = matches!(kind, FileType::Directory | FileType::Symlink);
        if is_place && self.rules.keeps_empty(&path, name) {
            self.note(root, &path, own_mode, &facts);
            return Ok(());
        }
        if is_place && root.is_base && path == b"pg_wal" {
            self.note(root, &path, own_mode, &facts);
            for below in self.rules.wal_folders {
                self.note(root, format!("pg_wal/{below}").as_bytes(), own_mode, &facts);
            }
            return Ok(());
        }
        match kind {
            // The summary of the backup says where it leads.
            FileType::Symlink if root.is_base && parent == TABLESPACES => Ok(()),
            FileType::Directory if root.is_base && self.rules.inside.contains(&path) => {
                self.note(root, &path, mode, &facts);
                Ok(())
            }
            FileType::Directory => self.enter(root, folder, name, &path, &facts, depth + 1),
            FileType::RegularFile => {
                let size = u64::try_from(facts.st_size).unwrap_or(0);
                let path = [&root.prefix, &path[..]].concat();
                let plan = self.plan(&path, &facts, size)?;
                self.found(Found { folder: Arc::clone(folder), name: name.to_vec(), path, plan }, size)
            }
            _ => {
                let place = folder.path.join(OsStr::from_bytes(name));
                self.observer.warning(&format!("skipping special file \"{}\"", place.display()));
                Ok(())
            }
        }
    }

    /// What becomes of a file.
    fn plan(&mut self, path: &[u8], facts: &Stat, size: u64) -> Result<Plan, Failure> {
        let Some(planner) = &mut self.planner else { return Ok(Plan::Whole) };
        let facts = FileFacts {
            size,
            mode: facts.st_mode & 0o777,
            modified: u64::try_from(facts.st_mtime).unwrap_or(0),
            owner: self.owners.number(facts.st_uid, facts.st_gid),
        };
        planner.plan(path, facts)
    }

    /// Passes a file on. Small ones wait for as many as share a frame, and those of which nothing is read go with them.
    fn found(&mut self, file: Found, size: u64) -> Result<(), Failure> {
        if let Some(extents) = file.plan.unread() {
            self.small_extents += extents;
            self.small.push(file);
            let is_full = self.small_extents > UNREAD_EXTENTS || self.small.len() - self.small_read >= UNREAD;
            return if is_full { self.end_small() } else { Ok(()) };
        }
        if size >= LARGE {
            return self.send(vec![file]);
        }
        let (folder, name) = split(&file.path);
        let stays = self.small.last().is_none_or(|last| split(&last.path).0 == folder);
        let has_room = self.small_bytes + size <= self.buffer_size && self.small_read < GROUP;
        let ends = ends_group(name, size);
        if !stays || !has_room {
            self.end_small()?;
        }
        self.small_bytes += size;
        self.small_read += 1;
        self.small.push(file);
        if ends { self.end_small() } else { Ok(()) }
    }

    fn end_small(&mut self) -> Result<(), Failure> {
        (self.small_bytes, self.small_read, self.small_extents) = (0, 0, 0);
        let small = std::mem::take(&mut self.small);
        if small.is_empty() { Ok(()) } else { self.send(small) }
    }

    fn send(&self, work: Work) -> Result<(), Failure> {
        if self.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        // All readers are gone only after a stop.
        self.works.send(work).map_err(|_| Failure::Stopped)
    }
}

impl Listing {
    /// The next names, sorted.
    fn read(names: &mut Dir) -> rustix::io::Result<Self> {
        let mut listing = Listing::default();
        while listing.names.len() < LISTED {
            let Some(entry) = names.read() else {
                listing.whole = true;
                break;
            };
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let place = |at: usize| u32::try_from(at).expect("names of 255 bytes at most");
            let begin = place(listing.text.len());
            listing.text.extend_from_slice(name);
            listing.names.push((begin, place(listing.text.len())));
        }
        let Listing { text, names, .. } = &mut listing;
        names.sort_unstable_by(|one, other| name_in(text, *one).cmp(name_in(text, *other)));
        Ok(listing)
    }

    fn name(&self, at: usize) -> &[u8] {
        name_in(&self.text, self.names[at])
    }
}

fn name_in(text: &[u8], (begin, end): (u32, u32)) -> &[u8] {
    &text[begin as usize..end as usize]
}

/// Whether a relation has an `init` fork and so is unlogged: looked up in the listing where that is whole.
fn has_init(folder: &Folder, listing: &Listing, number: &[u8]) -> Result<bool, Failure> {
    let init = [number, b"_init"].concat();
    if listing.names.binary_search_by(|place| name_in(&listing.text, *place).cmp(&init)).is_ok() {
        return Ok(true);
    }
    if listing.whole && listing.names.len() < LISTED {
        return Ok(false);
    }
    Ok(look(folder, &init)?.is_some())
}

/// What lies there, links not followed; none where nothing does (any more).
fn look(folder: &Folder, name: &[u8]) -> Result<Option<Stat>, Failure> {
    match rustix::fs::statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => Ok(Some(facts)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(unreadable("look at", &folder.path.join(OsStr::from_bytes(name)), error)),
    }
}

/// What cannot be read, with what to do about it.
pub(super) fn unreadable(action: &'static str, path: &Path, error: Errno) -> Failure {
    if matches!(error, Errno::ACCESS | Errno::PERM) {
        return Failure::Target(format!(
            "could not {action} \"{}\": {}\n\
             HINT: run as the owner of the data directory, or as a member of its group where the cluster was made with \
             --allow-group-access; or take the backup over the network with --source stream.",
            path.display(),
            std::io::Error::from(error)
        ));
    }
    Failure::disk(action, path, error)
}

/// The tablespaces of a data directory, by OID, and last the directory itself; and the paths in it at which
/// tablespaces lie. As `do_pg_backup_start` of a server of this major version finds them: up to 15, one that is a
/// folder below `pg_tblspc` comes with the data directory. `server_path` is how the server calls that.
pub(crate) fn tablespaces(
    base: &Folder,
    server_path: &[u8],
    major: u32,
) -> Result<(Vec<Archive>, HashSet<Vec<u8>>), Failure> {
    let place = base.path.join("pg_tblspc");
    let failed = |error| unreadable("list folder", &place, error);
    let spaces = Folder::open(&place)?;
    let (mut archives, mut inside) = (Vec::new(), HashSet::new());
    for entry in Dir::read_from(spaces.handle.as_fd()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        // One spelling for each OID: no sign, no leading zero.
        let oid = std::str::from_utf8(name).ok().and_then(|name| name.parse::<u32>().ok());
        let Some(oid) = oid.filter(|oid| oid.to_string().as_bytes() == name) else { continue };
        let Some(facts) = look(&spaces, name)? else { continue };
        let location = match FileType::from_raw_mode(facts.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&spaces.handle, name, Vec::new());
                let target =
                    target.map_err(|error| unreadable("read link", &place.join(oid.to_string()), error))?;
                let target = target.into_bytes();
                let below = target.strip_prefix(server_path).and_then(|rest| rest.strip_prefix(b"/"));
                inside.extend(below.map(<[u8]>::to_vec));
                target
            }
            FileType::Directory if major >= FIRST_IN_PLACE => {
                let location = format!("pg_tblspc/{oid}").into_bytes();
                inside.insert(location.clone());
                location
            }
            _ => continue,
        };
        archives.push(Archive { tablespace: Some(oid), location });
    }
    archives.sort_by_key(|archive| archive.tablespace);
    archives.push(Archive { tablespace: None, location: Vec::new() });
    Ok((archives, inside))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use crossbeam::channel::unbounded;

    use super::*;

    struct Silent;

    impl Observer for Silent {
        fn warning(&self, _: &str) {}
        fn note(&self, _: &str) {}
    }

    /// Walks `base`; the works as paths, and the folders with their modes.
    fn walk(base: &Path, rules: Rules, archives: &[Archive]) -> (Vec<Vec<String>>, Vec<(String, u32)>) {
        let (works, found) = unbounded();
        let stop = Stop::new();
        let base = Folder::open(base).expect("a folder");
        let folders = Walker::new(rules, (works, Owners::default()), None, 256 << 10, &Silent, &stop)
            .walk(&base, archives)
            .expect("walked");
        let text = |path: Vec<u8>| String::from_utf8(path).expect("UTF-8");
        let works = found.iter().map(|work| work.into_iter().map(|file| text(file.path)).collect()).collect();
        (works, folders.into_iter().map(|folder| (text(folder.path), folder.mode)).collect())
    }

    #[test]
    fn links_become_folders_and_small_files_share_works() {
        let scratch = tempfile::TempDir::new().expect("folder");
        let (base, space) = (scratch.path().join("base"), scratch.path().join("space"));
        for folder in ["base/5", "global", "pg_tblspc", "elsewhere", "inside/PG_15_1/5"] {
            fs::create_dir_all(base.join(folder)).expect("made");
        }
        fs::create_dir_all(space.join("PG_15_1/7")).expect("made");
        fs::create_dir_all(space.join("PG_14_1/7")).expect("made");
        for (name, size) in [
            ("base/5/1", 8192),
            ("base/5/2", 200 << 10),
            ("base/5/3", 0),
            ("base/5/4", 8192),
            ("base/5/4_init", 8192),
            ("base/5/4_vm", 8192),
            ("base/5/t3_9", 8192),
            ("base/5/pgsql_tmp", 1),
            ("global/pg_control", 8192),
            ("global/1262", 100 << 10),
            ("postmaster.pid", 10),
            ("zz", 127 << 10),
            ("inside/PG_15_1/5/6", 8192),
            ("elsewhere/000000010000000000000001", 8192),
        ] {
            fs::write(base.join(name), vec![1; size]).expect("written");
        }
        fs::write(space.join("PG_15_1/7/8"), b"8").expect("written");
        fs::write(space.join("PG_14_1/7/8"), b"8").expect("written");
        for folder in ["base", "base/5", "global", "pg_tblspc", "elsewhere", "inside"] {
            fs::set_permissions(base.join(folder), fs::Permissions::from_mode(0o700)).expect("set");
        }
        for (target, link) in [("elsewhere", "pg_wal"), ("elsewhere", "pg_stat_tmp"), ("elsewhere", "zlink")]
        {
            symlink(base.join(target), base.join(link)).expect("linked");
        }
        symlink(&space, base.join("pg_tblspc/16400")).expect("linked");
        symlink(base.join("inside"), base.join("pg_tblspc/16401")).expect("linked");
        let folder = Folder::open(&base).expect("a folder");
        let server_path = base.as_os_str().as_bytes();
        let (archives, inside) = tablespaces(&folder, server_path, 17).expect("listed");
        let oids: Vec<_> = archives.iter().map(|archive| archive.tablespace).collect();
        assert_eq!(oids, [Some(16400), Some(16401), None]);
        assert_eq!(archives[0].location, space.as_os_str().as_bytes());
        assert_eq!(inside, HashSet::from([b"inside".to_vec()]));
        let rules = Rules {
            version_folder: b"PG_15_1".to_vec(),
            statistics: None,
            inside,
            wal_folders: Rules::wal_folders_of(17),
            folder_mode: 0o750,
        };
        let (works, folders) = walk(&base, rules, &archives);
        let mut files: Vec<&str> = works.iter().flatten().map(String::as_str).collect();
        files.sort_unstable();
        assert_eq!(
            files,
            [
                "base/5/1",
                "base/5/2",
                "base/5/3",
                "base/5/4_init",
                "elsewhere/000000010000000000000001",
                "global/1262",
                "pg_tblspc/16400/PG_15_1/7/8",
                "pg_tblspc/16401/PG_15_1/5/6",
                "zz",
            ]
        );
        // A large file is alone, and those that share a work lie in one folder.
        assert!(works.contains(&vec!["base/5/2".to_owned()]), "{works:?}");
        for work in &works {
            let folders: HashSet<_> =
                work.iter().map(|path| path.rsplit_once('/').map(|(folder, _)| folder)).collect();
            assert_eq!(folders.len(), 1, "{work:?}");
        }
        let base_folders: Vec<_> =
            folders.iter().filter(|(path, _)| !path.starts_with("pg_tblspc/")).collect();
        let expected = [
            ("base", 0o700),
            ("base/5", 0o700),
            ("elsewhere", 0o700),
            ("global", 0o700),
            ("inside", 0o700),
            ("pg_stat_tmp", 0o750),
            ("pg_tblspc", 0o700),
            ("pg_wal", 0o750),
            ("pg_wal/archive_status", 0o750),
            ("pg_wal/summaries", 0o750),
        ];
        let expected = expected.map(|(path, mode)| (path.to_owned(), mode));
        assert_eq!(base_folders, expected.iter().collect::<Vec<_>>());
    }
}
