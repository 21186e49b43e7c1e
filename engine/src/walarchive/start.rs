//! Where a receiver of a repository goes on: at the first segment that the archive does not have whole and right.
//!
//! It is looked for along the server's own history, from what the slot holds on, or from the end of the archive where
//! there is no slot. So a hole that somebody else left is filled while the server still has what is missing, and what
//! another server wrote behind the place where the timelines parted is that timeline's and no reason to wait for more.
//! Invariant: everything from the slot's position to the start is in the archive without a gap, read, and durable.

use std::collections::BTreeSet;

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};

use super::parts::{Length, chain, parts_of, read_parts};
use super::reach::Leg;
use crate::failure::Failure;
use crate::receivewal::{ReceiveObserver, ServerPast, Start, WalStore};
use crate::repository::{RepositoryError, SegmentName, WalName, WalObject};

/// A place on the way: a leg of the server's history, and a segment's number.
type Place = (usize, u64);

/// What is looked through.
pub(super) struct Search<'a> {
    pub(super) store: &'a WalStore,
    pub(super) system_identifier: u64,
    pub(super) size: WalSegmentSize,
    legs: Vec<Leg>,
    /// Folders on whose names the start rests.
    seen: BTreeSet<(TimelineId, u32)>,
}

impl<'a> Search<'a> {
    pub(super) fn new(store: &'a WalStore, system: u64, size: WalSegmentSize, past: &ServerPast) -> Self {
        let left = past.history.switches.iter();
        let legs = left.map(|left| Leg { timeline: left.timeline, end: Some(left.end) });
        let legs = legs.chain([Leg { timeline: past.history.timeline, end: None }]).collect();
        Self { store, system_identifier: system, size, legs, seen: BTreeSet::new() }
    }

    /// Where to go on; `None` where neither the archive nor the slot has anything.
    pub(super) fn find(
        mut self,
        slot: Option<Lsn>,
        observer: &dyn ReceiveObserver,
    ) -> Result<Option<Start>, Failure> {
        let held = slot.map(|lsn| (self.leg_of(lsn), lsn.0 / self.size.bytes()));
        let last = self.last(observer)?;
        // What lies before the end of the archive may have holes; what lies behind it is missing.
        let Some(from) = held.into_iter().chain(last).min_by_key(|(leg, number)| (*number, *leg)) else {
            return Ok(None);
        };
        let (leg, number) = self.first_missing(from)?;
        for (timeline, high) in &self.seen {
            // The server hears that it is durable; whoever wrote it may have died before its name was.
            self.store.repository.store().sync_folder(&self.store.cluster.wal_folder(*timeline, *high))?;
        }
        self.compare_histories(leg)?;
        let segment = WalSegment { timeline: self.legs[leg].timeline, number };
        Ok(segment.start(self.size).map(|lsn| Start { lsn, timeline: segment.timeline }))
    }

    fn leg_of(&self, lsn: Lsn) -> usize {
        let left_after = self.legs.iter().position(|leg| leg.end.is_none_or(|end| lsn < end));
        left_after.unwrap_or(self.legs.len() - 1)
    }

    /// The last segment on the way of which the archive has something, be it a part.
    fn last(&self, observer: &dyn ReceiveObserver) -> Result<Option<Place>, Failure> {
        let WalStore { repository, cluster, .. } = self.store;
        let timelines: Vec<_> = repository.wal_names(&cluster.wal())?;
        let timelines: Vec<_> = timelines.iter().filter_map(|name| hex(name)).map(TimelineId).collect();
        let on_the_way = |timeline: &TimelineId| self.legs.iter().any(|leg| leg.timeline == *timeline);
        let own = self.legs.last().map(|leg| leg.timeline);
        if let Some(other) = timelines.iter().find(|other| Some(**other) > own && !on_the_way(other)) {
            observer.warning(&format!(
                "the archive has WAL of timeline {other}, and the server is on timeline {}\n\
                 HINT: the server's own WAL is received; is it the one that was promoted last?",
                self.legs.last().map_or(0, |leg| leg.timeline.0)
            ));
        }
        for (place, leg) in self.legs.iter().enumerate().rev() {
            if !timelines.contains(&leg.timeline) {
                continue;
            }
            let most = leg.end.map_or(u64::MAX, |end| end.0 / self.size.bytes());
            let highs = repository.wal_names(&cluster.wal_timeline(leg.timeline))?;
            for high in highs.iter().rev().filter_map(|high| hex(high)) {
                let mut last = None;
                for name in repository.wal_names(&cluster.wal_folder(leg.timeline, high))? {
                    if let Ok(WalName::Segment(segment) | WalName::Part { segment, .. }) = name.parse() {
                        let segment =
                            segment.segment(self.size).ok_or_else(|| self.of_another_size(&name))?;
                        last = last.max(Some(segment.number).filter(|number| *number <= most));
                    }
                }
                if let Some(number) = last {
                    return Ok(Some((place, number)));
                }
            }
        }
        Ok(None)
    }

