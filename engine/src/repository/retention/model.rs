//! The protocol under every interleaving that a schedule can make: backups and expires that run in threads of their own,
//! over a store that lets one operation through at a time, in the order that the case says. Clocks jump, runs die between
//! two operations, and a listing may or may not show what changes while it is made.
//!
//! After every operation each backup that exists must have all of its packs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use proptest::prelude::*;

use super::super::container::{FrameKind, ObjectKind};
use super::super::manifest::{Manifest, ManifestWriter};
use super::super::names::{BackupId, ClusterName, PackId};
use super::super::object_writer::ObjectWriter;
use super::super::place::{BackupChoice, Repository, now};
use super::super::records::PackRecord;
use super::super::store::{Entry, NewObject, Object, PackPlace, Requests, Store};
use super::super::summary::BackupSummary;
use super::*;
use crate::failure::Failure;
use crate::stop::Stop;

/// A step of a schedule.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Which of those that wait goes on.
    actor: usize,
    /// Seconds by which the store's clock jumps before.
    jump: i64,
    /// Whether it dies instead.
    dies: bool,
    /// What a listing makes of what changed while it was made.
    shows: bool,
}

/// All that the actors share.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Arc<Vec<u8>>, u64)>,
    clock: u64,
    /// What each backup that may come needs.
    needs: BTreeMap<String, Vec<String>>,
    /// Actors that wait for their turn; none where nobody is scheduled.
    waiting: BTreeSet<usize>,
    running: BTreeSet<usize>,
    granted: Option<(usize, Step)>,
    scheduled: bool,
    lost: Option<String>,
}

impl State {
    /// The invariant.
    fn check(&mut self) {
        for (manifest, packs) in &self.needs {
            let Some((bytes, _)) = self.objects.get(manifest) else { continue };
            if bytes[10] != ObjectKind::Manifest as u8 {
                continue;
            }
            if let Some(pack) = packs.iter().find(|pack| !self.objects.contains_key(*pack)) {
                self.lost.get_or_insert_with(|| format!("{manifest} has lost {pack}"));
            }
        }
    }

    fn entries(&self, folder: &str) -> BTreeMap<String, (u64, u64)> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut found = BTreeMap::new();
        for (name, (bytes, modified)) in &self.objects {
            let Some(rest) = name.strip_prefix(&below) else { continue };
            let name = rest.split('/').next().unwrap_or_default();
            found.insert(name.to_owned(), (bytes.len() as u64, *modified));
        }
        found
    }
}

/// The world as one actor has it.
#[derive(Clone, Debug)]
struct Actor {
    world: Arc<World>,
    number: usize,
    dead: Arc<Mutex<bool>>,
}

impl Actor {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.world.state.lock().expect("nobody panics with it")
    }

    /// Waits for its turn, and does something then. The dead do nothing, as if everything failed.
    fn step<T>(&self, act: impl FnOnce(&mut State, Step) -> T) -> Result<T, Failure> {
        if *self.dead.lock().expect("nobody panics with it") {
            return Err(Failure::Stopped);
        }
        let mut state = self.lock();
        let mut step = Step { actor: 0, jump: 0, dies: false, shows: false };
        if state.scheduled {
            state.waiting.insert(self.number);
            state.running.remove(&self.number);
            self.world.turn.notify_all();
            let mine = |state: &mut State| state.granted.is_none_or(|(actor, _)| actor != self.number);
            state = self.world.turn.wait_while(state, mine).expect("nobody panics with it");
            step = state.granted.take().expect("it was granted").1;
            state.waiting.remove(&self.number);
            state.running.insert(self.number);
        }
        if step.dies {
            *self.dead.lock().expect("nobody panics with it") = true;
            return Err(Failure::Stopped);
        }
        let done = act(&mut state, step);
        state.check();
        Ok(done)
    }

    fn names(&self, folder: &str) -> Result<BTreeMap<String, (u64, u64)>, Failure> {
        let before = self.step(|state, _| state.entries(folder))?;
        // What is there at both ends is shown, what came or went meanwhile as the schedule says.
        self.step(|state, step| {
            let mut found = state.entries(folder);
            if step.shows {
                for (name, entry) in before {
                    found.entry(name).or_insert(entry);
                }
            } else {
                found.retain(|name, _| before.contains_key(name));
            }
            found
        })
    }
}

