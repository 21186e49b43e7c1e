//! The configuration file: repositories, clusters, what to keep. Options of a command line win over it.
//!
//! What is not known is refused with its line. Secrets have no place in it but a connection string's password, and then
//! nobody but its owner may read the file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::age::Age;
use super::backup::ChangesArg;
use crate::connect::conninfo_has_secret;
use crate::repository::{ClusterName, RetentionRules};

/// Where it is unless something else is said.
const DEFAULT: &str = "/etc/pgstrata/pgstrata.toml";
/// The variable that says where it is.
const VARIABLE: &str = "PGSTRATA_CONFIG";
/// How long nothing is removed that nothing refers to.
pub(super) const GRACE: Age = Age(24 * 60 * 60);

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Configuration {
    /// By name.
    #[serde(default)]
    pub(super) repository: BTreeMap<String, RepositorySection>,
    /// By name.
    #[serde(default)]
    pub(super) cluster: BTreeMap<Name, ClusterSection>,
    /// For clusters that say nothing else.
    #[serde(default)]
    pub(super) retention: RetentionSection,
}

/// A repository.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RepositorySection {
    /// Its address.
    pub(super) url: String,
    /// The file with a key of it.
    pub(super) key_file: Option<PathBuf>,
    /// The file with a passphrase of it.
    pub(super) passphrase_file: Option<PathBuf>,
    /// Settings of the object store, as --store-option takes them.
    #[serde(default)]
    pub(super) options: BTreeMap<String, Spanned<String>>,
}

/// A cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterSection {
    /// The name of its repository; that of the only one unless said.
    pub(super) repository: Option<Spanned<String>>,
    /// How to reach its server.
    pub(super) conninfo: Option<Spanned<String>>,
    /// What its frames are compressed with.
    pub(super) compress: Option<String>,
    /// The server's data directory on this machine: backups read that, unless a command line says otherwise.
    pub(super) pgdata: Option<PathBuf>,
    /// What says which pages changed since an older backup.
    pub(super) changes: Option<ChangesArg>,
    /// What to keep.
    #[serde(default)]
    pub(super) retention: RetentionSection,
}

/// What to keep.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionSection {
    keep: Option<u32>,
    keep_for: Option<Age>,
    grace: Option<Age>,
}

impl RetentionSection {
    /// As options give it.
    pub(super) fn new(keep: Option<u32>, keep_for: Option<Age>, grace: Option<Age>) -> Self {
        Self { keep, keep_for, grace }
    }

    /// What this does not say, `other` does.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            keep: self.keep.or(other.keep),
            keep_for: self.keep_for.or(other.keep_for),
            grace: self.grace.or(other.grace),
        }
    }

    /// The rules.
    pub(super) fn rules(self) -> RetentionRules {
        RetentionRules { keep: self.keep, keep_for: self.keep_for.map(|age| age.0) }
    }

    /// How long nothing is removed that nothing refers to.
    pub(super) fn grace(self) -> Age {
        self.grace.unwrap_or(GRACE)
    }
}

/// The name of a cluster's section.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(pub(super) ClusterName);

impl<'d> Deserialize<'d> for Name {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl Configuration {
    /// Reads the file that `given` or the environment names, or the default one if it is there.
    pub(super) fn load(given: Option<&Path>) -> anyhow::Result<Self> {
        let variable = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        match given.map(Path::to_owned).or(variable) {
            Some(path) => Self::read(&path),
            None if Path::new(DEFAULT).exists() => Self::read(Path::new(DEFAULT)),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| {
            format!("could not read configuration file \"{shown}\"\nHINT: check --config and {VARIABLE}")
        })?;
        let open_to = fs::metadata(path).map_or(0, |found| found.permissions().mode()) & 0o077;
        Self::parse(&text, open_to != 0).map_err(|error| anyhow!("configuration file \"{shown}\": {error}"))
    }

