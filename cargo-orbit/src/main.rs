//! `cargo orbit`.
fn main() {}
