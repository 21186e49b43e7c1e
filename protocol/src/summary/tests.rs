//! Against a naive model: sets of numbers, and a file put together from them as `blkreftable.c` describes it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{BlockNumber, Lsn, TimelineId};

fn fork(relation: u32, fork: u32) -> RelationFork {
    RelationFork { tablespace: 1663, database: 5, relation, fork }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Blocks { relation: u32, first: u32, count: u32 },
    Limit { relation: u32, limit: u32 },
}

/// What a server knows of a fork: a limit, and by chunk the places and whether they are a bitmap by now.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    limit: Option<u32>,
    chunks: BTreeMap<u32, (BTreeSet<u32>, bool)>,
}

impl Model {
    fn mark(&mut self, block: u32) {
        let (places, bitmap) = self.chunks.entry(block / CHUNK_BLOCKS).or_default();
        places.insert(block % CHUNK_BLOCKS);
        *bitmap |= places.len() == 4096;
    }

    fn cut(&mut self, limit: u32) {
        if self.limit.is_some_and(|before| before <= limit) {
            return;
        }
        self.limit = Some(limit);
        self.chunks.retain(|number, (places, bitmap)| {
            places.retain(|place| number * CHUNK_BLOCKS + place < limit);
            *number <= limit / CHUNK_BLOCKS && (*bitmap || !places.is_empty())
        });
    }

    fn blocks(&self) -> BTreeSet<u32> {
        let all = self
            .chunks
            .iter()
            .flat_map(|(number, (places, _))| places.iter().map(move |place| number * CHUNK_BLOCKS + place));
        all.collect()
    }
}

type Models = BTreeMap<RelationFork, Model>;

fn made(changes: &[Change]) -> (BlockReferences, Models) {
    let (mut table, mut models) = (BlockReferences::new(), Models::new());
    for change in changes {
        match *change {
            Change::Blocks { relation, first, count } => {
                for block in first..first.saturating_add(count) {
                    // Neither ascending nor descending.
                    let block = block ^ 1;
                    table.mark_block(fork(relation, 0), BlockNumber(block));
                    models.entry(fork(relation, 0)).or_default().mark(block);
                }
            }
            Change::Limit { relation, limit } => {
                table.set_limit(fork(relation, 0), BlockNumber(limit));
                models.entry(fork(relation, 0)).or_default().cut(limit);
            }
        }
    }
    (table, models)
}

/// The file of a model, each list of places in descending order: a server's are in any.
fn file(models: &Models) -> Vec<u8> {
    let mut file = MAGIC.to_le_bytes().to_vec();
    for (fork, model) in models {
        let chunks = model.chunks.keys().next_back().map_or(0, |last| last + 1);
        let limit = model.limit.unwrap_or(u32::MAX);
        for number in [fork.tablespace, fork.database, fork.relation, fork.fork, limit, chunks] {
            file.extend_from_slice(&number.to_le_bytes());
        }
        for number in 0..chunks {
            let size = model.chunks.get(&number).map_or(0, |(places, bitmap)| match bitmap {
                true => 4096,
                false => u16::try_from(places.len()).expect("a list"),
            });
            file.extend_from_slice(&size.to_le_bytes());
        }
        for (places, bitmap) in model.chunks.values() {
            if *bitmap {
                let mut bytes = [0u8; 8192];
                for place in places {
                    bytes[*place as usize / 8] |= 1 << (place % 8);
                }
                file.extend_from_slice(&bytes);
            } else {
                for place in places.iter().rev() {
                    file.extend_from_slice(&u16::try_from(*place).expect("in a chunk").to_le_bytes());
                }
            }
        }
    }
    sealed(file)
}

/// Closes a file.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    file.extend_from_slice(&[0; 24]);
    file.extend_from_slice(&crc32c::crc32c(&file).to_le_bytes());
    file
}

