//! What expansions of `#[orbit::sandboxed]`, and `cargo orbit test`, call. Not for people: it changes without notice.

pub use crate::{
    attribute::{Inside, Keys, Passed, Test, enter, passed},
    checked::check,
    meeting::session::SessionDirectory,
    variables::{SANDBOX_OF, SANDBOX_OF_TEST, is_passed},
};
