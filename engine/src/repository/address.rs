//! Where a repository is, as the operator names it: a folder, or a bucket of an object store.

use std::path::PathBuf;
use std::sync::Arc;

use super::local::LocalStore;
use super::remote::{RemoteStore, Service};
use super::store::Store;
use crate::failure::Failure;

/// What an address can be.
const EXPECTED: &str = "HINT: name a folder, file: and a folder, s3://bucket/prefix, az://container/prefix or \
                        gs://bucket/prefix.";

/// A repository's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address<'a> {
    Folder(&'a str),
    Bucket { service: Service, bucket: &'a str, prefix: &'a str },
}

fn parse(text: &str) -> Result<Address<'_>, String> {
    let path = match text.split_once(':') {
        Some(("file", path)) => match path.strip_prefix("//") {
            // `file:///path`, and nothing on other hosts.
            Some(path) if !path.starts_with('/') => {
                return Err(format!(
                    "repository \"{text}\" names a host\nHINT: write file:///path for a folder here."
                ));
            }
            Some(path) => path,
            None => path,
        },
        Some((scheme @ ("s3" | "az" | "gs"), rest)) => {
            let service = match scheme {
                "s3" => Service::S3,
                "az" => Service::Azure,
                _ => Service::Google,
            };
            return bucket(service, rest).ok_or_else(|| {
                format!(
                    "repository \"{text}\" is no {scheme}://bucket or {scheme}://bucket/prefix\n{EXPECTED}"
                )
            });
        }
        Some((scheme @ ("http" | "https" | "azure" | "gcs" | "s3a" | "sftp" | "ssh"), _)) => {
            return Err(format!("repositories at \"{scheme}:\" are not supported\n{EXPECTED}"));
        }
        _ => text,
    };
    if path.is_empty() {
        Err(format!("the repository has no name\n{EXPECTED}"))
    } else {
        Ok(Address::Folder(path))
    }
}

/// A bucket's name is no place for anything else: what looks like a login, a port or options is refused.
fn bucket(service: Service, rest: &str) -> Option<Address<'_>> {
    let rest = rest.strip_prefix("//")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let component = |part: &str| !part.is_empty() && part != "." && part != "..";
    let good = !bucket.is_empty()
        && bucket.bytes().all(plain)
        && (prefix.is_empty() || prefix.split('/').all(component))
        && !prefix.bytes().any(|byte| byte.is_ascii_control() || matches!(byte, b'?' | b'#' | b'%' | b'\\'));
    good.then_some(Address::Bucket { service, bucket, prefix })
}

/// The place that an address names. `options` are settings of an object store, by the names that the `object_store`
/// library has for them; they come before the environment's. Nothing is asked of the place yet.
///
/// # Errors
/// For what is no address, or settings that go with none such.
pub fn open_store(text: &str, options: &[(String, String)]) -> Result<Arc<dyn Store>, Failure> {
    match parse(text).map_err(Failure::Target)? {
        Address::Folder(path) => {
            if !options.is_empty() {
                let what =
                    "a folder takes no store options\nHINT: leave --store-option out, or name a bucket.";
                return Err(Failure::Target(what.into()));
            }
            let path = std::path::absolute(PathBuf::from(path))
                .map_err(|error| Failure::Target(format!("repository \"{text}\": {error}")))?;
            Ok(Arc::new(LocalStore::new(path)))
        }
        Address::Bucket { service, bucket, prefix } => {
            Ok(Arc::new(RemoteStore::new(service, bucket, prefix, options)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, path) in
            [("/r", "/r"), ("file:/r", "/r"), ("file:///r", "/r"), ("/a:b", "/a:b"), ("r", "r")]
        {
            assert_eq!(parse(text).expect(text), Address::Folder(path));
        }
        let of = |service, bucket, prefix| Address::Bucket { service, bucket, prefix };
        for (text, address) in [
            ("s3://b", of(Service::S3, "b", "")),
            ("s3://b/", of(Service::S3, "b", "")),
            ("s3://b.c-d/p/q/", of(Service::S3, "b.c-d", "p/q")),
            ("az://container/p", of(Service::Azure, "container", "p")),
            ("gs://b_1/p", of(Service::Google, "b_1", "p")),
        ] {
            assert_eq!(parse(text).expect(text), address);
        }
        for (text, expected) in [
            ("s3:b/p", "is no s3://bucket"),
            ("s3://", "is no s3://bucket"),
            ("s3:///p", "is no s3://bucket"),
            ("s3://b//p", "is no s3://bucket"),
            ("s3://b/../p", "is no s3://bucket"),
            ("s3://b?x=y", "is no s3://bucket"),
            ("gs://b/p?x=y", "is no gs://bucket"),
            ("az:x", "is no az://bucket"),
            ("https://b/p", "\"https:\" are not supported"),
            ("", "no name"),
            ("file:", "no name"),
            ("file://host/x", "host"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(expected) && refused.contains("HINT: "), "{text}: {refused}");
        }
        assert!(open_store("r", &[]).expect("relative").address().starts_with('/'));
        let options = [("timeout".to_owned(), "1 second".to_owned())];
        assert!(open_store("/r", &options).expect_err("a folder").to_string().contains("no store options"));
    }

    #[test]
    fn unknown_options_are_refused_and_values_never_told() {
        let refuse = |key: &str| {
            let options = [(key.to_owned(), "hunter2".to_owned())];
            open_store("s3://b/p", &options).expect_err("unknown").to_string()
        };
        assert!(refuse("colour").contains("s3://b/p: unknown store option \"colour\""));
        assert!(!refuse("=secret key").contains("secret key"));
        let secrets = [("access_key_id", "hunter2"), ("secret_access_key", "hunter2")];
        let good = [[("ENDPOINT", "http://[::1]:9"), ("region", "x")], secrets].concat();
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let good: Vec<_> = good.into_iter().map(own).collect();
        let store = open_store("s3://b/p", &good).expect("known");
        assert_eq!(store.address(), "s3://b/p");
        assert!(!format!("{store:?}").contains("hunter2"));
    }
}
