//! Records made here, and what they are taken for. Real servers' logs are read in the end-to-end tests.

use proptest::prelude::*;

use super::checker::tests::{Log, SEGMENT, START, origin};
use super::page::ByteOrder;
use super::{
    Before, BlockImage, BlockReference, Change, Compression, Head, JoinError, Links, Record, Relation,
    StretchSummarizer, Summarizer, WalChecker, WalError, WalStretch,
};
use crate::summary::{BlockReferences, RelationFork};
use crate::{BlockNumber, Lsn, TimelineId};

const MAGIC_13: u16 = 0xD106;
const MAGIC_14: u16 = 0xD10D;
const MAGIC_15: u16 = 0xD110;
const MAGIC_17: u16 = 0xD116;
const MAGIC_18: u16 = 0xD118;

const RELATION: Relation = Relation { tablespace: 1663, database: 5, number: 16384 };

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn relation() -> Vec<u8> {
    numbers(&[1663, 5, 16384])
}

/// What stands before main data.
fn with_main(main: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend(u32::try_from(main.len()).unwrap().to_le_bytes());
    body.extend(main);
    body
}

fn record(manager: u8, info: u8, body: &[u8]) -> Vec<u8> {
    let mut record = numbers(&[u32::try_from(body.len()).unwrap() + 24, 700, 40, 0]);
    record.extend([info, manager, 0, 0, 0, 0, 0, 0]);
    record.extend(body);
    record
}

fn read<T>(magic: u16, bytes: &[u8], with: impl FnOnce(&Record<'_>) -> T) -> T {
    with(&Record::unchecked(Lsn(100), Lsn(200), bytes, ByteOrder::Little, magic).unwrap())
}

fn blocks(magic: u16, body: &[u8]) -> Result<Vec<BlockReference>, WalError> {
    let mut blocks = Vec::new();
    read(magic, &record(10, 0, body), |record| record.decode(&mut blocks).map(drop))?;
    Ok(blocks)
}

/// How the change that a record makes is written down, or why it makes none that is known.
fn change(magic: u16, manager: u8, info: u8, main: &[u8]) -> Result<String, String> {
    let bytes = record(manager, info, &with_main(main));
    read(magic, &bytes, |record| {
        let contents = record.decode(&mut Vec::new()).map_err(|error| error.to_string())?;
        let told = match record.change(&contents).map_err(|error| error.to_string())? {
            Change::RelationsDropped(relations) => {
                format!("dropped {:?}", relations.iter().map(|relation| relation.number).collect::<Vec<_>>())
            }
            Change::DatabaseDropped { database, tablespaces } => {
                format!("database {database} gone from {:?}", tablespaces.iter().collect::<Vec<_>>())
            }
            change => format!("{change:?}"),
        };
        Ok(told)
    })
}

#[test]
fn images_are_read_as_their_version_has_them() {
    // A page with a hole, as 15 and later write it, then another block of the same relation, with data.
    let image = |flags: u8, length: u16, hole: u16, more: &[u8]| {
        let mut body = vec![0, 0x10, 0, 0];
        body.extend(length.to_le_bytes());
        body.extend(hole.to_le_bytes());
        body.push(flags);
        body.extend(more);
        body.extend(relation());
        body.extend(numbers(&[7]));
        body.extend([1, 0xE0, 2, 0]);
        body.extend(numbers(&[8]));
        body.resize(body.len() + usize::from(length) + 2, 0xAA);
        body
    };
    for (magic, flags, more, expected) in [
        (MAGIC_18, 0x03, &[][..], (Compression::None, true, 8192 - 600)),
        (MAGIC_15, 0x01, &[], (Compression::None, false, 8192 - 600)),
        (MAGIC_14, 0x05, &[], (Compression::None, true, 8192 - 600)),
        (MAGIC_13, 0x01, &[], (Compression::None, false, 8192 - 600)),
        (MAGIC_13, 0x07, &[0x10, 0x02], (Compression::Pglz, true, 0x0210)),
        (MAGIC_15, 0x07, &[0x10, 0x02], (Compression::Pglz, true, 0x0210)),
        (MAGIC_17, 0x0B, &[0x10, 0x02], (Compression::Lz4, true, 0x0210)),
        (MAGIC_18, 0x11, &[0x10, 0x02], (Compression::Zstd, false, 0x0210)),
    ] {
        let found = blocks(magic, &image(flags, 600, 100, more)).unwrap();
        let (compression, apply, hole) = expected;
        let image = BlockImage { length: 600, hole: (100, hole), compression, apply };
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].relation, found[0].block, found[0].image),
            (RELATION, BlockNumber(7), Some(image))
        );
        let second = BlockReference { id: 1, block: BlockNumber(8), data_length: 2, ..found[0] };
        assert_eq!(found[1], BlockReference { image: None, will_init: true, ..second });
    }
    // What no server writes.
    for (magic, flags, length, hole) in [
        (MAGIC_18, 0x0E, 600, 0),
        (MAGIC_18, 0x03, 600, 0),
        (MAGIC_18, 0x02, 600, 0),
        (MAGIC_18, 0x02, 9000, 0),
        (MAGIC_14, 0x04, 600, 0),
    ] {
        blocks(magic, &image(flags, length, hole, &[])).unwrap_err();
    }
    blocks(MAGIC_18, &image(0x02, 8192, 0, &[])).unwrap();
}

