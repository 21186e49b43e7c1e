//! A repository with one object that anybody may have written: see the library of these targets.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use pgstrata_fuzz::Sample;

thread_local! {
    static SAMPLE: LazyCell<Sample> = LazyCell::new(Sample::new);
}

fuzz_target!(|input: &[u8]| SAMPLE.with(|sample| sample.examine(input)));
