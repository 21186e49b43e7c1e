use super::*;
use crate::verify::directory::made_wal::{MadeWal, SEGMENT};

const IDENTIFIER: u64 = 7_300_000_000_000_000_001;
/// Within a page of the third segment.
const START: u64 = 2 * SEGMENT + 5000 / 8 * 8;

/// A member: timeline, number of the segment, content.
type Member = (u32, u64, Vec<u8>);

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SEGMENT).expect("a size of segments")
}

/// Five segments on a timeline, and where their last record ends.
fn made() -> (Vec<Member>, Lsn) {
    let made = MadeWal::new(IDENTIFIER, 1, START, 5);
    let members = made.segments().into_iter().zip(2..).map(|((_, bytes), number)| (1, number, bytes));
    (members.collect(), made.range().end)
}

fn read(members: &[Member], piece: usize, (timeline, lsn): (u32, Lsn)) -> Result<(), String> {
    let origin = WalOrigin {
        system_identifier: IDENTIFIER,
        timeline: TimelineId(1),
        segment_size: size(),
        magic: None,
        page_size: None,
    };
    let mut wal = FetchedWal::new(WalStart { origin, first_record: Lsn(START) });
    for (timeline, number, bytes) in members {
        let segment = WalSegment { timeline: TimelineId(*timeline), number: *number };
        wal.begin(segment, bytes.len() as u64);
        bytes.chunks(piece).for_each(|piece| wal.update(piece));
    }
    wal.finish(BackupPosition { lsn, timeline: TimelineId(timeline) }).map_err(|error| error.to_string())
}

#[test]
fn whole_wal_passes_however_it_is_cut() {
    let (members, end) = made();
    for piece in [7, 8192, 100_000, 1 << 20] {
        assert_eq!(read(&members, piece, (1, end)), Ok(()), "pieces of {piece}");
    }
    // Behind the end anything may lie, as in a segment that was used before.
    let mut recycled = members;
    let last = recycled.last_mut().expect("five");
    let behind = usize::try_from(end.0 % SEGMENT).expect("small").next_multiple_of(8192);
    last.2[behind..].fill(0xa5);
    assert_eq!(read(&recycled, 100_000, (1, end)), Ok(()));
}

#[test]
fn what_is_wrong_is_named() {
    type Damage = fn(&mut Vec<Member>);
    let rows: [(&str, Damage, &str); 10] = [
        ("none", |members| members.clear(), "segment 000000010000000000000002 did not arrive"),
        (
            "no first",
            |members| drop(members.remove(0)),
            "segment 000000010000000000000002 did not arrive, found 000000010000000000000003 in its place",
        ),
        (
            "a gap",
            |members| drop(members.remove(2)),
            "segment 000000010000000000000004 did not arrive, found 000000010000000000000005 in its place",
        ),
        ("no last", |members| drop(members.pop()), "segment 000000010000000000000006 did not arrive"),
        ("swapped", |members| members.swap(1, 2), "segment 000000010000000000000003 did not arrive, found"),
        (
            "twice",
            |members| members.insert(1, members[0].clone()),
            "segment 000000010000000000000003 did not arrive, found 000000010000000000000002",
        ),
        (
            "once more behind the end",
            |members| members.push(members[1].clone()),
            "did not arrive, found 000000010000000000000003",
        ),
        (
            "cut",
            |members| members[3].2.truncate(8192),
            "000000010000000000000005 has 8192 bytes, expected 1048576",
        ),
        ("flipped", |members| members[2].2[500_000] ^= 1, "WAL record at 0/47"),
        ("flipped in a header", |members| members[1].2[24] ^= 1, "found system identifier"),
        ("zeros", |members| members[4].2.fill(0), "found magic 0x0000"),
    ];
    for (name, damage, expected) in rows {
        let (mut members, end) = made();
        damage(&mut members);
        let found = read(&members, 100_000, (1, end)).expect_err(name);
        assert!(found.contains(expected), "{name}: {found}");
    }
    let (members, end) = made();
    let found = read(&members, 100_000, (2, end)).expect_err("another timeline");
    assert_eq!(found, "segment 000000020000000000000006 did not arrive");
}

/// As a server has them that followed a switch to timeline 2 within segment 4: that segment twice.
#[test]
fn timelines_branch_off() {
    let (members, end) = made();
    let ours = |numbers: std::ops::RangeInclusive<u64>, timeline: u32| {
        let wanted = members.iter().filter(move |member| numbers.contains(&member.1));
        wanted.map(move |(_, number, bytes)| (timeline, *number, bytes.clone())).collect::<Vec<_>>()
    };
    let mut left_off = ours(4..=4, 1);
    left_off[0].2[300_000..].fill(0);
    let orders = [
        [ours(2..=3, 1), left_off.clone(), ours(4..=6, 2)].concat(),
        [ours(2..=3, 1), ours(4..=4, 2), left_off, ours(5..=6, 2)].concat(),
        // The segment of the older timeline is gone already.
        [ours(2..=3, 1), ours(4..=6, 2)].concat(),
    ];
    for (number, order) in orders.into_iter().enumerate() {
        assert_eq!(read(&order, 100_000, (2, end)), Ok(()), "order {number}");
        assert!(read(&order, 100_000, (1, end)).is_err(), "order {number}");
        // Of a timeline that leads nowhere, newer or older.
        let mut stale = order.clone();
        for member in stale.iter_mut().filter(|member| member.0 == 2) {
            member.0 = 3;
        }
        stale.insert(1, (2, 2, vec![0x5a; 1 << 20]));
        assert_eq!(read(&stale, 100_000, (3, end)), Ok(()), "order {number}");
        let mut spurious = order.clone();
        spurious.insert(3, (3, 4, vec![0x5a; 1 << 20]));
        assert_eq!(read(&spurious, 100_000, (2, end)), Ok(()), "order {number}");
        // Older than the backup's start; nobody reads it.
        let mut older = order.clone();
        older.insert(0, (0, 2, vec![0x5a; 1 << 20]));
        assert_eq!(read(&older, 100_000, (2, end)), Ok(()), "order {number}");
        // What both timelines share is damaged.
        let mut damaged = order;
        damaged[1].2[500_000] ^= 1;
        assert!(read(&damaged, 100_000, (2, end)).is_err(), "order {number}");
    }
}

#[test]
fn timelines_without_end_take_no_memory() {
    let (members, end) = made();
    let many = (2..100_000).map(|timeline| (timeline, 2, Vec::new()));
    let all: Vec<Member> = many.chain(members).collect();
    assert_eq!(read(&all, 100_000, (1, end)), Ok(()));
    assert!(read(&all, 100_000, (99_999, end)).is_err());
}

#[test]
fn only_segments_are_wal() {
    for (path, is_one) in [
        ("pg_wal/000000010000000000000002", true),
        ("pg_wal/000000010000000000000002.partial", false),
        ("pg_wal/00000002.history", false),
        ("pg_wal/archive_status/000000010000000000000002.done", false),
        ("pg_wal/archive_status/000000010000000000000002", false),
        ("pg_tblspc/1/pg_wal/000000010000000000000002", false),
        ("000000010000000000000002", false),
        ("pg_wal/00000001000000000000FFFF", false),
    ] {
        assert_eq!(FetchedWal::segment(path.as_bytes(), size()).is_some(), is_one, "{path}");
    }
}
