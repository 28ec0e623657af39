//! Filtersets: which tests are meant, in the language of nextest.
//!
//! The language, its parser and its meaning are those of the crate `nextest-filtering`. This knows what of a
//! workspace it needs, and how to tell people what is wrong with a filterset.
//!
//! Source: nextest's reference, "Filterset DSL".

use std::{fmt, path::PathBuf, sync::OnceLock};

use cargo_metadata::{Metadata, TargetKind};
use guppy::{
    CargoMetadata, PackageId,
    graph::{PackageGraph, cargo::BuildPlatform},
};
use miette::Diagnostic as _;
use nextest_filtering::{
    BinaryQuery, CompiledExpr, EvalContext, Filterset, FiltersetKind, ParseContext, TestQuery,
    errors::ParseSingleError,
};
use nextest_metadata::{RustBinaryId, RustTestBinaryKind, TestCaseName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{fault::underlined, keys::nearest};

/// The predicates of the language.
const PREDICATES: [&str; 11] = [
    "all",
    "binary",
    "binary_id",
    "default",
    "deps",
    "kind",
    "none",
    "package",
    "platform",
    "rdeps",
    "test",
];

/// What of a test can be asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestFacts<'a> {
    /// Cargo's own name of the package.
    pub(crate) package_id: &'a str,
    /// As nextest names it: `package::test`.
    pub(crate) binary_id: &'a str,
    pub(crate) binary_name: &'a str,
    /// `lib`, `bin`, `test`, `example`, `bench`, `proc-macro` or `doc`.
    pub(crate) kind: &'a str,
    pub(crate) platform: Platform,
    /// `None` for the whole binary: then only what holds for all of its tests matches.
    pub(crate) test: Option<&'a str>,
}

/// What a binary was built for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Platform {
    /// What tests are built for.
    #[default]
    Target,
    /// What cargo itself runs on: tests of macros.
    Host,
}

/// What of a workspace filtersets and configurations need to know. Can be kept, and read again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target_directory: PathBuf,
    pub(crate) packages: Vec<Package>,
    /// Whether the workspace's manifest has a table of ours.
    pub(crate) has_metadata: bool,
    /// `cargo metadata`'s answer, with the workspace's own packages alone.
    graph_json: String,
    /// Made when it is first needed: few configurations have filters.
    #[serde(skip)]
    graph: OnceLock<Result<PackageGraph, String>>,
}

/// A package of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) manifest: PathBuf,
    /// Whether that manifest has a table of ours.
    pub(crate) has_metadata: bool,
    pub(crate) targets: Vec<Target>,
}

/// What cargo builds of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// As [`TestFacts::kind`] has it.
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The file that the compiler begins with.
    pub(crate) source: PathBuf,
}

impl Target {
    /// The doctests of a library.
    pub(crate) fn doctests(package: &str) -> Self {
        Self {
            kind: "doc".to_owned(),
            name: package.replace('-', "_"),
            source: PathBuf::new(),
        }
    }

    /// As nextest names the binary of its tests.
    pub(crate) fn binary_id(&self, package: &str) -> String {
        if self.kind == "doc" {
            return format!("{package}::doc");
        }
        let kind = RustTestBinaryKind::new(self.kind.clone());
        RustBinaryId::from_parts(package, &kind, &self.name).to_string()
    }
}

impl Workspace {
    pub(crate) fn new(metadata: &Metadata) -> Self {
        let members: Vec<&cargo_metadata::Package> = metadata.workspace_packages();
        let ours = |value: &Value| value.get("orbit").is_some();
        let packages = members
            .iter()
            .map(|package| Package {
                id: package.id.repr.clone(),
                name: package.name.to_string(),
                manifest: package.manifest_path.clone().into(),
                has_metadata: ours(&package.metadata),
                targets: package.targets.iter().filter_map(target).collect(),
            })
            .collect();
        Self {
            root: metadata.workspace_root.clone().into(),
            target_directory: metadata.target_directory.clone().into(),
            packages,
            has_metadata: ours(&metadata.workspace_metadata),
            graph_json: graph_json(metadata, &members).to_string(),
            graph: OnceLock::new(),
        }
    }