#[test]
fn parts_that_do_not_add_up_are_refused() {
    let block = |id: u8, flags: u8| [&[id, flags, 0, 0][..], &relation(), &numbers(&[9])].concat();
    assert_eq!(blocks(MAGIC_18, &block(0, 0)).unwrap()[0].block, BlockNumber(9));
    let refused: [(u16, Vec<u8>); 8] = [
        (MAGIC_18, [block(1, 0), block(1, 0)].concat()),
        (MAGIC_18, [block(1, 0), block(0, 0)].concat()),
        (MAGIC_18, block(33, 0)),
        (MAGIC_18, block(0, 0x20)),
        (MAGIC_18, block(0, 0x05)),
        (MAGIC_18, [&[0, 0x80, 0, 0][..], &numbers(&[9])].concat()),
        (MAGIC_18, [&block(0, 0)[..], &[255, 3, 1, 2]].concat()),
        (0xD119, block(0, 0)),
    ];
    for (magic, body) in refused {
        assert!(blocks(magic, &body).is_err(), "{magic:X} {body:?}");
    }
    // 13 has no such part yet.
    let part_of = [&[252, 1, 2, 3, 4][..], &[255, 0]].concat();
    blocks(MAGIC_14, &part_of).unwrap();
    blocks(MAGIC_13, &part_of).unwrap_err();
    // Cut behind its headers a record still names its blocks; cut within them it is refused.
    let whole = record(10, 0, &[&block(0, 0)[..], &with_main(&[1; 50])].concat());
    for (length, known) in [(whole.len(), true), (60, true), (49, true), (48, false), (30, false)] {
        let mut found = Vec::new();
        let contents = read(MAGIC_18, &whole[..length], |record| {
            record.decode(&mut found).map(|it| it.main_data.is_some())
        });
        assert_eq!(contents.ok(), known.then_some(length == whole.len()), "{length}");
    }
}

#[test]
fn files_that_records_make_and_remove() {
    let created = [relation(), numbers(&[3])].concat();
    let told = "ForkCreated { relation: Relation { tablespace: 1663, database: 5, number: 16384 }, fork: 3 }";
    assert_eq!(change(MAGIC_13, 2, 0x11, &created).as_deref(), Ok(told));
    let cut = [numbers(&[17]), relation(), numbers(&[3])].concat();
    assert!(
        change(MAGIC_18, 2, 0x21, &cut)
            .unwrap()
            .contains("blocks: 17, main: true, visibility: true, free_space: false")
    );
    // Time, parts, database, subtransactions, relations.
    let parts = |parts: u32| numbers(&[0, 0, parts]);
    let dropped = [numbers(&[2]), relation(), numbers(&[1663, 5, 16390])].concat();
    for kind in [0x80, 0xA0, 0xB0, 0xC0] {
        let all = [parts(7), numbers(&[5, 1663]), numbers(&[3, 800, 801, 802]), dropped.clone()].concat();
        assert_eq!(change(MAGIC_13, 1, kind | 1, &all).as_deref(), Ok("dropped [16384, 16390]"));
        let few = [parts(0x1_0004), dropped.clone()].concat();
        assert_eq!(change(MAGIC_18, 1, kind | 1, &few).as_deref(), Ok("dropped [16384, 16390]"));
        assert_eq!(change(MAGIC_18, 1, kind, &parts(1 << 30)).as_deref(), Ok("None"));
        change(MAGIC_18, 1, kind | 1, &parts(1 << 30)).unwrap_err();
        change(MAGIC_18, 1, kind | 1, &few[..few.len() - 1]).unwrap_err();
        change(MAGIC_18, 1, kind | 1, &[parts(4), numbers(&[u32::MAX])].concat()).unwrap_err();
    }
    assert_eq!(change(MAGIC_18, 1, 0x10, &[0; 64]).as_deref(), Ok("None"));
}