    /// `open`: whether others than its owner may read it.
    fn parse(text: &str, open: bool) -> anyhow::Result<Self> {
        let found: Self = toml::from_str(text).map_err(|error| {
            // Not the line itself, which may hold a password.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let what = error.message().trim_end();
            anyhow!("line {line}: {what}\nHINT: docs/operations.md has all that it may say.")
        })?;
        let line = |span: std::ops::Range<usize>| text[..span.start].matches('\n').count() + 1;
        for (name, section) in &found.repository {
            if section.key_file.is_some() && section.passphrase_file.is_some() {
                bail!(
                    "repository \"{name}\" has both a key_file and a passphrase_file, expected one\n\
                     HINT: leave one of them out."
                );
            }
            let secret = section.options.iter().find(|(key, _)| is_secret(key));
            if let Some((key, value)) = secret.filter(|_| open) {
                bail!(
                    "line {}: {key} is a secret, and others than its owner may read the file\n\
                     HINT: give the file mode 0600, or keep the secret in the environment.",
                    line(value.span())
                );
            }
        }
        for (Name(cluster), section) in &found.cluster {
            if let Some(name) = &section.repository
                && !found.repository.contains_key(name.get_ref())
            {
                bail!(
                    "line {}: cluster \"{cluster}\" has its backups in repository \"{}\", which is not configured\n\
                     HINT: add [repository.{}] with a url.",
                    line(name.span()),
                    name.get_ref(),
                    name.get_ref()
                );
            }
            if let Some(conninfo) = &section.conninfo {
                let secret = conninfo_has_secret(conninfo.get_ref())
                    .map_err(|error| anyhow!("line {}: {error}", line(conninfo.span())))?;
                if secret && open {
                    bail!(
                        "line {}: there is a password in it, and others than its owner may read the file\n\
                         HINT: give the file mode 0600, or keep the password in a password file (passfile=…).",
                        line(conninfo.span())
                    );
                }
            }
        }
        Ok(found)
    }

    /// What is said of a cluster.
    pub(super) fn cluster(&self, name: &ClusterName) -> Option<&ClusterSection> {
        self.cluster.iter().find_map(|(of, section)| (of.0 == *name).then_some(section))
    }

    /// The only cluster, where there is one.
    pub(super) fn only_cluster(&self) -> Option<&ClusterName> {
        match self.cluster.len() {
            1 => self.cluster.keys().next().map(|name| &name.0),
            _ => None,
        }
    }

    /// The address of a repository: a configured one by its name, or what the operator wrote. A name wins over a folder of
    /// the same name, which is written `./name`. Without either, the cluster's, or the only one.
    pub(super) fn address<'a>(
        &'a self,
        given: Option<&'a str>,
        cluster: Option<&ClusterName>,
    ) -> anyhow::Result<&'a str> {
        if let Some(given) = given {
            return Ok(self.repository.get(given).map_or(given, |section| &section.url));
        }
        let of_cluster = cluster.and_then(|cluster| self.cluster(cluster)?.repository.as_ref());
        if let Some(section) = of_cluster.and_then(|name| self.repository.get(name.get_ref())) {
            return Ok(&section.url);
        }
        match self.repository.len() {
            1 => Ok(self.repository.values().next().map_or("", |section| &section.url)),
            0 => bail!("no repository is named\nHINT: name it with --repo, or in a configuration file."),
            count => bail!("{count} repositories are configured\nHINT: say which with --repo NAME."),
        }
    }

    /// What is said of the repository that [`Self::address`] finds, by its name or its address.
    pub(super) fn repository(
        &self,
        given: Option<&str>,
        cluster: Option<&ClusterName>,
    ) -> Option<&RepositorySection> {
        let address = self.address(given, cluster).ok()?;
        let by_name = given.and_then(|given| self.repository.get(given));
        by_name.or_else(|| self.repository.values().find(|section| section.url == address))
    }

    /// What to keep of a cluster; what `options` say wins.
    pub(super) fn retention(&self, cluster: &ClusterName, options: RetentionSection) -> RetentionSection {
        let of_cluster = self.cluster(cluster).map(|section| section.retention).unwrap_or_default();
        options.or(of_cluster).or(self.retention)
    }
}

