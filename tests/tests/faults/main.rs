//! Servers that die or refuse, targets that cannot be used, damaged sources, signals: each ends in a clear error and
//! leaves nothing half-made behind, on this machine or on the server.

mod deaths;
mod pages;
mod refusals;
mod signals;
mod targets;
