//! Writers hold many files open while these are synced; the soft limit is commonly too low for that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to what the system allows.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it cannot be raised, a run that needs more says so when it fails to open a file.
    let _ = setrlimit(Resource::Nofile, raised);
}
