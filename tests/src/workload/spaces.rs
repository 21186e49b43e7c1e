//! Tablespaces, outside the data directory and in it.

use std::path::PathBuf;

use pgstrata::postmaster::Server;

use crate::Sql;

/// A tablespace of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its name.
    pub name: String,
    /// Its number, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies; `None` for a folder in `pg_tblspc` itself.
    pub location: Option<PathBuf>,
}

/// Makes a tablespace in each of the directories, and one in place where wanted, each with data in it.
pub(super) fn load(
    server: &Server,
    sql: &Sql,
    directories: impl Iterator<Item = PathBuf>,
    in_place: bool,
) -> anyhow::Result<Vec<Tablespace>> {
    sql.try_execute("CREATE SCHEMA spaces")?;
    let mut tablespaces = Vec::new();
    for (n, location) in directories.enumerate() {
        server.cluster().run_as().create_dir(&location)?;
        let name = format!("space_{n}");
        sql.try_execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display()))?;
        tablespaces.push(Tablespace { oid: fill(sql, &name)?, name, location: Some(location) });
    }
    if !tablespaces.is_empty() {
        sql.try_execute("CREATE DATABASE spaced TABLESPACE space_0 TEMPLATE template0")?;
        let spaced = Sql::connect(&server.database_conninfo("spaced"))?;
        spaced.try_execute("CREATE TABLE inside AS SELECT i FROM generate_series(1, 1000) AS i")?;
    }
    if in_place {
        let name = "space_in_place".to_owned();
        sql.try_execute("SET allow_in_place_tablespaces = on")?;
        sql.try_execute(&format!("CREATE TABLESPACE {name} LOCATION ''"))?;
        tablespaces.push(Tablespace { oid: fill(sql, &name)?, name, location: None });
    }
    Ok(tablespaces)
}

fn fill(sql: &Sql, name: &str) -> anyhow::Result<u32> {
    sql.try_execute(&format!(
        "CREATE TABLE spaces.in_{name} TABLESPACE {name} AS
           SELECT i, md5(i::text) AS v FROM generate_series(1, 3000) AS i;
         CREATE INDEX in_{name}_v ON spaces.in_{name} (v) TABLESPACE {name};
         CREATE UNLOGGED TABLE spaces.unlogged_in_{name} (i int) TABLESPACE {name};
         INSERT INTO spaces.unlogged_in_{name} VALUES (1)"
    ))?;
    Ok(sql.value(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'")))
}
