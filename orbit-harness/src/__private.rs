//! What expansions of `#[orbit::sandboxed]`, and `cargo orbit test`, call. Not for people: it changes without notice.

pub use crate::{
    attribute::{Inside, Keys, Passed, Test, enter, passed},
    checked::check,
    dependencies::check_dependencies,
    meeting::session::SessionDirectory,
    sandbox::{end_by_itself, start_to_wait, start_with},
    variables::{SANDBOX_OF, SANDBOX_OF_TEST, is_passed},
    wait::wait_faults,
};
