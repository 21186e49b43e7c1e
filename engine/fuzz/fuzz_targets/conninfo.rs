//! Connection strings and URIs of any text: settings or an error that says why, never a panic; and neither shows
//! a password.
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
    let resolve = |conninfo: &str| {
        let given = GivenSettings { conninfo: Some(conninfo), ..GivenSettings::default() };
        match ConnectionSettings::resolve(&given, &surroundings) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => error.to_string(),
        }
    };
    resolve(text);
    let shown = resolve(&format!("password='hush-hush' {text}"));
    assert!(text.contains("hush") || !shown.contains("hush-hush"), "{shown}");
});
