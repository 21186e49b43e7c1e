//! What the measured cluster holds, the same in every run.
//!
//! - `noise`: half of all bytes, random, four rows a page, nothing that compresses. From 2.2 GB on it is larger than
//!   1 GiB, so that it has several segments.
//! - `orders_…`: tables of a sixteenth of all bytes each, numbers and words, each with a primary key and a second
//!   index, as many as it takes to reach the size.
//! - schema `small`: 500 tables of twenty rows with a primary key each, a thousand small relations.
//!
//! Rows go to the server as binary COPY files, while the next file is being made. Tables are loaded in the
//! transaction that creates them, frozen and without WAL (`wal_level=minimal`), so that nothing is left for
//! the server to tidy up later.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use anyhow::{Context, anyhow};
use pgstrata::connect::SqlClient;
use pgstrata::postmaster::Server;

use crate::copy_binary::Rows;
use crate::place::Place;
use crate::random::Random;
use crate::sql;

/// Changes whenever the contents do, so that no kept cluster is taken for another.
pub(crate) const REVISION: u32 = 1;
/// Where all random numbers begin.
const SEED: u64 = 0x7067_7374_7261_7461;
/// PostgreSQL's usual page.
const PAGE: u64 = 8192;
/// Bytes of a `noise` row's body: with its id and headers, the largest of which four fit on a page.
const NOISE_BODY: usize = 1990;
const NOISE_ROWS_A_PAGE: u64 = 4;
/// `orders_…` tables in half of the bytes.
const ORDER_TABLES: u64 = 8;
/// Bytes of an `orders_…` row with its part of both indexes, measured.
const ORDER_BYTES: u64 = 168;
/// Tables in the schema `small`; each has an index.
const SMALL_TABLES: u32 = 500;
/// Bytes of a COPY file.
const BATCH: usize = 64 << 20;
/// 2020-01-01 in microseconds since 2000-01-01.
const FIRST_ORDER: i64 = 7305 * 86_400 * 1_000_000;
const STATUSES: [&str; 5] = ["open", "paid", "packed", "shipped", "returned"];
const WORDS: [&str; 48] = [
    "after",
    "again",
    "and",
    "at",
    "back",
    "before",
    "bell",
    "blue",
    "box",
    "by",
    "call",
    "card",
    "corner",
    "customer",
    "damaged",
    "day",
    "delivery",
    "door",
    "early",
    "evening",
    "floor",
    "for",
    "fragile",
    "from",
    "gate",
    "gift",
    "in",
    "keep",
    "leave",
    "left",
    "morning",
    "neighbour",
    "next",
    "not",
    "note",
    "on",
    "parcel",
    "please",
    "ring",
    "second",
    "side",
    "sign",
    "the",
    "to",
    "twice",
    "with",
    "without",
    "yard",
];

