use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::TransactionStatus;

fn columns(names: &[&str]) -> BackendMessage {
    BackendMessage::RowDescription(names.iter().map(|name| (*name).to_owned()).collect())
}

fn row(values: &[&'static str]) -> BackendMessage {
    BackendMessage::DataRow(values.iter().map(|value| Some(Bytes::from_static(value.as_bytes()))).collect())
}

fn complete(tag: &str) -> BackendMessage {
    BackendMessage::CommandComplete(tag.to_owned())
}

fn ready() -> BackendMessage {
    BackendMessage::ReadyForQuery(TransactionStatus::Idle)
}

fn failure(severity: &str, message: &str) -> ServerError {
    ServerError::from_fields([(b'V', severity.to_owned()), (b'M', message.to_owned())])
}

fn error(severity: &str, message: &str) -> BackendMessage {
    BackendMessage::ErrorResponse(failure(severity, message))
}

fn result(names: &[&str], rows: &[&[&'static str]]) -> ResultSet {
    ResultSet {
        columns: names.iter().map(|name| (*name).to_owned()).collect(),
        rows: rows
            .iter()
            .map(|row| row.iter().map(|value| Some(Bytes::from_static(value.as_bytes()))).collect())
            .collect(),
    }
}

/// Feeds messages and confirms that all but the last one ask for the next.
fn run(reply: &mut QueryReply, messages: Vec<BackendMessage>) -> Result<ReplyStep, ReplyError> {
    let last = messages.len() - 1;
    for (at, message) in messages.into_iter().enumerate() {
        let shown = message.name();
        let step = reply.on_message(message);
        if at == last {
            return step;
        }
        assert_eq!(step, Ok(ReplyStep::Continue), "message {at}, {shown}");
    }
    unreachable!("there is a last message")
}

#[test]
fn one_result() {
    let messages = vec![
        BackendMessage::ParameterStatus { name: "a".into(), value: "b".into() },
        columns(&["a", "b"]),
        row(&["1", "2"]),
        row(&["3", "4"]),
        complete("SELECT"),
        complete("IDENTIFY_SYSTEM"),
        ready(),
    ];
    let expected = CompletedReply {
        results: vec![result(&["a", "b"], &[&["1", "2"], &["3", "4"]])],
        tags: vec!["SELECT".into(), "IDENTIFY_SYSTEM".into()],
    };
    let mut reply = QueryReply::new();
    assert_eq!(run(&mut reply, messages), Ok(ReplyStep::Done(expected)));
    assert!(matches!(reply.on_message(ready()), Err(ReplyError::Unexpected { .. })));
}

#[test]
fn replies_without_rows() {
    for messages in
        [vec![ready()], vec![BackendMessage::EmptyQueryResponse, ready()], vec![complete("X"), ready()]]
    {
        assert!(matches!(run(&mut QueryReply::new(), messages), Ok(ReplyStep::Done(_))));
    }
}

#[test]
fn a_base_backup() {
    let mut reply = QueryReply::new();
    let begin = vec![
        columns(&["recptr", "tli"]),
        row(&["0/2000028", "1"]),
        complete("SELECT"),
        columns(&["spcoid", "spclocation", "size"]),
        complete("SELECT"),
        BackendMessage::CopyOutResponse,
    ];
    assert!(reply.on_copy_data().is_err());
    assert_eq!(run(&mut reply, begin), Ok(ReplyStep::CopyOut));
    assert_eq!(reply.results().len(), 2);
    assert_eq!(reply.take_results()[0], result(&["recptr", "tli"], &[&["0/2000028", "1"]]));
    assert_eq!(reply.on_copy_data(), Ok(()));
    let warning = failure("WARNING", "checksums");
    let step = reply.on_message(BackendMessage::NoticeResponse(warning.clone()));
    assert_eq!(step, Ok(ReplyStep::Notice(warning)));
    assert_eq!(reply.on_copy_data(), Ok(()));
    assert_eq!(reply.on_message(BackendMessage::CopyDone), Ok(ReplyStep::CopyDone));
    assert!(reply.on_copy_data().is_err());
    // Servers before 15 send one copy after another.
    assert_eq!(reply.on_message(BackendMessage::CopyOutResponse), Ok(ReplyStep::CopyOut));
    assert_eq!(reply.on_message(BackendMessage::CopyDone), Ok(ReplyStep::CopyDone));
    let end = vec![
        columns(&["recptr", "tli"]),
        row(&["0/2000100", "1"]),
        complete("SELECT"),
        complete("BASE_BACKUP"),
        ready(),
    ];
    let Ok(ReplyStep::Done(done)) = run(&mut reply, end) else { panic!("not done") };
    assert_eq!(done.results, [result(&["recptr", "tli"], &[&["0/2000100", "1"]])]);
    assert_eq!(done.tags.len(), 4);
}

#[test]
fn streaming_up_to_the_end_of_a_timeline() {
    let mut reply = QueryReply::new();
    assert_eq!(reply.on_message(BackendMessage::CopyBothResponse), Ok(ReplyStep::CopyBoth));
    assert_eq!(reply.on_copy_data(), Ok(()));
    assert_eq!(reply.on_message(BackendMessage::CopyDone), Ok(ReplyStep::CopyDone));
    let end = vec![
        columns(&["next_tli"]),
        row(&["2"]),
        complete("SELECT"),
        complete("START_STREAMING"),
        complete("START_REPLICATION"),
        ready(),
    ];
    let Ok(ReplyStep::Done(done)) = run(&mut reply, end) else { panic!("not done") };
    assert_eq!(done.results, [result(&["next_tli"], &[&["2"]])]);
}

#[test]
fn uploads_end_with_the_servers_next_message() {
    let mut reply = QueryReply::new();
    assert_eq!(reply.on_message(BackendMessage::CopyInResponse), Ok(ReplyStep::CopyIn));
    assert!(reply.on_copy_data().is_err());
    assert!(matches!(run(&mut reply, vec![complete("UPLOAD_MANIFEST"), ready()]), Ok(ReplyStep::Done(_))));
}

#[test]
fn errors_come_when_the_server_is_ready_again() {
    let copying = |start| vec![start];
    for before in [
        vec![],
        vec![columns(&["a"]), row(&["1"])],
        copying(BackendMessage::CopyOutResponse),
        copying(BackendMessage::CopyInResponse),
        copying(BackendMessage::CopyBothResponse),
    ] {
        let mut reply = QueryReply::new();
        for message in before {
            reply.on_message(message).unwrap();
        }
        let rest = vec![error("ERROR", "first"), error("ERROR", "second"), complete("X"), ready()];
        assert_eq!(run(&mut reply, rest), Err(ReplyError::Server(failure("ERROR", "first"))));
        assert!(reply.on_message(ready()).is_err());
    }
}

#[test]
fn fatal_errors_come_at_once() {
    for severity in ["FATAL", "PANIC"] {
        let mut reply = QueryReply::new();
        let refused = reply.on_message(error(severity, "bye"));
        assert_eq!(refused, Err(ReplyError::Server(failure(severity, "bye"))));
    }
    // The end of the session tells more than the error before it.
    let messages = vec![error("ERROR", "first"), error("FATAL", "bye")];
    let refused = run(&mut QueryReply::new(), messages);
    assert_eq!(refused, Err(ReplyError::Server(failure("FATAL", "bye"))));
}

#[test]
fn messages_out_of_turn_are_refused() {
    for messages in [
        vec![row(&["1"])],
        vec![BackendMessage::CopyDone],
        vec![columns(&["a"]), columns(&["b"])],
        vec![columns(&["a"]), ready()],
        vec![columns(&["a"]), BackendMessage::CopyOutResponse],
        vec![BackendMessage::BackendKeyData { process_id: 1, secret_key: Bytes::new() }],
    ] {
        let step = run(&mut QueryReply::new(), messages);
        assert!(matches!(step, Err(ReplyError::Unexpected { .. })), "{step:?}");
    }
    for copy in [BackendMessage::CopyOutResponse, BackendMessage::CopyBothResponse] {
        for message in [ready(), complete("X"), columns(&["a"]), BackendMessage::CopyOutResponse] {
            let mut reply = QueryReply::new();
            reply.on_message(copy.clone()).unwrap();
            // So a walsender says that its server shuts down.
            if copy == BackendMessage::CopyBothResponse && message == complete("X") {
                assert_eq!(reply.on_message(message), Ok(ReplyStep::CopyDone));
                continue;
            }
            assert!(matches!(reply.on_message(message), Err(ReplyError::Unexpected { .. })));
        }
    }
    let short = run(&mut QueryReply::new(), vec![columns(&["a", "b"]), row(&["1"])]);
    assert_eq!(short, Err(ReplyError::RowLength { found: 1, expected: 2 }));
}

#[test]
fn what_is_kept_is_bounded() {
    let endless: [fn() -> BackendMessage; 3] =
        [|| row(&["some text"]), || BackendMessage::DataRow(vec![None]), || row(&[""])];
    for message in endless {
        let mut reply = QueryReply::with_limit(10_000);
        reply.on_message(columns(&["a"])).unwrap();
        let refused = (0..1000).find_map(|_| reply.on_message(message()).err());
        assert_eq!(refused, Some(ReplyError::TooLong { limit: 10_000 }));
    }
    let mut reply = QueryReply::with_limit(10_000);
    let refused = (0..1000).find_map(|_| reply.on_message(complete("X")).err());
    assert_eq!(refused, Some(ReplyError::TooLong { limit: 10_000 }));
}

fn any_message() -> impl Strategy<Value = BackendMessage> {
    prop_oneof![
        Just(columns(&["a"])),
        Just(row(&["1"])),
        Just(complete("X")),
        Just(ready()),
        Just(BackendMessage::CopyOutResponse),
        Just(BackendMessage::CopyBothResponse),
        Just(BackendMessage::CopyInResponse),
        Just(BackendMessage::CopyDone),
        Just(BackendMessage::EmptyQueryResponse),
        Just(error("ERROR", "no")),
        Just(BackendMessage::NoticeResponse(failure("NOTICE", "n"))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_follows_the_end_and_nothing_is_done_after_an_error(
        messages in proptest::collection::vec(any_message(), 0..20),
    ) {
        let mut reply = QueryReply::new();
        let (mut over, mut failed) = (false, false);
        for message in messages {
            let fails = matches!(message, BackendMessage::ErrorResponse(_));
            let notice = matches!(message, BackendMessage::NoticeResponse(_));
            let step = reply.on_message(message);
            prop_assert!(!over || notice || step.is_err());
            prop_assert!(!failed || !matches!(step, Ok(ReplyStep::Done(_))));
            failed |= fails;
            over |= step.is_err() || matches!(step, Ok(ReplyStep::Done(_)));
        }
    }
}
