//! The table of owners of a backup under way.

use super::summary::OwnerSummary;

/// The most owners of a backup; the summary is one frame. A cluster has one.
const OWNERS_MAX: usize = 4096;

/// Owners as they are met.
#[derive(Debug, Default)]
pub struct OwnerTable(Vec<OwnerSummary>);

impl OwnerTable {
    /// The number of an owner. 0, whoever restores, for what no table holds: ids that no system has, and owners
    /// beyond the first thousands.
    pub fn number(&mut self, uid: u64, gid: u64) -> u16 {
        let (Ok(uid), Ok(gid)) = (u32::try_from(uid), u32::try_from(gid)) else { return 0 };
        let place = self.0.iter().position(|owner| (owner.uid, owner.gid) == (uid, gid));
        let place = place.or_else(|| {
            (self.0.len() < OWNERS_MAX).then(|| {
                self.0.push(OwnerSummary { uid, gid, user: None, group: None });
                self.0.len() - 1
            })
        });
        place.and_then(|place| u16::try_from(place + 1).ok()).unwrap_or(0)
    }

    /// The table, for a summary.
    #[must_use]
    pub fn into_summary(self) -> Vec<OwnerSummary> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_has_one_number() {
        let mut table = OwnerTable::default();
        assert_eq!((table.number(5, 6), table.number(5, 7), table.number(5, 6)), (1, 2, 1));
        assert_eq!(table.number(u64::MAX, 6), 0);
        for uid in 0..5000 {
            table.number(uid, 1);
        }
        assert_eq!((table.number(4999, 1), table.number(1, 1)), (0, 4));
        assert_eq!(table.into_summary().len(), OWNERS_MAX);
    }
}
