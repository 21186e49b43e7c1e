//! Connections that stay open and carry nothing any more: `connect_timeout` notices until the server lets the client
//! in, `--stall-timeout` from then on. Only the wait for the checkpoint has no limit.

use std::time::Duration;

use pgstrata_tests::{Action, Fault};

use crate::map::Place;
use crate::testbed::{Ending, MAIN, Testbed, WAL};

/// Stalled runs wait and do nothing else.
const THREADS: usize = 10;
/// Two seconds of silence, and time for everything else on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(25);

#[test]
fn stalls_are_noticed() {
    let bed = Testbed::start(18);
    let [main, wal] = &bed.maps;
    let mut places: Vec<(usize, Place)> = Vec::new();
    // The results before the data: what comes first of them ends the wait for the checkpoint.
    let copy = main.nth(b'H', 0).at;
    let reply = main.frames.iter().filter(|frame| frame.tag == b'T' && frame.at < copy).nth_back(1);
    let reply = reply.expect("the reply begins with a result").at;
    for (connection, map) in [(MAIN, main), (WAL, wal)] {
        for (n, frame) in map.chosen(6).into_iter().enumerate() {
            if frame.tag == b'S' && frame.at > 200 {
                continue;
            }
            let within = map.within(&frame);
            places.push((connection, within[n % within.len()].clone()));
        }
        places.push((connection, Place { name: "before all".into(), at: 0 }));
    }
    places.push((MAIN, Place { name: "in the reply".into(), at: reply + 2 }));
    places.retain(|(connection, place)| *connection != MAIN || place.at != reply);
    let end = main.last(b'Z');
    bed.each(THREADS, &places, |(connection, place)| {
        let fault = Fault::on(*connection, place.at, Action::Stall);
        let context = |error: String| format!("connection {connection}, stall at {}: {error}", place.name);
        let (ending, finished) = bed.run(&[fault], &["--stall-timeout", "2"]).map_err(context)?;
        let said = finished.stderr_text();
        let words = ["sent nothing for 2s", "sent no whole message for 2s", "timeout expired"];
        let told = words.iter().any(|word| said.contains(word));
        if finished.wall > NOTICED_WITHIN {
            return Err(context(format!("took long: {finished}")));
        }
        match ending {
            Ending::Refused if told => Ok(()),
            // All that is needed had come, or came over another connection.
            Ending::Right if *connection == WAL || place.at >= end.at + end.length => Ok(()),
            other => Err(context(format!("{other:?}: {finished}"))),
        }
    });
}
