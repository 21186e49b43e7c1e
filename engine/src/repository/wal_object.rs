//! Objects of a WAL archive: the bytes of one file in frames, and what they are.
//!
//! Invariants: an object of a name is published by create-if-absent and never changed, so a name stands for one content;
//! what lies there already is as good only where it is the same by system, size and hash.

use std::io::Write;

use pgstrata_protocol::names::WalSegmentSize;
use serde::{Deserialize, Serialize};

use super::codec::{FrameCompression, FrameDecoder};
use super::container::{FrameKind, ObjectKind, PLAIN_MAX};
use super::error::RepositoryError;
use super::names::ClusterName;
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::place::{Repository, now, read_summary};
use super::summary::decimal;
use super::wal_names::WalName;
use crate::failure::Failure;

/// What an object of a WAL archive holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSummary {
    /// The cluster's name.
    pub cluster: String,
    /// The file's name.
    pub name: String,
    /// The system whose WAL it is.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// Bytes of a segment of that system; 0 where the file does not say it.
    pub segment_size: u64,
    /// Bytes of the file, or of the part.
    pub size: u64,
    /// BLAKE3 of these, in hex.
    pub blake3: String,
    /// `push` or `receive`.
    pub source: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The program's version that wrote it.
    pub program: String,
    /// What a reader must know.
    pub requires: Vec<String>,
}

/// What is known of a file before its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalOwner {
    /// Whose WAL it is.
    pub(crate) system_identifier: u64,
    /// Bytes of its segments, where known.
    pub(crate) segment_size: Option<WalSegmentSize>,
    /// `push` or `receive`.
    pub(crate) source: &'static str,
}

/// What became of an object that was to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalPublished {
    /// It is there now, and was not before.
    New,
    /// The same was there already.
    Same,
}

/// An object under way.
pub(crate) struct WalObjectWriter {
    repository: Repository,
    cluster: ClusterName,
    name: WalName,
    owner: WalOwner,
    object: ObjectWriter,
    hasher: blake3::Hasher,
    frame: Vec<u8>,
    size: u64,
}

impl WalObjectWriter {
    /// Begins an object that nobody sees until it is published.
    pub(crate) fn begin(
        repository: &Repository,
        cluster: &ClusterName,
        name: WalName,
        owner: WalOwner,
        compression: FrameCompression,
    ) -> Result<Self, Failure> {
        let mut object = ObjectWriter::begin(repository, ObjectKind::Wal, &name.object(cluster))?;
        object.compress_with(compression)?;
        Ok(Self {
            repository: repository.clone(),
            cluster: cluster.clone(),
            name,
            owner,
            object,
            hasher: blake3::Hasher::new(),
            frame: Vec::with_capacity(PLAIN_MAX),
            size: 0,
        })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PLAIN_MAX - self.frame.len()));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == PLAIN_MAX {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), Failure> {
        self.object.frame(FrameKind::Data, &self.frame)?;
        self.frame.clear();
        Ok(())
    }

    /// Makes it durable under its name. Where something else has the name, that is an error.
    pub(crate) fn publish(mut self) -> Result<WalPublished, Failure> {
        self.end_frame()?;
        let hash = self.hasher.finalize();
        let summary = WalSummary {
            cluster: self.cluster.to_string(),
            name: self.name.to_string(),
            system_identifier: self.owner.system_identifier,
            segment_size: self.owner.segment_size.map_or(0, WalSegmentSize::bytes),
            size: self.size,
            blake3: hash.to_hex().to_string(),
            source: self.owner.source.to_owned(),
            created: now(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            requires: Vec::new(),
        };
        self.object.frame(FrameKind::Summary, &serde_json::to_vec(&summary).expect("a summary is JSON"))?;
        let name = self.name.object(&self.cluster);
        if self.object.publish()?.is_some() {
            return Ok(WalPublished::New);
        }
        let Some(there) = self.repository.wal_object(&self.cluster, self.name)? else {
            let what = "it was there a moment ago and is gone";
            let hint = "somebody else removes WAL; try again.";
            return Err(RepositoryError::new(name, what, hint).into());
        };
        there.expect_same(summary.system_identifier, summary.size, &summary.blake3)?;
        self.repository.sync_wal_name(&self.cluster, self.name)?;
        Ok(WalPublished::Same)
    }
}

/// An object of a WAL archive, open.
#[derive(Debug)]
pub struct WalObject {
    object: ObjectReader,
    /// What it holds.
    pub summary: WalSummary,
}

impl Repository {
    /// Makes the name of an object that is there durable.
    pub(crate) fn sync_wal_name(&self, cluster: &ClusterName, name: WalName) -> Result<(), Failure> {
        let object = name.object(cluster);
        let folder = object.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.store().sync_folder(folder)
    }

