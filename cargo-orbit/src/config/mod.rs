//! The configuration: what was said in files, variables and on the command line, and what of it holds for a test.
//!
//! One table of [`keys`]; [`mod@file`] reads what stands in files, [`args`] the command line; [`Config`] puts them in
//! order, and [`Settings`] is what holds for one test. The order, from the weakest:
//!
//! 1. keys at the top of a file, 2. of the chosen profile, 3. in an override, 4. in an override of the profile;
//!    and among those of one kind: the user's own file, `[workspace.metadata.orbit]`, `.config/orbit.toml`,
//!    `[package.metadata.orbit]`; in one file, what comes later;
//! 5. variables, 6. the command line.
//!
//! Who is more particular about *which tests* wins over who is more particular about *whose*: an override stays in
//! force though a profile was chosen. Key by key: what is said of one key takes nothing from another. Lists add up,
//! and tables are merged by name; `reset` begins a key again.

pub(crate) mod args;
pub(crate) mod fault;
pub(crate) mod file;
pub(crate) mod keys;
#[cfg(test)]
mod schema;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod value;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use self::{
    args::SettingsArgs,
    fault::{ConfigError, Fault, Origin, Text},
    file::{Entry, File, FilterText},
    keys::{Form, KEYS, nearest},
    service::Service,
    settings::{Set, Settings},
    value::Value,
};
use crate::filter::{Filter, TestFacts, Workspace};

/// The workspace's own file.
pub(crate) const WORKSPACE_FILE: &str = ".config/orbit.toml";
/// Names the profile.
pub(crate) const PROFILE_VARIABLE: &str = "ORBIT_PROFILE";
/// The profile that is always there: what no profile says.
const DEFAULT_PROFILE: &str = "default";

/// Variables that begin as those of keys do, and are something else.
const OTHER_VARIABLES: &[&str] = &[
    PROFILE_VARIABLE,
    "ORBIT_CACHE_DIR",
    "ORBIT_DEBUG",
    "ORBIT_IMAGES_DIR",
    "ORBIT_SANDBOX_OF",
    "ORBIT_SESSION",
];

/// Everything that was said, in order.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) profile: Option<String>,
    /// From the weakest to the strongest.
    blocks: Vec<Block>,
    services: Vec<Placed>,
    /// By which blocks hold, and which services are needed: thousands of tests share a few.
    resolved: Mutex<HashMap<Vec<usize>, Arc<Settings>>>,
}

/// A service, and who needs it.
#[derive(Debug)]
struct Placed {
    service: Arc<Service>,
    /// `None`: tests of every package.
    package_id: Option<String>,
    /// `None`: every test.
    filter: Option<Filter>,
}

/// Keys that hold under the same condition.
#[derive(Debug)]
struct Block {
    /// `None`: for every package.
    package_id: Option<String>,
    /// `None`: for every test.
    filter: Option<Filter>,
    reset: Vec<usize>,
    entries: Vec<Entry>,
}

/// A file that may say something, and about what.
struct Place {
    path: PathBuf,
    table: Vec<&'static str>,
    base: PathBuf,
    package_id: Option<String>,
    /// Of another workspace's tests too: a filterset may name what this one has not.
    is_general: bool,
}

impl Config {
    /// Reads everything that says something about the tests of `workspace`. Files that are not there say nothing.
    ///
    /// # Errors
    /// Everything that is wrong, in all of them.
    pub(crate) fn load(
        workspace: &Workspace,
        args: &SettingsArgs,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let variables: HashMap<OsString, OsString> = variables.into_iter().collect();
        let variable = |name: &str| {
            let value = variables.get(std::ffi::OsStr::new(name))?;
            (!value.is_empty()).then_some(value)
        };
        let mut faults = Vec::new();
        let mut files = Vec::new();
        for place in places(workspace, user_file(variable)) {
            match fs::read_to_string(&place.path) {
                Ok(text) => {
                    let text = Text::new(&place.path, &workspace.root, text);
                    let mut file = File::read(text, &place.table, &place.base);
                    faults.append(&mut file.faults);
                    files.push((place, file));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => faults.push(Fault::new(
                    place.path.display(),
                    format!("cannot be read: {error}"),
                )),
            }
        }
        let profile = args
            .profile()
            .map(|name| (name.to_owned(), "--orbit-profile".to_owned()))
            .or_else(|| {
                let name = variable(PROFILE_VARIABLE)?.to_string_lossy().into_owned();
                Some((name, PROFILE_VARIABLE.to_owned()))
            });
        if let Some((name, said)) = &profile {
            faults.extend(no_such_profile(name, said, &files));
        }
        let profile = profile.map(|(name, _)| name);
        let services = services(&files, workspace, &mut faults);
        let mut blocks = blocks(files, profile.as_deref(), workspace, &mut faults);
        blocks.push(of_variables(&variables, &workspace.root, &mut faults));
        match args.entries() {
            Ok(entries) => blocks.push(Block::always(entries)),
            Err(mut more) => faults.append(&mut more),
        }
        if faults.is_empty() {
            Ok(Self {
                profile,
                blocks,
                services,
                resolved: Mutex::default(),
            })
        } else {
            Err(ConfigError(faults))
        }
    }

    /// What holds for a test, or with [`TestFacts::test`] absent for all tests of a binary.
    pub(crate) fn settings(&self, facts: &TestFacts<'_>) -> Arc<Settings> {
        let is_meant = |package_id: &Option<String>, filter: &Option<Filter>| {
            package_id
                .as_deref()
                .is_none_or(|id| id == facts.package_id)
                && filter.as_ref().is_none_or(|filter| filter.matches(facts))
        };
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.filter(|(_, block)| is_meant(&block.package_id, &block.filter));
        let services = self.services.iter().enumerate();
        let services = services.filter(|(_, placed)| is_meant(&placed.package_id, &placed.filter));
        let first_service = self.blocks.len();
        let held: Vec<usize> = blocks
            .map(|(index, _)| index)
            .chain(services.map(|(index, _)| first_service + index))
            .collect();
        // What a panicking thread left is whole: a map is only added to.
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settings) = resolved.get(&held) {
            return settings.clone();
        }
        let (held_blocks, needed) = held.split_at(held.partition_point(|it| *it < first_service));
        let mut settings = resolve(held_blocks.iter().map(|index| &self.blocks[*index]));
        settings.services = needed
            .iter()
            .map(|index| self.services[index - first_service].service.clone())
            .collect();
        let settings = Arc::new(settings);
        resolved.insert(held, settings.clone());
        settings
    }
}

