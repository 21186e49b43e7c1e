//! A client of an object store, from the environment and the operator's options, as `object_store` names them.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use super::super::RepositoryError;
use super::counting::{Counters, CountingConnector};
use super::trouble::Trouble;
use crate::failure::Failure;

/// One attempt takes no longer, unless `timeout` says otherwise: a part of 8 MiB over a slow line that many share.
const TIMEOUT: &str = "120 seconds";
/// Nor does a connection, unless `connect_timeout` does.
const CONNECT_TIMEOUT: &str = "10 seconds";

/// Whose interface a store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Service {
    /// Amazon S3, and what speaks like it.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

impl Service {
    /// What addresses begin with.
    pub(in super::super) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "az",
            Self::Google => "gs",
        }
    }

    /// What the names of its settings in the environment begin with.
    fn variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Azure => "AZURE_",
            Self::Google => "GOOGLE_",
        }
    }
}

/// Two clients of one store.
pub(super) struct Connection {
    /// Gives up within seconds.
    pub(super) hasty: Arc<dyn ObjectStore>,
    /// Tries for minutes.
    pub(super) patient: Arc<dyn ObjectStore>,
}

fn hasty() -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(1), ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries: 3, retry_timeout: Duration::from_secs(10) }
}

fn patient() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 20,
        retry_timeout: Duration::from_secs(180),
    }
}

/// Applies the options to a builder. `$key` is the type of its keys.
macro_rules! configure {
    ($builder:expr, $key:ty, $client:path, $endpoint:expr, $service:expr, $options:expr, $counters:expr, $address:expr) => {{
        let mut builder = $builder;
        let (service, address): (Service, &str) = ($service, $address);
        for (setting, value) in
            [(ClientConfigKey::Timeout, TIMEOUT), (ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT)]
        {
            let variable = format!("{}{}", service.variables(), setting.as_ref().to_ascii_uppercase());
            if std::env::var_os(variable).is_none() {
                builder = builder.with_config($client(setting), value);
            }
        }
        for (key, value) in $options {
            let known = <$key>::from_str(&key.to_ascii_lowercase()).map_err(|_| unknown(address, key))?;
            builder = builder.with_config(known, value);
        }
        // Whoever writes http:// has decided.
        let is_plain =
            |key: &$key| builder.get_config_value(key).is_some_and(|url| url.starts_with("http://"));
        if $endpoint.iter().any(is_plain) {
            builder = builder.with_config($client(ClientConfigKey::AllowHttp), "true");
        }
        let build = |retry: RetryConfig| -> Result<Arc<dyn ObjectStore>, Failure> {
            let builder = builder.clone().with_retry(retry);
            let built = builder.with_http_connector(CountingConnector(Arc::clone($counters))).build();
            let built = built.map_err(|error| Trouble::of(service, address.to_owned(), "use", &error))?;
            Ok(Arc::new(built))
        };
        Ok(Connection { hasty: build(hasty())?, patient: build(patient())? })
    }};
}

/// Makes the clients. Asks nothing of the store.
pub(super) fn connect(
    service: Service,
    bucket: &str,
    options: &[(String, String)],
    counters: &Arc<Counters>,
    address: &str,
) -> Result<Connection, Failure> {
    match service {
        Service::S3 => configure!(
            AmazonS3Builder::from_env().with_bucket_name(bucket),
            AmazonS3ConfigKey,
            AmazonS3ConfigKey::Client,
            [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint],
            service,
            options,
            counters,
            address
        ),
        Service::Azure => configure!(
            MicrosoftAzureBuilder::from_env().with_container_name(bucket),
            AzureConfigKey,
            AzureConfigKey::Client,
            [AzureConfigKey::Endpoint],
            service,
            options,
            counters,
            address
        ),
        Service::Google => configure!(
            GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket),
            GoogleConfigKey,
            GoogleConfigKey::Client,
            [GoogleConfigKey::BaseUrl],
            service,
            options,
            counters,
            address
        ),
    }
}

/// The value may be a secret, and the key's place a mistake for it: neither is shown.
fn unknown(address: &str, key: &str) -> Failure {
    let what = match key.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-')) {
        true if key.len() <= 64 => format!("unknown store option \"{key}\""),
        _ => "unknown store option".to_owned(),
    };
    let hint = "see README.md for the options of each kind of store, such as endpoint, region or timeout.";
    RepositoryError::new(address, what, hint).into()
}