    fn graph(&self) -> Result<&PackageGraph, FilterError> {
        let make = || {
            CargoMetadata::parse_json(&self.graph_json)
                .and_then(CargoMetadata::build_graph)
                .map_err(|error| error.to_string())
        };
        self.graph
            .get_or_init(make)
            .as_ref()
            .map_err(|why| FilterError {
                faults: vec![FilterFault {
                    span: None,
                    why: format!("cargo's description of the workspace is not understood: {why}"),
                }],
                only_absent: false,
            })
    }
}

fn target(target: &cargo_metadata::Target) -> Option<Target> {
    let kind = match target.kind.first()? {
        TargetKind::CustomBuild => return None,
        TargetKind::Bin => "bin",
        TargetKind::Test => "test",
        TargetKind::Bench => "bench",
        TargetKind::Example => "example",
        TargetKind::ProcMacro => "proc-macro",
        // Each kind of library.
        _ => "lib",
    };
    Some(Target {
        kind: kind.to_owned(),
        name: target.name.clone(),
        source: target.src_path.clone().into(),
    })
}

/// Dependencies on packages that are not of the workspace lead nowhere that a filterset could name.
fn graph_json(metadata: &Metadata, members: &[&cargo_metadata::Package]) -> Value {
    let is_member = |id: &str| members.iter().any(|package| package.id.repr == id);
    let resolved = metadata.resolve.as_ref().map(|resolve| &resolve.nodes);
    let nodes: Vec<Value> = members
        .iter()
        .map(|package| {
            let node = resolved
                .into_iter()
                .flatten()
                .find(|node| node.id == package.id);
            let mut node = match node {
                Some(node) => json!(node),
                // Without every package at hand, cargo resolves nothing.
                None => json!({"id": package.id, "dependencies": [], "deps": [], "features": []}),
            };
            let keep = |list: &mut Value, id: fn(&Value) -> &Value| {
                if let Some(list) = list.as_array_mut() {
                    list.retain(|item| id(item).as_str().is_some_and(is_member));
                }
            };
            keep(&mut node["dependencies"], |item| item);
            keep(&mut node["deps"], |item| &item["pkg"]);
            node
        })
        .collect();
    json!({
        "packages": members,
        "workspace_members": metadata.workspace_members,
        "resolve": {"nodes": nodes, "root": null},
        "target_directory": metadata.target_directory,
        "version": 1,
        "workspace_root": metadata.workspace_root,
    })
}

/// A filterset, ready to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Filterset);

impl Filter {
    /// Reads a filterset about tests of `workspace`.
    pub(crate) fn parse(text: &str, workspace: &Workspace) -> Result<Self, FilterError> {
        let context = ParseContext::new(workspace.graph()?);
        Filterset::parse(text.to_owned(), &context, FiltersetKind::Test)
            .map(Self)
            .map_err(|errors| FilterError::new(text, &errors.errors))
    }

    /// Whether it holds for the test; for a whole binary, whether it holds for every test of it.
    pub(crate) fn matches(&self, facts: &TestFacts<'_>) -> bool {
        let Some(test) = facts.test else {
            return self.of_binary(facts) == Some(true);
        };
        facts.query(|binary_query| {
            let test_name = &TestCaseName::new(test);
            let query = TestQuery {
                binary_query,
                test_name,
            };
            self.0.matches_test(&query, &EVERYTHING)
        })
    }

    /// Whether it can hold for a test of this binary: where not, the binary need not be started to be asked for
    /// its tests.
    pub(crate) fn may_match_in(&self, facts: &TestFacts<'_>) -> bool {
        self.of_binary(facts) != Some(false)
    }

    fn of_binary(&self, facts: &TestFacts<'_>) -> Option<bool> {
        facts.query(|query| self.0.matches_binary(&query, &EVERYTHING))
    }
}

/// What `default()` means.
const EVERYTHING: EvalContext<'_> = EvalContext {
    default_filter: &CompiledExpr::ALL,
};