impl Config {
    /// Every service that any test may need.
    pub(crate) fn services(&self) -> Vec<Arc<Service>> {
        self.services
            .iter()
            .map(|placed| placed.service.clone())
            .collect()
    }
}

impl Block {
    fn always(entries: Vec<Entry>) -> Self {
        Self {
            package_id: None,
            filter: None,
            reset: Vec::new(),
            entries,
        }
    }
}

/// Merges blocks, from the weakest to the strongest.
fn resolve<'a>(blocks: impl Iterator<Item = &'a Block>) -> Settings {
    let mut sets: Vec<Option<Set>> = vec![None; KEYS.len()];
    for block in blocks {
        for key in &block.reset {
            sets[*key] = None;
        }
        for entry in &block.entries {
            match &mut sets[entry.key] {
                Some(set) => {
                    let before = set.value.clone();
                    let form = KEYS[entry.key].form;
                    set.value.merge(entry.value.clone(), form);
                    // Whoever said nothing that still holds is not named.
                    let replaced = set.value == entry.value || before == set.value;
                    if replaced && !matches!(form, Form::Variables) {
                        set.origins.clear();
                    }
                    if set.origins.last() != Some(&entry.origin) {
                        set.origins.push(entry.origin.clone());
                    }
                }
                empty => {
                    *empty = Some(Set {
                        value: entry.value.clone(),
                        origins: vec![entry.origin.clone()],
                    });
                }
            }
        }
    }
    let mut settings = Settings::new();
    settings.sets = sets.into_iter().map(|set| set.map(Arc::new)).collect();
    settings
}

/// Where the user's own file lies: as the XDG Base Directory Specification says.
fn user_file<'a>(variable: impl Fn(&str) -> Option<&'a OsString>) -> Option<PathBuf> {
    let base = match variable("XDG_CONFIG_HOME").map(PathBuf::from) {
        // One that is not absolute is to be ignored.
        Some(path) if path.is_absolute() => path,
        _ => PathBuf::from(variable("HOME")?).join(".config"),
    };
    Some(base.join("orbit/config.toml"))
}

/// From the weakest to the strongest.
fn places(workspace: &Workspace, user_file: Option<PathBuf>) -> Vec<Place> {
    let root = &workspace.root;
    let mut places = Vec::new();
    places.extend(user_file.map(|path| Place {
        path,
        table: Vec::new(),
        base: root.clone(),
        package_id: None,
        is_general: true,
    }));
    if workspace.has_metadata {
        places.push(Place {
            path: root.join("Cargo.toml"),
            table: vec!["workspace", "metadata", "orbit"],
            base: root.clone(),
            package_id: None,
            is_general: false,
        });
    }
    places.push(Place {
        path: root.join(WORKSPACE_FILE),
        table: Vec::new(),
        base: root.clone(),
        package_id: None,
        is_general: false,
    });
    let ours = workspace
        .packages
        .iter()
        .filter(|package| package.has_metadata);
    places.extend(ours.map(|package| {
        Place {
            path: package.manifest.clone(),
            table: vec!["package", "metadata", "orbit"],
            base: package
                .manifest
                .parent()
                .unwrap_or(Path::new("/"))
                .to_owned(),
            package_id: Some(package.id.clone()),
            is_general: false,
        }
    }));
    places
}

fn no_such_profile(name: &str, said: &str, files: &[(Place, File)]) -> Option<Fault> {
    let names: BTreeSet<&str> = files
        .iter()
        .flat_map(|(_, file)| &file.sections)
        .filter_map(|section| section.profile.as_deref())
        .chain([DEFAULT_PROFILE])
        .collect();
    if names.contains(name) {
        return None;
    }
    let meant = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", Vec::from_iter(names).join(", ")),
    };
    let why = format!("there is no profile `{name}`; {meant}");
    Some(Fault::new(said, why))
}

