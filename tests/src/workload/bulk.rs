//! Many small relations, and a table of several segments.

use std::thread;

use pgstrata::postmaster::Server;

use crate::Sql;

/// Settings of the server that loads: a table filled in the transaction that made it writes no WAL.
pub(super) const SETTINGS: [(&str, &str); 9] = [
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("autovacuum", "off"),
    ("shared_buffers", "256MB"),
    ("max_locks_per_transaction", "512"),
    ("dynamic_shared_memory_type", "mmap"),
];

/// How many relations one transaction makes.
const A_TRANSACTION: u32 = 500;
const SESSIONS: u32 = 2;

/// Makes `bulk.r0`, `bulk.r1`, … with a row each.
pub(super) fn small_relations(server: &Server, count: u32) -> anyhow::Result<()> {
    let load = |session: u32| {
        let sql = Sql::connect(&server.socket_conninfo())?;
        let last = count - 1;
        sql.try_execute(&format!(
            "DO $$ BEGIN
               FOR i IN {session} .. {last} BY {SESSIONS} LOOP
                 EXECUTE format('CREATE TABLE bulk.r%s AS SELECT %s AS id, %s::bigint AS square', i, i, i::bigint * i);
                 IF (i / {SESSIONS}) % {A_TRANSACTION} = 0 THEN COMMIT; END IF;
               END LOOP;
             END $$"
        ))
    };
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS).map(|session| scope.spawn(move || load(session))).collect();
        sessions.into_iter().try_for_each(|session| session.join().expect("a loading session panicked"))
    })
}

/// Makes `bulk.large`. A row takes a quarter of a page and stays below the size at which it would be compressed.
pub(super) fn large_table(sql: &Sql, mib: u32) -> anyhow::Result<()> {
    let rows = u64::from(mib) * 128 * 4;
    sql.try_execute(&format!(
        "CREATE TABLE bulk.large AS
         SELECT i AS id, (i * 7919) % {rows} AS shuffled, repeat(md5(i::text), 60) AS filler
         FROM generate_series(1, {rows}::bigint) AS i;
         CREATE INDEX ON bulk.large (id)"
    ))
}
