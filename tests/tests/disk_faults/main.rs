//! Disks that are full, fail, or do less than they were asked to.

mod full;
mod ring;
