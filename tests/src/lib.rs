//! Harness of real PostgreSQL servers for the end-to-end, fault and compatibility tests.
//!
//! A test reads as what it proves:
//!
//! ```no_run
//! use pgstrata_tests as harness;
//!
//! let source = harness::cluster(17).with(harness::Workload::small()).start();
//! let dir = source.dir("copy");
//! let run = harness::pgstrata(["basebackup", "-X", "stream", "-c", "fast", "-d", &source.conninfo(), "-D"]);
//! run.arg(&dir).run().expect_success();
//! let copy = source.boot(&dir);
//! harness::compare(&source, &copy);
//! ```
//!
//! Everything here panics with a full message where a test cannot go on: a harness that half works proves nothing.
//! What a test makes lives in a scratch directory that goes with it, also after a kill (see [`Scratch`]).

mod aftermath;
mod artifacts;
mod collector;
mod combine;
mod compare;
mod complete;
mod disk;
pub mod fake;
pub mod in_process;
mod interposer;
mod invocation;
mod manifest;
mod relocation;
pub mod repositories;
mod s3;
mod scratch;
mod servers;
mod small_fs;
mod source;
mod sql;
mod take;
mod template;
mod terminal;
mod tls;
mod verify;
mod workload;
mod writer;

pub use aftermath::{Snapshot, expect_forgotten, expect_unfinished};
pub use artifacts::pgstrata_program;
pub use combine::{Combined, combine, stock_combine};
pub use compare::{Baseline, Comparison, compare, differences};
pub use complete::{Complete, complete};
pub use interposer::{Action, Direction, Fault, Interposer};
pub use invocation::{Finished, Invocation, Running, pgstrata, unprivileged_pgstrata};
pub use manifest::{Manifest, check_manifest};
pub use relocation::Relocation;
pub use s3::S3Server;
pub use scratch::Scratch;
pub use servers::{MAJORS, each_major, majors, program};
pub use small_fs::{FsKind, SmallFs};
pub use source::{ClusterBuilder, Source, cluster};
pub use sql::{Row, Sql};
pub use take::{basebackup, sql, wait_until};
pub use terminal::Keyboard;
pub use tls::{Authority, Identity, Subject};
pub use verify::{Verdict, amcheck, verify_backup, verify_files};
pub use workload::{OddFile, Tablespace, Workload};
pub use writer::{Ledger, Writer};
