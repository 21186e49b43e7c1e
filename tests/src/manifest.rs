//! Checks a plain backup against its manifest, with nothing of the program under test: a JSON library reads the manifest
//! whole, and every file is read again.
//!
//! `pg_verifybackup` does the same where one is at hand; this does it for every version of the format, and does not
//! ask which WAL is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// What a backup holds beside its manifest: `pg_verifybackup` ignores the same.
const UNLISTED: [&str; 5] =
    ["backup_manifest", "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"];
/// How many problems are told.
const TOLD: usize = 20;

/// What a manifest says, once all of it is found true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The version of its format.
    pub version: u64,
    /// How many files it lists.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The checksum algorithms of its files; `NONE` for files without.
    pub algorithms: BTreeSet<String>,
    /// How many paths are written in hexadecimal digits.
    pub encoded: u64,
    /// Timeline, start and end of each range of WAL that recovery needs.
    pub wal_ranges: Vec<(u64, String, String)>,
}

impl Manifest {
    /// Reads the manifest of a plain backup and compares every file with it.
    ///
    /// # Panics
    /// With everything that is missing, too much or different.
    #[track_caller]
    pub fn check(dir: &Path) -> Self {
        Self::try_check(dir).unwrap_or_else(|error| panic!("{}: {error:#}", dir.display()))
    }

    /// As [`check`](Self::check).
    ///
    /// # Errors
    /// Everything that is missing, too much or different.
    pub fn try_check(dir: &Path) -> anyhow::Result<Self> {
        let text = fs::read(dir.join("backup_manifest")).context("backup_manifest")?;
        check_own_checksum(&text)?;
        let json: Value = serde_json::from_slice(&text).context("backup_manifest is no JSON")?;
        let mut manifest = Self {
            version: json["PostgreSQL-Backup-Manifest-Version"].as_u64().context("no version")?,
            files: 0,
            bytes: 0,
            algorithms: BTreeSet::new(),
            encoded: 0,
            wal_ranges: Vec::new(),
        };
        let mut listed = BTreeMap::new();
        for file in json["Files"].as_array().context("no files")? {
            let path = manifest.path(file)?;
            let twice = listed.insert(path.clone(), file).is_some();
            ensure!(!twice, "{}: listed twice", path.display());
        }
        for range in json["WAL-Ranges"].as_array().context("no WAL ranges")? {
            let text = |key: &str| range[key].as_str().map(str::to_owned).with_context(|| key.to_owned());
            let timeline = range["Timeline"].as_u64().context("no timeline")?;
            manifest.wal_ranges.push((timeline, text("Start-LSN")?, text("End-LSN")?));
        }
        let mut problems = Vec::new();
        for (path, file) in &listed {
            match manifest.check_file(&dir.join(path), file) {
                Ok(size) => manifest.bytes += size,
                Err(error) => problems.push(format!("{path:?}: {error:#}")),
            }
        }
        manifest.files = u64::try_from(listed.len())?;
        let mut found = Vec::new();
        walk(dir, Path::new(""), &mut found)?;
        problems.extend(
            found
                .iter()
                .filter(|path| !listed.contains_key(*path))
                .map(|path| format!("{path:?}: not listed")),
        );
        if !problems.is_empty() {
            let count = problems.len();
            problems.truncate(TOLD);
            bail!("{count} files are not as the manifest has them:\n  {}", problems.join("\n  "));
        }
        Ok(manifest)
    }

    fn path(&mut self, file: &Value) -> anyhow::Result<PathBuf> {
        match (file["Path"].as_str(), file["Encoded-Path"].as_str()) {
            (Some(path), None) => Ok(path.into()),
            (None, Some(encoded)) => {
                self.encoded += 1;
                let digits = encoded.as_bytes().chunks(2).map(|pair| {
                    let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2);
                    pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
                });
                let bytes: Option<Vec<u8>> = digits.collect();
                Ok(OsStr::from_bytes(&bytes.with_context(|| encoded.to_owned())?).into())
            }
            _ => bail!("a file without a path, or with two: {file}"),
        }
    }

    /// Returns the file's size.
    fn check_file(&mut self, path: &Path, file: &Value) -> anyhow::Result<u64> {
        let expected = file["Size"].as_u64().context("no size")?;
        let meta = fs::symlink_metadata(path)?;
        ensure!(meta.is_file(), "{:?}", meta.file_type());
        ensure!(meta.len() == expected, "{} bytes, expected {expected}", meta.len());
        let algorithm = file["Checksum-Algorithm"].as_str().unwrap_or("NONE");
        if !self.algorithms.contains(algorithm) {
            self.algorithms.insert(algorithm.to_owned());
        }
        let found = checksum(path, algorithm)?;
        let expected = file["Checksum"].as_str().unwrap_or_default();
        ensure!(found == expected, "{algorithm} checksum {found}, expected {expected}");
        Ok(meta.len())
    }
}

/// As [`Manifest::try_check`]. Returns how many files there are.
///
/// # Errors
/// Everything that is missing, too much or different.
pub fn check_manifest(dir: &Path) -> anyhow::Result<u64> {
    Ok(Manifest::try_check(dir)?.files)
}

