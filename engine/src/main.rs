//! The program `pgstrata`.
fn main() {}