#[test]
fn databases_are_made_and_removed_as_versions_number_it() {
    let copied = numbers(&[5, 1663, 1, 1664]);
    let gone = numbers(&[5, 2, 1663, 16400]);
    for magic in [MAGIC_13, MAGIC_14, MAGIC_15, MAGIC_18] {
        let newer = magic >= MAGIC_15;
        assert!(change(magic, 4, 0x01, &copied).unwrap().contains("copied_from: Some((1, 1664))"));
        let drop = if newer { 0x21 } else { 0x11 };
        assert_eq!(change(magic, 4, drop, &gone).as_deref(), Ok("database 5 gone from [1663, 16400]"));
        let logged = change(magic, 4, 0x10, &numbers(&[5, 1663]));
        assert_eq!(logged.is_ok_and(|told| told.contains("copied_from: None")), newer);
        assert_eq!(change(magic, 4, 0x20, &numbers(&[5, 0])).is_ok(), newer);
    }
    assert!(change(MAGIC_18, 5, 0, &[&numbers(&[16400])[..], b"/a/b\0"].concat()).unwrap().contains("16400"));
    assert!(change(MAGIC_18, 5, 0x10, &numbers(&[16400])).unwrap().starts_with("TablespaceDropped"));
    assert!(change(MAGIC_18, 7, 0, &numbers(&[5, 1663, 0])).unwrap().starts_with("RelationMap"));
}

#[test]
fn what_may_change_files_unknown_is_refused() {
    for (magic, manager, info) in [
        (MAGIC_18, 0, 0xC0),
        (MAGIC_15, 0, 0xE0),
        (MAGIC_18, 1, 0x70),
        (MAGIC_18, 2, 0x30),
        (MAGIC_18, 4, 0x30),
        (MAGIC_18, 5, 0x20),
        (MAGIC_18, 7, 0x10),
        (MAGIC_18, 10, 0x01),
        (MAGIC_18, 22, 0),
        (MAGIC_18, 127, 0),
        (MAGIC_18, 130, 0x01),
        (MAGIC_14, 130, 0),
    ] {
        assert!(change(magic, manager, info, &[0; 64]).is_err(), "{magic:X}: {manager} {info:#x}");
    }
    assert_eq!(change(MAGIC_15, 130, 0, &[]).as_deref(), Ok("None"));
    assert_eq!(change(MAGIC_18, 10, 0xF0, &[]).as_deref(), Ok("None"));
}

#[test]
fn levels_are_told_where_records_tell_them() {
    let minimal = |magic, kind, main: &[u32]| change(magic, 0, kind, &numbers(main)).unwrap();
    for (magic, kind, main, expected) in [
        (MAGIC_13, 0x60, &[9, 9, 9, 9, 9, 0, 1][..], "minimal: Some(true), redo_point: false"),
        (MAGIC_18, 0x60, &[0, 0, 0, 0, 0, 1, 1], "minimal: Some(false), redo_point: false"),
        (MAGIC_17, 0xE0, &[0], "minimal: Some(true), redo_point: true"),
        (MAGIC_18, 0xE0, &[2], "minimal: Some(false), redo_point: true"),
        (MAGIC_15, 0x00, &[1, 1, 1, 1, 1, 0, 0], "minimal: None, redo_point: true"),
        (MAGIC_17, 0x00, &[1, 1, 1, 1, 1, 0, 0], "minimal: Some(true), redo_point: true"),
        (MAGIC_18, 0x90, &[1, 1, 2, 1, 0, 0], "minimal: Some(true), redo_point: false"),
        (MAGIC_13, 0x90, &[1, 1, 2, 1], "minimal: None, redo_point: false"),
    ] {
        let told = minimal(magic, kind, main);
        assert!(told.contains(expected), "{magic:X} {kind:#x}: {told}");
    }
}

