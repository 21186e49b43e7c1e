//! Connections that change a bit. TCP's own checksum would have caught most of that; what gets through it must not get
//! through here: a run fails, or its copy is right.
//! No manifest covers WAL; the checksums of its records do.

use std::collections::BTreeMap;
use std::sync::Mutex;

use pgstrata_tests::{Action, Fault};

use crate::map::{Map, Place, Random};
use crate::testbed::{Ending, MAIN, Testbed, WAL};

const THREADS: usize = 3;

/// Places in messages of every kind, and all over the data.
fn places(map: &Map, each: u32, anywhere: u64, random: &mut Random) -> Vec<Place> {
    let mut places = Vec::new();
    let mut seen = BTreeMap::<_, u32>::new();
    for frame in map.chosen(4) {
        // The first messages of a kind differ in what they mean, and so do the last of all.
        let times = seen.entry((frame.tag, frame.kind.filter(|_| frame.tag == b'd'))).or_default();
        *times += 1;
        if *times <= each || frame.at + 150 > map.total {
            let mut within = map.within(&frame);
            if *times == 1 {
                let name = map.name(&frame);
                let length = |n| Place { name: format!("length {n} of {name}"), at: frame.at + n };
                within.extend([1, 2, 4].map(length));
            }
            places.extend(within);
        }
    }
    for _ in 0..anywhere {
        let at = random.below(map.total);
        places.push(Place { name: format!("anywhere: {at}"), at });
    }
    places
}

fn flip(major: u32, each: u32, anywhere: u64) {
    let bed = Testbed::start(major);
    let mut random = Random(u64::from(major));
    let mut cases = Vec::new();
    for (connection, anywhere) in [(MAIN, anywhere), (WAL, 0)] {
        for place in places(&bed.maps[connection], each, anywhere, &mut random) {
            cases.push((connection, place, 1_u8 << random.below(8)));
        }
    }
    let endings = Mutex::new(BTreeMap::<_, u32>::new());
    bed.each(THREADS, &cases, |(connection, place, bit)| {
        let fault = Fault::on(*connection, place.at, Action::Flip(*bit));
        let context = |error: String| {
            format!("{major}, connection {connection}, bit {bit:#04x} at {}: {error}", place.name)
        };
        let (ending, _) = bed.run(&[fault], &["--stall-timeout", "2"]).map_err(context)?;
        let mut endings = endings.lock().expect("no panic with the lock");
        *endings.entry((*connection, format!("{ending:?}"))).or_default() += 1;
        Ok(())
    });
    eprintln!("{major}: {:?}", endings.into_inner().expect("no panic with the lock"));
}

#[test]
fn flips_in_typed_streams_never_change_a_copy() {
    flip(18, 2, 15);
}

#[test]
fn flips_in_untyped_streams_never_change_a_copy() {
    flip(14, 1, 10);
}

#[test]
fn wal_that_was_changed_is_refused_by_its_record() {
    let bed = Testbed::start(18);
    let [start, end] = bed.reference_range();
    // The record at the backup's start lies behind the segment's first bytes; the stream's first WAL message begins
    // with the segment. Each run begins a segment of its own, at the same place in it.
    let first = bed.maps[WAL].frames.iter().find(|frame| frame.tag == b'd' && frame.kind == Some(b'w'));
    let first = first.expect("the stream has WAL").at + 5 + 25;
    let within = start % (1 << 20) + (end - start) / 2;
    let fault = Fault::on(WAL, first + within, Action::Flip(0x10));
    let (ending, finished) = bed.run(&[fault], &[]).expect("it is refused");
    assert_eq!(ending, Ending::Refused);
    finished.expect_stderr("WAL receiver: WAL record at 0/").expect_stderr("HINT: pg_waldump on the server");
}
