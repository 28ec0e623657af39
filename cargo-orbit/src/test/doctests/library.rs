//! The libraries of a workspace that have doctests, and what they are called.

use crate::{
    filter::{Platform, Target, TestFacts},
    test::event::BinaryId,
};

/// A library that has doctests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    /// As cargo calls it when it runs them.
    pub(crate) name: String,
    pub(crate) package: String,
    pub(crate) package_id: String,
}

impl Library {
    pub(crate) fn binary(&self) -> BinaryId {
        BinaryId(format!("{}::doc", self.package))
    }

    /// What filtersets are asked about.
    pub(crate) fn ask<T>(&self, test: Option<&str>, ask: impl FnOnce(&TestFacts<'_>) -> T) -> T {
        let target = Target::doctests(&self.package);
        ask(&TestFacts {
            package_id: &self.package_id,
            binary_id: &target.binary_id(&self.package),
            binary_name: &target.name,
            kind: &target.kind,
            platform: Platform::Target,
            test,
        })
    }
}

/// Libraries that have doctests.
pub(crate) fn libraries(metadata: &cargo_metadata::Metadata) -> Vec<Library> {
    metadata
        .workspace_packages()
        .into_iter()
        .flat_map(|package| {
            let targets = package.targets.iter().filter(|target| target.doctest);
            targets.map(|target| Library {
                name: target.name.replace('-', "_"),
                package: package.name.to_string(),
                package_id: package.id.repr.clone(),
            })
        })
        .collect()
}