/// The settings that a server is loaded with. Nothing has to survive a crash meanwhile.
pub(crate) const LOAD_SETTINGS: [(&str, &str); 10] = [
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("autovacuum", "off"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("shared_buffers", "256MB"),
    ("maintenance_work_mem", "256MB"),
];

/// Loads at least `bytes` into the databases of a server that was started with [`LOAD_SETTINGS`], and returns how
/// many bytes its databases have.
pub(crate) fn load(server: &Server, place: &Place, bytes: u64) -> anyhow::Result<u64> {
    let mut client = sql::connect(server)?;
    let files = CopyFiles::create(server, place)?;
    small(&mut client)?;
    noise(&mut client, &files, bytes / 2)?;
    let mut table = 0;
    loop {
        let size = sql::number(
            &mut client,
            "SELECT sum(pg_catalog.pg_database_size(oid)) FROM pg_catalog.pg_database",
        )?;
        if size >= bytes {
            client.close();
            return Ok(size);
        }
        table += 1;
        orders(&mut client, &files, table, bytes / 2 / ORDER_TABLES)?;
    }
}

fn small(client: &mut SqlClient) -> anyhow::Result<()> {
    sql::execute(
        client,
        &format!(
            "CREATE SCHEMA small;
             DO $$ BEGIN
                FOR n IN 1..{SMALL_TABLES} LOOP
                    EXECUTE format('CREATE TABLE small.t_%s (id integer PRIMARY KEY, n bigint NOT NULL)', n);
                    EXECUTE format('INSERT INTO small.t_%s SELECT i, i * %s FROM generate_series(1, 20) i', n, n);
                END LOOP;
             END $$"
        ),
    )
}

fn noise(client: &mut SqlClient, files: &CopyFiles, bytes: u64) -> anyhow::Result<()> {
    sql::execute(client, "BEGIN")?;
    sql::execute(client, "CREATE TABLE noise (id bigint NOT NULL, body bytea NOT NULL)")?;
    // What does not compress need not be tried, and four rows are to stay on each page.
    sql::execute(client, "ALTER TABLE noise ALTER COLUMN body SET STORAGE PLAIN")?;
    let mut random = Random::new(SEED);
    files.copy(client, "noise", bytes / PAGE * NOISE_ROWS_A_PAGE, |id, rows| {
        rows.row(2);
        rows.int8(id);
        rows.bytes(|out| random.append(NOISE_BODY, out));
    })?;
    sql::execute(client, "COMMIT")
}

fn orders(client: &mut SqlClient, files: &CopyFiles, table: u32, bytes: u64) -> anyhow::Result<()> {
    let name = format!("orders_{table:02}");
    sql::execute(client, "BEGIN")?;
    sql::execute(
        client,
        &format!(
            "CREATE TABLE {name} (id bigint NOT NULL, customer integer NOT NULL, cents integer NOT NULL,
                placed timestamptz NOT NULL, status text NOT NULL, note text NOT NULL)"
        ),
    )?;
    let mut random = Random::new(SEED ^ u64::from(table));
    let mut placed = FIRST_ORDER;
    files.copy(client, &name, bytes / ORDER_BYTES, |id, rows| {
        placed += i64::from(random.below(60_000_000));
        let number = |random: &mut Random, below| i32::try_from(random.below(below)).expect("a small bound");
        rows.row(6);
        rows.int8(id);
        rows.int4(number(&mut random, 200_000));
        rows.int4(number(&mut random, 50_000));
        rows.int8(placed);
        rows.bytes(|out| out.extend_from_slice(random.choose(&STATUSES).as_bytes()));
        rows.bytes(|out| {
            for word in 0..random.below(10) + 6 {
                if word > 0 {
                    out.push(b' ');
                }
                out.extend_from_slice(random.choose(&WORDS).as_bytes());
            }
        });
    })?;
    sql::execute(client, &format!("ALTER TABLE {name} ADD PRIMARY KEY (id)"))?;
    sql::execute(client, &format!("CREATE INDEX ON {name} (customer, placed)"))?;
    sql::execute(client, "COMMIT")
}

/// Two files that the server can read, used in turn. Removed with the handle.
struct CopyFiles {
    paths: [PathBuf; 2],
}

impl CopyFiles {
    fn create(server: &Server, place: &Place) -> anyhow::Result<Self> {
        let paths = [1, 2].map(|number| place.dir().join(format!("load-{number}.copy")));
        let files = Self { paths };
        for path in &files.paths {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(path).with_context(|| format!("cannot create {}", path.display()))?;
            server.cluster().run_as().own(path)?;
        }
        Ok(files)
    }

    /// Copies `count` rows, numbered from 1, into a table. One file is made while the server reads the other.
    fn copy(
        &self,
        client: &mut SqlClient,
        table: &str,
        count: u64,
        mut row: impl FnMut(i64, &mut Rows<'_>) + Send,
    ) -> anyhow::Result<()> {
        let count = i64::try_from(count).context("too many rows")?;
        // Without room: when a file is taken, the server is done with the other one.
        let (ready, taken) = sync_channel(0);
        let make = move || {
            let (mut buffer, mut next) = (Vec::with_capacity(BATCH + 4096), 1);
            for path in self.paths.iter().cycle() {
                if next > count {
                    break;
                }
                let mut rows = Rows::begin(&mut buffer);
                while next <= count && rows.len() < BATCH {
                    row(next, &mut rows);
                    next += 1;
                }
                rows.end();
                File::create(path)
                    .and_then(|mut file| file.write_all(&buffer))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                if ready.send(path).is_err() {
                    // The server refused the last one, and that is what will be told.
                    break;
                }
            }
            anyhow::Ok(())
        };
        std::thread::scope(|scope| {
            let maker = scope.spawn(make);
            for path in taken {
                let path = path.to_str().context("the path of a file to copy is not UTF-8")?;
                let sql = format!("COPY {table} FROM {} (FORMAT binary, FREEZE)", sql::quoted(path));
                sql::execute(client, &sql)?;
            }
            maker.join().map_err(|_| anyhow!("the thread that makes rows has panicked"))?
        })
    }
}

impl Drop for CopyFiles {
    fn drop(&mut self) {
        for path in &self.paths {
            // One that stays is in nobody's way and is written over next time.
            let _ = fs::remove_file(path);
        }
    }
}
