//! Harness of real PostgreSQL servers.
