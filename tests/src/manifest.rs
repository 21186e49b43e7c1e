//! Checks a plain backup against its manifest, independently of the code under test: the whole manifest in memory, one
//! file after the other, nothing shared with the engine but the definition of CRC-32C.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Checks the manifest's own SHA-256, and that the files of the backup are exactly those of the manifest, with the
/// sizes and checksums that stand there. WAL is in no manifest and is passed over. Returns how many files there are.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn check_manifest(dir: &Path) -> anyhow::Result<usize> {
    let bytes = fs::read(dir.join("backup_manifest")).context("backup_manifest")?;
    let text = std::str::from_utf8(&bytes).context("backup_manifest")?;
    let last_line = text.trim_end_matches('\n').rfind('\n').context("a manifest of one line")? + 1;
    let sum: String = Sha256::digest(&bytes[..last_line]).iter().map(|byte| format!("{byte:02x}")).collect();
    let manifest: Value = serde_json::from_str(text).context("backup_manifest")?;
    let stated = manifest["Manifest-Checksum"].as_str().context("no Manifest-Checksum")?;
    ensure!(stated.eq_ignore_ascii_case(&sum), "the manifest says {stated} of itself, but is {sum}");

    let mut found = BTreeMap::new();
    list(dir, Path::new(""), &mut found)?;
    let files = manifest["Files"].as_array().context("no Files")?;
    for file in files {
        let path = path_of(file)?;
        let place = found.remove(&path).with_context(|| format!("{}: missing", path.display()))?;
        let content = fs::read(&place).with_context(|| place.display().to_string())?;
        let size = file["Size"].as_u64().context("no Size")?;
        ensure!(content.len() as u64 == size, "{}: {} bytes, not {size}", path.display(), content.len());
        let (algorithm, stated) = (file["Checksum-Algorithm"].as_str(), file["Checksum"].as_str());
        let sum = match algorithm {
            // The bytes as they lie in the memory of a little-endian server.
            Some("CRC32C") => format!("{:08x}", crc32c::crc32c(&content).swap_bytes()),
            Some("SHA256") => Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect(),
            None => continue,
            Some(other) => bail!("{}: checksum algorithm {other}", path.display()),
        };
        ensure!(stated == Some(&*sum), "{}: {sum}, the manifest says {stated:?}", path.display());
    }
    if let Some((extra, _)) = found.first_key_value() {
        bail!("{}: not in the manifest", extra.display());
    }
    Ok(files.len())
}

fn path_of(file: &Value) -> anyhow::Result<PathBuf> {
    if let Some(path) = file["Path"].as_str() {
        return Ok(PathBuf::from(path));
    }
    let hex = file["Encoded-Path"].as_str().context("a file without a path")?;
    let bytes = hex.as_bytes().chunks(2).map(|digits| {
        let digits = std::str::from_utf8(digits)?;
        Ok(u8::from_str_radix(digits, 16)?)
    });
    Ok(PathBuf::from(OsString::from_vec(bytes.collect::<anyhow::Result<_>>()?)))
}

/// Lists files by the path that a manifest gives them. Tablespaces lie behind links.
fn list(base: &Path, below: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) -> anyhow::Result<()> {
    let dir = base.join(below);
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if path == Path::new("pg_wal") || path == Path::new("backup_manifest") {
            continue;
        }
        let is_tablespace = below.as_os_str().as_bytes() == b"pg_tblspc";
        let meta = if is_tablespace { fs::metadata(entry.path())? } else { entry.metadata()? };
        if meta.is_dir() {
            list(base, &path, found)?;
        } else {
            ensure!(meta.is_file(), "{}: neither file nor directory", path.display());
            found.insert(path, entry.path());
        }
    }
    Ok(())
}