impl TestFacts<'_> {
    fn query<T>(&self, ask: impl FnOnce(BinaryQuery<'_>) -> T) -> T {
        ask(BinaryQuery {
            package_id: &PackageId::new(self.package_id),
            binary_id: &RustBinaryId::new(self.binary_id),
            binary_name: self.binary_name,
            kind: &RustTestBinaryKind::new(self.kind.to_owned()),
            platform: match self.platform {
                Platform::Target => BuildPlatform::Target,
                Platform::Host => BuildPlatform::Host,
            },
        })
    }
}

/// What is wrong with a filterset.
#[derive(Debug)]
pub(crate) struct FilterError {
    pub(crate) faults: Vec<FilterFault>,
    /// It is well formed, but names what this workspace has not.
    pub(crate) only_absent: bool,
}

/// One thing that is wrong, and the bytes of the filterset that it is about.
#[derive(Debug)]
pub(crate) struct FilterFault {
    pub(crate) span: Option<std::ops::Range<usize>>,
    pub(crate) why: String,
}

impl FilterError {
    fn new(text: &str, errors: &[ParseSingleError]) -> Self {
        let absent = |error: &ParseSingleError| {
            matches!(
                error,
                ParseSingleError::NoPackageMatch(_)
                    | ParseSingleError::NoBinaryIdMatch(_)
                    | ParseSingleError::NoBinaryNameMatch(_)
            )
        };
        let only_absent = errors.iter().all(absent);
        let unknown = unknown_predicates(text);
        // The parser loses its way at a predicate that it does not know, and what it says there is no help.
        let faults = if !only_absent && !unknown.is_empty() {
            unknown
        } else {
            errors.iter().flat_map(faults_of).collect()
        };
        Self {
            faults,
            only_absent,
        }
    }

    /// For the command line, where the filterset is all there is.
    pub(crate) fn rendered(&self, text: &str) -> String {
        let faults = self.faults.iter().map(|fault| match &fault.span {
            Some(span) => {
                let column = text.get(..span.start).unwrap_or(text).chars().count() + 1;
                let length = text.get(span.clone()).unwrap_or_default().chars().count();
                format!("{}\n{}", fault.why, underlined("-E", text, column, length))
            }
            None => fault.why.clone(),
        });
        let faults: Vec<String> = faults.collect();
        format!("the filterset is not understood: {}", faults.join("\n"))
    }
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.why.as_str()).collect();
        f.write_str(&faults.join("; "))
    }
}

impl std::error::Error for FilterError {}

/// The error's own words, with those of its label, each at its place.
fn faults_of(error: &ParseSingleError) -> Vec<FilterFault> {
    let labels: Vec<_> = error.labels().into_iter().flatten().collect();
    if labels.is_empty() {
        return vec![FilterFault {
            span: None,
            why: error.to_string(),
        }];
    }
    let fault = |label: miette::LabeledSpan| {
        let said = error.to_string();
        let why = match label.label() {
            Some(more) if !said.contains(more) => format!("{said}: {more}"),
            _ => said,
        };
        FilterFault {
            span: Some(label.offset()..label.offset() + label.len()),
            why,
        }
    };
    labels.into_iter().map(fault).collect()
}

/// Words before a parenthesis that are no predicate. Only asked where something is wrong: a regular expression may
/// hold such words too.
fn unknown_predicates(text: &str) -> Vec<FilterFault> {
    let mut faults = Vec::new();
    let mut depth = 0_usize;
    let mut word = 0..0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => {
                let name = &text[word.clone()];
                if depth == 0 && word.end == at && !name.is_empty() && !PREDICATES.contains(&name) {
                    let words = ["not", "and", "or"];
                    if words.contains(&name) {
                        continue;
                    }
                    let meant = match nearest(name, PREDICATES) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("there are {}", PREDICATES.join(", ")),
                    };
                    faults.push(FilterFault {
                        span: Some(word.clone()),
                        why: format!("there is no predicate `{name}`; {meant}"),
                    });
                }
                // What stands in the parentheses of a predicate is a pattern; in others, more predicates.
                if depth > 0 || word.end == at && !name.is_empty() {
                    depth += 1;
                }
                word = at + 1..at + 1;
            }
            ')' => depth = depth.saturating_sub(1),
            _ if c.is_ascii_alphanumeric() || c == '_' => {
                if word.end != at {
                    word = at..at;
                }
                word.end = at + 1;
            }
            _ => word = at + c.len_utf8()..at + c.len_utf8(),
        }
    }
    faults
}

