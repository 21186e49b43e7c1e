//! Users and groups of this host, by name and by number.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Bytes for one entry; `getpwnam_r` says where an entry has more, and no real one has.
const ENTRY: usize = 64 << 10;

/// A user's number and the number of its own group.
pub(super) fn user(name: &str) -> Option<(u32, u32)> {
    let name = CString::new(name).ok()?;
    let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), null_mut());
    let mut text = vec![0; ENTRY];
    // SAFETY: all pointers are valid for the call, and `text` has the length that is said.
    let error = unsafe {
        libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found)
    };
    // SAFETY: without an error and with a result the entry was filled in.
    (error == 0 && !found.is_null()).then(|| unsafe { ((*found).pw_uid, (*found).pw_gid) })
}

/// A group's number.
pub(super) fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let (mut entry, mut found) = (MaybeUninit::<libc::group>::uninit(), null_mut());
    let mut text = vec![0; ENTRY];
    // SAFETY: all pointers are valid for the call, and `text` has the length that is said.
    let error = unsafe {
        libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found)
    };
    // SAFETY: without an error and with a result the entry was filled in.
    (error == 0 && !found.is_null()).then(|| unsafe { (*found).gr_gid })
}

/// A user's name, for messages; its number where it has none.
pub(super) fn user_name(uid: u32) -> String {
    let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), null_mut());
    let mut text = vec![0; ENTRY];
    // SAFETY: all pointers are valid for the call, and `text` has the length that is said.
    let error =
        unsafe { libc::getpwuid_r(uid, entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found) };
    if error != 0 || found.is_null() {
        return uid.to_string();
    }
    // SAFETY: the entry was filled in, and its name lies in `text`, terminated.
    let name = unsafe { CStr::from_ptr((*found).pw_name) };
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_everywhere() {
        assert_eq!(user("root"), Some((0, 0)));
        assert_eq!(group("root"), Some(0));
        assert_eq!(user_name(0), "root");
        assert_eq!((user("no such user"), group("no such group")), (None, None));
        assert_eq!(user_name(4_000_000_001), "4000000001");
    }
}
