//! An encrypted repository in the hands of somebody who has no key, and can write: nothing passes for what it is not.

use std::fs;

use super::super::super::cipher::Key;
use super::super::super::container::{FRAME_ENTRY, PROLOGUE, TRAILER};
use super::super::super::names::head as head_name;
use super::super::super::{ContainerBuilder, FrameCompression, FrameEncoder, KeySource, Sealing, Secret};
use super::*;

/// A repository for `key`, with the sample backup in it.
fn encrypted(root: &Path, key: &Secret) -> Repository {
    let store = Arc::new(LocalStore::new(root));
    let repository = Repository::init_for(store, Some((key, "operator"))).expect("made");
    // Both frames are somebody's.
    write_into(repository, FrameKind::Data, root, |s| s.files[1].1.frame = 1)
}

fn key(folder: &Path) -> Secret {
    let path = folder.join("key");
    Secret::generate_key_file(&path).expect("made");
    Secret::from_key_file(&path).expect("read")
}

fn head() -> String {
    head_name(0)
}

/// The names of all its objects: head, identity, manifest, pack.
fn objects() -> [String; 4] {
    let pack = PackId { backup: backup(), number: 1 };
    [head(), cluster().identity(), cluster().manifest(backup()), cluster().pack(pack)]
}

/// What verification says, in one text; a repository that does not open says it at once.
fn verified(root: &Path, key: &Secret) -> String {
    match Repository::open_with(Arc::new(LocalStore::new(root)), KeySource::Given(key)) {
        Ok(repository) => problems(&repository).join("\n"),
        Err(failure) => failure.to_string(),
    }
}

/// What a restore says.
fn restored(root: &Path, key: &Secret) -> Result<(), String> {
    let repository = Repository::open_with(Arc::new(LocalStore::new(root)), KeySource::Given(key));
    let target = root.join("copy");
    let outcome = repository
        .map_err(|failure| failure.to_string())
        .and_then(|repository| restore(&repository, &target));
    for made in [target, root.join("space")] {
        assert!(outcome.is_ok() || !made.exists(), "something is left");
        drop(fs::remove_dir_all(made));
    }
    outcome
}

/// Does something to an object, and undoes it.
fn changed(root: &Path, object: &str, change: impl FnOnce(&mut Vec<u8>), then: impl FnOnce()) {
    let path = root.join(object);
    let good = fs::read(&path).expect("there");
    let mut bad = good.clone();
    change(&mut bad);
    fs::write(&path, bad).expect("written");
    then();
    fs::write(&path, good).expect("written");
}

/// Makes the trailer's checksum right again, which takes no key.
fn with_checksum(bytes: &mut [u8]) {
    let trailer = bytes.len() - TRAILER;
    let footer = u64::from_le_bytes(bytes[trailer..trailer + 8].try_into().expect("8 bytes"));
    let footer = usize::try_from(footer).expect("small").min(trailer);
    let prologue = if bytes[11] == 0 { PROLOGUE } else { 2 * PROLOGUE };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..prologue]).update(&bytes[footer..trailer + 24]);
    let checksum = *hasher.finalize().as_bytes();
    bytes[trailer + 24..trailer + 56].copy_from_slice(&checksum);
}

#[test]
fn a_bit_anywhere_is_found_and_named() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (root, key) = (scratch.path().join("r"), key(scratch.path()));
    encrypted(&root, &key);
    assert_eq!(verified(&root, &key), "");
    restored(&root, &key).expect("whole");
    for object in objects() {
        let length = fs::metadata(root.join(&object)).expect("there").len();
        for place in 0..usize::try_from(length).expect("small") {
            changed(
                &root,
                &object,
                |bytes| bytes[place] ^= 1 << (place % 8),
                || {
                    let context = format!("byte {place} of {length} in {object}");
                    let found = verified(&root, &key);
                    assert!(found.contains(&object), "{context}: {found}");
                    // A restore does not ask whose the cluster is.
                    if place % 11 == 0 && object != cluster().identity() {
                        let refused = restored(&root, &key).expect_err(&context);
                        assert!(refused.contains(&object), "{context}: {refused}");
                    }
                },
            );
        }
        for length in 0..length {
            let length = usize::try_from(length).expect("small");
            if length % 13 == 0 {
                changed(
                    &root,
                    &object,
                    |bytes| bytes.truncate(length),
                    || {
                        let found = verified(&root, &key);
                        assert!(found.contains(&object), "{object} cut to {length}: {found}");
                    },
                );
            }
        }
    }
    assert_eq!(verified(&root, &key), "");
}

#[test]
fn who_makes_checksums_right_needs_the_key_all_the_same() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (root, key) = (scratch.path().join("r"), key(scratch.path()));
    encrypted(&root, &key);
    for object in objects().into_iter().skip(1) {
        let length = fs::metadata(root.join(&object)).expect("there").len();
        let checksum = usize::try_from(length).expect("small") - TRAILER + 24;
        for place in 0..checksum {
            let change = |bytes: &mut Vec<u8>| {
                bytes[place] ^= 1 << (place % 8);
                with_checksum(bytes);
            };
            changed(&root, &object, change, || {
                let context = format!("byte {place} of {length} in {object}");
                let found = verified(&root, &key);
                assert!(found.contains(&object), "{context}: {found}");
                if place % 11 == 0 && object != cluster().identity() {
                    restored(&root, &key).expect_err(&context);
                }
            });
        }
        // A footer that lost its last frame.
        let shorter = |bytes: &mut Vec<u8>| {
            let trailer = bytes.len() - TRAILER;
            bytes[trailer + 8] -= 1;
            bytes.drain(trailer - FRAME_ENTRY..trailer);
            with_checksum(bytes);
        };
        changed(&root, &object, shorter, || {
            let found = verified(&root, &key);
            assert!(found.contains(&format!("{object}: its footer is not authentic")), "{found}");
        });
    }
}

