//! `compare tar`: pg_basebackup against pgstrata in tar format, compressed by the client.
//!
//! As `compare basebackup` in everything else. The copy that is handed to pg_verifybackup is unpacked for it.

use crate::arguments::{Method, TarOptions};
use crate::basebackup::{self, Check};

/// Sets up, measures and tells.
pub(crate) fn compare(options: &TarOptions) -> anyhow::Result<()> {
    let (benchmark, format): (_, &[&str]) = match options.method {
        Method::Zstd => ("tar, zstd", &["-F", "tar", "--compress=client-zstd:level=1,workers=2"]),
        Method::Gzip => ("tar, gzip", &["-F", "tar", "-z"]),
    };
    basebackup::take(&options.basebackup, benchmark, format, Check::Unpacked(options.method))
}