/// The services of all files.
fn services(
    files: &[(Place, File)],
    workspace: &Workspace,
    faults: &mut Vec<Fault>,
) -> Vec<Placed> {
    let all = || {
        files.iter().flat_map(|(place, file)| {
            let services = file.services.iter();
            services.map(move |read| (place, file, read))
        })
    };
    // Names of a service that could not be read are not missed.
    if faults.is_empty() {
        faults.extend(service::faults(
            all().map(|(_, file, read)| (&file.text, read)),
        ));
    }
    let mut services = Vec::new();
    for (place, file, read) in all() {
        let filter = match read_filter(read.filter.as_ref(), place, &file.text, workspace) {
            Ok(filter) => filter,
            Err(found) => {
                faults.extend(found);
                continue;
            }
        };
        services.push(Placed {
            service: read.service.clone(),
            package_id: place.package_id.clone(),
            filter,
        });
    }
    services
}

/// The filter of a section or a service: `None` where it has none.
///
/// # Errors
/// What is wrong with it; nothing where the file is the user's own and speaks of what this workspace has not.
fn read_filter(
    text: Option<&FilterText>,
    place: &Place,
    file: &Text,
    workspace: &Workspace,
) -> Result<Option<Filter>, Vec<Fault>> {
    let Some(text) = text else {
        return Ok(None);
    };
    match Filter::parse(&text.text, workspace) {
        Ok(filter) => Ok(Some(filter)),
        Err(error) if error.only_absent && place.is_general => Err(Vec::new()),
        Err(error) => {
            let faults = error.faults.into_iter().map(|fault| {
                let span = text.span_in(file, fault.span);
                file.fault(span, fault.why)
            });
            Err(faults.collect())
        }
    }
}

/// The sections of all files in the order in which they hold.
fn blocks(
    files: Vec<(Place, File)>,
    profile: Option<&str>,
    workspace: &Workspace,
    faults: &mut Vec<Fault>,
) -> Vec<Block> {
    let mut blocks: Vec<(u8, Block)> = Vec::new();
    for (place, file) in files {
        for section in file.sections {
            let filter = match read_filter(section.filter.as_ref(), &place, &file.text, workspace) {
                Ok(filter) => filter,
                Err(found) => {
                    faults.extend(found);
                    continue;
                }
            };
            if section.profile.is_some() && section.profile.as_deref() != profile {
                continue;
            }
            let rank = 2 * u8::from(filter.is_some()) + u8::from(section.profile.is_some());
            let block = Block {
                package_id: place.package_id.clone(),
                filter,
                reset: section.reset,
                entries: section.entries,
            };
            blocks.push((rank, block));
        }
    }
    // Stable: among those of one rank, files stay in order.
    blocks.sort_by_key(|(rank, _)| *rank);
    blocks.into_iter().map(|(_, block)| block).collect()
}

/// What variables say. Lists are separated by commas, or by lines; `ORBIT_ENV` by lines alone, as values may hold
/// commas.
fn of_variables(
    variables: &HashMap<OsString, OsString>,
    base: &Path,
    faults: &mut Vec<Fault>,
) -> Block {
    let mut entries = Vec::new();
    for (index, key) in KEYS.iter().enumerate() {
        let name = key.variable();
        let Some(value) = variables.get(std::ffi::OsStr::new(&name)) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            faults.push(Fault::new(&name, "it is not UTF-8"));
            continue;
        };
        // As if it were not there.
        if value.is_empty() {
            continue;
        }
        let words: Vec<&str> = match key.form {
            Form::List | Form::ListByName | Form::Paths => value.split([',', '\n']).collect(),
            Form::Variables => value.lines().collect(),
            _ => vec![value],
        };
        for word in words {
            match Value::of_text(key, word.trim(), base) {
                Ok(value) => entries.push(Entry {
                    key: index,
                    value,
                    origin: Origin::Variable(name.clone()),
                }),
                Err(bad) => faults.push(Fault::new(&name, bad.why)),
            }
        }
    }
    for name in variables.keys() {
        faults.extend(name.to_str().and_then(misspelt));
    }
    Block::always(entries)
}

/// A variable that is nearly one of ours says nothing, and its owner believes that it does. Others that begin alike
/// may be anybody's.
fn misspelt(name: &str) -> Option<Fault> {
    let key = name.strip_prefix("ORBIT_")?;
    let known = OTHER_VARIABLES.contains(&name) || KEYS.iter().any(|key| key.variable() == name);
    let near = KEYS
        .iter()
        .find(|near| key.len() > 3 && strsim::damerau_levenshtein(&near.variable(), name) == 1)?;
    (!known).then(|| {
        Fault::new(
            name,
            format!(
                "there is no such variable; did you mean {}?",
                near.variable()
            ),
        )
    })
}

#[cfg(test)]
mod tests;