/// Whether a setting of an object store is one that nobody else is to read, going by its name.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["secret", "token", "sas", "password", "account_key", "service_account_key", "access_key"]
        .iter()
        .any(|word| key.contains(word))
        && !key.ends_with("access_key_id")
        && !key.ends_with("file")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        [repository.vault]
        url = "/backup/vault"
        key_file = "/etc/vault.key"
        options = { region = "eu-1" }
        [repository.spare]
        url = "file:///backup/spare"
        [retention]
        keep = 3
        [cluster.main]
        repository = "vault"
        conninfo = "host=/run/postgresql user=backup"
        compress = "lz4"
        [cluster.main.retention]
        keep_for = "14d"
        [cluster."eu-1.prod"]
    "#;

    fn name(text: &str) -> ClusterName {
        text.parse().expect("valid")
    }

    #[test]
    fn options_win_and_clusters_say_more_than_the_rest() {
        let found = Configuration::parse(SAMPLE, true).expect("valid");
        let [main, other, unknown] = ["main", "eu-1.prod", "new"].map(name);
        for (given, cluster, address) in [
            (Some("spare"), Some(&main), "file:///backup/spare"),
            (Some("./spare"), Some(&main), "./spare"),
            (None, Some(&main), "/backup/vault"),
        ] {
            assert_eq!(found.address(given, cluster).expect("known"), address);
        }
        for cluster in [Some(&other), Some(&unknown), None] {
            let refused = found.address(None, cluster).expect_err("two").to_string();
            assert!(
                refused.contains("2 repositories are configured") && refused.contains("HINT:"),
                "{refused}"
            );
        }
        let none = RetentionSection::default();
        let rules = |cluster, options| found.retention(cluster, options).rules();
        let expected = |keep, keep_for| RetentionRules { keep: Some(keep), keep_for };
        assert_eq!(rules(&main, none), expected(3, Some(14 * 86_400)));
        assert_eq!(rules(&other, none), expected(3, None));
        assert_eq!(rules(&main, RetentionSection::new(Some(5), None, None)), expected(5, Some(14 * 86_400)));
        assert_eq!(found.retention(&main, none).grace(), GRACE);
        assert_eq!(found.only_cluster(), None);
        for given in [None, Some("vault"), Some("/backup/vault")] {
            let section = found.repository(given, Some(&main)).expect("configured");
            assert_eq!(section.key_file.as_deref(), Some(Path::new("/etc/vault.key")));
            assert_eq!(section.options["region"].get_ref(), "eu-1");
        }
        assert!(found.repository(Some("/elsewhere"), Some(&main)).is_none());
        for (key, secret) in [
            ("secret_access_key", true),
            ("token", true),
            ("account_key", true),
            ("access_key_id", false),
            ("endpoint", false),
            ("web_identity_token_file", false),
        ] {
            assert_eq!(is_secret(key), secret, "{key}");
        }
        let one = Configuration::parse("[repository.a]\nurl = '/r'\n[cluster.main]\n", true).expect("valid");
        assert_eq!((one.only_cluster(), one.address(None, None).expect("one")), (Some(&main), "/r"));
        let refused = Configuration::default().address(None, None).expect_err("none").to_string();
        assert!(refused.contains("--repo"), "{refused}");
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        for (text, expected) in [
            ("\n\nretain = 3", &["line 3", "unknown field `retain`"][..]),
            ("[repository.a]\nurl = '/r'\nkeyfile = 'x'", &["line 3", "unknown field `keyfile`"]),
            ("[repository.a]\n", &["line 1", "missing field `url`"]),
            ("[repository.a]\nurl = '/r'\nkey_file = 'x'\npassphrase_file = 'y'", &["\"a\"", "expected one"]),
            (
                "[repository.a]\nurl = 's3://b'\n[repository.a.options]\nsecret_access_key = 'x'",
                &["line 4", "secret_access_key", "0600"],
            ),
            ("[cluster.main]\nport = 1", &["line 2", "unknown field `port`"]),
            ("[cluster.'a/b']\n", &["line 1", "invalid cluster name"]),
            ("[cluster.main]\n\nrepository = 'a'", &["line 3", "repository \"a\", which is not configured"]),
            ("[retention]\nkeep_for = '14'", &["line 2", "invalid age \"14\""]),
            ("[retention]\nkeep = -1", &["line 2", "-1"]),
            ("[cluster.main.retention]\nkept = 1", &["line 2", "unknown field `kept`"]),
            ("[cluster.main]\nconninfo = 'hostess=x'", &["line 2", "hostess"]),
            ("[cluster.main]\nconninfo = 'password=x'", &["line 2", "password", "0600"]),
            ("a = ", &["line 1"]),
        ] {
            let refused = Configuration::parse(text, true).expect_err(text).to_string();
            for word in expected {
                assert!(refused.contains(word), "{text:?}: {refused}");
            }
        }
        Configuration::parse("[cluster.main]\nconninfo = 'password=x'", false).expect("nobody else reads it");
    }
}