#[cfg(test)]
pub(crate) mod tests {
    use cargo_metadata::MetadataCommand;

    use super::*;

    /// Of the fixture `workspace-mixed`.
    pub(crate) fn workspace() -> Workspace {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../fixtures/workspace-mixed/Cargo.toml"
        );
        Workspace::new(&MetadataCommand::new().manifest_path(path).exec().unwrap())
    }

    pub(crate) fn facts<'a>(workspace: &'a Workspace, test: Option<&'a str>) -> TestFacts<'a> {
        let package = workspace
            .packages
            .iter()
            .find(|package| package.name == "mixed")
            .unwrap();
        TestFacts {
            package_id: &package.id,
            binary_id: "mixed::ends",
            binary_name: "ends",
            kind: "test",
            platform: Platform::Target,
            test,
        }
    }

    #[test]
    fn a_filterset_means_what_it_means_to_nextest() {
        let workspace = workspace();
        let matches = |text: &str, test: Option<&str>| {
            Filter::parse(text, &workspace)
                .unwrap()
                .matches(&facts(&workspace, test))
        };
        for (text, expected) in [
            ("all()", true),
            ("none()", false),
            ("default()", true),
            ("package(mixed)", true),
            ("package(answer)", false),
            ("rdeps(mixed)", true),
            ("kind(test) & binary(ends)", true),
            ("kind(lib)", false),
            ("binary_id(mixed::ends)", true),
            ("platform(host)", false),
            ("test(one)", true),
            ("test(=one)", false),
            ("test(/^a::/) - test(two)", true),
            ("not (test(one) or test(two))", false),
        ] {
            assert_eq!(matches(text, Some("a::one")), expected, "{text}");
        }
        // Of the whole binary only what holds for all of it.
        assert!(matches("binary(ends)", None));
        assert!(!matches("binary(ends) & test(one)", None));
        let filter = Filter::parse("binary(ends) & test(one)", &workspace).unwrap();
        assert!(filter.may_match_in(&facts(&workspace, None)));
        let filter = Filter::parse("kind(lib) & test(one)", &workspace).unwrap();
        assert!(!filter.may_match_in(&facts(&workspace, None)));
    }

    #[test]
    fn what_is_kept_of_a_workspace_suffices() {
        let kept = serde_json::to_string(&workspace()).unwrap();
        let again: Workspace = serde_json::from_str(&kept).unwrap();
        let filter = Filter::parse("deps(mixed)", &again).unwrap();
        assert!(filter.matches(&facts(&again, Some("x"))));
    }

    #[test]
    fn a_fault_is_shown_at_its_place() {
        let workspace = workspace();
        let told = |text: &str| Filter::parse(text, &workspace).unwrap_err().rendered(text);
        insta::assert_snapshot!(told("test(a) & packge(mixed)"), @r"
        the filterset is not understood: there is no predicate `packge`; did you mean `package`?
          -E | test(a) & packge(mixed)
             |           ^^^^^^
        ");
        insta::assert_snapshot!(told("test(/[/)"), @r"
        the filterset is not understood: invalid regex: unclosed character class
          -E | test(/[/)
             |       ^
        ");
        insta::assert_snapshot!(told("test(a"), @r"
        the filterset is not understood: expected close parenthesis: missing `)`
          -E | test(a
             |       ^
        ");
        insta::assert_snapshot!(told("package(nothing)"), @r"
        the filterset is not understood: operator didn't match any packages: no packages matched this
          -E | package(nothing)
             |         ^^^^^^^
        ");
        insta::assert_snapshot!(told("test(a) test(b)"), @r"
        the filterset is not understood: expected end of expression: unparsed input
          -E | test(a) test(b)
             |        ^^^^^^^^
        ");
    }
}
