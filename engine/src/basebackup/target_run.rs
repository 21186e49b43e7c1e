//! A backup that stays with the server, at a target of its own: begun here, watched, and reported.

use std::sync::atomic::Ordering;

use super::config::WalMethod;
use super::prepare::ServerFacts;
use super::progress::Phase;
use super::report::{Phases, Report};
use super::run::{Begun, Io, Run, Totals};
use crate::failure::Failure;
use crate::pipeline::{Counters, Spent, StageClock};
use crate::source::watch_target;

impl Run<'_> {
    /// Follows the backup to its end.
    pub(super) fn watch(
        &self,
        begun: Begun,
        facts: &ServerFacts,
        io: &Io,
        mut phases: Phases,
    ) -> Result<Report, Failure> {
        let Begun { start, mut stream, .. } = begun;
        self.enter(Phase::Receiving);
        let counters = Counters::default();
        let mut clock = StageClock::start(counters.feeder.clone());
        let end =
            watch_target(&mut stream, self.config.waits_for_archive(), self.progress, &**self.observer)?;
        clock.book(Spent::Starved);
        stream.close();
        self.check_stopped()?;
        if self.config.wal != WalMethod::None {
            self.note(format_args!("write-ahead log end point: {}", end.end.lsn));
        }
        phases.total = self.seconds();
        phases.data = phases.total - phases.start;
        let totals = Totals { bytes: self.progress.bytes.load(Ordering::Relaxed), ..Totals::default() };
        Ok(self.report(facts, &counters, io, phases, (start.lsn, &end), &totals))
    }
}
