//! Beside the stock tools of each version that can be had: the same command lines end alike, say the same and make the
//! same, and each side takes what the other wrote, or refuses it for the same reason.

mod beside;
mod complete;
mod names;
mod refusals;
mod runs;