/// A record that touches blocks of the relation, with so many bytes of main data.
fn touching(block: u32, main: usize) -> Vec<u8> {
    let mut body = [&[0, 0, 0, 0][..], &relation(), &numbers(&[block])].concat();
    body.extend([1, 0x80, 0, 0]);
    body.extend(numbers(&[block + 1]));
    body.extend(with_main(&vec![7; main]));
    body
}

fn at_once(log: &Log) -> (BlockReferences, Links) {
    let mut checker = WalChecker::from_segment(origin(), Lsn(START));
    let mut summarizer = Summarizer::new(Lsn(START), Lsn(u64::MAX));
    checker.push_to(&log.bytes, &mut summarizer).unwrap();
    summarizer.finish().unwrap()
}

fn stretches(log: &Log) -> Vec<WalStretch> {
    let size = usize::try_from(SEGMENT).unwrap();
    let stretch = |(number, bytes): (usize, &[u8])| {
        let start = Lsn(START + number as u64 * SEGMENT);
        let mut summarizer = StretchSummarizer::new(origin(), start, Lsn(u64::MAX));
        bytes.chunks(70_001).for_each(|piece| summarizer.push(piece).unwrap());
        summarizer.finish().unwrap()
    };
    log.bytes.chunks(size).enumerate().map(stretch).collect()
}

fn join(stretches: Vec<WalStretch>) -> Result<WalStretch, JoinError> {
    let mut stretches = stretches.into_iter();
    let first = stretches.next().unwrap();
    stretches.try_fold(first, WalStretch::join)
}

#[test]
fn a_free_space_map_is_left_out_and_limits_come_before_later_blocks() {
    let fork = |fork| RelationFork { tablespace: 1663, database: 5, relation: 16384, fork };
    let mut log = Log::new(8192);
    log.record(&touching(50_000, 3), 10, 0);
    let cut = [numbers(&[40_000]), relation(), numbers(&[7])].concat();
    log.record(&with_main(&cut), 2, 0x21);
    log.record(&touching(50_000, 3), 10, 0);
    log.record(&[&[0, 1, 0, 0][..], &relation(), &numbers(&[3])].concat(), 10, 0);
    let (found, _) = at_once(&log);
    let main = found.get(&fork(0)).unwrap();
    assert_eq!(main.limit(), Some(BlockNumber(40_000)));
    assert!(main.contains(BlockNumber(50_000)) && main.contains(BlockNumber(50_001)));
    assert_eq!(found.get(&fork(1)), None);
    // 32,672 blocks a page.
    assert_eq!(found.get(&fork(2)).unwrap().limit(), Some(BlockNumber(2)));
}

#[test]
fn a_record_that_is_not_understood_refuses_the_table_but_not_the_log() {
    let mut log = Log::new(8192);
    log.record(&touching(1, 3), 10, 0);
    log.record(&with_main(&[0; 30]), 2, 0x31);
    log.record(&touching(1, 3), 10, 0);
    let mut summarizer = StretchSummarizer::new(origin(), Lsn(START), Lsn(u64::MAX));
    summarizer.push(&log.bytes).unwrap();
    let error = summarizer.finish().unwrap_err().to_string();
    assert!(error.contains("found type Storage 0x30"), "{error}");
}

fn union(first: &WalStretch, second: &WalStretch) -> u64 {
    let mut both = first.references.clone();
    both.merge(second.references.clone());
    both.count()
}

