//! A copy to the server: sent in pieces, with an ear for what the server says meanwhile.

use std::io;

use bytes::BytesMut;
use pgstrata_protocol::replication::CompletedReply;
use pgstrata_protocol::wire::frontend;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout};

use super::Session;
use crate::connect::error::SessionError;
use crate::connect::exchange::{CopyDirection, Reply};

/// Why a copy to the server came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CopyInError {
    /// What was to be sent could not be had. The session is over.
    #[error("{0}")]
    Source(io::Error),
    /// The server refused it, or was lost.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Session {
    /// Sends a command that begins a copy to the server, then the pieces, each in a message, and returns the reply once
    /// they end.
    ///
    /// A refusal that comes before the end is heard between two pieces; nothing is sent after it.
    ///
    /// # Errors
    /// [`CopyInError::Source`] where a piece is an error. The others as [`Self::simple_query`].
    pub async fn copy_in(
        &mut self,
        command: &str,
        pieces: &mut Receiver<io::Result<Vec<u8>>>,
    ) -> Result<CompletedReply, CopyInError> {
        let Reply::Copy { direction: CopyDirection::In, .. } = self.begin_copy(command).await? else {
            return Err(SessionError::OutOfPlace("the command began no copy to the server").into());
        };
        while let Some(piece) = pieces.recv().await {
            let mut out = BytesMut::new();
            match piece {
                Ok(piece) => frontend::copy_data(&piece, &mut out).map_err(SessionError::from)?,
                Err(error) => {
                    self.give_up().await;
                    return Err(CopyInError::Source(error));
                }
            }
            self.hear()?;
            while self.receive_until(Instant::now()).await?.is_some() {
                self.hear()?;
            }
            self.send_in_time(out).await?;
        }
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.send_in_time(out).await?;
        match self.resume().await? {
            Reply::Done(reply) => Ok(reply),
            Reply::Copy { .. } => {
                Err(SessionError::OutOfPlace("the server began another copy, expected its verdict").into())
            }
        }
    }

    /// Walks what has come while the copy goes on.
    fn hear(&mut self) -> Result<(), SessionError> {
        match self.exchange.next_reply()? {
            None => Ok(()),
            Some(_) => Err(SessionError::OutOfPlace("the server ended the copy before all was sent")),
        }
    }

    /// Sends within the stall limit. Where that fails, what the server said before it closed counts more.
    async fn send_in_time(&mut self, out: BytesMut) -> Result<(), SessionError> {
        let sent = match self.stall {
            None => self.send(out).await,
            Some(limit) => match timeout(limit, self.send(out)).await {
                Ok(sent) => sent,
                Err(_) => return Err(SessionError::Stalled { limit }),
            },
        };
        match sent {
            Err(failed @ SessionError::Io { .. }) => match self.resume().await {
                Err(said @ SessionError::Server { .. }) => Err(said),
                _ => Err(failed),
            },
            sent => sent,
        }
    }

    /// Tells the server that no more will come; whether it hears that is of no account.
    async fn give_up(&mut self) {
        let mut out = BytesMut::new();
        if frontend::copy_fail("the client could not read what it was to send", &mut out).is_ok() {
            let _ = self.send_in_time(out).await;
        }
    }
}
