//! A network that cuts, resets, stalls and flips bits, at every kind of place in both connections of a backup.
//!
//! Whatever it does, a run ends in a clear failure with nothing left behind, or with a copy that is right by an
//! independent reader.

mod cuts;
mod flips;
mod map;
mod stalls;
mod testbed;