impl Store for Actor {
    fn address(&self) -> String {
        "memory".into()
    }

    fn create(&self, name: &str) -> Result<Box<dyn NewObject>, Failure> {
        Ok(Box::new(New { actor: self.clone(), name: name.to_owned(), bytes: Vec::new() }))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure> {
        let found = self.step(|state, _| state.objects.get(name).map(|(bytes, _)| Arc::clone(bytes)))?;
        Ok(found.map(|bytes| -> Box<dyn Object> { Box::new(Bytes(bytes)) }))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, Failure> {
        let entry = |(name, (length, modified))| Entry { name, is_folder: false, length, modified };
        Ok(self.names(folder)?.into_iter().map(entry).collect())
    }

    fn remove(&self, names: &[String]) -> Result<(), Failure> {
        for name in names {
            self.step(|state, _| state.objects.remove(name))?;
        }
        Ok(())
    }

    fn packs(&self, _folder: &str) -> Result<PackPlace, Failure> {
        Err(Failure::Target("there is none".into()))
    }

    fn staging(&self) -> Result<PathBuf, Failure> {
        Err(Failure::Target("there is none".into()))
    }

    fn give_up(&self) {}

    fn requests(&self) -> Option<Requests> {
        None
    }

    fn sync_folder(&self, _folder: &str) -> Result<(), Failure> {
        Ok(())
    }
}

struct New {
    actor: Actor,
    name: String,
    bytes: Vec<u8>,
}

impl NewObject for New {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn publish(self: Box<Self>) -> Result<bool, Failure> {
        let Self { actor, name, bytes } = *self;
        actor.step(|state, _| {
            let free = !state.objects.contains_key(&name);
            if free {
                state.objects.insert(name, (Arc::new(bytes), state.clock));
            }
            free
        })
    }
}

struct Bytes(Arc<Vec<u8>>);

impl Object for Bytes {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let from = usize::try_from(offset).expect("small");
        buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
        Ok(())
    }
}

fn cluster() -> ClusterName {
    "main".parse().expect("valid")
}

/// Takes a backup as the pipeline does, of two packs, and of those of the newest backup where it may rely on that.
fn take(repository: &Repository, actor: &Actor) -> Result<BackupId, Failure> {
    let cluster = cluster();
    let backup = repository.next_backup(&cluster)?;
    let lease = Lease::take(repository, &cluster, Purpose::Backup, backup, &[], Some(7))?;
    repository.release_identity(&cluster, 7, &lease)?;
    repository.claim_identity(&cluster, 7)?;
    let mut packs = Vec::new();
    if let Some(parent) = repository.backups(&cluster)?.pop()
        && lease.hold(parent)?
    {
        // One that has gone since gives nothing; anything else is as it should be.
        match repository.backup(&cluster, BackupChoice::Id(parent)) {
            Ok(manifest) => packs.extend(manifest.packs.iter().copied()),
            Err(Failure::Repository(error)) if error.what.contains("has no backup") => {}
            Err(failure) => return Err(failure),
        }
    }
    for number in 0..2 {
        lease.renew()?;
        packs.push(write_pack(repository, PackId { backup, number })?);
    }
    let needs = packs.iter().map(|pack| cluster.pack(pack.id)).collect();
    let name = cluster.manifest(backup);
    actor.lock().needs.insert(name.clone(), needs);
    let manifest = ManifestWriter::begin(repository, &name)?;
    let summary: BackupSummary = serde_json::from_value(serde_json::json!({
        "cluster": "main", "backup": backup.to_string(), "parent": null, "program": "x", "source": "stream",
        "server_version": "15", "system_identifier": "7", "wal_segment_size": 16_777_216, "start_lsn": "0/1",
        "start_timeline": 1, "end_lsn": "0/2", "end_timeline": 1, "label": "", "started": now(), "ended": now(),
        "compression": "none", "folder_mode": 0o700, "files": 0, "bytes": 0, "wal_bytes": 0, "stored_bytes": 0,
        "tablespaces": [], "requires": [],
    }))
    .expect("a summary");
    if manifest.commit(&[], &packs, &summary)?.is_some() {
        return Ok(backup);
    }
    let own = (0..2).map(|number| cluster.pack(PackId { backup, number }));
    repository.store().remove(&own.collect::<Vec<_>>())?;
    Err(Failure::Target("it was fenced".into()))
}

fn write_pack(repository: &Repository, id: PackId) -> Result<PackRecord, Failure> {
    let mut object = ObjectWriter::begin(repository, ObjectKind::Pack, &cluster().pack(id))?;
    object.frame(FrameKind::Data, b"data")?;
    let built = object.publish()?.expect("nobody has its name");
    Ok(PackRecord { id, length: built.length, frames: built.frames, checksum: built.checksum, needed: true })
}

fn expire_all(repository: &Repository, keep: u32, grace: u64) -> Result<ExpireReport, Failure> {
    let rules = RetentionRules { keep: Some(keep), keep_for: None };
    let clusters = vec![(cluster(), rules)];
    expire(&ExpireConfig { repository: repository.clone(), clusters, grace, dry_run: false }, &Stop::new())
}

/// What an actor does.
#[derive(Clone, Copy, Debug)]
enum Run {
    Backup,
    /// With so many to keep and a grace age.
    Expire(u32, u64),
    Pin,
}

fn run(actors: &[Run], steps: Vec<Step>) {
    let world = Arc::new(World { state: Mutex::default(), turn: Condvar::new() });
    let actor = |number| Actor { world: Arc::clone(&world), number, dead: Arc::default() };
    let quiet = actor(usize::MAX);
    quiet.lock().clock = now();
    let base = Repository::init(Arc::new(quiet.clone())).expect("made");
    let mut committed: Vec<BackupId> =
        (0..2).map(|_| take(&base, &quiet).expect("nobody is in the way")).collect();
    // What a run of long ago has left.
    write_pack(&base, PackId { backup: BackupId { seconds: 1_000, random: 1 }, number: 0 }).expect("written");
    {
        let mut state = quiet.lock();
        state.scheduled = true;
        state.running = (0..actors.len()).collect();
        for (_, modified) in state.objects.values_mut() {
            *modified -= 10;
        }
    }
    let mut pinned = None;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, what) in actors.iter().copied().enumerate() {
            let actor = actor(number);
            let repository = base.with_store(Arc::new(actor.clone()));
            threads.push(scope.spawn(move || {
                let done = match what {
                    Run::Backup => take(&repository, &actor).map(Some),
                    Run::Expire(keep, grace) => expire_all(&repository, keep, grace).map(|_| None),
                    Run::Pin => pin(&repository, &cluster(), BackupChoice::Latest, None, None)
                        .map(|pin| Some(pin.backup)),
                };
                let mut state = actor.lock();
                state.running.remove(&number);
                actor.world.turn.notify_all();
                done
            }));
        }
        let mut steps = steps.into_iter();
        loop {
            let state = world.state.lock().expect("nobody panics with it");
            let busy = |state: &mut State| !state.running.is_empty() || state.granted.is_some();
            let mut state = world.turn.wait_while(state, busy).expect("nobody panics with it");
            if state.waiting.is_empty() {
                break;
            }
            // When the schedule is over all go on by turns.
            let step = steps.next().unwrap_or(Step { actor: 0, jump: 0, dies: false, shows: true });
            let number = *state.waiting.iter().nth(step.actor % state.waiting.len()).expect("one waits");
            state.clock = state.clock.saturating_add_signed(step.jump);
            state.granted = Some((number, step));
            world.turn.notify_all();
        }
        for (what, thread) in actors.iter().zip(threads) {
            let done = thread.join().expect("no actor panics");
            match (what, done) {
                (Run::Backup, Ok(Some(backup))) => committed.push(backup),
                (Run::Pin, Ok(backup)) => pinned = backup,
                _ => {}
            }
        }
    });
    {
        let mut state = quiet.lock();
        state.scheduled = false;
        assert_eq!(state.lost, None);
        // Long after all that: every lease has ended, everything is old.
        state.clock = state.clock.max(now()) + 10 * 86_400;
    }
    let there = base.backups(&cluster()).expect("listed");
    let newest = committed.iter().max().expect("there were some");
    assert!(there.contains(newest), "the newest backup {newest} is gone: {there:?}");
    assert!(pinned.is_none_or(|pinned| there.contains(&pinned)), "a pinned backup is gone");
    for backup in &there {
        let (manifest, _) =
            Manifest::open_summary(&base, &cluster(), *backup).expect("whole").expect("there");
        drop(manifest);
    }
    // The next run cleans up, whatever died where.
    let report = expire_all(&base, 1, 3600).expect("nobody is in the way");
    let mut state = quiet.lock();
    assert_eq!(state.lost, None);
    let there: BTreeSet<_> = state.entries("clusters/main/packs").into_keys().collect();
    let mut needed = BTreeSet::new();
    for (manifest, packs) in &state.needs {
        let (Some((bytes, _)), prefix) = (state.objects.get(manifest), "clusters/main/packs/") else {
            continue;
        };
        if bytes[10] == ObjectKind::Manifest as u8 {
            needed.extend(packs.iter().map(|pack| pack[prefix.len()..].to_owned()));
        }
    }
    assert_eq!(there, needed, "{report:?}");
    assert_eq!(state.entries("clusters/main/leases"), BTreeMap::new());
    // What stays are marks of dead runs, of backups that a pin holds back, and of those whose packs others need.
    let backups = state.entries("clusters/main/backups");
    for mark in state.entries("clusters/main/condemned").keys() {
        let (backup, kind) = mark.rsplit_once('.').expect("a suffix");
        // One that pins may have died before it could say so.
        let held = state.entries("clusters/main/pins").keys().any(|pin| pin.starts_with(backup));
        let shared = there.iter().any(|pack| pack.starts_with(backup));
        let waits = held && backups.contains_key(&format!("{backup}.manifest"));
        assert!(matches!(kind, "dead" | "swept") || shared || waits, "{mark}");
    }
    state.check();
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let jump = prop_oneof![
        60 => Just(0),
        2 => Just(20 * 60),
        1 => Just(2 * 86_400),
        1 => Just(-3600),
    ];
    let step = (0usize..4, jump, prop::bool::weighted(0.01), any::<bool>())
        .prop_map(|(actor, jump, dies, shows)| Step { actor, jump, dies, shows });
    // In runs, so that one actor often gets past several of the others' steps.
    let run = (step, 1usize..12).prop_map(|(step, count)| {
        let quiet = Step { jump: 0, dies: false, ..step };
        std::iter::once(step).chain(std::iter::repeat_n(quiet, count - 1)).collect::<Vec<_>>()
    });
    prop::collection::vec(run, 10..80).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_of_backups_and_expires_loses_data(steps in steps()) {
        run(&[Run::Backup, Run::Backup, Run::Expire(1, 0), Run::Expire(1, 0)], steps);
    }

    #[test]
    fn nor_with_a_grace_age_and_a_pin(steps in steps()) {
        run(&[Run::Backup, Run::Pin, Run::Expire(1, 60), Run::Expire(0, 0)], steps);
    }
}
