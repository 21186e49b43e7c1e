//! Replies to commands, and the typed reading of their rows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::replication::{
    BackupPosition, CreatedSlot, IdentifySystem, QueryReply, ReplicationSlot, ReplyStep, TablespaceRow,
    TimelineEnd, TimelineHistoryFile, show_value,
};
use pgstrata_protocol::wire::{Frame, FrameDecoder};

const LIMIT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let (mut input, mut decoder, mut reply) = (input, FrameDecoder::new(), QueryReply::with_limit(LIMIT));
    while let Ok(Some(frame)) = decoder.next(&mut input) {
        let step = match frame {
            Frame::CopyData { .. } => match reply.on_copy_data() {
                Ok(()) => continue,
                Err(error) => return drop(error.to_string()),
            },
            Frame::Message(message) => reply.on_message(message),
        };
        let done = match step {
            Ok(ReplyStep::Done(done)) => done,
            Ok(_) => continue,
            Err(error) => return drop(error.to_string()),
        };
        let kept: usize = done
            .results
            .iter()
            .flat_map(|result| &result.rows)
            .flatten()
            .map(|value| value.as_ref().map_or(0, |value| value.len()))
            .sum();
        assert!(kept <= LIMIT, "{kept}");
        for result in &done.results {
            for row in &result.rows {
                assert_eq!(row.len(), result.columns.len());
            }
            let _ = IdentifySystem::from_result(result);
            let _ = CreatedSlot::from_result(result);
            let _ = ReplicationSlot::from_result(result);
            let _ = BackupPosition::from_result(result);
            let _ = TablespaceRow::from_result(result);
            let _ = TimelineEnd::from_result(result);
            let _ = TimelineHistoryFile::from_result(result);
            let _ = show_value(result);
        }
        reply = QueryReply::with_limit(LIMIT);
    }
});
