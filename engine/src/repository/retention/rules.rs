//! Which backups stay. Pure: no I/O, no clock.

use serde::Serialize;

use super::super::names::BackupId;

/// What is to be kept. Without a rule every backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// The newest so many.
    pub keep: Option<u32>,
    /// Those that ended within so many seconds, and the newest that is older: with it, recovery reaches back that far. Where
    /// that one does not lead to the newest timeline, the newest older one that does as well.
    pub keep_for: Option<u64>,
}

/// Why a backup stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The newest one is never removed.
    Newest,
    /// Among the newest.
    Count,
    /// Young enough.
    Age,
    /// The newest that is older than the age.
    ReachesBack,
    /// The newest that leads to the newest timeline is never removed.
    LeadsToNewestTimeline,
    /// Pinned.
    Pin,
    /// No rule says what may go.
    NoRule,
}

/// A backup, for the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: BackupId,
    /// Seconds since 1970.
    pub(super) ended: u64,
    pub(super) pinned: bool,
    /// Whether recovery comes from it to the newest timeline.
    pub(super) leads: bool,
}

/// Why each of the backups, sorted by age, is kept; none of these that go has a reason.
pub(super) fn decide(rules: RetentionRules, backups: &[Candidate], now: u64) -> Vec<Vec<Reason>> {
    let newest = backups.len().saturating_sub(1);
    let within = |backup: &Candidate| {
        // Two clocks have a word in it; the later one counts.
        let ended = backup.ended.max(backup.id.seconds);
        rules.keep_for.is_some_and(|age| ended.saturating_add(age) >= now)
    };
    let older = |backup: &Candidate| rules.keep_for.is_some() && !within(backup);
    let reaches_back = backups.iter().rposition(older);
    // What was abandoned by a recovery to an earlier point reaches back to nothing that the live timeline went through.
    let reaches_back_there = backups.iter().rposition(|backup| older(backup) && backup.leads);
    let leads = backups.iter().rposition(|backup| backup.leads);
    let reasons = backups.iter().enumerate().map(|(place, backup)| {
        let behind = newest - place;
        let kept_by_count = rules.keep.is_some_and(|count| behind < count as usize);
        [
            (place == newest, Reason::Newest),
            (kept_by_count, Reason::Count),
            (within(backup), Reason::Age),
            ([reaches_back, reaches_back_there].contains(&Some(place)), Reason::ReachesBack),
            (leads == Some(place), Reason::LeadsToNewestTimeline),
            (backup.pinned, Reason::Pin),
            (rules == RetentionRules::default(), Reason::NoRule),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
        .collect()
    });
    reasons.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    /// Backups of the days before, the oldest first; `p` is pinned.
    fn kept(rules: RetentionRules, pinned: &[u64]) -> Vec<u64> {
        let now = 100 * DAY;
        let days = [10, 8, 5, 2, 1];
        let backups = days.map(|day| Candidate {
            id: BackupId { seconds: now - day * DAY - 100, random: 0 },
            ended: now - day * DAY,
            pinned: pinned.contains(&day),
            leads: false,
        });
        let reasons = decide(rules, &backups, now);
        days.into_iter().zip(reasons).filter(|(_, reasons)| !reasons.is_empty()).map(|(day, _)| day).collect()
    }

    #[test]
    fn any_rule_keeps() {
        let rules =
            |keep, keep_for: Option<u64>| RetentionRules { keep, keep_for: keep_for.map(|days| days * DAY) };
        for (rules, pinned, expected) in [
            (rules(None, None), &[][..], &[10, 8, 5, 2, 1][..]),
            (rules(Some(2), None), &[], &[2, 1]),
            (rules(Some(0), None), &[], &[1]),
            (rules(Some(9), None), &[], &[10, 8, 5, 2, 1]),
            (rules(Some(1), None), &[8], &[8, 1]),
            // The one of eight days ago is needed to reach back six.
            (rules(None, Some(6)), &[], &[8, 5, 2, 1]),
            (rules(None, Some(5)), &[], &[8, 5, 2, 1]),
            (rules(None, Some(0)), &[], &[1]),
            (rules(None, Some(30)), &[], &[10, 8, 5, 2, 1]),
            (rules(Some(4), Some(1)), &[10], &[10, 8, 5, 2, 1]),
            (rules(Some(1), Some(1)), &[], &[2, 1]),
        ] {
            assert_eq!(kept(rules, pinned), expected, "{rules:?} {pinned:?}");
        }
        assert!(decide(rules(Some(1), None), &[], 0).is_empty());
    }

    #[test]
    fn what_leads_to_the_newest_timeline_stays() {
        let backup = |seconds, leads| Candidate {
            id: BackupId { seconds, random: 0 },
            ended: seconds,
            pinned: false,
            leads,
        };
        let rules = RetentionRules { keep: Some(1), keep_for: None };
        let reasons = decide(rules, &[backup(1, false), backup(2, true), backup(3, false)], 9);
        let newest = vec![Reason::Newest, Reason::Count];
        assert_eq!(reasons, [vec![], vec![Reason::LeadsToNewestTimeline], newest]);
    }

    #[test]
    fn the_live_timeline_is_reached_back_to_behind_an_abandoned_one() {
        let now = 100 * DAY;
        // The one of eight days ago ended behind the point that the cluster was put back to seven days ago.
        let backups = [(10, true), (8, false), (3, true), (1, true)].map(|(day, leads)| Candidate {
            id: BackupId { seconds: now - day * DAY, random: 0 },
            ended: now - day * DAY,
            pinned: false,
            leads,
        });
        let rules = RetentionRules { keep: None, keep_for: Some(6 * DAY) };
        let reasons = decide(rules, &backups, now);
        let expected = [
            vec![Reason::ReachesBack],
            vec![Reason::ReachesBack],
            vec![Reason::Age],
            vec![Reason::Newest, Reason::Age, Reason::LeadsToNewestTimeline],
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn a_clock_that_was_behind_makes_nothing_old() {
        let backup = |seconds, ended| Candidate {
            id: BackupId { seconds, random: 0 },
            ended,
            pinned: false,
            leads: false,
        };
        let rules = RetentionRules { keep: None, keep_for: Some(100) };
        let reasons = decide(rules, &[backup(1000, 5), backup(1001, 1001)], 1050);
        assert_eq!(reasons, [vec![Reason::Age], vec![Reason::Newest, Reason::Age]]);
    }
}
