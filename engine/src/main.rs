//! The program `pgstrata`. Parses, resolves, runs, reports; see [`pgstrata::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pgstrata::cli::main()
}
