//! Small objects of one summary: leases, pins, marks.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::container::{FrameKind, ObjectKind};
use super::super::object_reader::ObjectReader;
use super::super::object_writer::ObjectWriter;
use super::super::place::{Repository, read_summary};
use crate::failure::Failure;

/// Publishes a summary as an object; false where the name is taken.
pub(super) fn publish<T: Serialize>(
    repository: &Repository,
    kind: ObjectKind,
    name: &str,
    summary: &T,
) -> Result<bool, Failure> {
    let mut object = ObjectWriter::begin(repository, kind, name)?;
    object.frame(FrameKind::Summary, &serde_json::to_vec(summary).expect("a summary is JSON"))?;
    Ok(object.publish()?.is_some())
}

/// Reads one; `None` where there is none of that name.
pub(super) fn read<T: DeserializeOwned>(
    repository: &Repository,
    kind: ObjectKind,
    name: &str,
) -> Result<Option<T>, Failure> {
    let opened = ObjectReader::open(repository, name, kind)?;
    opened.as_ref().map(read_summary).transpose()
}