fn read(pieces: &[&[u8]]) -> Result<BlockReferences, SummaryError> {
    let (mut table, mut merger) = (BlockReferences::new(), SummaryMerger::new());
    for piece in pieces {
        merger.feed(&mut table, piece)?;
    }
    merger.finish()?;
    Ok(table)
}

fn same(table: &BlockReferences, models: &Models) -> Result<(), TestCaseError> {
    prop_assert_eq!(table.sorted().map(|(fork, _)| fork).collect::<Vec<_>>(), {
        models.keys().copied().collect::<Vec<_>>()
    });
    for (fork, model) in models {
        let found = table.get(fork).expect("it is listed");
        let blocks = model.blocks();
        prop_assert_eq!(found.limit(), model.limit.map(BlockNumber));
        prop_assert_eq!(found.count(), blocks.len() as u64);
        prop_assert!(found.blocks(..).map(|block| block.0).eq(blocks.iter().copied()));
    }
    Ok(())
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let block = prop_oneof![0..300u32, 65_400..65_700u32, 131_000..140_000u32, (u32::MAX - 300)..u32::MAX];
    let count = prop_oneof![6 => 1..40u32, 1 => 3_000..9_000u32];
    let change = prop_oneof![
        4 => (1..4u32, block.clone(), count)
            .prop_map(|(relation, first, count)| Change::Blocks { relation, first, count }),
        1 => (1..4u32, block).prop_map(|(relation, limit)| Change::Limit { relation, limit }),
        1 => (1..4u32).prop_map(|relation| Change::Limit { relation, limit: 0 }),
    ];
    prop::collection::vec(change, 0..24)
}

