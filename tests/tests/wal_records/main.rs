//! What is read out of WAL, compared with what PostgreSQL's own programs read out of it.

mod dump;
mod log;
mod records;
mod summaries;
mod work;
