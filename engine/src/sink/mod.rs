//! Where a backup goes. A sink turns file events into outputs of the pipeline; it opens no data file itself.

mod compressed;
mod directory;
mod discard;
mod folder;
mod repository;
mod tar;

use std::fs::File;

use pgstrata_protocol::basebackup::CompressionMethod;
use pgstrata_protocol::tar::TarMember;

pub use compressed::CompressedTarSink;
pub use directory::{DirectorySink, HELD_CONTROL_FILE};
pub use discard::DiscardSink;
pub use folder::create_folder;
pub use repository::RepositorySink;
pub(crate) use repository::{GROUP, LARGE, ends_group, split};
pub use tar::{PARTIAL, TarSink};

use crate::failure::Failure;
use crate::pipeline::{Feeder, Member};

/// One archive of the stream: the base directory, or a tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The tablespace's OID; none for the base directory.
    pub tablespace: Option<u32>,
    /// Where the tablespace lies on the server.
    pub location: Vec<u8>,
}

/// A destination for file events, which come in the order of the stream.
pub trait Sink: Send {
    /// A new archive begins.
    fn begin_archive(&mut self, feeder: &mut Feeder, archive: &Archive) -> Result<(), Failure>;
    /// Bytes of an archive that the server compressed, as they came; what is in them follows as members.
    fn compressed(&mut self, _: &mut Feeder, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
    /// A member begins. Files come with what verification knows them by.
    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        header: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure>;
    /// Bytes of the file that was begun.
    fn data(&mut self, feeder: &mut Feeder, bytes: &[u8]) -> Result<(), Failure> {
        feeder.append(bytes)
    }
    /// The file that was begun has had its last byte.
    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure>;
    /// The archive has had its last member.
    fn end_archive(&mut self, feeder: &mut Feeder) -> Result<(), Failure>;
    /// All archives have come, and the server says that they are good. The manifest, if one came, stands at its
    /// beginning.
    fn end_stream(&mut self, _: &mut Feeder, _manifest: Option<&mut File>) -> Result<(), Failure> {
        Ok(())
    }
}

/// The name of an archive in a backup in tar format.
fn archive_name(archive: &Archive, compression: Option<CompressionMethod>) -> String {
    let name = archive.tablespace.map_or_else(|| "base".into(), |oid| oid.to_string());
    format!("{name}.tar{}", compression.map_or("", CompressionMethod::extension))
}
