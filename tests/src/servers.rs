//! The server programs that tests run against: one a major version, found or fetched once a process.

use std::sync::OnceLock;

use pgstrata::postmaster::ServerProgram;

use crate::{scratch, template};

/// Every major version that is tested.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// Versions that are out of support: covered where they start, skipped with a reason where they do not.
const OPTIONAL: [u32; 1] = [13];

/// The program of a major version, or why there is none: an installed one, else one fetched into the target directory.
/// `PGSTRATA_PG_BIN_<major>` names another `bin` directory.
///
/// # Errors
/// The reason, as text.
pub fn program(major: u32) -> Result<&'static ServerProgram, &'static str> {
    static PROGRAMS: [OnceLock<Result<ServerProgram, String>>; MAJORS.len()] =
        [const { OnceLock::new() }; MAJORS.len()];
    let Some(place) = MAJORS.iter().position(|known| *known == major) else {
        return Err("not a version under test");
    };
    let found = PROGRAMS[place].get_or_init(|| {
        let program = match std::env::var_os(format!("PGSTRATA_PG_BIN_{major}")) {
            Some(dir) => ServerProgram::at(dir.as_ref()),
            None => ServerProgram::find_or_fetch(Some(major), &scratch::server_cache()),
        };
        let program = program.map_err(|error| error.to_string())?;
        // Some old programs are found but do not run on a new system; initdb starts a server to tell.
        template::prove(&program).map_err(|error| error.to_string())?;
        Ok(program)
    });
    found.as_ref().map_err(String::as_str)
}

/// The major versions to test: all that run here. `PGSTRATA_MAJORS=15,17` narrows them.
///
/// # Panics
/// Where a version that has to be covered does not run.
#[must_use]
pub fn majors() -> Vec<u32> {
    let chosen = std::env::var("PGSTRATA_MAJORS").ok();
    let chosen = chosen
        .as_deref()
        .map(|list| list.split(',').map(|major| major.trim().parse().ok()).collect::<Vec<_>>());
    let wanted =
        MAJORS.iter().filter(|major| chosen.as_ref().is_none_or(|list| list.contains(&Some(**major))));
    wanted
        .copied()
        .filter(|major| match program(*major) {
            Ok(_) => true,
            Err(reason) if OPTIONAL.contains(major) => {
                eprintln!("skipped: PostgreSQL {major} does not run here: {reason}");
                false
            }
            Err(reason) => panic!("PostgreSQL {major} does not run here: {reason}"),
        })
        .collect()
}

/// Runs a test body for each of [`majors`], naming the version first so that a failure can be placed.
///
/// # Panics
/// As the body does.
pub fn each_major(body: impl Fn(u32)) {
    for major in majors() {
        eprintln!("PostgreSQL {major}");
        body(major);
    }
}
