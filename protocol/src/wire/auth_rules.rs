//! What a client demands of authentication: channel binding and the methods it puts up with.
//!
//! Follows `check_expected_areq` and the `require_auth` parsing of libpq (`fe-auth.c`, `fe-connect.c`). A client
//! that demands nothing takes whatever the server asks for.

use super::message::AuthenticationRequest;

/// Whether SCRAM is bound to the TLS channel (`channel_binding`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindingMode {
    /// Never.
    Disable,
    /// Where the server offers it.
    #[default]
    Prefer,
    /// Always, or there is no session.
    Require,
}

/// What the connection runs over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// No TLS.
    #[default]
    Plain,
    /// TLS, and the `tls-server-end-point` of RFC 5929: a hash of the server's certificate. `None` where the
    /// certificate's signature algorithm names no hash.
    Tls(Option<Vec<u8>>),
}

/// What a client demands of authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthRules {
    /// What the connection runs over.
    pub channel: Channel,
    /// Whether SCRAM is bound to it.
    pub binding: BindingMode,
    /// The methods that are taken; any where `None`.
    pub methods: Option<RequiredMethods>,
}

/// A list of methods as `require_auth` names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredMethods {
    text: String,
    allowed: u8,
    /// Whether a server that asks for nothing is refused.
    some_required: bool,
}

/// A `require_auth` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequireAuthError {
    /// `!md5` after `scram-sha-256`.
    #[error("negative require_auth method \"{0}\" cannot be mixed with non-negative methods")]
    Negative(String),
    /// `scram-sha-256` after `!md5`.
    #[error("require_auth method \"{0}\" cannot be mixed with negative methods")]
    Positive(String),
    /// No method of libpq.
    #[error("invalid require_auth value: \"{0}\"")]
    Unknown(String),
    /// Probably a slip of the pen where slips are dangerous.
    #[error("require_auth method \"{0}\" is specified more than once")]
    Twice(String),
}

const PASSWORD: u8 = 1;
const MD5: u8 = 2;
const GSS: u8 = 4;
const SSPI: u8 = 8;
const SCRAM: u8 = 16;
const OAUTH: u8 = 32;

impl RequiredMethods {
    /// Reads a comma-separated list; all or none of its items begin with `!`.
    ///
    /// # Errors
    /// As it says, where libpq refuses the list too.
    pub fn parse(text: &str) -> Result<Self, RequireAuthError> {
        let negated = text.starts_with('!');
        let mut methods = Self {
            text: text.to_owned(),
            allowed: if negated { u8::MAX } else { 0 },
            some_required: !negated,
        };
        for item in text.split(',') {
            let name = match (item.strip_prefix('!'), negated) {
                (Some(name), true) => name,
                (None, false) => item,
                (Some(_), false) => return Err(RequireAuthError::Negative(item.to_owned())),
                (None, true) => return Err(RequireAuthError::Positive(item.to_owned())),
            };
            let twice = || RequireAuthError::Twice(item.to_owned());
            let bit = match name {
                "password" => PASSWORD,
                "md5" => MD5,
                "gss" => GSS,
                "sspi" => SSPI,
                "scram-sha-256" => SCRAM,
                "oauth" => OAUTH,
                // "none" lets servers in that ask for nothing, such as those that trust; "!none" keeps them out.
                "none" if methods.some_required == negated => return Err(twice()),
                "none" => {
                    methods.some_required = negated;
                    continue;
                }
                _ => return Err(RequireAuthError::Unknown(name.to_owned())),
            };
            if (methods.allowed & bit != 0) != negated {
                return Err(twice());
            }
            methods.allowed ^= bit;
        }
        Ok(methods)
    }
}

