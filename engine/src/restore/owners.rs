//! Whose the restored files are: as recorded, or as the operator says; nobody but root can give files away.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Uid};

use super::accounts::{group, user, user_name};
use super::target::Target;
use crate::failure::Failure;
use crate::repository::{BackupSummary, Manifest, OwnerSummary};

/// Users and groups by the numbers of owners.
#[derive(Debug)]
pub(super) struct Owners {
    /// By number; the first stands for what has no owner on record. None keeps whoever restores.
    by_number: Vec<Option<(u32, u32)>>,
    /// What the operator should know.
    pub(super) warning: Option<String>,
}

impl Owners {
    /// Resolves a backup's owners on this host. What is unknown is a problem, in words.
    pub(super) fn of(
        summary: &BackupSummary,
        wanted: Option<&(String, Option<String>)>,
        problems: &mut Vec<String>,
    ) -> Self {
        let (me, my_group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let everybodys = |owner| vec![owner; summary.owners.len() + 1];
        if let Some((user, group)) = wanted {
            let owner = resolve(user, group.as_deref(), problems);
            if let Some((uid, _)) = owner.filter(|(uid, _)| me != 0 && *uid != me) {
                problems.push(format!(
                    "files cannot be given to user {} by user {}\n\
                     HINT: only root can give files away; leave --owner out, or restore as root.",
                    user_name(uid),
                    user_name(me)
                ));
            }
            return Self { by_number: everybodys(owner), warning: None };
        }
        let recorded = summary.folder_owner.checked_sub(1).map(|place| &summary.owners[usize::from(place)]);
        if me == 0 {
            let found: Vec<_> =
                std::iter::once(None).chain(summary.owners.iter().map(|one| Some(here(one)))).collect();
            let of_root = recorded.is_none_or(|owner| here(owner).0 == 0);
            let warning = of_root.then(|| {
                "the restored files belong to root: the backup does not say whose they were, and PostgreSQL refuses \
                 to run as root\nHINT: give them to the server's user with --owner."
                    .to_owned()
            });
            return Self { by_number: found, warning };
        }
        let warning = recorded.map(here).filter(|owner| *owner != (me, my_group)).map(|(uid, gid)| {
            format!(
                "the restored files belong to user {} (group {my_group}), as recorded they belonged to {} (group {gid})\n\
                 HINT: restore as root to give them back.",
                user_name(me),
                user_name(uid)
            )
        });
        Self { by_number: everybodys(None), warning }
    }

    /// Whether anything is given away.
    pub(super) fn give(&self) -> bool {
        self.by_number.iter().any(Option::is_some)
    }

    /// Gives everything to its owner. The caller makes it durable.
    pub(super) fn apply(&self, manifest: &Manifest, target: &Target) -> Result<(), Failure> {
        let give = |path: &[u8], owner: u16| -> Result<(), Failure> {
            let Some((uid, gid)) = self.by_number.get(usize::from(owner)).copied().flatten() else {
                return Ok(());
            };
            let (folder, name) = target.place(target.held(path))?;
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&folder.handle, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Failure::disk("change the owner of", folder.path.join(&name), error))
        };
        manifest.each_file(|file| give(&file.path, file.owner))?;
        manifest.each_folder(|folder| {
            if target.is_wal_root(&folder.path) { Ok(()) } else { give(&folder.path, folder.owner) }
        })?;
        let Some((uid, gid)) =
            self.by_number.get(usize::from(manifest.summary.folder_owner)).copied().flatten()
        else {
            return Ok(());
        };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        for root in target.roots() {
            rustix::fs::fchown(root.handle.as_fd(), uid, gid)
                .map_err(|error| Failure::disk("change the owner of", &root.path, error))?;
        }
        for (folder, name) in target.links()? {
            rustix::fs::chownat(&folder.handle, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Failure::disk("change the owner of", folder.path.join(&name), error))?;
        }
        Ok(())
    }
}

/// An owner as this host knows it: by name where that is recorded and known here, else by number.
fn here(owner: &OwnerSummary) -> (u32, u32) {
    let by_name = owner.user.as_deref().and_then(user);
    let group = owner.group.as_deref().and_then(group);
    (by_name.map_or(owner.uid, |(uid, _)| uid), group.unwrap_or(owner.gid))
}

fn resolve(name: &str, group_name: Option<&str>, problems: &mut Vec<String>) -> Option<(u32, u32)> {
    let own = user(name).or_else(|| name.parse().ok().map(|uid: u32| (uid, uid)));
    let of_group = match group_name {
        None => own.map(|(_, gid)| gid),
        Some(name) => group(name).or_else(|| name.parse().ok()),
    };
    for (what, name, known) in
        [("user", Some(name), own.is_some()), ("group", group_name, of_group.is_some() || own.is_none())]
    {
        if let Some(name) = name.filter(|_| !known) {
            problems
                .push(format!("there is no {what} \"{name}\" on this host\nHINT: make it, or name another."));
        }
    }
    Some((own?.0, of_group?))
}
