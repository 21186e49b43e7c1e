//! Recipients come and go, data keys change, and of two changes at once one counts.

use std::path::Path;
use std::sync::Arc;

use super::super::names::ClusterName;
use super::super::{HeadSummary, KeySource, LocalStore, Repository};
use super::*;

fn secret(folder: &Path, name: &str) -> Secret {
    let path = folder.join(name);
    if !path.exists() {
        Secret::generate_key_file(&path).expect("made");
    }
    Secret::from_key_file(&path).expect("read")
}

fn heads(store: &dyn Store) -> Vec<u32> {
    numbers(store).expect("listed")
}

fn open(store: &Arc<dyn Store>, secret: &Secret) -> Result<Repository, String> {
    Repository::open_with(Arc::clone(store), KeySource::Given(secret)).map_err(|failure| failure.to_string())
}

fn cluster(name: &str) -> ClusterName {
    name.parse().expect("valid")
}

#[test]
fn recipients_come_and_go_and_what_is_there_stays_readable() {
    let scratch = tempfile::tempdir().expect("a folder");
    let keys = scratch.path();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(keys.join("r")));
    let [one, two, three] = ["one", "two", "three"].map(|name| secret(keys, name));
    let phrase = Secret::passphrase(b"correct horse").expect("one");
    let made = Repository::init_for(Arc::clone(&store), Some((&one, "first"))).expect("made");
    made.claim_identity(&cluster("a"), 7).expect("free");

    for refused in [open(&store, &two), open(&store, &phrase)] {
        let refused = refused.expect_err("no recipient");
        assert!(refused.contains("does not open this repository") && refused.contains("HINT: "), "{refused}");
    }
    let refused = Repository::open(Arc::clone(&store)).expect_err("no key").to_string();
    assert!(refused.contains("is encrypted, and no key is given"), "{refused}");
    for option in ["--key-file", "--passphrase-file", "PGSTRATA_KEY_FILE", "PGSTRATA_PASSPHRASE"] {
        assert!(refused.contains(option), "{refused}");
    }

    let refused = add_recipient(&*store, &two, &three, "").map(|_| ()).expect_err("no recipient").to_string();
    assert!(refused.contains("does not open"), "{refused}");
    let added = add_recipient(&*store, &one, &two, "second").expect("added");
    assert_eq!((added.slot, added.changed.head, added.changed.data_key), (2, 1, 1));
    assert_eq!(heads(&*store), [1], "the old head is removed");
    let refused = add_recipient(&*store, &one, &two, "").map(|_| ()).expect_err("twice").to_string();
    assert!(refused.contains("opens slot 2 already"), "{refused}");
    let weak = Secret::passphrase(b"short").expect("one");
    assert!(add_recipient(&*store, &one, &weak, "").is_err());
    assert!(add_recipient(&*store, &one, &three, "a\nb").is_err());
    // By the second, who was not there when the repository was made.
    assert_eq!(add_recipient(&*store, &two, &phrase, "").expect("added").slot, 3);

    // A new data key, for all of them.
    let rotated = rotate(&*store, &phrase).expect("rotated");
    assert_eq!((rotated.head, rotated.data_key), (3, 2));
    open(&store, &one).expect("opens").claim_identity(&cluster("b"), 8).expect("free");
    let byte = |name: &str| std::fs::read(keys.join("r/clusters").join(name)).expect("there")[12];
    assert_eq!((byte("a/identity.00000000"), byte("b/identity.00000000")), (1, 2));
    for secret in [&one, &two, &phrase] {
        let repository = open(&store, secret).expect("a recipient");
        assert_eq!(repository.identity(&cluster("a")).expect("readable"), Some(7));
        assert_eq!(repository.identity(&cluster("b")).expect("readable"), Some(8));
    }

    for (slot, words) in [(9, "no key slot 9"), (1, "that of the key that was given")] {
        let refused = remove_recipient(&*store, &one, slot).map(|_| ()).expect_err(words).to_string();
        assert!(refused.contains(words), "{refused}");
    }
    let old_head = std::fs::read(keys.join("r").join(head(3))).expect("there");
    let removed = remove_recipient(&*store, &one, 3).expect("removed");
    assert_eq!((removed.head, removed.data_key, removed.heads_left.len()), (4, 3, 0));
    remove_recipient(&*store, &one, 2).expect("removed");
    assert_eq!(heads(&*store), [5]);
    for secret in [&two, &phrase] {
        let refused = open(&store, secret).map(|_| ()).expect_err("removed");
        assert!(refused.contains("does not open this repository"), "{refused}");
    }
    let refused = remove_recipient(&*store, &one, 1).map(|_| ()).expect_err("the last").to_string();
    assert!(refused.contains("slot 1 is the last"), "{refused}");
    // What they could read they still can with an old head that they kept; what came since they cannot.
    open(&store, &one).expect("opens").claim_identity(&cluster("c"), 9).expect("free");
    std::fs::remove_file(keys.join("r").join(head(5))).expect("removed");
    std::fs::write(keys.join("r").join(head(3)), old_head).expect("written");
    let repository = open(&store, &two).expect("the old head");
    assert_eq!(repository.identity(&cluster("b")).expect("readable"), Some(8));
    let refused = repository.identity(&cluster("c")).expect_err("later").to_string();
    assert!(refused.contains("data key 4, which the head does not hold"), "{refused}");
}

