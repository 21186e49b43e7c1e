//! Key slots against values that another implementation computed (Python's cryptography, from the format's text), and
//! what is refused.

use super::super::hex;
use super::*;

fn sequence<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|place| first + u8::try_from(place).expect("short"))
}

fn secret(scratch: &tempfile::TempDir, line: &str) -> Secret {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.path().join("key");
    std::fs::write(&path, format!("pgstrata-key-1 {line}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
    Secret::from_key_file(&path).expect("a key")
}

const REPOSITORY_KEY_BYTES: u8 = 0x50;
const DATA_KEY_BYTES: u8 = 0x90;

#[test]
fn slots_are_what_the_format_says() {
    let scratch = tempfile::tempdir().expect("a folder");
    let secret = secret(&scratch, &hex::encode(&sequence::<32>(0)));
    let repository = sequence::<16>(0x40);
    let [repository_key, once, data_key] =
        [REPOSITORY_KEY_BYTES, 0x70, DATA_KEY_BYTES].map(|first| Key::new(sequence(first)));
    let slot = make_with(&secret, 1, ("", 0), &repository, &repository_key, sequence(0x20), None);
    let mut slot = slot.expect("made");
    assert_eq!(hex::encode(&slot.public), "424a0b813ad3dd23ef42d8c2df2a29f0b87988e7a6853b2d5eaa2524d0ed8273");
    assert_eq!(
        hex::encode(&slot.wrapped),
        "9b8f08470c6a0872ef89eb6bbe79dc45ef29b6e4d00f51be4809c131c5bf14fab69ee4fd63b446adfd438993108388a7"
    );
    let wrapped = wrap_data_key(&slot.public, &repository, &repository_key, (1, &data_key), &once);
    let wrapped = wrapped.expect("wrapped");
    assert_eq!(
        hex::encode(&wrapped.ephemeral),
        "23b7bb8c91ae008711fb12846780bcdf1e065f821bdfec49f57e7c7dcd4c4823"
    );
    assert_eq!(
        hex::encode(&wrapped.wrapped),
        "a8945301df4b02fc8f6b9eb079583ebd429b17ea57c6610b4195fa529e27f09afa372cf2fc7d87b9aa6ed47ae526506f"
    );
    slot.data_keys.push(wrapped);
    let opened = open(&[slot], &repository, &secret).expect("opened");
    assert_eq!(opened.repository_key.bytes(), repository_key.bytes());
    assert_eq!(opened.data_keys[&1].bytes(), data_key.bytes());
    assert_eq!(
        hex::encode(&seal(&[(1, data_key)].into(), &repository, "pgstrata-repository.00000001", b"{}")),
        "98509cd66615386992d87e5fab0409fe841d6258b4192336b9cc53494829e436"
    );
    let phrase = Secret::passphrase(b"correct horse").expect("one");
    let cost = Argon2Cost { memory_kib: 8192, passes: 1, lanes: 2 };
    let root = phrase.root(&sequence::<32>(0x20), Some(&cost)).expect("derived");
    assert_eq!(hex::encode(root.bytes()), "7e9875f7783992fbcf3e3f54a5c199e27433c2c652e94dd533c1d08032182df6");
}

#[test]
fn a_slot_opens_for_its_secret_and_in_its_repository_only() {
    let scratch = tempfile::tempdir().expect("a folder");
    let one = secret(&scratch, &"11".repeat(32));
    let two = secret(&scratch, &"22".repeat(32));
    let phrase = Secret::passphrase(b"correct horse").expect("one");
    let wrong = Secret::passphrase(b"correct house").expect("one");
    let repository = [7; 16];
    let repository_key = Key::new([1; KEY]);
    let keys: BTreeMap<u32, Key> = [(1, Key::new([2; KEY])), (2, Key::new([3; KEY]))].into();
    let slot = |secret: &Secret, number| {
        make(secret, number, ("", 0), &repository, (&repository_key, &keys)).expect("made")
    };
    let slots = [slot(&one, 1), slot(&phrase, 2)];
    for (secret, number) in [(&one, 1), (&phrase, 2)] {
        let opened = open(&slots, &repository, secret).expect("opened");
        assert_eq!(opened.slot, number);
        assert_eq!(opened.data_keys[&2].bytes(), &[3; KEY]);
    }
    for secret in [&two, &wrong] {
        assert_eq!(open(&slots, &repository, secret).expect_err("no recipient"), NotOpened::NoSlot);
    }
    // In another repository the same slot is damage.
    assert!(matches!(open(&slots, &[8; 16], &one), Err(NotOpened::Damaged(1, _))));
    // A new data key is given to all without their secrets.
    let mut given = slots.clone();
    give(&mut given, &repository, &repository_key, (3, &Key::new([4; KEY]))).expect("given");
    for secret in [&one, &phrase] {
        assert_eq!(open(&given, &repository, secret).expect("opened").data_keys[&3].bytes(), &[4; KEY]);
    }
    // Nobody gives one without the repository key.
    let mut forged = slots.clone();
    give(&mut forged, &repository, &Key::new([9; KEY]), (3, &Key::new([4; KEY]))).expect("given");
    let refused = open(&forged, &repository, &one).expect_err("forged");
    assert_eq!(refused, NotOpened::Damaged(1, "its data key 3 is not authentic".into()));

    type Change = fn(&mut KeySlot);
    let changes: [(Change, &str); 10] = [
        (|slot| slot.wrapped[0] ^= 1, "repository key"),
        (|slot| slot.wrapped[47] ^= 1, "repository key"),
        (|slot| slot.data_keys[1].wrapped[5] ^= 1, "data key 2"),
        (|slot| slot.data_keys[1].ephemeral[5] ^= 1, "data key 2"),
        (|slot| slot.data_keys[1].ephemeral = [0; 32], "data key 2"),
        (|slot| slot.data_keys[1].number = 3, "data key 3"),
        (|slot| slot.data_keys[1].number = 0, "data key 0"),
        (|slot| slot.data_keys[1] = slot.data_keys[0].clone(), "comes twice"),
        (|slot| slot.data_keys.clear(), "no data key"),
        (
            |slot| slot.argon2id = Some(Argon2Cost { memory_kib: 8192, passes: 1, lanes: 1 }),
            "a cost for a key file",
        ),
    ];
    for (change, words) in changes {
        let mut changed = slots.clone();
        change(&mut changed[0]);
        let refused = open(&changed, &repository, &one).map(|_| ()).expect_err(words);
        assert!(matches!(&refused, NotOpened::Damaged(1, what) if what.contains(words)), "{refused:?}");
    }
    // Another salt or public key is another recipient's.
    for change in [
        (|slot| slot.salt[0] ^= 1) as Change,
        |slot| slot.public[0] ^= 1,
        |slot| {
            slot.method = "quantum".into();
        },
    ] {
        let mut changed = slots.clone();
        change(&mut changed[0]);
        assert_eq!(open(&changed, &repository, &one).expect_err("another"), NotOpened::NoSlot);
    }
}
