//! Where cargo puts what it builds, and the program under test in it.
//!
//! Cargo tells tests of one crate nothing about the programs of another. The running test itself lies in
//! `<target>/[<triple>/]<profile>/deps/`, and that says everything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the place of the running test says about the build.
struct Build {
    target_dir: PathBuf,
    triple: Option<String>,
    profile: String,
    profile_dir: PathBuf,
}

impl Build {
    fn current() -> Self {
        let exe = std::env::current_exe().expect("the running test has a path");
        Self::of(&exe, |dir| dir.join("CACHEDIR.TAG").exists() || dir.join(".rustc_info.json").exists())
            .unwrap_or_else(|| panic!("{}: expected a path such as target/debug/deps/test", exe.display()))
    }

    fn of(exe: &Path, is_target_dir: impl Fn(&Path) -> bool) -> Option<Self> {
        let above = exe.parent()?;
        // Tests lie in deps/, ordinary programs beside it.
        let profile_dir = if above.ends_with("deps") { above.parent()? } else { above };
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let profile = match name(profile_dir)?.as_str() {
            "debug" => "dev".to_owned(),
            other => other.to_owned(),
        };
        let parent = profile_dir.parent()?;
        let (target_dir, triple) = match parent.parent() {
            Some(grandparent) if !is_target_dir(parent) && is_target_dir(grandparent) => {
                (grandparent, Some(name(parent)?))
            }
            _ => (parent, None),
        };
        Some(Self { target_dir: target_dir.to_owned(), triple, profile, profile_dir: profile_dir.to_owned() })
    }
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    Build::current().target_dir
}

/// The program `pgstrata`, built once a process in the profile of the running test. `PGSTRATA_BIN` names another one.
#[must_use]
pub fn pgstrata_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("PGSTRATA_BIN") {
            return PathBuf::from(named);
        }
        let build = Build::current();
        let mut cargo = Command::new(env!("CARGO"));
        // With --workspace features are unified as in `cargo test --workspace`, so that nothing is built twice.
        cargo.args(["build", "--quiet", "--workspace", "--bin", "pgstrata", "--profile", &build.profile]);
        cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        cargo.arg("--target-dir").arg(&build.target_dir);
        if let Some(triple) = &build.triple {
            cargo.args(["--target", triple]);
        }
        let output = cargo.output().expect("cargo runs");
        assert!(
            output.status.success(),
            "building pgstrata failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        build.profile_dir.join("pgstrata")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_read_from_the_place_of_the_test() {
        let target = |dir: &Path| dir == Path::new("/r/target");
        for (exe, profile, triple) in [
            ("/r/target/debug/deps/harness-1f", "dev", None),
            ("/r/target/release/bench", "release", None),
            (
                "/r/target/x86_64-unknown-linux-musl/checked/deps/t",
                "checked",
                Some("x86_64-unknown-linux-musl"),
            ),
        ] {
            let build = Build::of(Path::new(exe), target).unwrap();
            assert_eq!((build.profile.as_str(), build.triple.as_deref()), (profile, triple), "{exe}");
            assert_eq!(build.target_dir, Path::new("/r/target"), "{exe}");
        }
        assert!(Build::of(Path::new("/harness"), target).is_none());
    }
}