/// Few and small ones.
fn small_changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        (1..4u32, prop_oneof![0..9u32, 70_000..70_009u32], 1..9u32)
            .prop_map(|(relation, first, count)| Change::Blocks { relation, first, count }),
        (1..4u32, 0..9u32).prop_map(|(relation, limit)| Change::Limit { relation, limit }),
    ];
    prop::collection::vec(change, 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_table_is_what_the_model_is(changes in changes(), bounds: (u32, u32), near in 0..140_000u32) {
        let (table, models) = made(&changes);
        same(&table, &models)?;
        for (fork, model) in &models {
            let (found, blocks) = (table.get(fork).expect("it is there"), model.blocks());
            for range in [bounds.0.min(bounds.1)..bounds.0.max(bounds.1), near..near + 5_000, 0..near, near..near] {
                let expected = blocks.range(range.clone()).copied();
                prop_assert!(found.blocks(range).map(|block| block.0).eq(expected));
            }
            for block in [near, bounds.0, 0, 70_000] {
                prop_assert_eq!(found.contains(BlockNumber(block)), blocks.contains(&block));
            }
        }
    }

    #[test]
    fn a_file_is_what_a_server_writes(changes in changes()) {
        let (table, models) = made(&changes);
        let servers = file(&models);
        let (ours, length) = table.write(Vec::new()).expect("to memory");
        prop_assert_eq!(ours.len() as u64, length);
        // Only the order in lists of places may differ.
        prop_assert_eq!(ours.len(), servers.len());
        prop_assert!(read(&[&servers]).expect("right") == table);
        let again = read(&[&ours]).expect("right");
        prop_assert!(again == table);
        same(&again, &models)?;
    }

    #[test]
    fn pieces_change_nothing(changes in changes(), cuts: (prop::sample::Index, prop::sample::Index)) {
        let (table, models) = made(&changes);
        let file = file(&models);
        let (a, b) = (cuts.0.index(file.len()), cuts.1.index(file.len()));
        let (a, b) = (a.min(b), a.max(b));
        prop_assert!(read(&[&file[..a], &file[a..b], &file[b..]]).expect("right") == table);
        if file.len() < 2_000 {
            prop_assert!(read(&file.chunks(1).collect::<Vec<_>>()).expect("right") == table);
        }
    }

    #[test]
    fn later_is_laid_over_earlier(parts in prop::collection::vec(changes(), 1..4)) {
        let (mut merged, mut laid, mut models) = (BlockReferences::new(), BlockReferences::new(), Models::new());
        for changes in &parts {
            let (later, later_models) = made(changes);
            let mut merger = SummaryMerger::new();
            merger.feed(&mut laid, &file(&later_models)).expect("right");
            merger.finish().expect("whole");
            merged.merge(later);
            for (fork, later) in later_models {
                let model = models.entry(fork).or_default();
                if let Some(limit) = later.limit {
                    model.cut(limit);
                }
                for block in later.blocks() {
                    model.mark(block);
                }
            }
        }
        same(&merged, &models)?;
        prop_assert!(merged == laid);
        // What one table of all that WAL knows is known of parts as well, but for blocks that are none any more.
        let (whole, _) = made(&parts.concat());
        for (fork, whole) in whole.sorted() {
            let merged = merged.get(&fork).expect("it was touched");
            prop_assert_eq!(merged.limit(), whole.limit());
            prop_assert!(merged.blocks(..).all(|block| whole.contains(block)));
        }
    }

    #[test]
    fn a_changed_byte_is_found(changes in small_changes(), at: prop::sample::Index, flip in 1..=255u8) {
        let mut bytes = file(&made(&changes).1);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(read(&[&bytes]).is_err());
    }

    #[test]
    fn a_cut_file_is_found(changes in small_changes(), at: prop::sample::Index) {
        let bytes = file(&made(&changes).1);
        let at = at.index(bytes.len());
        let is_cut = matches!(read(&[&bytes[..at]]), Err(SummaryError::Cut { found, .. }) if found == at as u64);
        prop_assert!(is_cut);
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_eq!(read(&[&longer]).err(), Some(SummaryError::TooLong { end: bytes.len() as u64 }));
    }

    #[test]
    fn what_is_read_can_be_written(
        changes in small_changes(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        // The checksum is made right again: what is found is found by the structure, or nothing is wrong with it.
        let mut bytes = file(&made(&changes).1);
        bytes.truncate(bytes.len() - 28);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(table) = read(&[&sealed(bytes)]) {
            let (ours, _) = table.write(Vec::new()).expect("it was read");
            prop_assert!(read(&[&ours]).expect("right") == table);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&[&bytes]);
        let _ = read(&[&MAGIC.to_le_bytes(), &bytes]);
    }
}

/// The numbers of an entry, and what follows it.
type Entry<'a> = ([u32; 6], &'a [u16]);

fn entries(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    for (numbers, rest) in entries {
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(rest.iter().flat_map(|number| number.to_le_bytes()));
    }
    sealed(bytes)
}