    fn of_another_size(&self, name: &str) -> Failure {
        let what = format!("it is no segment of {} bytes, as the server's are", self.size.bytes());
        RepositoryError::damaged(format!("{}/{name}", self.store.cluster.wal()), what).into()
    }

    /// From a place on, the first segment that is not there whole and right.
    fn first_missing(&mut self, (mut place, mut number): Place) -> Result<Place, Failure> {
        loop {
            let Leg { timeline, end } = self.legs[place];
            let until = end.map(|end| (end.0 / self.size.bytes(), end.0 % self.size.bytes()));
            match until {
                // The segment in which a timeline was left lies on the next one as well; this one's own is wanted up to there.
                Some((last, bytes)) if number >= last => {
                    if bytes > 0 && !self.has(timeline, last, bytes)? {
                        return Ok((place, last));
                    }
                    (place, number) = (place + 1, last);
                }
                _ if self.has(timeline, number, self.size.bytes())? => number += 1,
                _ => return Ok((place, number)),
            }
        }
    }

    /// Whether so many bytes of a segment are there and right. All that there is of it is read.
    fn has(&mut self, timeline: TimelineId, number: u64, bytes: u64) -> Result<bool, Failure> {
        let WalStore { repository, cluster, check, .. } = self.store;
        let segment = SegmentName::of(WalSegment { timeline, number }, self.size);
        let mut length = Length::of(self.system_identifier, segment, self.size);
        if let Some(object) = repository.wal_object(cluster, WalName::Segment(segment))? {
            self.expect_own(&object, self.size.bytes())?;
            let mut hasher = blake3::Hasher::new();
            object.read(|piece| {
                hasher.update(piece);
                length.push(piece);
                Ok(())
            })?;
            if hasher.finalize().to_hex().as_str() != object.summary.blake3 {
                return Err(RepositoryError::damaged(object.name(), "its bytes have another hash").into());
            }
            self.seen.insert((timeline, segment.high));
            return Ok(!check || length.is_sound());
        }
        if bytes == self.size.bytes() {
            return Ok(false);
        }
        let names = repository.wal_names(&cluster.wal_folder(timeline, segment.high))?;
        let (parts, end) = chain(&parts_of(&names, segment));
        if u64::from(end) < bytes {
            return Ok(false);
        }
        read_parts(repository, cluster, segment, &parts, |_, piece| {
            length.push(piece);
            Ok(())
        })?;
        self.seen.insert((timeline, segment.high));
        // The last record may go on behind what is asked for, on the other timeline.
        Ok(!check || length.is_sound())
    }

    fn expect_own(&self, object: &WalObject, size: u64) -> Result<(), Failure> {
        let found = &object.summary;
        if (found.system_identifier, found.segment_size, found.size)
            == (self.system_identifier, self.size.bytes(), size)
        {
            return Ok(());
        }
        let what = format!(
            "found {} bytes of a segment of {} of system {}, expected {size} of {} of system {}",
            found.size,
            found.segment_size,
            found.system_identifier,
            self.size.bytes(),
            self.system_identifier
        );
        Err(RepositoryError::damaged(object.name(), what).into())
    }

    /// Two servers that were promoted to one number write two logs under the same names.
    fn compare_histories(&self, from: usize) -> Result<(), Failure> {
        let WalStore { repository, cluster, .. } = self.store;
        for place in from.max(1)..self.legs.len() {
            let timeline = self.legs[place].timeline;
            let Some(kept) = repository.wal_history(cluster, timeline)? else { continue };
            let kept: Vec<_> = kept.switches.iter().map(|left| (left.timeline, Some(left.end))).collect();
            let own: Vec<_> = self.legs[..place].iter().map(|leg| (leg.timeline, leg.end)).collect();
            if kept == own {
                continue;
            }
            let shown = |ways: &[(TimelineId, Option<Lsn>)]| {
                let way = |(timeline, end): &(TimelineId, Option<Lsn>)| {
                    format!("{timeline} up to {}", end.unwrap_or_default())
                };
                ways.iter().map(way).collect::<Vec<_>>().join(", ")
            };
            let what = format!(
                "it leads over timeline {}, and the server's over timeline {}",
                shown(&kept),
                shown(&own)
            );
            let hint = "two servers were promoted to one timeline. Receive the WAL of the one that is not to count under \
                        another --cluster name. Nothing was changed.";
            return Err(RepositoryError::new(WalName::History(timeline).object(cluster), what, hint).into());
        }
        Ok(())
    }
}

/// A number of eight upper-case hexadecimal digits, as folders are named.
pub(super) fn hex(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name, 16).ok()?;
    (name == format!("{number:08X}")).then_some(number)
}
