//! Connections that end: in order, or by a reset.

use pgstrata_tests::{Action, Fault};

use crate::map::Place;
use crate::testbed::{Ending, MAIN, Testbed, WAL};

/// Runs side by side; each keeps two processes and the source busy.
const THREADS: usize = 3;

fn cut(major: u32, of_bulk: usize) {
    let bed = Testbed::start(major);
    let [main, wal] = &bed.maps;
    let mut places: Vec<(usize, Place)> = Vec::new();
    for (connection, map) in [(MAIN, main), (WAL, wal)] {
        for (n, frame) in map.chosen(of_bulk).into_iter().enumerate() {
            // Parameters of the greeting are many and alike.
            if frame.tag == b'S' && frame.at > 200 {
                continue;
            }
            // Before each message, and somewhere within it.
            let mut within = map.within(&frame);
            places.push((connection, within.swap_remove(0)));
            places.push((connection, within.swap_remove(n % within.len())));
        }
    }
    let last_of_main = main.last(b'Z');
    // From here on the receiver connects again: the server still has that WAL.
    let streams = wal.nth(b'W', 0);
    let streams = streams.at + streams.length;
    let cases: Vec<_> = places.into_iter().enumerate().collect();
    bed.each(THREADS, &cases, |(number, (connection, place))| {
        let action = if number % 3 == 2 { Action::Reset } else { Action::Cut };
        let fault = Fault::on(*connection, place.at, action);
        let context = |error: String| {
            format!("{major}, connection {connection}, {action:?} at {}: {error}", place.name)
        };
        let (ending, finished) = bed.run(&[fault], &[]).map_err(context)?;
        let whole = match *connection {
            MAIN => place.at >= last_of_main.at + last_of_main.length,
            _ => place.at >= streams,
        };
        let said = finished.stderr_text();
        match ending {
            Ending::Right if whole => Ok(()),
            Ending::Refused if *connection == WAL && place.at <= streams => {
                let named = said.contains("WAL")
                    || said.contains("connection to server")
                    || said.contains("replication slot")
                    || said.contains("identify");
                if named {
                    Ok(())
                } else {
                    Err(context(format!("does not name the WAL connection: {finished}")))
                }
            }
            Ending::Refused if !whole => {
                let told = ["closed the connection", "reset", "Broken pipe", "refused"]
                    .iter()
                    .any(|word| said.contains(word));
                if told { Ok(()) } else { Err(context(format!("does not tell why: {finished}"))) }
            }
            other => Err(context(format!("{other:?}: {finished}"))),
        }
    });
}

#[test]
fn cuts_of_typed_streams_end_in_order() {
    cut(18, 4);
}

#[test]
fn cuts_of_untyped_streams_end_in_order() {
    cut(14, 2);
}
