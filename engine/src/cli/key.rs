//! `pgstrata key`: key files, and who may open an encrypted repository.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::key_options::{ask_new, from_files};
use super::message;
use super::progress::print_json;
use super::repository::{RepositoryArgs, print_lines, shown_time};
use super::run_basebackup::told;
use crate::repository::{
    Changed, Head, KeySlot, Secret, add_recipient, list_heads, remove_recipient, rotate,
};

/// Make keys, and say who may open an encrypted repository
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    Generate(GenerateArgs),
    List(ListArgs),
    Add(AddArgs),
    Remove(RemoveArgs),
    Rotate(RotateArgs),
}

/// Make a key file of 256 random bits
#[derive(Debug, Args)]
struct GenerateArgs {
    /// The file to make; one that is there is left alone
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write the outcome to stdout as JSON
    #[arg(long)]
    json: bool,
}

/// List the key slots of a repository; no key is needed
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// Let a further recipient open a repository
#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    #[command(flatten)]
    new: NewKey,
    /// What the recipient is called; everybody can read it
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

/// The new recipient's key.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct NewKey {
    /// The new recipient's key file
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// File with the new recipient's passphrase
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// Ask for the new recipient's passphrase on the terminal
    #[arg(long)]
    ask_passphrase: bool,
}

/// Take a recipient out, and begin a new data key
#[derive(Debug, Args)]
struct RemoveArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The number of the slot, as `pgstrata key list` shows it
    #[arg(value_name = "SLOT")]
    slot: u32,
}

/// Begin a new data key for what is written from now on
#[derive(Debug, Args)]
struct RotateArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &KeyArgs) -> anyhow::Result<()> {
    match &args.command {
        KeyCommand::Generate(args) => generate(args),
        KeyCommand::List(args) => list(&args.repository),
        KeyCommand::Add(args) => add(args),
        KeyCommand::Remove(args) => remove(args),
        KeyCommand::Rotate(args) => {
            let changed =
                held(&args.repository).and_then(|secret| Ok(rotate(&*args.repository.store()?, &secret)?));
            args.repository.tell(changed, |changed| {
                let key = changed.data_key;
                message::note(&format!("data key {key} begun; what is there stays readable with all keys"));
                tell_heads_left(changed);
                Ok(())
            })
        }
    }
}

fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let made = Secret::generate_key_file(&args.file).map_err(anyhow::Error::from);
    let event = made.inspect_err(|error| {
        let text = told(error);
        if args.json {
            print_json(&json!({ "event": "error", "message": text }));
        }
        message::error(&text);
    });
    event?;
    let file = args.file.display().to_string();
    if args.json {
        print_json(&json!({ "event": "summary", "file": file }));
    } else {
        message::note(&format!("key file made in {file}"));
        message::note("keep a copy apart from the repository: without a key nothing in it can be restored");
    }
    Ok(())
}

fn list(repository: &RepositoryArgs) -> anyhow::Result<()> {
    repository.tell(read_list(repository), |listed| {
        let slots = listed["key_slots"].as_array().map(Vec::as_slice).unwrap_or_default();
        if slots.is_empty() {
            message::note("the repository is not encrypted");
        }
        let mut text = String::new();
        for slot in slots {
            let word = |key: &str| slot[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| slot[key].as_u64().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<4} {:<12} {}  {}",
                number("slot"),
                word("method"),
                shown_time(number("created")),
                // What nobody has sealed yet is to make no lines of its own.
                word("label").replace(char::is_control, "?")
            );
        }
        print_lines(&text);
        let old = listed["old_heads"].as_array().map(Vec::as_slice).unwrap_or_default();
        for name in old.iter().filter_map(Value::as_str) {
            message::warning(&format!(
                "{name} is an old head, which recipients that were removed since can still open\n\
                 HINT: remove that object; the next change of keys does it too."
            ));
        }
        Ok(())
    })
}

fn read_list(repository: &RepositoryArgs) -> anyhow::Result<Value> {
    let store = repository.store()?;
    let Some(head) = Head::read(&*store)? else {
        // Told as every command does.
        repository.open_of(None)?;
        bail!("there is no repository");
    };
    let slot = |slot: &KeySlot| json!({ "slot": slot.number, "method": slot.method, "label": slot.label, "created": slot.created });
    let slots: Vec<_> = head.summary.key_slots.iter().map(slot).collect();
    let keys = head.summary.key_slots.iter().flat_map(|slot| &slot.data_keys);
    let mut old = list_heads(&*store)?;
    old.retain(|name| *name != head.name());
    Ok(json!({
        "repository": store.address(), "head": head.number, "encrypted": head.is_encrypted(), "key_slots": slots,
        "data_key": keys.map(|key| key.number).max(), "old_heads": old,
    }))
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    let added = held(&args.repository).and_then(|secret| {
        let NewKey { new_key_file, new_passphrase_file, ask_passphrase } = &args.new;
        let new = match from_files(new_key_file.as_deref(), new_passphrase_file.as_deref())? {
            Some(new) => new,
            None if *ask_passphrase => ask_new()?,
            None => bail!("no new key is named"),
        };
        Ok(add_recipient(&*args.repository.store()?, &secret, &new, &args.label)?)
    });
    args.repository.tell(added, |added| {
        message::note(&format!("key slot {} added: it opens all that is there and comes", added.slot));
        tell_heads_left(&added.changed);
        Ok(())
    })
}

fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let changed = held(&args.repository)
        .and_then(|secret| Ok(remove_recipient(&*args.repository.store()?, &secret, args.slot)?));
    args.repository.tell(changed, |changed| {
        message::note(&format!("key slot {} removed, and data key {} begun", args.slot, changed.data_key));
        message::note(
            "what was written before stays readable to whoever has that key and a copy of an old head, or of its keys",
        );
        tell_heads_left(changed);
        Ok(())
    })
}

/// The key of a recipient who changes something.
fn held(repository: &RepositoryArgs) -> anyhow::Result<Secret> {
    match repository.secret_or_ask()? {
        Some(secret) => Ok(secret),
        None => Err(anyhow!(
            "a recipient's key is needed to change the repository's keys, and none is given\n\
             HINT: name one with --key-file or --passphrase-file, or in PGSTRATA_KEY_FILE or PGSTRATA_PASSPHRASE."
        )),
    }
}

fn tell_heads_left(changed: &Changed) {
    for left in &changed.heads_left {
        message::warning(&format!(
            "could not remove an old head: {left}\n\
             HINT: remove that object; until then recipients that were removed can still open it."
        ));
    }
}
