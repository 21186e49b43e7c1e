//! What a fake server says, and when.

use std::time::Duration;

use super::many::{ManyFiles, Part};
use super::message;

/// The system identifier of a scripted cluster.
pub(super) const SYSTEM: u64 = 7_300_000_000_000_000_001;

/// One thing that a server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Sends these bytes over and over, with a pause before each time, until the client ends the connection.
    Trickle(Vec<u8>, Duration),
    /// Sends a part of a backup of many files, made on the way.
    Many(ManyFiles, Part),
    /// Sends and reads nothing more, but keeps the connection open until the server is dropped.
    Stall,
    /// Ends the connection in order.
    Close,
    /// Resets the connection.
    Reset,
}

/// The answer to one query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub(super) steps: Vec<Step>,
}

impl Reply {
    /// Bytes as they are; usually one or more messages.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { steps: vec![Step::Send(bytes.into())] }
    }

    /// Messages, each sent by itself.
    #[must_use]
    pub fn messages(messages: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { steps: messages.into_iter().map(Step::Send).collect() }
    }

    /// A result set, and the server is ready again.
    #[must_use]
    pub fn rows(columns: &[&str], rows: &[&[Option<&str>]]) -> Self {
        let mut messages = vec![message::row_description(columns)];
        messages.extend(rows.iter().map(|row| message::data_row(row)));
        messages.push(message::command_complete("SELECT"));
        messages.push(message::ready());
        Self::bytes(messages.concat())
    }

    /// One row of one value, as SHOW answers.
    #[must_use]
    pub fn value(column: &str, value: &str) -> Self {
        Self::rows(&[column], &[&[Some(value)]])
    }

    /// An error, and the server is ready again.
    #[must_use]
    pub fn error(sqlstate: &str, text: &str) -> Self {
        Self::bytes([message::error(sqlstate, text), message::ready()].concat())
    }

    /// Continues with another step.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Sends everything in pieces of at most so many bytes.
    #[must_use]
    pub fn in_pieces(mut self, size: usize) -> Self {
        let split = |step: Step| match step {
            Step::Send(bytes) => bytes.chunks(size).map(|piece| Step::Send(piece.to_vec())).collect(),
            other => vec![other],
        };
        self.steps = self.steps.into_iter().flat_map(split).collect();
        self
    }

    /// Sends only the first so many bytes of all that would be sent, and then ends the connection.
    #[must_use]
    pub fn cut_after(mut self, bytes: usize) -> Self {
        let mut left = bytes;
        for step in &mut self.steps {
            if let Step::Send(bytes) = step {
                bytes.truncate(left);
                left -= bytes.len();
            }
        }
        self.then(Step::Close)
    }
}

/// All that a fake server says.
#[derive(Clone, Debug)]
pub struct Script {
    /// The server's major version.
    pub(super) major: u32,
    /// What follows the startup packet.
    pub(super) welcome: Reply,
    /// Answers by how a query begins, in upper or lower case; the first that fits counts.
    pub(super) answers: Vec<(String, Reply)>,
    /// What follows the client's end of a copy.
    pub(super) after_copy: Reply,
}

impl Script {
    /// A server of a major version that trusts everyone and answers what a backup asks first: IDENTIFY_SYSTEM, SHOW.
    #[must_use]
    pub fn version(major: u32) -> Self {
        let version = format!("{major}.1");
        let parameters = [
            ("server_version", version.as_str()),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("is_superuser", "on"),
        ];
        let mut welcome = message::authentication_ok();
        for (name, value) in parameters {
            welcome.extend(message::parameter_status(name, value));
        }
        welcome.extend(message::backend_key_data());
        welcome.extend(message::ready());
        let mut script =
            Self { major, welcome: Reply::bytes(welcome), answers: Vec::new(), after_copy: Reply::default() };
        for (name, value) in [
            ("data_directory_mode", "0700"),
            ("wal_segment_size", "16MB"),
            ("wal_block_size", "8192"),
            ("block_size", "8192"),
            ("segment_size", "1GB"),
            ("data_checksums", "on"),
        ] {
            script = script.setting(name, value);
        }
        script.answer("SELECT pg_catalog.set_config", Reply::value("set_config", "")).answer(
            "IDENTIFY_SYSTEM",
            Reply::rows(
                &["systemid", "timeline", "xlogpos", "dbname"],
                &[&[Some(&SYSTEM.to_string()), Some("1"), Some("0/3000000"), None]],
            ),
        )
    }

    /// Answers queries that begin so; goes before answers that were given earlier.
    #[must_use]
    pub fn answer(mut self, query: &str, reply: Reply) -> Self {
        self.answers.insert(0, (query.to_ascii_uppercase(), reply));
        self
    }

    /// Answers SHOW for a setting, whether its name is quoted or not.
    #[must_use]
    pub fn setting(self, name: &str, value: &str) -> Self {
        let reply = Reply::value(name, value);
        self.answer(&format!("SHOW {name}"), reply.clone()).answer(&format!("SHOW \"{name}\""), reply)
    }

    /// What the server says once the client has ended its side of a copy; nothing unless told.
    #[must_use]
    pub fn after_copy(mut self, reply: Reply) -> Self {
        self.after_copy = reply;
        self
    }

    /// Replaces what follows the startup packet.
    #[must_use]
    pub fn welcome(mut self, reply: Reply) -> Self {
        self.welcome = reply;
        self
    }

    pub(super) fn reply_to(&self, query: &str) -> Reply {
        let query = query.to_ascii_uppercase();
        let found = self.answers.iter().find(|(begin, _)| query.starts_with(begin.as_str()));
        found.map_or_else(
            || Reply::error("42601", &format!("the script has no answer to {query:?}")),
            |(_, reply)| reply.clone(),
        )
    }
}
