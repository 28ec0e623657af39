//! What expansions of `#[orbit::sandboxed]`, and `cargo orbit test`, call. Not for people: it changes without notice.

pub use crate::{
    attribute::{Inside, Keys, Passed, Test, enter, passed},
    builder::{prepare_ahead_if_possible, share_foreign, stay},
    checked::check,
    dependencies::check_dependencies,
    diagnosis::{Ids, cache_dir, ids, runtime_dir},
    meeting::{last::clear_network, session::SessionDirectory},
    sandbox::{end_by_itself, start_to_wait, start_with},
    supervisor::{fork_supervisor, start_supervisor},
    variables::{SANDBOX_OF, SANDBOX_OF_TEST, is_passed},
    wait::wait_faults,
};