#[test]
fn numbers_of_slots_are_not_given_twice() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("r")));
    let [one, two] = ["one", "two"].map(|name| secret(scratch.path(), name));
    Repository::init_for(Arc::clone(&store), Some((&one, ""))).expect("made");
    assert_eq!(add_recipient(&*store, &one, &two, "").expect("added").slot, 2);
    remove_recipient(&*store, &one, 2).expect("removed");
    assert_eq!(add_recipient(&*store, &one, &two, "").expect("added").slot, 3);
}

#[test]
fn a_key_for_what_is_not_encrypted_is_refused() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("r")));
    let one = secret(scratch.path(), "one");
    Repository::init(Arc::clone(&store)).expect("made");
    let refused = open(&store, &one).expect_err("not encrypted");
    assert!(refused.contains("the repository is not encrypted") && refused.contains("HINT: "), "{refused}");
    let refused = rotate(&*store, &one).map(|_| ()).expect_err("not encrypted").to_string();
    assert!(refused.contains("the repository is not encrypted"), "{refused}");
    Repository::open(store).expect("without one");
}

/// Rewrites the summary of the head that counts, without a key.
fn forge(store: &dyn Store, number: u32, change: impl FnOnce(&mut HeadSummary), keep_seal: bool) -> String {
    let there = Head::read(store).expect("readable").expect("there");
    let mut summary = there.summary.clone();
    change(&mut summary);
    let name = head(number);
    store.remove(std::slice::from_ref(&name)).expect("removed");
    let sealing = super::super::Sealing::none(there.repository);
    let kind = super::super::ObjectKind::Head;
    let mut object =
        super::super::object_writer::ObjectWriter::begin_with(store, kind, &name, &sealing).expect("begun");
    let text = serde_json::to_vec(&summary).expect("JSON");
    object.frame(super::super::FrameKind::Summary, &text).expect("written");
    if let Some(seal) = there.seal().filter(|_| keep_seal) {
        object.frame(super::super::FrameKind::Seal, seal).expect("written");
    }
    object.publish().expect("published").expect("free");
    name
}

#[test]
fn heads_that_somebody_without_a_key_changed_are_refused() {
    type Change = fn(&mut HeadSummary);
    let changes: [(u32, Change, bool, &str); 7] = [
        (2, |_| {}, false, "its seal is not authentic"),
        // Under another number, so that it replaces what comes later.
        (9, |_| {}, true, "its seal is not authentic"),
        (2, |head| head.created += 1, true, "its seal is not authentic"),
        (2, |head| head.key_slots[1].label = "x".into(), true, "its seal is not authentic"),
        (2, |head| head.key_slots[1].public = [9; 32], true, "its seal is not authentic"),
        // Back to an older data key.
        (2, |head| head.key_slots[0].data_keys.truncate(1), true, "its seal is not authentic"),
        (2, |head| head.key_slots.clear(), true, "the repository is not encrypted"),
    ];
    for (number, change, keep_seal, words) in changes {
        let scratch = tempfile::tempdir().expect("a folder");
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("r")));
        let [one, two] = ["one", "two"].map(|name| secret(scratch.path(), name));
        Repository::init_for(Arc::clone(&store), Some((&one, ""))).expect("made");
        add_recipient(&*store, &one, &two, "").expect("added");
        rotate(&*store, &one).expect("rotated");
        open(&store, &one).expect("as it was");
        let name = forge(&*store, number, change, keep_seal);
        let refused = open(&store, &one).map(|_| ()).expect_err(words);
        assert!(refused.contains(words), "{words}: {refused}");
        assert!(words.starts_with("the repository") || refused.contains(&name), "{refused}");
    }
}

