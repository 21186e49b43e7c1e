//! The shape of a backup's files: what every reader of a manifest may ask of it before it believes in a path.
//!
//! Invariants of what passes: every file lies in a folder that is listed, a mapped tablespace holds its version's folder
//! and nothing beside it, and what makes a data directory is there. Keeps one entry a folder.

use std::collections::HashSet;

use super::error::RepositoryError;
use super::manifest::Manifest;
use crate::failure::Failure;
use crate::source::is_version_folder;

/// The control file, and the server's manifest.
const NEEDED: [&[u8]; 2] = [b"global/pg_control", b"backup_manifest"];

/// The folders of a backup, and which of the files that it must have came.
#[derive(Debug)]
pub struct Tree {
    object: String,
    folders: HashSet<Vec<u8>>,
    /// Tablespaces that are links.
    linked: HashSet<u32>,
    came: [bool; 2],
}

impl Tree {
    /// Reads the folders.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of(manifest: &Manifest) -> Result<Self, Failure> {
        let tablespaces = &manifest.summary.tablespaces;
        let linked = tablespaces.iter().filter(|tablespace| tablespace.is_linked());
        let mut tree = Self {
            object: manifest.object().name().to_owned(),
            folders: HashSet::new(),
            linked: linked.map(|tablespace| tablespace.oid).collect(),
            came: [false; 2],
        };
        manifest.each_folder(|folder| {
            tree.check_place(&folder.path)?;
            let shown = folder.path.escape_ascii().to_string();
            if tree.folders.insert(folder.path) {
                return Ok(());
            }
            Err(tree.damaged(format!("folder \"{shown}\" comes twice")))
        })?;
        Ok(tree)
    }

    /// Checks where a file is to lie.
    ///
    /// # Errors
    /// Why it cannot lie there.
    pub fn file(&mut self, path: &[u8]) -> Result<(), Failure> {
        self.check_place(path)?;
        if self.folders.contains(path) {
            return Err(self.damaged(format!("\"{}\" is a file and a folder", path.escape_ascii())));
        }
        for (needed, came) in NEEDED.iter().zip(&mut self.came) {
            *came |= path == *needed;
        }
        Ok(())
    }

    /// All files have come.
    ///
    /// # Errors
    /// Which one did not.
    pub fn finish(&self) -> Result<(), Failure> {
        match NEEDED.iter().zip(self.came).find(|(_, came)| !came) {
            None => Ok(()),
            Some((path, _)) => Err(self.damaged(format!("it has no \"{}\"", path.escape_ascii()))),
        }
    }

    /// Whether a folder is listed.
    #[must_use]
    pub fn has_folder(&self, path: &[u8]) -> bool {
        self.folders.contains(path)
    }

    /// The folder that holds it is there, and in a tablespace it lies in a version's folder: wherever the link leads,
    /// nothing else is written to.
    fn check_place(&self, path: &[u8]) -> Result<(), Failure> {
        let parent = path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash]);
        let Some(parent) = parent else { return Ok(()) };
        let shown = path.escape_ascii();
        if let Some((oid, below)) = tablespace_of(path).filter(|(oid, _)| self.linked.contains(oid)) {
            let top = below.split(|byte| *byte == b'/').next().unwrap_or_default();
            if !is_version_folder(top) {
                return Err(self.damaged(format!(
                    "\"{shown}\" is in tablespace {oid}, expected only a folder such as PG_15_202209061 there"
                )));
            }
            if below.len() == top.len() {
                return Ok(());
            }
        }
        if self.folders.contains(parent) {
            return Ok(());
        }
        Err(self.damaged(format!("\"{shown}\" lies in a folder that is not listed before it")))
    }

    fn damaged(&self, what: String) -> Failure {
        RepositoryError::damaged(&self.object, what).into()
    }
}

/// The OID of `pg_tblspc/OID/…`, and what is behind it. One spelling for each: a sign or a leading zero is no OID.
pub(crate) fn tablespace_of(path: &[u8]) -> Option<(u32, &[u8])> {
    let path = path.strip_prefix(b"pg_tblspc/")?;
    let slash = path.iter().position(|byte| *byte == b'/')?;
    let oid: u32 = std::str::from_utf8(&path[..slash]).ok()?.parse().ok()?;
    (oid.to_string().as_bytes() == &path[..slash]).then_some((oid, &path[slash + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tablespace_takes_its_versions_folder_only() {
        let folders = ["global", "pg_tblspc", "pg_tblspc/7/PG_15_1", "pg_tblspc/08"];
        let mut tree = Tree {
            object: "m".into(),
            folders: folders.iter().map(|folder| folder.as_bytes().to_vec()).collect(),
            linked: HashSet::from([7, 8]),
            came: [false; 2],
        };
        for good in ["PG_VERSION", "pg_tblspc/7/PG_15_1/9", "pg_tblspc/08/x", "backup_manifest"] {
            tree.file(good.as_bytes()).expect(good);
        }
        for (bad, words) in [
            ("pg_tblspc/7/authorized_keys", "such as PG_15"),
            ("pg_tblspc/7/.ssh/authorized_keys", "such as PG_15"),
            ("pg_tblspc/8/PG_15/x", "such as PG_15"),
            ("pg_tblspc/8/PG_15_1/x", "not listed"),
            ("base/1", "not listed"),
            ("global", "a file and a folder"),
        ] {
            let refused = tree.file(bad.as_bytes()).expect_err(bad).to_string();
            assert!(refused.contains(words), "{bad}: {refused}");
        }
        assert!(tree.finish().expect_err("missing").to_string().contains("no \"global/pg_control\""));
        tree.file(b"global/pg_control").expect("fine");
        tree.finish().expect("all there");
    }
}
