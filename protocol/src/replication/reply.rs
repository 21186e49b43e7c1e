//! Assembles the reply to one simple query or replication command from its messages.
//!
//! Invariants: rows are as long as their description; what is kept is bounded; nothing is reported complete
//! before `ReadyForQuery`. `CopyData` itself does not pass through here: [`ReplyStep`] tells when it begins,
//! [`QueryReply::on_copy_data`] whether it has a place, and messages go on being fed as they come.

use super::result_set::ResultSet;
use crate::wire::{BackendMessage, ServerError};

/// The most bytes of rows and tags that a reply keeps.
pub const DEFAULT_RESULT_LIMIT: usize = 16 << 20;

/// What the bookkeeping of a row or a value costs at most, so that empty ones count too.
const OVERHEAD: usize = 32;

/// A reply on its way.
#[derive(Debug)]
pub struct QueryReply {
    state: State,
    results: Vec<ResultSet>,
    tags: Vec<String>,
    kept: usize,
    limit: usize,
}

#[derive(Debug)]
enum State {
    /// Between results, and at the start.
    Between,
    /// Rows of this result arrive.
    Rows(ResultSet),
    /// `CopyData` arrives.
    CopyOut,
    /// The server awaits `CopyData`; its next message ends that.
    CopyIn,
    /// `CopyData` goes both ways.
    CopyBoth,
    /// The server failed and will say when it awaits the next query.
    Failed(ServerError),
    /// Nothing follows.
    Over,
}

/// What a message meant.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplyStep {
    /// Feed the next message.
    Continue,
    /// Show this notice, then feed the next message.
    Notice(ServerError),
    /// `CopyData` from the server begins. Results so far are in [`QueryReply::results`].
    CopyOut,
    /// The server awaits `CopyData`, then `CopyDone`.
    CopyIn,
    /// `CopyData` begins to flow both ways.
    CopyBoth,
    /// The server's side of the copy ended. In a two-way copy, answer with `CopyDone` unless that is sent already.
    CopyDone,
    /// The reply is complete, and the server awaits the next query.
    Done(CompletedReply),
}

/// A complete reply.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CompletedReply {
    /// The results that were not taken before, in order.
    pub results: Vec<ResultSet>,
    /// The commands' tags, in order; one command may send several.
    pub tags: Vec<String>,
}

/// A reply that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The server refused or broke off; unless this is fatal it awaits the next query.
    #[error("{0}")]
    Server(ServerError),
    /// A message that has no place here.
    #[error("the server sent {found} while {expected} was expected")]
    Unexpected {
        /// The message.
        found: &'static str,
        /// What could have come.
        expected: &'static str,
    },
    /// A row that is longer or shorter than its description.
    #[error("the server sent a row of {found} columns, expected {expected}")]
    RowLength {
        /// The row's values.
        found: usize,
        /// The described columns.
        expected: usize,
    },
    /// More than is kept in memory.
    #[error("the server's reply has more than {limit} bytes")]
    TooLong {
        /// What is kept at most.
        limit: usize,
    },
}

impl Default for QueryReply {
    fn default() -> Self {
        Self::new()
    }
}

