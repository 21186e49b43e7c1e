//! `pgstrata init`: makes a repository.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::key_options::ask_new;
use super::message;
use super::repository::RepositoryArgs;
use crate::repository::Repository;

/// Make a repository for backups
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Encrypt it for a passphrase that is asked for on the terminal
    #[arg(long)]
    ask_passphrase: bool,
    /// What the first recipient of an encrypted repository is called; everybody can read it
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

impl InitArgs {
    fn make(&self) -> anyhow::Result<Value> {
        let secret = match self.repository.secret(None)? {
            Some(_) if self.ask_passphrase => bail!(
                "a key is given, and a passphrase is to be asked for, expected one\n\
                 HINT: leave --ask-passphrase out, or the key; `pgstrata key add` adds the other."
            ),
            None if self.ask_passphrase => Some(ask_new()?),
            secret => secret,
        };
        if secret.is_none() && !self.label.is_empty() {
            bail!(
                "a recipient is named, and no key is given\nHINT: name it with --key-file or --passphrase-file."
            );
        }
        let recipient = secret.as_ref().map(|secret| (secret, &*self.label));
        let repository = Repository::init_for(self.repository.store()?, recipient)?;
        Ok(json!({ "repository": repository.store().address(), "encrypted": secret.is_some() }))
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &InitArgs) -> anyhow::Result<()> {
    args.repository.tell(args.make(), |made| {
        let encrypted = if made["encrypted"] == true { "encrypted " } else { "" };
        let address = made["repository"].as_str().unwrap_or_default();
        message::note(&format!("{encrypted}repository made in {address}"));
        Ok(())
    })
}