#[test]
fn of_two_changes_at_once_one_is_told_to_try_again() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("r")));
    let one = secret(scratch.path(), "one");
    Repository::init_for(Arc::clone(&store), Some((&one, ""))).expect("made");
    let read = || Current::open(&*store, &one).expect("opens");
    let change = |Current { head, mut opened, address }: Current| {
        let mut summary = head.summary.clone();
        begin_data_key(&mut summary, &head, &mut opened, &address)?;
        replace(&*store, &head, &summary, &opened)
    };
    let (first, second, third) = (read(), read(), read());
    assert_eq!(change(first).expect("the first").head, 1);
    let refused = change(second).map(|_| ()).expect_err("at the same time").to_string();
    assert!(
        refused.contains("by another process at the same time") && refused.contains("try again"),
        "{refused}"
    );
    // Once a later change has removed that head, its name is free again.
    assert_eq!(change(read()).expect("alone").head, 2);
    let refused = change(third).map(|_| ()).expect_err("long ago").to_string();
    assert!(refused.contains("by another process at the same time"), "{refused}");
    assert_eq!(heads(&*store), [2]);
    assert_eq!(change(read()).expect("alone").data_key, 4);
}

#[test]
fn heads_that_are_left_are_removed_by_the_next_change() {
    let scratch = tempfile::tempdir().expect("a folder");
    let root = scratch.path().join("r");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&root));
    let one = secret(scratch.path(), "one");
    Repository::init_for(Arc::clone(&store), Some((&one, ""))).expect("made");
    let old = std::fs::read(root.join(head(0))).expect("there");
    rotate(&*store, &one).expect("rotated");
    std::fs::write(root.join(head(0)), old).expect("written");
    assert_eq!(heads(&*store), [0, 1]);
    open(&store, &one).expect("the highest counts");
    rotate(&*store, &one).expect("rotated");
    assert_eq!(heads(&*store), [2]);
}

#[test]
fn a_recipient_who_was_removed_makes_no_head_that_others_take() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("r")));
    let [one, two] = ["one", "two"].map(|name| secret(scratch.path(), name));
    Repository::init_for(Arc::clone(&store), Some((&one, ""))).expect("made");
    add_recipient(&*store, &one, &two, "").expect("added");
    let known = Head::read(&*store).expect("read").expect("there").unlock("r", &two).expect("a recipient");
    remove_recipient(&*store, &one, 2).expect("removed");
    open(&store, &one).expect("opens").claim_identity(&cluster("a"), 7).expect("free");

    // A data key of his own for everybody, which takes nothing but what he kept and what everybody can read.
    let there = Head::read(&*store).expect("read").expect("there");
    let (own, repository) = (Key::new([9; 32]), there.repository);
    for drops in [false, true] {
        let mut summary = there.summary.clone();
        if drops {
            summary.key_slots.iter_mut().for_each(|slot| slot.data_keys.retain(|key| key.number == 1));
        }
        key_slots::give(&mut summary.key_slots, &repository, &known.repository_key, (3, &own))
            .expect("given");
        let mut data_keys = known.data_keys.clone();
        data_keys.insert(3, own.clone());
        let opened = Opened { slot: 1, repository_key: known.repository_key.clone(), data_keys };
        let number = there.number + 1;
        assert!(publish(&*store, number, repository, &summary, Some(&opened)).expect("published"));
        match open(&store, &one) {
            Err(refused) => assert!(!drops && refused.contains("its seal is not authentic"), "{refused}"),
            // Without the key that came after him it is told by what that key sealed.
            Ok(found) => {
                let refused = found.identity(&cluster("a")).expect_err("sealed with key 2").to_string();
                assert!(drops && refused.contains("data key 2, which the head does not hold"), "{refused}");
            }
        }
        store.remove(&[head(number)]).expect("removed");
    }
    open(&store, &one).expect("nothing is lost");
}