#[test]
fn stretches_that_do_not_follow_are_not_joined() {
    let mut log = Log::new(8192);
    while log.at() < START + 4 * SEGMENT + 5000 {
        log.record(&touching(u32::try_from(log.at() % 9999).unwrap(), 9000), 10, 0);
    }
    let all = stretches(&log);
    join(all.clone()).unwrap();
    join(vec![all[0].clone(), all[2].clone()]).unwrap_err();
    let altered = |change: fn(&mut WalStretch)| {
        let mut all = all.clone();
        change(&mut all[1]);
        join(all).map(drop)
    };
    altered(|stretch| stretch.magic[0] ^= 1).unwrap_err();
    altered(|stretch| stretch.head.before.length += 8).unwrap_err();
    altered(|stretch| stretch.head.before.length = 0).unwrap_err();
    altered(|stretch| stretch.head.bytes[100] ^= 1).unwrap_err();
    altered(|stretch| stretch.tail = None).unwrap_err();
    altered(|stretch| stretch.tail.as_mut().unwrap().bytes[40] ^= 1).unwrap_err();
    altered(|stretch| stretch.links.first.as_mut().unwrap().1.0 -= 8).unwrap_err();
    altered(|stretch| stretch.links.last = stretch.links.first.map(|(first, _)| first)).unwrap_err();
    // A crash cut the record off, and the next one is linked to the one before it.
    let last = all[0].links.last.unwrap();
    let mut next = all[1].clone();
    next.head = Head { before: Before { length: 0, cut_off: true }, ..Head::default() };
    all[0].clone().join(next.clone()).unwrap_err();
    next.links.first.as_mut().unwrap().1 = last;
    let joined = all[0].clone().join(next).unwrap();
    assert_eq!(joined.references.count(), union(&all[0], &all[1]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn segments_joined_say_what_the_log_says(
        lengths in prop::collection::vec((0u32..200_000, prop_oneof![8 => 0usize..3000, 1 => 100_000usize..2_500_000]), 40..120),
        switch in prop::option::of(0usize..40),
        group in 1usize..4,
    ) {
        let mut log = Log::new(8192);
        for (number, (block, length)) in lengths.iter().enumerate() {
            log.record(&touching(*block, *length), 10, 0);
            if switch == Some(number) {
                log.switch();
            }
        }
        let (references, links) = at_once(&log);
        let all = stretches(&log);
        let groups: Vec<WalStretch> = all.chunks(group).map(|chunk| join(chunk.to_vec()).unwrap()).collect();
        for joined in [join(all).unwrap(), join(groups).unwrap()] {
            prop_assert!(joined.references == references);
            prop_assert_eq!(joined.links, links);
            prop_assert_eq!(joined.end, Lsn(log.at()));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        manager in prop_oneof![0u8..23, any::<u8>()],
        info in any::<u8>(),
        magic in prop::sample::select(vec![MAGIC_13, MAGIC_14, MAGIC_15, MAGIC_17, MAGIC_18, 0xD999]),
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(255), 250u8..=255, 0u8..4, any::<u8>()], 0..200),
        stated in prop::option::of(any::<u32>()),
    ) {
        let mut bytes = record(manager, info, &body);
        if let Some(stated) = stated {
            bytes[..4].copy_from_slice(&stated.to_le_bytes());
        }
        read(magic, &bytes, |record| {
            let mut blocks = Vec::new();
            if let Ok(contents) = record.decode(&mut blocks) {
                assert!(blocks.len() <= 33);
                if let Ok(Change::RelationsDropped(relations)) = record.change(&contents) {
                    assert!(relations.iter().count() * 12 <= bytes.len());
                }
            }
        });
        let with_main = record(manager, info, &with_main(&body));
        read(magic, &with_main, |record| {
            let contents = record.decode(&mut Vec::new());
            let _ = contents.and_then(|contents| record.change(&contents).map(drop));
        });
    }
}

#[test]
fn timelines_of_a_checkpoint() {
    let bytes = record(0, 0x10, &with_main(&numbers(&[1, 1, 3, 2, 1, 1, 0])));
    read(MAGIC_18, &bytes, |record| {
        let contents = record.decode(&mut Vec::new()).unwrap();
        let expected = Change::Level {
            minimal: Some(false),
            redo_point: false,
            timelines: Some((TimelineId(3), TimelineId(2))),
        };
        assert_eq!(record.change(&contents).unwrap(), expected);
    });
}
