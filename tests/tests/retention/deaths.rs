//! A process that dies at any operation on the repository: it opens, holds every committed backup whole, and the next
//! run cleans up.

use std::sync::Arc;

use pgstrata::failure::Failure;
use pgstrata::repository::{BackupChoice, Repository, pin, unpin};
use pgstrata_tests as harness;
use pgstrata_tests::{Running, Scratch, pgstrata};
use rustix::process::Signal;

use super::faulty_store::{Death, FaultyStore};
use super::sample::{
    age, backup, backups, cluster, copy, expect_clean, expire_by, local, names, open, server, verify,
};

type Run<'r> = &'r dyn Fn(Arc<FaultyStore>) -> Result<(), Failure>;

/// Runs with a death at each operation in turn, from a copy of `template` each time. Returns how many there were.
fn at_each(scratch: &Scratch, template: &str, run: Run<'_>, then: &dyn Fn(&std::path::Path, Death)) -> usize {
    let fresh = |name: String| {
        let repo = scratch.join(&name);
        copy(&scratch.join(template), &repo);
        repo
    };
    let unharmed = fresh(format!("{template} unharmed"));
    let whole = Arc::new(FaultyStore::new(local(&unharmed), Death::Never));
    run(Arc::clone(&whole)).unwrap_or_else(|failure| panic!("{failure}"));
    std::fs::remove_dir_all(unharmed).expect("removed");
    let count = whole.done();
    for number in 0..count {
        for death in [Death::Before(number), Death::Behind(number)] {
            let repo = fresh(format!("{template} {death:?}"));
            // The last operations are those of cleaning up, whose failure is not the run's.
            let _ = run(Arc::new(FaultyStore::new(local(&repo), death)));
            then(&repo, death);
            std::fs::remove_dir_all(repo).expect("removed");
        }
    }
    count
}

#[test]
fn at_every_operation_of_the_store() {
    let scratch = Scratch::new();
    let server = server();
    let template = scratch.join("three");
    Repository::init(local(&template)).expect("made");
    // A first backup.
    copy(&template, &scratch.join("none"));
    let take = |store: Arc<FaultyStore>| backup(&server, store).map(drop);
    let count = at_each(&scratch, "none", &take, &|repo, death| {
        let there = backups(repo);
        assert!(there.len() <= 1, "{death:?}");
        assert_eq!(verify_problems(repo), Vec::<String>::new(), "{death:?}");
        expect_clean(repo);
        assert_eq!(backups(repo), there, "{death:?}");
    });
    assert!(count > 15, "{count} operations");

    for _ in 0..3 {
        backup(&server, local(&template)).expect("taken");
    }
    let [oldest, middle, newest]: [String; 3] = backups(&template).try_into().expect("three");
    let first_ones = |there: &[String], death| {
        // Only whole backups, and never without the newest.
        assert!(there.contains(&newest), "{death:?}: {there:?}");
        assert!(there.iter().all(|one| [&oldest, &middle, &newest].contains(&one)), "{death:?}: {there:?}");
    };
    let expire = |store: Arc<FaultyStore>| expire_by(store, 1).map(drop);
    let count = at_each(&scratch, "three", &expire, &|repo, death| {
        first_ones(&backups(repo), death);
        assert_eq!(verify_problems(repo), Vec::<String>::new(), "{death:?}");
        // The next one ends what was begun, and does the rest.
        age(repo);
        expire_by(local(repo), 1).expect("nobody is in the way");
        assert_eq!(backups(repo), [newest.as_str()], "{death:?}");
        // A mark stays as long as the newest backup needs packs of the one that has gone.
        let packs = names(&repo.join("clusters/main/packs"));
        for mark in names(&repo.join("clusters/main/condemned")) {
            let backup = mark.strip_suffix(".condemned").expect("a mark of a removed backup");
            assert!(packs.iter().any(|pack| pack.starts_with(backup)), "{death:?}: {mark}");
        }
        expect_clean(repo);
    });
    assert!(count > 30, "{count} operations");

    let id: pgstrata::repository::BackupId = oldest.parse().expect("an id");
    let pinned = |store: Arc<FaultyStore>| {
        let repository = Repository::open(store)?;
        pin(&repository, &cluster(), BackupChoice::Id(id), None, Some("audit".into()))?;
        unpin(&repository, &cluster(), id).map(drop)
    };
    at_each(&scratch, "three", &pinned, &|repo, death| {
        let pinned = pgstrata::repository::pins(&open(repo), &cluster()).expect("readable");
        expire_by(local(repo), 1).expect("nobody is in the way");
        let expected = if pinned.is_empty() { vec![&newest] } else { vec![&oldest, &newest] };
        assert_eq!(backups(repo).iter().collect::<Vec<_>>(), expected, "{death:?}");
        unpin(&open(repo), &cluster(), id).expect("removed");
        expect_clean(repo);
    });
}

