use proptest::prelude::*;

use super::*;

fn switch(timeline: u32, end: u64, reason: &str) -> TimelineSwitch {
    TimelineSwitch { timeline: TimelineId(timeline), end: Lsn(end), reason: reason.to_owned() }
}

#[test]
fn reads_what_servers_write() {
    for (timeline, content, expected) in [
        (1, &b""[..], vec![]),
        (
            2,
            b"1\t0/3000000\tno recovery target specified\n",
            vec![switch(1, 0x300_0000, "no recovery target specified")],
        ),
        (
            4,
            b"1\t0/3000000\tbefore 2026-01-01 00:00:00+00\n\n# a comment\n  # another\n3\tA/0000001B\tat \xff point\r\n",
            vec![
                switch(1, 0x300_0000, "before 2026-01-01 00:00:00+00"),
                switch(3, 0xA_0000_001B, "at \u{fffd} point"),
            ],
        ),
        (3, b"1 0/1\n2  0/1", vec![switch(1, 1, ""), switch(2, 1, "")]),
    ] {
        let history = TimelineHistory::parse(TimelineId(timeline), content).unwrap();
        assert_eq!(history, TimelineHistory { timeline: TimelineId(timeline), switches: expected });
    }
}

#[test]
fn refuses_what_is_no_history() {
    for (content, expected) in [
        (&b"x\t0/1\t"[..], "line 1: found \"x\\t0/1\", expected a timeline number first"),
        (b"+1\t0/1\t", "expected a timeline number first"),
        (b"-1\t0/1\t", "expected a timeline number first"),
        (b"4294967296\t0/1\t", "expected a timeline number first"),
        (b"1", "expected a log position"),
        (b"1\t", "expected a log position"),
        (b"1\t01\treason", "expected a log position"),
        (b"#\n1\t123456789/0\treason", "line 2"),
        (b"9\t0/1\tr", "expected an ancestor"),
        (b"10\t0/1\tr", "expected an ancestor"),
        (b"2\t0/5\tr\n1\t0/6\tr", "line 2: timeline 1 does not follow 2"),
        (b"2\t0/5\tr\n2\t0/6\tr", "line 2: timeline 2 does not follow 2"),
        (b"2\t0/5\tr\n3\t0/4\tr", "line 2: position 0/4 does not follow 0/5"),
    ] {
        let error = TimelineHistory::parse(TimelineId(9), content).unwrap_err().to_string();
        assert!(error.starts_with("history of timeline 9, line "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let long = vec![b'\n'; MAX_BYTES + 1];
    let error = TimelineHistory::parse(TimelineId(9), &long).unwrap_err();
    assert_eq!(error, TimelineHistoryError::TooLong { timeline: TimelineId(9), found: MAX_BYTES + 1 });
    assert!(TimelineHistory::parse(TimelineId(9), &long[1..]).unwrap().switches.is_empty());
}

#[test]
fn a_position_belongs_to_the_timeline_that_was_left_after_it() {
    let history = TimelineHistory::parse(TimelineId(5), b"1\t0/10\t\n2\t0/20\t\n3\t0/20\t\n").unwrap();
    for (position, timeline) in [(0, 1), (0xf, 1), (0x10, 2), (0x1f, 2), (0x20, 5), (u64::MAX, 5)] {
        assert_eq!(history.timeline_of(Lsn(position)), TimelineId(timeline), "{position:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_written_comes_back(
        steps in proptest::collection::vec((1u32..5, 0u64..1 << 40, "[a-z0-9:+ -]{0,20}"), 0..10),
    ) {
        let (mut timeline, mut end) = (0, 0);
        let mut switches = Vec::new();
        let mut content = String::new();
        for (step, distance, reason) in steps {
            timeline += step;
            end += distance;
            content += &format!("{timeline}\t{}\t{reason}\n", Lsn(end));
            switches.push(switch(timeline, end, reason.trim()));
        }
        let timeline = TimelineId(timeline + 1);
        let history = TimelineHistory::parse(timeline, content.as_bytes());
        prop_assert_eq!(history, Ok(TimelineHistory { timeline, switches }));
    }

    #[test]
    fn no_bytes_make_it_panic(content in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(history) = TimelineHistory::parse(TimelineId(7), &content) {
            prop_assert!(history.switches.len() <= content.len());
        }
    }
}
