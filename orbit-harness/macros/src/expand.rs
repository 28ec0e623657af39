//! What becomes of a test: the same function, with a first statement that asks the library whether the body is to
//! run here.
//!
//! Nothing else changes, so that whatever made the function a test, before or after this attribute, still finds
//! the function it knows: its name, its arguments, its attributes, `async` or not.

use proc_macro2::{Span, TokenStream};
use quote::{TokenStreamExt as _, quote, quote_spanned};
use syn::{
    Attribute, Error, FnArg, ItemFn, ReturnType, Type, ext::IdentExt as _, spanned::Spanned as _,
};

use crate::keys::Keys;

/// Attributes that make a function a test, by the last word of their path.
const TESTS: [&str; 9] = [
    "apply",
    "bench",
    "gtest",
    "proptest",
    "quickcheck",
    "rstest",
    "test",
    "test_case",
    "wasm_bindgen_test",
];

pub(crate) fn expand(arguments: TokenStream, item: &TokenStream) -> TokenStream {
    let Ok(function) = syn::parse2::<ItemFn>(item.clone()) else {
        let why = "`#[orbit::sandboxed]` goes on a test function";
        let error = Error::new(Span::call_site(), why).into_compile_error();
        return quote!(#error #item);
    };
    match Keys::parse(arguments).and_then(|keys| sandboxed(&function, &keys)) {
        Ok(expanded) => expanded,
        // The function stays, so that nothing else is reported than what is wrong; it is no test without a sandbox.
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#error #[allow(dead_code)] #item)
        }
    }
}

fn sandboxed(function: &ItemFn, keys: &Keys) -> Result<TokenStream, Error> {
    let ItemFn {
        attrs,
        vis,
        sig,
        block,
        ..
    } = function;
    check(function)?;
    // A function with arguments is called by what gives them, which may stand above and not be seen any more.
    let added = (!attrs.iter().any(is_test) && sig.inputs.is_empty())
        .then(|| quote!(#[::core::prelude::v1::test]));
    // With `r#`, as libtest names it.
    let name = sig.ident.to_string();
    let should_panic = attrs
        .iter()
        .any(|attribute| attribute.path().is_ident("should_panic"));
    let (any, calls) = (keys.any, &keys.calls);
    let statements = &block.stmts;

    // Errors about what the function returns belong where it says so.
    let span = match &sig.output {
        ReturnType::Type(_, returned) => returned.span(),
        ReturnType::Default => Span::mixed_site(),
    };
    let passed = match &sig.output {
        ReturnType::Type(_, returned) if matches!(**returned, Type::Never(_)) => {
            quote!(::core::panic!("the test passed, but does not return"))
        }
        _ => quote_spanned!(span=> return ::orbit::__private::passed()),
    };
    let enter = quote_spanned!(Span::mixed_site()=>
        let __orbit_inside = match ::orbit::__private::enter(
            &::orbit::__private::Test {
                path: ::core::concat!(::core::module_path!(), "::", #name),
                file: ::core::file!(),
                line: ::core::line!(),
                should_panic: #should_panic,
                asks: #any,
            },
            |keys: ::orbit::__private::Keys| keys #calls,
        ) {
            ::core::option::Option::Some(inside) => inside,
            ::core::option::Option::None => #passed,
        };
    );
    let mut body = TokenStream::new();
    // With the braces of the original, so that the end of the function is where it was.
    block.brace_token.surround(&mut body, |inner| {
        inner.extend(enter);
        inner.append_all(statements);
    });
    Ok(quote! {
        #(#attrs)*
        #added
        #vis #sig #body
    })
}

/// What can be seen to be wrong with the function itself.
fn check(function: &ItemFn) -> Result<(), Error> {
    let ItemFn { attrs, sig, .. } = function;
    let again = attrs
        .iter()
        .find(|attribute| last_word(attribute) == Some("sandboxed".into()));
    if let Some(again) = again {
        return Err(Error::new(
            again.span(),
            "a test has one sandbox: write all keys in one attribute",
        ));
    }
    if let Some(FnArg::Receiver(receiver)) = sig.inputs.first() {
        return Err(Error::new(receiver.span(), "a method is no test"));
    }
    function.modifiers.require_empty()?;
    if let Some(constness) = sig.constness {
        return Err(Error::new(
            constness.span(),
            "a test that makes a sandbox cannot be `const`",
        ));
    }
    if let Some(asyncness) = sig.asyncness
        && !attrs.iter().any(is_test)
    {
        return Err(Error::new(
            asyncness.span(),
            "an async test needs a runtime: add its attribute, such as `#[tokio::test]`",
        ));
    }
    Ok(())
}

fn is_test(attribute: &Attribute) -> bool {
    last_word(attribute).is_some_and(|word| TESTS.contains(&word.as_str()))
}

fn last_word(attribute: &Attribute) -> Option<String> {
    Some(attribute.path().segments.last()?.ident.unraw().to_string())
}
