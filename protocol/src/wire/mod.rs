//! The PostgreSQL v3 protocol as a client speaks it: frames, messages, start-up and authentication.
//!
//! Sans-IO: [`FrameDecoder`] turns received bytes into [`Frame`]s however they were cut, [`frontend`] appends
//! messages to a buffer, [`Handshake`] says what to send next. Every length that a server states is bounded
//! before anything is allocated for it.

mod auth_rules;
mod body;
mod frame;
pub mod frontend;
mod handshake;
mod message;
mod server_error;
mod session;
mod startup;

pub use auth_rules::{AuthRules, BindingMode, Channel, ForbiddenRequest, RequireAuthError, RequiredMethods};
pub use frame::{DEFAULT_MESSAGE_LIMIT, Frame, FrameDecoder, SHORT_MESSAGE_LIMIT, WireError};
pub use frontend::EncodeError;
pub use handshake::{Handshake, HandshakeError, HandshakeStep};
pub use message::{AuthenticationRequest, BackendMessage, TransactionStatus};
pub use server_error::ServerError;
pub use session::{CancelKey, ServerVersionError, SessionInfo};
pub use startup::{Credentials, StartupParameters};
