//! What an object store refused or failed at, in words that say what to do. Answers are quoted by their code and
//! message alone: what else is in them may repeat keys, signatures or signed addresses.

use std::error::Error as _;

use object_store::Error;

use super::super::RepositoryError;
use super::connection::Service;
use crate::failure::Failure;

/// The longest words of a store that are repeated.
const MESSAGE_MAX: usize = 300;

/// Where clouds give their machines credentials.
const METADATA: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];

/// A request that came to nothing.
#[derive(Debug)]
pub(super) struct Trouble {
    object: String,
    what: String,
    kind: Kind,
    service: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There is no such object.
    Object,
    /// There is no such bucket.
    Bucket,
    /// There is an object of that name.
    Taken,
    /// The time is wrong.
    Clock,
    /// Credentials that were good are so no more.
    Expired,
    /// Credentials that the store does not take, or none.
    Credentials,
    /// The store lies in another region.
    Region,
    /// No answer.
    Unreachable,
    /// An answer that is a refusal for the time being.
    Busy,
    /// Settings that do not go together.
    Settings,
    /// Anything else.
    Other,
}

impl Trouble {
    /// `action` is a verb.
    pub(super) fn of(service: Service, object: String, action: &str, error: &Error) -> Self {
        let said = chain(error);
        let (code, message) = answer(&said);
        let mut kind = classify(error, &said, code.as_deref());
        let told = match (&code, &message) {
            // Where nothing is set, the machine's own service is asked, which only clouds have.
            _ if METADATA.iter().any(|host| said.contains(host)) => {
                kind = Kind::Credentials;
                "no credentials are set, and no metadata service of this host gives any".to_owned()
            }
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            _ => match status(&said) {
                Some(status) => format!("the store answered {status}"),
                None => root(error),
            },
        };
        Self { object, what: format!("could not {action}: {told}"), kind, service }
    }

    pub(super) fn is_missing_object(&self) -> bool {
        self.kind == Kind::Object
    }

    pub(super) fn is_taken(&self) -> bool {
        self.kind == Kind::Taken
    }

    /// Whether the store, or who stands before it, had no time: what became of the request is not known.
    pub(super) fn is_busy(&self) -> bool {
        self.kind == Kind::Busy
    }

    /// Whether what became of the request is not known, because its connection broke.
    pub(super) fn has_no_answer(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// Whether nothing that is asked next can go better.
    pub(super) fn is_fatal(&self) -> bool {
        !matches!(self.kind, Kind::Object | Kind::Taken)
    }

    fn hint(&self) -> &'static str {
        match (self.kind, self.service) {
            (Kind::Object, _) => "check the name.",
            (Kind::Taken, _) => "somebody else has just written it; try again.",
            (Kind::Bucket, _) => {
                "check the bucket's name, and the endpoint and region it lies in; pgstrata makes no buckets."
            }
            (Kind::Clock, _) => "set this host's clock: the store takes no requests that are minutes off.",
            (Kind::Expired, _) => {
                "get new credentials and run again; credentials of a role or a token file are renewed by themselves."
            }
            (Kind::Credentials, Service::S3) => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and what the key may do: \
                 list the bucket, get, put and delete objects."
            }
            (Kind::Credentials, Service::Azure) => {
                "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or the SAS or client that stands for \
                 it), and what it may do: list the container, read, write and delete blobs."
            }
            (Kind::Credentials, Service::Google) => {
                "check GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, and what the account may do: list \
                 the bucket, get, create and delete objects."
            }
            (Kind::Region, _) => "name the bucket's region: AWS_REGION or --store-option region=NAME.",
            (Kind::Unreachable, _) => {
                "check the endpoint (AWS_ENDPOINT_URL or --store-option endpoint=URL), the network, and TLS: an \
                 endpoint without it begins with http://."
            }
            (Kind::Busy, _) => {
                "the store was asked again for minutes; look at its state and run again later."
            }
            (Kind::Settings, _) => {
                "check the settings of the store in the environment and in --store-option."
            }
            (Kind::Other, _) => "see what the store's documentation says of this answer.",
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let hint = trouble.hint();
        RepositoryError { is_outage: true, ..RepositoryError::new(trouble.object, trouble.what, hint) }.into()
    }
}

