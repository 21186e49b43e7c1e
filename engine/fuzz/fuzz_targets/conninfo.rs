//! Connection strings and URIs of any text: settings or an error that says why, never a panic; and what is refused names no
//! password.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use pgstrata::connect::{ConnectionSettings, GivenSettings, Surroundings};

fuzz_target!(|text: &str| {
    // Files are somebody else's: a path that leads to one would make the outcome depend on this machine.
    if ["passfile", "service", "ssl"].iter().any(|word| text.contains(word)) {
        return;
    }
    let surroundings = Surroundings {
        variable: &|_| None,
        os_user: Some("somebody".to_owned()),
        home: None,
        socket_directory: PathBuf::from("/nonexistent"),
    };
    let given = GivenSettings { conninfo: Some(text), ..GivenSettings::default() };
    let settings = ConnectionSettings::resolve(&given, &surroundings);
    let shown = match &settings {
        Ok(settings) => format!("{settings:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains("hush-hush") || !text.contains("password=hush-hush"), "{shown}");
});
