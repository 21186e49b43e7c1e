//! Names the stage that limited a run, from the times its threads spent working and waiting.

use std::fmt;

use serde::Serialize;

use super::Counters;
use super::stage::StageTimes;

/// What a run was limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// We waited for bytes: the server reads, checks and sends them on one core.
    ServerSend,
    /// We waited for the disks that the data directory lies on.
    Read,
    /// We read no faster than we were asked to.
    Rate,
    /// Receiving and decoding the one stream kept its core busy.
    Receive,
    /// The workers that compute checksums.
    Checksum,
    /// The workers that compress.
    Compress,
    /// The device or file system under the target.
    Write,
    /// Making the last files durable after the data had arrived.
    Sync,
    /// Waiting for the WAL that the backup needs, and for the server to end the backup.
    WalAndEnd,
    /// The checkpoint that begins a backup.
    Checkpoint,
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LimitedBy::ServerSend => "server send",
            LimitedBy::Read => "read of the data directory",
            LimitedBy::Rate => "rate asked for (--max-rate)",
            LimitedBy::Receive => "receive and decode",
            LimitedBy::Checksum => "checksums",
            LimitedBy::Compress => "compression",
            LimitedBy::Write => "write",
            LimitedBy::Sync => "sync",
            LimitedBy::WalAndEnd => "WAL and the server's end of backup",
            LimitedBy::Checkpoint => "checkpoint on the server",
        })
    }
}

/// The stages' times and what follows from them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// The verdict for the time in which data flowed.
    pub by: LimitedBy,
    /// Share of the feeding thread's time spent waiting for bytes.
    pub waiting_for_server: f64,
    /// Share of the feeding thread's time spent waiting for a free buffer or a queue.
    pub waiting_for_stages: f64,
    /// The feeding thread.
    pub feeder: StageTimes,
    /// All worker lanes.
    pub lanes: StageTimes,
    /// All writers.
    pub writers: StageTimes,
}

impl Limit {
    /// Judges the counters of a run whose data has passed.
    #[must_use]
    pub fn judge(counters: &Counters) -> Limit {
        let feeder = counters.feeder.snapshot();
        let sum = |of: &[std::sync::Arc<super::StageCounters>]| {
            StageTimes::sum(of.iter().map(|counters| counters.snapshot()))
        };
        let (lanes, writers) = (sum(&counters.lanes), sum(&counters.writers));
        let all = (feeder.busy + feeder.starved + feeder.blocked).max(f64::MIN_POSITIVE);
        let (waiting_for_server, waiting_for_stages) = (feeder.starved / all, feeder.blocked / all);
        let by = if waiting_for_stages > waiting_for_server && feeder.blocked > feeder.busy {
            behind(&lanes, &writers, counters.compresses)
        } else if feeder.starved >= feeder.busy {
            LimitedBy::ServerSend
        } else {
            LimitedBy::Receive
        };
        Limit { by, waiting_for_server, waiting_for_stages, feeder, lanes, writers }
    }

    /// The verdict where the feeders were readers of a data directory. Such a one waits for its disk whenever it has
    /// nothing to do, also where its lane has enough to do all the time; so the stage that rested the least is named.
    #[must_use]
    pub fn of_readers(&self, compresses: bool) -> LimitedBy {
        match self.by {
            LimitedBy::ServerSend | LimitedBy::Receive => {}
            by => return by,
        }
        let busiest = self.lanes.busy_share().max(self.writers.busy_share());
        if busiest > self.waiting_for_server {
            return behind(&self.lanes, &self.writers, compresses);
        }
        LimitedBy::Read
    }
}

/// The stage behind the feeder that holds it up. A writer counts the time the device holds all it may as busy, so the
/// busier one does.
fn behind(lanes: &StageTimes, writers: &StageTimes, compresses: bool) -> LimitedBy {
    match writers.busy_share() >= lanes.busy_share() {
        true => LimitedBy::Write,
        false if compresses => LimitedBy::Compress,
        false => LimitedBy::Checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Spent, StageClock, StageCounters};
    use super::*;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn counters(feeder: Spent, lanes: Spent, writers: Spent) -> Counters {
        let spend = |spent| {
            let counters = Arc::new(StageCounters::default());
            let mut clock = StageClock::start(Arc::clone(&counters));
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(50) {}
            clock.book(spent);
            counters
        };
        let (lanes, writers) = (vec![spend(lanes)], vec![spend(writers)]);
        Counters { feeder: spend(feeder), lanes, writers, compresses: false }
    }

    #[test]
    fn names_the_stage() {
        for (feeder, lanes, writers, by) in [
            (Spent::Starved, Spent::Starved, Spent::Starved, LimitedBy::ServerSend),
            (Spent::Busy, Spent::Starved, Spent::Starved, LimitedBy::Receive),
            (Spent::Blocked, Spent::Busy, Spent::Starved, LimitedBy::Checksum),
            (Spent::Blocked, Spent::Blocked, Spent::Busy, LimitedBy::Write),
        ] {
            assert_eq!(Limit::judge(&counters(feeder, lanes, writers)).by, by);
        }
        let lanes_are_busy = counters(Spent::Blocked, Spent::Busy, Spent::Starved);
        let compressing = Counters { compresses: true, ..lanes_are_busy };
        assert_eq!(Limit::judge(&compressing).by, LimitedBy::Compress);
    }

    #[test]
    fn readers_that_wait_beside_busy_lanes_are_not_the_limit() {
        let times = |busy, starved, blocked| StageTimes { busy, starved, blocked, bytes: 0 };
        let limit = |feeder: StageTimes, lanes, writers| Limit {
            by: if feeder.starved > feeder.blocked { LimitedBy::ServerSend } else { LimitedBy::Write },
            waiting_for_server: feeder.starved / 10.0,
            waiting_for_stages: feeder.blocked / 10.0,
            feeder,
            lanes,
            writers,
        };
        let rests = times(1.0, 9.0, 0.0);
        let lanes = limit(times(1.0, 5.0, 4.0), times(8.9, 1.1, 0.0), rests);
        assert_eq!(lanes.of_readers(true), LimitedBy::Compress);
        assert_eq!(lanes.of_readers(false), LimitedBy::Checksum);
        let disk = limit(times(0.5, 9.0, 0.5), times(6.0, 4.0, 0.0), rests);
        assert_eq!(disk.of_readers(true), LimitedBy::Read);
        let writers = limit(times(1.0, 4.0, 5.0), times(2.0, 1.0, 7.0), times(9.0, 1.0, 0.0));
        assert_eq!(writers.of_readers(true), LimitedBy::Write);
    }
}
