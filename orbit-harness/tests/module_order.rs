//! Holds the order of the library's modules: each imports only from what stands above it in `lib.rs`, so that
//! the way of a datum stays one straight line (ARCHITECTURE.md, "Invariants").

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::visit::Visit;

/// The modules that a file names after `crate::`, outside of its tests.
#[derive(Default)]
struct Imports(BTreeSet<String>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let is_test = module
            .attrs
            .iter()
            .any(|attribute| attribute.path().is_ident("cfg"))
            && module.ident == "tests";
        if !is_test {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_use_path(&mut self, path: &'ast syn::UsePath) {
        if path.ident == "crate" {
            self.add(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(module) = segments.next()
        {
            self.0.insert(module.ident.to_string());
        }
        syn::visit::visit_path(self, path);
    }
}

impl Imports {
    fn add(&mut self, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => drop(self.0.insert(path.ident.to_string())),
            syn::UseTree::Name(name) => drop(self.0.insert(name.ident.to_string())),
            syn::UseTree::Rename(rename) => drop(self.0.insert(rename.ident.to_string())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.add(item)),
            syn::UseTree::Glob(_) => {}
        }
    }

    fn of(text: &str) -> BTreeSet<String> {
        let mut imports = Self::default();
        imports.visit_file(&syn::parse_file(text).expect("a file of Rust"));
        imports.0
    }
}

/// The files of a module: `NAME.rs` and all below `NAME/`, without those that hold tests.
fn files(module: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Some(module.with_extension("rs"))
        .filter(|file| file.exists())
        .into_iter()
        .collect();
    for entry in fs::read_dir(module).into_iter().flatten() {
        let path = entry.expect("a directory that can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.retain(|file| {
        !["tests.rs", "testing.rs"]
            .iter()
            .any(|name| file.ends_with(name))
    });
    found
}

#[test]
fn a_module_imports_only_from_what_stands_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(root.join("lib.rs")).unwrap();
    let order: Vec<String> = syn::parse_file(&lib)
        .unwrap()
        .items
        .into_iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        })
        .collect();
    assert!(order.len() > 10 && order[0] == "units", "{order:?}");

    let mut wrong = Vec::new();
    for (place, module) in order.iter().enumerate() {
        let files = files(&root.join(module));
        assert!(!files.is_empty(), "no file of module {module}");
        for file in files {
            let imports = Imports::of(&fs::read_to_string(&file).unwrap());
            let later = order[place + 1..]
                .iter()
                .filter(|later| imports.contains(*later));
            wrong.extend(later.map(|later| format!("{} imports from `{later}`", file.display())));
        }
    }
    assert!(
        wrong.is_empty(),
        "the way of a datum has turned back:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn imports_are_found_in_every_form() {
    let found = Imports::of(
        "use crate::{plan::{Isolation, Plan}, sys, units as u}; use crate::spec::Spec; \
         fn f() { crate::host::why(crate::image::X) } \
         #[cfg(test)] mod tests { use crate::store::Store; }",
    );
    let expected = ["host", "image", "plan", "spec", "sys", "units"];
    assert_eq!(found, expected.map(String::from).into());
}
