//! Timeline histories: those accepted are in order, and every position belongs to one timeline.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

fuzz_target!(|input: &[u8]| {
    let Some((timeline, content)) = input.split_first_chunk::<4>() else { return };
    let timeline = TimelineId(u32::from_le_bytes(*timeline));
    let Ok(history) = TimelineHistory::parse(timeline, content) else { return };
    for pair in history.switches.windows(2) {
        assert!(pair[0].timeline < pair[1].timeline && pair[0].end <= pair[1].end);
    }
    assert_eq!(history.timeline_of(Lsn(u64::MAX)), timeline);
    for switch in &history.switches {
        assert!(switch.timeline < timeline);
        assert!(history.timeline_of(switch.end) > switch.timeline);
    }
});