impl QueryReply {
    /// Awaits the reply to a query that was sent, with [`DEFAULT_RESULT_LIMIT`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_RESULT_LIMIT)
    }

    /// Awaits a reply whose rows have at most `limit` bytes, bookkeeping included.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { state: State::Between, results: Vec::new(), tags: Vec::new(), kept: 0, limit }
    }

    /// The results that are complete so far and were not taken.
    #[must_use]
    pub fn results(&self) -> &[ResultSet] {
        &self.results
    }

    /// Whether anything of the reply itself has come: notices do not count.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Between) || !self.results.is_empty() || !self.tags.is_empty()
    }

    /// Takes the results that are complete so far.
    pub fn take_results(&mut self) -> Vec<ResultSet> {
        std::mem::take(&mut self.results)
    }

    /// Confirms that a piece of `CopyData` has a place now: within a copy from the server or both ways.
    #[inline]
    pub fn on_copy_data(&self) -> Result<(), ReplyError> {
        match self.state {
            State::CopyOut | State::CopyBoth => Ok(()),
            _ => Err(ReplyError::Unexpected { found: "CopyData", expected: "a message of the reply" }),
        }
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// [`ReplyError::Server`] comes with `ReadyForQuery`, or at once where it is fatal. Any other error leaves
    /// the connection in no known state: close it.
    pub fn on_message(&mut self, message: BackendMessage) -> Result<ReplyStep, ReplyError> {
        match message {
            BackendMessage::NoticeResponse(notice) => return Ok(ReplyStep::Notice(notice)),
            // They may come at any time and change nothing that a backup relies on.
            BackendMessage::ParameterStatus { .. } | BackendMessage::NotificationResponse { .. } => {
                return Ok(ReplyStep::Continue);
            }
            _ => {}
        }
        match (std::mem::replace(&mut self.state, State::Over), message) {
            (State::Over, message) => Err(ReplyError::Unexpected {
                found: message.name(),
                expected: "no further message of this reply",
            }),
            (_, BackendMessage::ErrorResponse(error)) if error.is_fatal() => Err(ReplyError::Server(error)),
            (State::Failed(error), BackendMessage::ReadyForQuery(_)) => Err(ReplyError::Server(error)),
            // The first error is the cause of those that follow it.
            (State::Failed(error), _) | (_, BackendMessage::ErrorResponse(error)) => {
                self.go(State::Failed(error), ReplyStep::Continue)
            }
            (State::Rows(result), message) => self.on_row_message(result, message),
            (State::CopyOut | State::CopyBoth, BackendMessage::CopyDone) => {
                self.go(State::Between, ReplyStep::CopyDone)
            }
            // A walsender that is shut down ends the command without ending the copy first (`WalSndDone`).
            (State::CopyBoth, BackendMessage::CommandComplete(tag)) => {
                self.keep(tag.len() + OVERHEAD)?;
                self.tags.push(tag);
                self.go(State::Between, ReplyStep::CopyDone)
            }
            (State::CopyOut | State::CopyBoth, message) => {
                Err(ReplyError::Unexpected { found: message.name(), expected: "CopyData or CopyDone" })
            }
            (State::Between | State::CopyIn, message) => self.on_message_between(message),
        }
    }

    fn on_row_message(
        &mut self,
        mut result: ResultSet,
        message: BackendMessage,
    ) -> Result<ReplyStep, ReplyError> {
        match message {
            BackendMessage::DataRow(row) => {
                let (found, expected) = (row.len(), result.columns.len());
                if found != expected {
                    return Err(ReplyError::RowLength { found, expected });
                }
                let bytes = row.iter().flatten().fold(0, |sum, value| sum + value.len());
                self.keep(bytes + (found + 1) * OVERHEAD)?;
                result.rows.push(row);
                self.go(State::Rows(result), ReplyStep::Continue)
            }
            BackendMessage::CommandComplete(tag) => {
                self.keep(tag.len() + OVERHEAD)?;
                self.results.push(result);
                self.tags.push(tag);
                self.go(State::Between, ReplyStep::Continue)
            }
            message => {
                Err(ReplyError::Unexpected { found: message.name(), expected: "DataRow or CommandComplete" })
            }
        }
    }

    fn on_message_between(&mut self, message: BackendMessage) -> Result<ReplyStep, ReplyError> {
        match message {
            BackendMessage::RowDescription(columns) => {
                self.keep(columns.iter().fold(OVERHEAD, |sum, name| sum + name.len() + OVERHEAD))?;
                self.go(State::Rows(ResultSet { columns, rows: Vec::new() }), ReplyStep::Continue)
            }
            BackendMessage::CommandComplete(tag) => {
                self.keep(tag.len() + OVERHEAD)?;
                self.tags.push(tag);
                self.go(State::Between, ReplyStep::Continue)
            }
            BackendMessage::EmptyQueryResponse => self.go(State::Between, ReplyStep::Continue),
            BackendMessage::CopyOutResponse => self.go(State::CopyOut, ReplyStep::CopyOut),
            BackendMessage::CopyInResponse => self.go(State::CopyIn, ReplyStep::CopyIn),
            BackendMessage::CopyBothResponse => self.go(State::CopyBoth, ReplyStep::CopyBoth),
            BackendMessage::ReadyForQuery(_) => Ok(ReplyStep::Done(CompletedReply {
                results: std::mem::take(&mut self.results),
                tags: std::mem::take(&mut self.tags),
            })),
            message => Err(ReplyError::Unexpected {
                found: message.name(),
                expected: "a result, a copy or ReadyForQuery",
            }),
        }
    }

    fn go(&mut self, state: State, step: ReplyStep) -> Result<ReplyStep, ReplyError> {
        self.state = state;
        Ok(step)
    }

    fn keep(&mut self, bytes: usize) -> Result<(), ReplyError> {
        self.kept = self.kept.saturating_add(bytes);
        if self.kept > self.limit { Err(ReplyError::TooLong { limit: self.limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