/// The last line holds the SHA-256 of all before it.
fn check_own_checksum(text: &[u8]) -> anyhow::Result<()> {
    let Some(b'\n') = text.last() else { bail!("backup_manifest does not end with a newline") };
    let last = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let expected = format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(&Sha256::digest(&text[..last])));
    let found = String::from_utf8_lossy(&text[last..]);
    ensure!(found == expected, "backup_manifest ends with {found:?}, expected {expected:?}");
    Ok(())
}

/// The checksum as a manifest writes it: bytes in their order in memory, so CRC-32C comes lowest byte first.
fn checksum(path: &Path, algorithm: &str) -> anyhow::Result<String> {
    Ok(match algorithm {
        "NONE" => String::new(),
        "CRC32C" => {
            let mut sum = 0;
            read(path, |bytes| sum = crc32c::crc32c_append(sum, bytes))?;
            hex(&sum.to_le_bytes())
        }
        "SHA224" => sha::<Sha224>(path)?,
        "SHA256" => sha::<Sha256>(path)?,
        "SHA384" => sha::<Sha384>(path)?,
        "SHA512" => sha::<Sha512>(path)?,
        other => bail!("unknown checksum algorithm {other}"),
    })
}

fn sha<D: Digest>(path: &Path) -> io::Result<String> {
    let mut sum = D::new();
    read(path, |bytes| sum.update(bytes))?;
    Ok(hex(&sum.finalize()))
}

fn read(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => each(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every file of a backup that a manifest lists, tablespaces behind their links included.
fn walk(dir: &Path, below: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let here = dir.join(below);
    for entry in fs::read_dir(&here).with_context(|| format!("{here:?}"))? {
        let path = below.join(entry?.file_name());
        if UNLISTED.iter().any(|name| path == Path::new(name)) {
            continue;
        }
        let is_tablespace = below == Path::new("pg_tblspc");
        let meta = match is_tablespace {
            true => fs::metadata(dir.join(&path)),
            false => fs::symlink_metadata(dir.join(&path)),
        };
        match meta.with_context(|| format!("{path:?}"))?.is_dir() {
            true => walk(dir, &path, found)?,
            false => found.push(path),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn backup(files: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("PG_VERSION"), "17\n").unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
        fs::create_dir_all(dir.path().join("pg_wal")).unwrap();
        fs::create_dir_all(dir.path().join("space/PG_17")).unwrap();
        fs::write(dir.path().join("space/PG_17/1"), "one").unwrap();
        fs::create_dir(dir.path().join("pg_tblspc")).unwrap();
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"Files\": [{files}],\n\
             \"WAL-Ranges\": [{{ \"Timeline\": 1, \"Start-LSN\": \"0/28\", \"End-LSN\": \"0/100\" }}],\n"
        );
        let sum = hex(&Sha256::digest(text.as_bytes()));
        text += &format!("\"Manifest-Checksum\": \"{sum}\"}}\n");
        fs::write(dir.path().join("backup_manifest"), text).unwrap();
        // Outside of what is walked, and seen through the link.
        fs::rename(dir.path().join("space"), dir.path().join("pg_wal/space")).unwrap();
        symlink(dir.path().join("pg_wal/space"), dir.path().join("pg_tblspc/16384")).unwrap();
        dir
    }

    /// The checksum of `17\n` by another implementation of CRC-32C, and by sha256sum.
    const VERSION: &str = r#"{"Path":"PG_VERSION","Size":3,"Checksum-Algorithm":"SHA256",
        "Checksum":"54183f4323f377b737433a1e98229ead0fdc686f93bab057ecb612daa94002b5"}"#;
    const EMPTY: &str =
        r#"{"Encoded-Path":"ff","Size":0,"Checksum-Algorithm":"CRC32C","Checksum":"00000000"}"#;
    const SPACE: &str = r#"{"Path":"pg_tblspc/16384/PG_17/1","Size":3}"#;

    #[test]
    fn a_true_manifest_is_read() {
        let dir = backup(&[VERSION, EMPTY, SPACE].join(","));
        let manifest = Manifest::check(dir.path());
        assert_eq!((manifest.version, manifest.files, manifest.bytes, manifest.encoded), (2, 3, 6, 1));
        assert_eq!(manifest.algorithms, ["CRC32C", "NONE", "SHA256"].map(str::to_owned).into());
        assert_eq!(manifest.wal_ranges, [(1, "0/28".to_owned(), "0/100".to_owned())]);
    }

    #[test]
    fn every_lie_is_found() {
        for (files, expected) in [
            ([VERSION, EMPTY].join(","), "\"pg_tblspc/16384/PG_17/1\": not listed"),
            ([VERSION, EMPTY, SPACE, SPACE].join(","), "listed twice"),
            ([VERSION, EMPTY, &SPACE.replace(":3", ":4")].join(","), "3 bytes, expected 4"),
            ([&VERSION.replace("54183", "54184"), EMPTY, SPACE].join(","), "expected 54184"),
            ([VERSION, EMPTY, SPACE, &SPACE.replace("/1\"", "/2\"")].join(","), "No such file"),
        ] {
            let dir = backup(&files);
            let error = format!("{:#}", Manifest::try_check(dir.path()).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let dir = backup(&[VERSION, EMPTY, SPACE].join(","));
        let path = dir.path().join("backup_manifest");
        fs::write(&path, fs::read_to_string(&path).unwrap().replace("0/100", "0/101")).unwrap();
        let error = Manifest::try_check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("Manifest-Checksum"), "{error}");
    }
}
