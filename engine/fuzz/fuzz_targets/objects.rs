//! Objects of a repository of any bytes, encrypted and not: what they say or an error that says why, never a panic.
//! Checksums are made right, for whoever can write can do that too.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use pgstrata::repository::{ClusterName, KeySource, LocalStore, Repository, Secret};

const PROLOGUE: usize = 32;
const TRAILER: usize = 64;

struct Place {
    root: PathBuf,
    secret: Secret,
    head: Vec<u8>,
    repository: Repository,
}

fn place(encrypted: bool) -> &'static Place {
    static PLACES: [OnceLock<Place>; 2] = [OnceLock::new(), OnceLock::new()];
    PLACES[usize::from(encrypted)].get_or_init(|| {
        let scratch = std::env::temp_dir().join(format!("pgstrata-fuzz-{}-{encrypted}", std::process::id()));
        std::fs::create_dir_all(&scratch).expect("a folder");
        let (root, key) = (scratch.join("r"), scratch.join("key"));
        if !key.exists() {
            Secret::generate_key_file(&key).expect("made");
        }
        let secret = Secret::from_key_file(&key).expect("read");
        let recipient = encrypted.then_some((&secret, ""));
        let repository = Repository::init_for(Arc::new(LocalStore::new(&root)), recipient).expect("made");
        std::fs::create_dir_all(root.join("clusters/main")).expect("made");
        let head = std::fs::read(root.join("pgstrata-repository.00000000")).expect("there");
        Place { root, secret, head, repository }
    })
}

/// Puts what everybody knows of a repository, and a right checksum, into an object.
fn plausible(bytes: &[u8], place: &Place, kind: u8, cipher: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < PROLOGUE + TRAILER {
        return bytes;
    }
    bytes[..8].copy_from_slice(b"PGSTRATA");
    bytes[8..16].copy_from_slice(&[1, 0, kind, cipher, cipher, 0, 0, 0]);
    bytes[16..PROLOGUE].copy_from_slice(&place.head[16..PROLOGUE]);
    let trailer = bytes.len() - TRAILER;
    bytes[trailer + 12..trailer + 24].fill(0);
    bytes[trailer + 56..].copy_from_slice(b"ATARTSGP");
    let footer = u64::from_le_bytes(bytes[trailer..trailer + 8].try_into().expect("8 bytes"));
    let footer = usize::try_from(footer).unwrap_or(trailer).min(trailer);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..PROLOGUE * (1 + usize::from(cipher))]).update(&bytes[footer..trailer + 24]);
    let checksum = *hasher.finalize().as_bytes();
    bytes[trailer + 24..trailer + 56].copy_from_slice(&checksum);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    let cluster: ClusterName = "main".parse().expect("valid");
    let place = place(choice & 1 == 1);
    let cipher = choice & 1;
    let bytes = match choice & 6 {
        0 => bytes.to_vec(),
        2 => plausible(bytes, place, 4, cipher),
        _ => plausible(bytes, place, 1, 0),
    };
    if choice & 6 < 4 {
        std::fs::write(place.root.join("clusters/main/identity.00000000"), bytes).expect("written");
        let _ = place.repository.identity(&cluster);
        return;
    }
    let head = place.root.join("pgstrata-repository.00000000");
    std::fs::write(&head, bytes).expect("written");
    let store = Arc::new(LocalStore::new(&place.root));
    let _ = Repository::open_with(store, KeySource::Given(&place.secret));
    std::fs::write(&head, &place.head).expect("written");
});
