//! What a developer of Orbit runs.
fn main() {}
