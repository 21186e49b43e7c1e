//! Tables of many types, indexes and storage kinds; unlogged and temporary ones.

use pgstrata::postmaster::Server;

use crate::Sql;

/// Unlogged relations: a copy has them, empty.
pub(super) const UNLOGGED: &str = "
CREATE SCHEMA IF NOT EXISTS data;
CREATE UNLOGGED TABLE data.unlogged (id int PRIMARY KEY, v text, big text);
ALTER TABLE data.unlogged ALTER big SET STORAGE EXTERNAL;
INSERT INTO data.unlogged SELECT i, md5(i::text), repeat(md5(i::text), 100) FROM generate_series(1, 500) AS i;
CREATE INDEX ON data.unlogged USING hash (v)";

/// Temporary relations of the session.
pub(super) const TEMPORARY: &str = "
CREATE TEMPORARY TABLE temporary AS SELECT i, repeat('t', 1000) AS v FROM generate_series(1, 2000) AS i;
CREATE INDEX ON temporary (i);
CREATE TEMPORARY TABLE temporary_big (v text);
ALTER TABLE temporary_big ALTER v SET STORAGE EXTERNAL;
INSERT INTO temporary_big SELECT repeat('b', 100000) FROM generate_series(1, 20)";

/// Loads the schema `data` of the database `postgres`, and the database `other`.
pub(super) fn load(server: &Server, sql: &Sql, rows: u32) -> anyhow::Result<()> {
    sql.try_execute(&tables(rows))?;
    // Dead rows, then free space and visibility maps; a relation file that shrank; pages that never saw a checkpoint.
    sql.try_execute("DELETE FROM data.numbers WHERE id % 3 = 0")?;
    sql.try_execute("UPDATE data.texts SET v = upper(v) WHERE id % 5 = 0")?;
    sql.try_execute("VACUUM (ANALYZE) data.numbers")?;
    sql.try_execute("VACUUM (FULL) data.texts")?;
    sql.try_execute("CHECKPOINT")?;
    sql.try_execute("UPDATE data.numbers SET a = a + 1 WHERE id % 7 = 0")?;

    sql.try_execute("CREATE ROLE reader LOGIN PASSWORD 'secret'")?;
    sql.try_execute("CREATE DATABASE other TEMPLATE template0")?;
    let other = Sql::connect(&server.database_conninfo("other"))?;
    other.try_execute(&format!(
        "CREATE SCHEMA data;
         CREATE TABLE data.elsewhere AS SELECT i, md5(i::text) AS v FROM generate_series(1, {rows}) AS i;
         ALTER TABLE data.elsewhere ADD PRIMARY KEY (i)"
    ))
}

fn tables(rows: u32) -> String {
    let few = rows / 20 + 1;
    format!(
        "CREATE SCHEMA IF NOT EXISTS data;

         CREATE TABLE data.numbers (id bigint PRIMARY KEY, a int, b double precision, c numeric, d timestamptz, e bool);
         INSERT INTO data.numbers
           SELECT i, (i * 7919) % 1000, sqrt(i), i::numeric / 7,
                  timestamptz '2020-02-29 12:00:00Z' + i * interval '1 minute', i % 2 = 0
           FROM generate_series(1, {rows}) AS i;
         CREATE INDEX ON data.numbers USING brin (d);
         CREATE INDEX ON data.numbers USING hash (a);
         CREATE INDEX ON data.numbers (c, b DESC) WHERE e;

         CREATE TABLE data.texts (id serial PRIMARY KEY, t text, v varchar(40), words text[], doc jsonb, ts tsvector);
         INSERT INTO data.texts (t, v, words, doc, ts)
           SELECT 'größe ' || i, md5(i::text), ARRAY[md5(i::text), NULL, 'x' || i],
                  jsonb_build_object('n', i, 'list', jsonb_build_array(i, i + 1)), to_tsvector('simple', 'word' || i % 50)
           FROM generate_series(1, {rows}) AS i;
         CREATE INDEX ON data.texts USING gin (doc);
         CREATE INDEX ON data.texts USING gin (ts);
         CREATE INDEX ON data.texts (lower(t));

         CREATE TABLE data.toasted (id int PRIMARY KEY, inside text, outside text, bytes bytea);
         ALTER TABLE data.toasted ALTER outside SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL;
         INSERT INTO data.toasted
           SELECT i, repeat(md5(i::text), 300),
                  (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 250) AS j),
                  decode(repeat(md5(i::text), 1000), 'hex')
           FROM generate_series(1, {few}) AS i;

         CREATE TABLE data.parts (id int NOT NULL, v text) PARTITION BY RANGE (id);
         CREATE TABLE data.parts_low PARTITION OF data.parts FOR VALUES FROM (MINVALUE) TO ({rows} / 2);
         CREATE TABLE data.parts_high PARTITION OF data.parts FOR VALUES FROM ({rows} / 2) TO (MAXVALUE);
         INSERT INTO data.parts SELECT i, 'p' || i FROM generate_series(1, {rows}) AS i;
         CREATE INDEX ON data.parts (id);

         CREATE TABLE data.places (id int, p point, r int4range);
         INSERT INTO data.places SELECT i, point(i % 100, i / 100), int4range(i, i + 10) FROM generate_series(1, {rows}) AS i;
         CREATE INDEX ON data.places USING gist (p);
         CREATE INDEX ON data.places USING spgist (r);

         CREATE TABLE data.altered (id int, gone text, kept text);
         INSERT INTO data.altered SELECT i, 'gone', 'kept' || i FROM generate_series(1, {few}) AS i;
         ALTER TABLE data.altered DROP COLUMN gone;
         ALTER TABLE data.altered ADD COLUMN later int DEFAULT 42;

         CREATE TABLE data.empty (id int PRIMARY KEY);
         CREATE TABLE data.no_columns ();
         INSERT INTO data.no_columns DEFAULT VALUES;
         CREATE MATERIALIZED VIEW data.seen AS SELECT e, count(*) AS n FROM data.numbers GROUP BY e;

         CREATE SEQUENCE data.up;
         SELECT nextval('data.up') FROM generate_series(1, 100);
         CREATE SEQUENCE data.down INCREMENT -5 MINVALUE -100000 MAXVALUE 10 START 10;
         SELECT nextval('data.down') FROM generate_series(1, 7);
         CREATE SEQUENCE data.assigned;
         SELECT setval('data.assigned', 4711);
         CREATE SEQUENCE data.untouched;

         SELECT lo_from_bytea(0, decode(repeat(md5(i::text), 500), 'hex')) FROM generate_series(1, 5) AS i"
    )
}