/// A request that the rules forbid to answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenRequest {
    /// Not a method of `require_auth`.
    #[error(
        "authentication method requirement \"{required}\" failed: {reason}\n\
         HINT: change require_auth, or the method of this connection's line in the server's pg_hba.conf."
    )]
    Method {
        /// The setting.
        required: String,
        /// What the server did.
        reason: &'static str,
    },
    /// The server let the client in without binding the channel.
    #[error("channel binding required, but server authenticated client without channel binding")]
    Unbound,
    /// A request that cannot be bound.
    #[error("channel binding required but not supported by server's authentication request")]
    NotBindable,
    /// There is nothing to bind to.
    #[error(
        "channel binding required, but SSL not in use\nHINT: channel binding needs TLS: set sslmode=require or higher."
    )]
    NoTls,
    /// Only mechanisms without binding.
    #[error(
        "channel binding is required, but server did not offer an authentication method that supports channel binding"
    )]
    NotOffered,
    /// Something strips TLS off between client and server.
    #[error("server offered SCRAM-SHA-256-PLUS authentication over a non-SSL connection")]
    Stripped,
    /// A certificate that names no hash, such as one signed with Ed25519.
    #[error(
        "could not determine server certificate signature algorithm\n\
         HINT: set channel_binding=disable, or give the server a certificate signed with RSA or ECDSA."
    )]
    NoEndPoint,
}

impl AuthRules {
    /// Whether a request may be answered. `completed` and `bound` say whether an exchange came to its end before,
    /// and whether it was bound to the channel.
    pub(super) fn check(
        &self,
        request: &AuthenticationRequest,
        completed: bool,
        bound: bool,
    ) -> Result<(), ForbiddenRequest> {
        if let Some(methods) = &self.methods {
            let is_allowed = |bit, reason| if methods.allowed & bit == 0 { Some(reason) } else { None };
            let reason = match request {
                AuthenticationRequest::Ok if methods.some_required && !completed => {
                    Some("server did not complete authentication")
                }
                AuthenticationRequest::Ok => None,
                AuthenticationRequest::CleartextPassword => {
                    is_allowed(PASSWORD, "server requested a cleartext password")
                }
                AuthenticationRequest::Md5Password { .. } => {
                    is_allowed(MD5, "server requested a hashed password")
                }
                AuthenticationRequest::Sasl { .. }
                | AuthenticationRequest::SaslContinue(_)
                | AuthenticationRequest::SaslFinal(_) => {
                    is_allowed(SCRAM, "server requested SCRAM-SHA-256 authentication")
                }
                // These are refused in any case, and by their own names.
                AuthenticationRequest::Unsupported { .. } => None,
            };
            if let Some(reason) = reason {
                return Err(ForbiddenRequest::Method { required: methods.text.clone(), reason });
            }
        }
        if self.binding != BindingMode::Require {
            return Ok(());
        }
        match request {
            AuthenticationRequest::Sasl { .. }
            | AuthenticationRequest::SaslContinue(_)
            | AuthenticationRequest::SaslFinal(_) => Ok(()),
            AuthenticationRequest::Ok if bound => Ok(()),
            AuthenticationRequest::Ok => Err(ForbiddenRequest::Unbound),
            _ => Err(ForbiddenRequest::NotBindable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, expected) in [
            ("password", Ok((PASSWORD, true))),
            ("md5,scram-sha-256", Ok((MD5 | SCRAM, true))),
            ("none", Ok((0, false))),
            ("scram-sha-256,none", Ok((SCRAM, false))),
            ("!none", Ok((u8::MAX, true))),
            ("!password,!md5", Ok((!(PASSWORD | MD5), false))),
            ("!password,!none", Ok((!PASSWORD, true))),
            ("gss,sspi,oauth", Ok((GSS | SSPI | OAUTH, true))),
            ("md5,!password", Err("negative require_auth method \"!password\" cannot be mixed")),
            ("!md5,password", Err("require_auth method \"password\" cannot be mixed with negative")),
            ("md5,md5", Err("require_auth method \"md5\" is specified more than once")),
            ("none,none", Err("require_auth method \"none\" is specified more than once")),
            ("!none,!none", Err("require_auth method \"!none\" is specified more than once")),
            ("kerberos", Err("invalid require_auth value: \"kerberos\"")),
            ("md5,", Err("invalid require_auth value: \"\"")),
        ] {
            match (RequiredMethods::parse(text), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!((found.allowed, found.some_required), expected, "{text}");
                }
                (Err(found), Err(expected)) => assert!(found.to_string().starts_with(expected), "{found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