#[test]
fn what_is_wrong_is_named() {
    let cases: [(&[Entry<'_>], SummaryError); 6] = [
        (&[([1663, 5, 7, 4, 0, 0], &[])], SummaryError::ForkNumber { offset: 4, found: 4 }),
        (
            &[([1663, 5, 7, 1, 0, 0], &[]), ([1663, 5, 7, 0, 0, 0], &[])],
            SummaryError::Order { offset: 28, found: fork(7, 0), previous: fork(7, 1) },
        ),
        (
            &[([1663, 5, 7, 1, 0, 0], &[]), ([1663, 5, 7, 1, 0, 0], &[])],
            SummaryError::Order { offset: 28, found: fork(7, 1), previous: fork(7, 1) },
        ),
        (
            &[([1663, 5, 7, 0, 0, 65_537], &[])],
            SummaryError::ChunkCount { offset: 4, fork: fork(7, 0), found: 65_537 },
        ),
        (
            &[([1663, 5, 7, 0, 0, 2], &[0, 4097])],
            SummaryError::ChunkSize { offset: 30, fork: fork(7, 0), chunk: 1, found: 4097 },
        ),
        (
            &[([1663, 5, 7, 0, 0, 1], &[20_000])],
            SummaryError::ChunkSize { offset: 28, fork: fork(7, 0), chunk: 0, found: 20_000 },
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(read(&[&entries(file)]), Err(expected));
    }

    let right = entries(&[([1663, 5, 7, 0, 0, 1], &[1, 9])]);
    let mut wrong = right.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    let Err(SummaryError::Checksum { found, expected, bytes }) = read(&[&wrong]) else {
        panic!("the checksum is wrong");
    };
    assert_eq!((found ^ expected, bytes), (1 << 24, wrong.len() as u64 - 4));
    let text = read(&[&MAGIC.to_be_bytes()]).expect_err("the other end first").to_string();
    assert!(text.contains("0x7b132b65, expected 0x652b137b; those of big-endian servers"), "{text}");

    let mut decoder = SummaryDecoder::new();
    assert!(decoder.next(&mut &b"what"[..]).is_err());
    assert_eq!(decoder.next(&mut &right[..]).err(), Some(SummaryError::Failed));
    assert_eq!(decoder.finish(), Err(SummaryError::Failed));
}

#[test]
fn a_file_by_hand() {
    // Sizes 2 and 0 and 1; a place twice; an entry of a database; the highest block that there is.
    let bytes = entries(&[
        ([1663, 5, 0, 0, 0, 0], &[]),
        ([1663, 5, 7, 0, 12, 3], &[3, 0, 1, 500, 2, 500, 65_535]),
        ([1663, 5, 7, 2, u32::MAX, 1], &[1, 0]),
    ]);
    let table = read(&[&bytes]).expect("right");
    let found: Vec<_> = table
        .sorted()
        .map(|(fork, found)| (fork.to_string(), found.limit(), found.blocks(..).map(|b| b.0).collect()))
        .collect();
    let expected: [(String, Option<BlockNumber>, Vec<u32>); 3] = [
        ("TS 1663, DB 5, REL 0, FORK main".to_owned(), Some(BlockNumber(0)), vec![]),
        ("TS 1663, DB 5, REL 7, FORK main".to_owned(), Some(BlockNumber(12)), vec![2, 500, 196_607]),
        ("TS 1663, DB 5, REL 7, FORK vm".to_owned(), None, vec![0]),
    ];
    assert_eq!(found, expected);
    assert!(table.get(&fork(8, 0)).is_none());
}

#[test]
fn what_no_reader_takes_is_not_written() {
    for wrong in [fork(7, 4), RelationFork { tablespace: 0, database: 0, relation: 0, fork: 0 }] {
        let mut table = BlockReferences::new();
        table.set_limit(wrong, BlockNumber(0));
        assert!(table.write(Vec::new()).is_err());
    }
    let mut writer = SummaryWriter::new(Vec::new());
    writer.fork(fork(7, 1), &ForkReferences::default()).expect("the first");
    let error = writer.fork(fork(7, 0), &ForkReferences::default()).expect_err("behind it");
    assert!(error.to_string().contains("expected one above TS 1663, DB 5, REL 7, FORK fsm"), "{error}");
}

#[test]
fn memory_follows_what_is_known() {
    let mut table = BlockReferences::new();
    for block in 0..CHUNK_BLOCKS {
        table.mark_block(fork(7, 0), BlockNumber(block));
    }
    // A bitmap, not 65,536 places.
    assert!((8_192..10_000).contains(&table.memory()), "{}", table.memory());
}

#[test]
fn names() {
    let name = SummaryName { timeline: TimelineId(1), start: Lsn(0x0100_0028), end: Lsn(0x2_0123_4567) };
    let text = "0000000100000000010000280000000201234567.summary";
    assert_eq!(name.to_string(), text);
    assert_eq!(SummaryName::parse(text.as_bytes()), Some(name));
    for wrong in [&text[1..], &text[..40], "temp.summary", &text.replace('4', "a"), &format!("{text}x")] {
        assert_eq!(SummaryName::parse(wrong.as_bytes()), None, "{wrong}");
    }
}
