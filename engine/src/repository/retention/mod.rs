//! What stays in a repository and what goes: leases of runs under way, pins, rules, and the collector.
//!
//! docs/repository-format.md (*Retention*) has the protocol and the argument why no interleaving of runs loses data. In
//! short: whoever relies on a backup publishes a lease that says so and looks for a mark afterwards; whoever removes one
//! publishes a mark and looks for leases afterwards. One of the two sees the other. Clocks decide only which silent run
//! is taken for dead, and such a run finds its name fenced: it can fail, and never commit.

mod condemn;
mod expire;
mod lease;
mod lineage;
#[cfg(test)]
mod model;
mod note;
mod pin;
mod probe;
mod reading;
mod rules;
mod sweep;
mod wal;

pub(super) use condemn::{Marks, is_fenced, survey};
pub use expire::{ExpireConfig, ExpireReport, Expired, KeptBackup, RemovedBackup, expire};
pub(super) use lease::leases;
pub use lease::{Lease, LeaseHolder, LeaseSummary, Purpose};
pub use pin::{Pin, PinSummary, Standing, pin, pins, unpin};
pub use rules::{Reason, RetentionRules};
pub use wal::ExpiredWal;
