//! The `#[orbit::sandboxed]` attribute, which orbit-harness re-exports and documents.
//!
//! A fault of an attribute is told at the word that has it, and what can be known without the machine is
//! checked here: see `keys` for the keys, `values` for what may stand behind each, `expand` for what
//! becomes of the function.

mod expand;
mod keys;
mod values;

use proc_macro::TokenStream;

/// Runs a test in a sandbox of its own, under any runner.
#[proc_macro_attribute]
pub fn sandboxed(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(arguments.into(), &item.into()).into()
}
