//! Unpacks a tar backup, so that pg_verifybackup of any release can judge it.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::read::GzDecoder;

use crate::arguments::Method;

/// Unpacks the main archive of `backup` into a folder within it, with the manifest beside its files.
pub(crate) fn unpack(backup: &Path, method: Method) -> anyhow::Result<PathBuf> {
    let suffix = match method {
        Method::Zstd => "zst",
        Method::Gzip => "gz",
    };
    let archive = backup.join(format!("base.tar.{suffix}"));
    let folder = backup.join("unpacked");
    let unpack = || {
        let file = BufReader::new(File::open(&archive)?);
        let plain: Box<dyn Read> = match method {
            Method::Zstd => Box::new(zstd::Decoder::new(file)?),
            // Its first member is all that PostgreSQL's own readers see.
            Method::Gzip => Box::new(GzDecoder::new(file)),
        };
        tar::Archive::new(plain).unpack(&folder)?;
        fs::copy(backup.join("backup_manifest"), folder.join("backup_manifest"))
    };
    unpack().with_context(|| format!("cannot unpack {}", archive.display()))?;
    Ok(folder)
}
