//! Receives and verifies everything, keeps nothing: what the server and the network can do.

use std::sync::Arc;

use pgstrata_protocol::tar::TarMember;

use super::{Archive, Sink};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};

/// Lets everything pass the checks and go.
#[derive(Debug)]
pub struct DiscardSink {
    nowhere: Arc<Folder>,
}

impl DiscardSink {
    /// A sink whose outputs are said to lie in `nowhere`; none of them is made.
    #[must_use]
    pub fn new(nowhere: Arc<Folder>) -> Self {
        Self { nowhere }
    }
}

impl Sink for DiscardSink {
    fn begin_archive(&mut self, _: &mut Feeder, _: &Archive) -> Result<(), Failure> {
        Ok(())
    }

    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        _: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure> {
        if let Some(member) = file {
            let folder = Arc::clone(&self.nowhere);
            feeder.begin_output(|number, _| Output::checked_only(number, folder));
            feeder.begin_member(member);
        }
        Ok(())
    }

    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        feeder.end_output()
    }

    fn end_archive(&mut self, _: &mut Feeder) -> Result<(), Failure> {
        Ok(())
    }
}