#[test]
fn frames_and_objects_stay_in_their_places() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (root, key) = (scratch.path().join("r"), key(scratch.path()));
    let repository = encrypted(&root, &key);
    let [_, identity, manifest, pack] = objects();
    let refused = |words: &str| {
        let found = verified(&root, &key);
        assert!(found.contains(words), "{words}: {found}");
    };

    // Two frames of one length, the one for the other.
    let frames = repository.backup(&cluster(), BackupChoice::Latest).expect("readable").open_pack(1);
    let frames: Vec<_> = frames.expect("readable").frames().to_vec();
    assert_eq!(frames[0].stored, frames[1].stored);
    let range = |number: usize| {
        let from = usize::try_from(frames[number].offset).expect("small");
        from..from + frames[number].stored as usize
    };
    let swap = |bytes: &mut Vec<u8>| {
        let first = bytes[range(0)].to_vec();
        bytes.copy_within(range(1), range(0).start);
        bytes[range(1)].copy_from_slice(&first);
    };
    changed(&root, &pack, swap, || {
        refused(&format!("{pack}: frame 0 at byte 64: it is not authentic"));
        refused(&format!("{pack}: frame 1"));
        let refused = restored(&root, &key).expect_err("swapped");
        assert!(refused.contains("frame 0 at byte 64: it is not authentic"), "{refused}");
    });

    // An object under another name of its own kind.
    let other = BackupId { seconds: backup().seconds + 1, random: 1 };
    let elsewhere = root.join(cluster().manifest(other));
    fs::copy(root.join(&manifest), &elsewhere).expect("copied");
    refused(&format!("{}: its footer is not authentic", cluster().manifest(other)));
    let latest = restored(&root, &key).expect_err("another's name");
    assert!(
        latest.contains(&format!("{}: its footer is not authentic", cluster().manifest(other))),
        "{latest}"
    );
    fs::remove_file(elsewhere).expect("removed");
    let moved: ClusterName = "moved".parse().expect("valid");
    fs::create_dir_all(root.join("clusters/moved")).expect("made");
    fs::copy(root.join(&identity), root.join(moved.identity())).expect("copied");
    refused(&format!("{}: its footer is not authentic", moved.identity()));
    fs::remove_dir_all(root.join("clusters/moved")).expect("removed");

    // One that is not encrypted, and says what its writer likes.
    let mine = scratch.path().join("mine");
    let plain = Repository::init(Arc::new(LocalStore::new(&mine))).expect("made");
    write_into(plain, FrameKind::Data, &mine, |_| {});
    for object in [&identity, &manifest, &pack] {
        let replace = |bytes: &mut Vec<u8>| {
            *bytes = fs::read(mine.join(object)).expect("there");
            bytes[16..PROLOGUE].copy_from_slice(&repository.id());
            with_checksum(bytes);
        };
        changed(&root, object, replace, || {
            refused(&format!("{object}: it is not encrypted, and its repository is"));
            if object != &identity {
                let refused = restored(&root, &key).expect_err("not encrypted");
                assert!(refused.contains("it is not encrypted"), "{refused}");
            }
        });
    }

    // Of two repositories with one key file.
    let second = scratch.path().join("second");
    encrypted(&second, &key);
    for object in [&identity, &manifest, &pack] {
        let foreign = fs::read(second.join(object)).expect("there");
        changed(
            &root,
            object,
            |bytes| *bytes = foreign.clone(),
            || {
                refused(&format!("{object}: it belongs to another repository"));
            },
        );
        let relabelled = |bytes: &mut Vec<u8>| {
            *bytes = foreign.clone();
            bytes[16..PROLOGUE].copy_from_slice(&repository.id());
            with_checksum(bytes);
        };
        changed(&root, object, relabelled, || {
            refused(&format!("{object}: its footer is not authentic"));
            if object != &identity {
                restored(&root, &key).expect_err("another's");
            }
        });
    }
    // With the whole head of the other one nothing fits any more.
    let foreign = fs::read(second.join(head())).expect("there");
    changed(
        &root,
        &head(),
        |bytes| *bytes = foreign.clone(),
        || {
            for object in [&identity, &manifest] {
                refused(&format!("{object}: it belongs to another repository"));
            }
            restored(&root, &key).expect_err("another's");
        },
    );
    assert_eq!(verified(&root, &key), "");
    restored(&root, &key).expect("as it was");
}

#[test]
fn writers_of_one_name_share_no_key() {
    let sealing = Sealing::with([7; 16], [(1, Key::new([1; 32]))].into());
    let begin = || {
        let builder = ContainerBuilder::new(ObjectKind::Identity, "x", &sealing);
        builder.expect("begun")
    };
    // The same name, the same first frame: nothing of the two objects is alike but what everybody can read.
    let built = |mut builder: ContainerBuilder| {
        let mut encoder = FrameEncoder::new(FrameCompression::None).expect("memory");
        let mut bytes = builder.prologue().to_vec();
        let plain = [5; 64];
        let (_, stored) = builder.frame(&mut encoder, FrameKind::Summary, &plain, [0; 32]).expect("framed");
        bytes.extend_from_slice(stored);
        bytes
    };
    let (one, two) = (built(begin()), built(begin()));
    assert_eq!(one[..PROLOGUE], two[..PROLOGUE]);
    let alike = one[PROLOGUE..].iter().zip(&two[PROLOGUE..]).filter(|(one, two)| one == two).count();
    assert!(alike < 8, "{alike} of {} bytes", one.len() - PROLOGUE);
}