fn verify_problems(repo: &std::path::Path) -> Vec<String> {
    verify(repo).problems
}

/// Waits until something is seen, or the run has ended, and kills it.
fn kill_when(run: Running, condition: impl Fn() -> bool) {
    while run.is_running() && !condition() {
        std::hint::spin_loop();
    }
    run.signal(Signal::KILL);
    let _ = run.wait();
}

#[test]
fn by_a_signal_that_nobody_can_catch() {
    let source = harness::cluster(15).start();
    let repo = source.dir("repo");
    pgstrata(["init", "--repo"]).arg(&repo).run().expect_success();
    let take = || {
        let run = pgstrata(["backup", "--cluster", "main", "-c", "fast", "-d", &source.conninfo(), "--repo"]);
        run.arg(&repo)
    };
    let there = |folder: &str| names(&repo.join(folder)).len();
    let packs = "clusters/main/packs";
    // The first backup: verify calls nothing damaged, neither while it runs nor when it is dead.
    let run = take().args(["-r", "4M"]).spawn();
    harness::wait_until("a pack", || there(packs) > 0 || !run.is_running());
    assert_eq!(verify(&repo).problems, Vec::<String>::new());
    let early = expire_by(local(&repo), 1).expect("it leaves the run alone");
    assert!(early.clusters[0].packs == 0 && early.clusters[0].dead.is_empty(), "{early:?}");
    run.signal(Signal::KILL);
    let _ = run.wait();
    assert!(backups(&repo).is_empty() && there(packs) > 0);
    assert_eq!(verify(&repo).problems, Vec::<String>::new());
    expect_clean(&repo);
    assert_eq!(there(packs), 0);

    take().run().expect_success();
    let kept = backups(&repo);
    let leases = "clusters/main/leases";
    for (folder, count) in [(leases, 1), (leases, 2), ("staging", 2), (packs, there(packs) + 2)] {
        kill_when(take().spawn(), || there(folder) >= count);
        let found = backups(&repo);
        assert_eq!(found[..1], kept[..], "{folder}");
        assert_eq!(verify(&repo).problems, Vec::<String>::new(), "{folder}");
        expect_clean(&repo);
        assert_eq!(backups(&repo), found, "{folder}");
    }
    // And expire, wherever it is by then.
    take().run().expect_success();
    let newest = backups(&repo).pop().expect("there");
    let template = source.dir("template");
    copy(&repo, &template);
    let marks = "clusters/main/condemned";
    for (folder, count) in [(leases, 1), (marks, 1), (leases, 2), (leases, 3), (leases, 4)] {
        std::fs::remove_dir_all(&repo).expect("removed");
        copy(&template, &repo);
        let run = pgstrata(["expire", "--keep", "1", "--grace", "0", "--repo"]).arg(&repo);
        kill_when(run.spawn(), || there(folder) >= count);
        assert!(backups(&repo).contains(&newest), "{folder}");
        assert_eq!(verify(&repo).problems, Vec::<String>::new(), "{folder}");
        age(&repo);
        let run = pgstrata(["expire", "--keep", "1", "--grace", "0", "--repo"]).arg(&repo);
        run.run().expect_success();
        assert_eq!(backups(&repo), [newest.as_str()]);
        expect_clean(&repo);
    }
}
