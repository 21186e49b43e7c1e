//! What the page cache holds of a cluster's files, as fincore(1) counts it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::tree;

/// Files that one call is given: their names fit into any limit of a command line.
const AT_A_TIME: usize = 200;

/// A cluster's relation files, half of which are held in the page cache before a run.
#[derive(Debug)]
pub(crate) struct Halves {
    hot: Vec<PathBuf>,
    cold: Vec<PathBuf>,
}

/// What the page cache holds of them, as shares of their bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Held {
    /// Of the half that was there before.
    pub(crate) hot: f64,
    /// Of the half that was not.
    pub(crate) cold: f64,
}

impl Halves {
    /// Every second file below a directory, by name, and the others. Files with nothing in them say nothing.
    pub(crate) fn of(root: &Path) -> anyhow::Result<Self> {
        let mut files: Vec<PathBuf> =
            tree::files(root)?.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(path, _)| path).collect();
        files.sort_unstable();
        let (hot, cold): (Vec<_>, Vec<_>) =
            files.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
        let paths = |numbered: Vec<(usize, PathBuf)>| numbered.into_iter().map(|(_, path)| path).collect();
        Ok(Self { hot: paths(hot), cold: paths(cold) })
    }

    /// Reads the one half, so that the page cache holds it.
    pub(crate) fn warm(&self) -> anyhow::Result<()> {
        self.hot.iter().try_for_each(|path| tree::read(path))
    }

    /// What is held now.
    pub(crate) fn held(&self) -> anyhow::Result<Held> {
        Ok(Held { hot: share(&self.hot)?, cold: share(&self.cold)? })
    }
}

/// How much of some files' bytes the page cache holds.
fn share(files: &[PathBuf]) -> anyhow::Result<f64> {
    let (mut held, mut all) = (0, 0);
    for files in files.chunks(AT_A_TIME) {
        let output = Command::new("fincore")
            .args(["--bytes", "--raw", "--noheadings", "--output", "RES,SIZE,FILE"])
            .args(files)
            .env("LC_ALL", "C")
            .output()
            .context("cannot run fincore (of the package util-linux or util-linux-extra)")?;
        ensure!(
            output.status.success(),
            "fincore failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        let found = counted(&output.stdout)?;
        for file in files {
            let (resident, size) =
                found.get(file).with_context(|| format!("fincore says nothing of {}", file.display()))?;
            // Whole pages are held, the last one of a file too.
            held += resident.min(size);
            all += size;
        }
    }
    ensure!(all > 0, "there are no bytes to look for in the page cache");
    Ok(held as f64 / all as f64)
}

/// Resident bytes and length of each file that fincore lists.
fn counted(stdout: &[u8]) -> anyhow::Result<BTreeMap<PathBuf, (u64, u64)>> {
    let line = |line: &[u8]| {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
        let (resident, size) = (number()?, number()?);
        Some((PathBuf::from(OsString::from_vec(words.next()?.to_owned())), (resident, size)))
    };
    stdout
        .split(|byte| *byte == b'\n')
        .filter(|text| !text.is_empty())
        .map(|text| {
            line(text).with_context(|| {
                format!(
                    "expected resident bytes, length and name from fincore, found {}",
                    OsString::from_vec(text.to_owned()).display()
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fincore_lists_is_read() {
        let found = counted(b"8192 100 /a b\n0 5 /c\n").unwrap();
        assert_eq!(found[Path::new("/a b")], (8192, 100));
        assert_eq!(found[Path::new("/c")], (0, 5));
        assert!(counted(b"x 5 /c\n").is_err());
    }

    #[test]
    fn every_second_file_is_hot() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            std::fs::write(root.path().join(name), [1; 9000]).unwrap();
        }
        std::fs::write(root.path().join("e"), []).unwrap();
        let halves = Halves::of(root.path()).unwrap();
        let names = |paths: &[PathBuf]| -> Vec<_> {
            paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(
            (names(&halves.hot), names(&halves.cold)),
            (vec!["a".into(), "c".into()], vec!["b".into(), "d".into()])
        );
    }
}
