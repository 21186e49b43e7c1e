//! Retention and the set-up: what stays, what goes, what is said before; and every death on the way.

mod deaths;
mod faulty_store;
mod keeping;
mod places;
mod sample;