fn classify(error: &Error, said: &str, code: Option<&str>) -> Kind {
    match code {
        Some("NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName") => return Kind::Bucket,
        Some("ExpiredToken" | "TokenRefreshRequired") => return Kind::Expired,
        Some("RequestTimeTooSkewed" | "RequestExpired") => return Kind::Clock,
        Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            return Kind::Region;
        }
        Some(
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AccessDenied"
            | "InvalidToken"
            | "NotSignedUp"
            | "AuthenticationFailed"
            | "AuthorizationFailure"
            | "NoAuthenticationInformation",
        ) => return Kind::Credentials,
        Some("SlowDown" | "ServiceUnavailable" | "InternalError" | "ServerBusy") => return Kind::Busy,
        _ => {}
    }
    match error {
        Error::NotFound { .. } if said.contains("bucket does not exist") => Kind::Bucket,
        Error::NotFound { .. } => Kind::Object,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Kind::Taken,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Kind::Credentials,
        Error::UnknownConfigurationKey { .. } => Kind::Settings,
        _ if said.contains("Received redirect") => Kind::Region,
        _ if said.contains("HTTP error") => Kind::Unreachable,
        _ if status(said).is_some_and(|status| status.starts_with('5') || status.starts_with("429")) => {
            Kind::Busy
        }
        Error::Generic { .. } if status(said).is_none() => Kind::Settings,
        _ => Kind::Other,
    }
}

/// All that the error says, with what it says of its causes. Not to be shown.
fn chain(error: &Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push('\n');
        said.push_str(&error.to_string());
        cause = error.source();
    }
    said
}

/// The first cause, which knows the most and quotes the least.
fn root(error: &Error) -> String {
    let mut said = None;
    let mut cause = error.source();
    while let Some(error) = cause {
        said = Some(error.to_string());
        cause = error.source();
    }
    shown(&said.unwrap_or_else(|| "the request failed".into()))
}

/// The code and the message of an answer of S3, Azure or Google's XML interface.
fn answer(said: &str) -> (Option<String>, Option<String>) {
    let between = |begin: &str, end: &str| {
        let from = said.find(begin)? + begin.len();
        let length = said[from..].find(end)?;
        Some(shown(&said[from..from + length])).filter(|text| !text.is_empty())
    };
    let code = between("<Code>", "</Code>");
    let message = code.as_ref().and_then(|_| between("<Message>", "</Message>"));
    (code, message)
}

/// The status of an answer, as `object_store` quotes it: `403 Forbidden`.
fn status(said: &str) -> Option<&str> {
    let said = said.split("status code: ").nth(1)?;
    let status = said.split(':').next()?;
    status.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some(status.trim())
}

/// One line, without what could write to a terminal.
fn shown(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().filter(|char| !char.is_control()).take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(status: &str, body: &str) -> Error {
        let said = format!(
            "Error performing GET http://h/b?sig=secret in 1ms - Server returned non-2xx status code: {status}: {body}"
        );
        match &status[..3] {
            "404" => Error::NotFound { path: "p".into(), source: said.into() },
            "403" => Error::PermissionDenied { path: "p".into(), source: said.into() },
            _ => Error::Generic { store: "S3", source: said.into() },
        }
    }

    #[test]
    fn answers_are_told_without_secrets() {
        let body = |code: &str| {
            format!(
                "<Error><Code>{code}</Code><Message>The words.\nsecret</Message><AWSAccessKeyId>secret</AWSAccessKeyId></Error>"
            )
        };
        for (status, code, hint) in [
            ("404 Not Found", "NoSuchBucket", "bucket's name"),
            ("404 Not Found", "NoSuchKey", "check the name"),
            ("403 Forbidden", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            ("403 Forbidden", "RequestTimeTooSkewed", "clock"),
            ("400 Bad Request", "ExpiredToken", "new credentials"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", "region"),
            ("503 Service Unavailable", "SlowDown", "later"),
        ] {
            let trouble = Trouble::of(Service::S3, "s3://b/o".into(), "read", &failed(status, &body(code)));
            let text = Failure::from(trouble).to_string();
            assert!(
                text.starts_with(&format!("s3://b/o: could not read: {code}: The words.\nHINT: ")),
                "{text}"
            );
            assert!(text.contains(hint) && !text.contains("secret"), "{text}");
        }
        let bare = Trouble::of(Service::S3, "s3://b/o".into(), "read", &failed("502 Bad Gateway", "secret"));
        let text = Failure::from(bare).to_string();
        assert!(text.contains("the store answered 502 Bad Gateway") && !text.contains("secret"), "{text}");
    }
}