    /// The names in a folder of a WAL archive, sorted.
    pub(crate) fn wal_names(&self, folder: &str) -> Result<Vec<String>, Failure> {
        Ok(self.store().list(folder)?.into_iter().map(|entry| entry.name).collect())
    }

    /// Opens an object of a cluster's WAL archive; `None` where there is none of that name.
    ///
    /// # Errors
    /// Where it is damaged, or of another cluster or name.
    pub fn wal_object(&self, cluster: &ClusterName, name: WalName) -> Result<Option<WalObject>, Failure> {
        let object = name.object(cluster);
        let opened = ObjectReader::open(self, &object, ObjectKind::Wal)?;
        let Some(object) = opened else { return Ok(None) };
        let summary: WalSummary = read_summary(&object)?;
        if summary.cluster != cluster.as_str() || summary.name != name.to_string() {
            let [of, found] = [&summary.cluster, &summary.name].map(|text| text.escape_default());
            let what = format!("it is \"{found}\" of cluster \"{of}\"");
            return Err(RepositoryError::damaged(object.name(), what).into());
        }
        Ok(Some(WalObject { object, summary }))
    }
}

impl WalObject {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object.name()
    }

    /// Refuses what is not the same.
    pub(crate) fn expect_same(&self, system_identifier: u64, size: u64, blake3: &str) -> Result<(), Failure> {
        let found = &self.summary;
        if found.system_identifier == system_identifier && found.size == size && found.blake3 == blake3 {
            return Ok(());
        }
        let short = |hash: &str| hash.get(..16).unwrap_or_default().escape_default().to_string();
        let what = format!(
            "a different file of this name is there already: found {} bytes of system {} with BLAKE3 {}…, expected {size} \
             bytes of system {system_identifier} with BLAKE3 {}…",
            found.size,
            found.system_identifier,
            short(&found.blake3),
            short(blake3)
        );
        let hint = "two servers archive under one name, or this one was copied and started without recovery, so that it \
                    writes another history of the same timeline. Nothing was changed; give one of them another --cluster name.";
        Err(RepositoryError::new(self.object.name(), what, hint).into())
    }

    /// Writes its bytes, each frame compared with its hash before. `to` gets them in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// Where it is damaged, and those of `to`.
    pub fn read(&self, mut to: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        let (mut stored, mut size) = (Vec::new(), 0);
        for number in self.object.of_kind(FrameKind::Data) {
            let plain = self.object.frame(number, &mut stored, &mut decoder)?;
            size += plain.len() as u64;
            to(plain)?;
        }
        if size == self.summary.size {
            return Ok(());
        }
        let what = format!("its frames hold {size} bytes, expected {}", self.summary.size);
        Err(RepositoryError::damaged(self.object.name(), what).into())
    }

    /// As [`Self::read`], into a file or whatever else can be written to.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn copy_to(&self, to: &mut impl Write, path: &std::path::Path) -> Result<(), Failure> {
        self.read(|plain| to.write_all(plain).map_err(|error| Failure::disk("write to", path, error)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::LocalStore;
    use super::*;

    #[test]
    fn a_name_is_one_content() {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path().join("r")))).expect("made");
        let cluster: ClusterName = "main".parse().expect("valid");
        let name: WalName = "000000010000000000000002".parse().expect("valid");
        let put = |system_identifier, content: &[u8]| {
            let owner = WalOwner { system_identifier, segment_size: None, source: "push" };
            let compression = FrameCompression::Zstd(1);
            let mut object = WalObjectWriter::begin(&repository, &cluster, name, owner, compression)?;
            content.chunks(300_000).try_for_each(|chunk| object.write(chunk))?;
            object.publish()
        };
        let content: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        assert!(repository.wal_object(&cluster, name).expect("asked").is_none());
        assert_eq!(put(7, &content).expect("new"), WalPublished::New);
        assert_eq!(put(7, &content).expect("the same"), WalPublished::Same);
        for (system, content) in [(8, &content[..]), (7, &content[1..]), (7, &[&content[1..], b"x"].concat())]
        {
            let refused = put(system, content).expect_err("different").to_string();
            assert!(
                refused.contains("a different file of this name") && refused.contains("HINT:"),
                "{refused}"
            );
        }
        let object = repository.wal_object(&cluster, name).expect("asked").expect("there");
        let mut found = Vec::new();
        object.copy_to(&mut found, scratch.path()).expect("whole");
        assert_eq!(found, content);
        // An object under another name is not taken for that one.
        let path = scratch.path().join("r").join(name.object(&cluster));
        let other: WalName = "000000010000000000000003".parse().expect("valid");
        std::fs::copy(&path, scratch.path().join("r").join(other.object(&cluster))).expect("copied");
        let refused = repository.wal_object(&cluster, other).expect_err("of another name").to_string();
        assert!(refused.contains("it is \"000000010000000000000002\""), "{refused}");
    }
}
