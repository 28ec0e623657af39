//! In which order services start that depend on each other: planned without IO, before any of them is started.
//!
//! [`Order`] is the plan, checked; [`Progress`] walks along it, and says what may start now.

use std::{collections::BTreeMap, fmt};

/// Which service needs which: every name is known, each is there once, and nothing depends on itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// By the place of each service, the places of those that it needs; each once.
    needs: Vec<Vec<usize>>,
}

/// What is wrong with a set of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DependencyFault {
    /// A name that two services have.
    Twice(String),
    /// A name that none has.
    Unknown { name: String, known: Vec<String> },
    /// Each needs the next, and the last the first.
    Cycle(Vec<String>),
}

impl fmt::Display for DependencyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice(name) => write!(
                f,
                "two services are called `{name}`; give each its own name"
            ),
            Self::Unknown { name, known } if known.is_empty() => {
                write!(f, "there is no service `{name}`; there is none at all")
            }
            Self::Unknown { name, known } => {
                write!(
                    f,
                    "there is no service `{name}`; there are {}",
                    known.join(", ")
                )
            }
            Self::Cycle(names) => {
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                let first = names.first().map_or("", String::as_str);
                write!(
                    f,
                    "none of these could start before the others: {} after {first}",
                    names.join(" after "),
                )
            }
        }
    }
}

impl Order {
    /// Plans the services `names`, where each pair of `after` is of a service and one that it needs.
    ///
    /// # Errors
    /// Everything that is wrong; of cycles, one.
    pub(crate) fn plan<'a>(
        names: &[&'a str],
        after: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<DependencyFault>> {
        let mut faults = Vec::new();
        let mut places = BTreeMap::new();
        for (place, name) in names.iter().enumerate() {
            if places.insert(*name, place).is_some() {
                let fault = DependencyFault::Twice((*name).to_owned());
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        let mut needs = vec![Vec::new(); names.len()];
        for (dependent, needed) in after {
            let mut place = |name: &str| {
                let found = places.get(name).copied();
                if found.is_none() {
                    let fault = DependencyFault::Unknown {
                        name: name.to_owned(),
                        known: places.keys().map(|&known| known.to_owned()).collect(),
                    };
                    if !faults.contains(&fault) {
                        faults.push(fault);
                    }
                }
                found
            };
            if let (Some(dependent), Some(needed)) = (place(dependent), place(needed))
                && !needs[dependent].contains(&needed)
            {
                needs[dependent].push(needed);
            }
        }
        let order = Self { needs };
        if let Some(cycle) = order.cycle() {
            let cycle = cycle.into_iter().map(|place| names[place].to_owned());
            faults.push(DependencyFault::Cycle(cycle.collect()));
        }
        if faults.is_empty() {
            Ok(order)
        } else {
            Err(faults)
        }
    }

    /// Places of which each needs the next, and the last the first: among those that can never start, from any of
    /// them one comes to such a ring by going from need to need.
    fn cycle(&self) -> Option<Vec<usize>> {
        let mut progress = Progress::new(self);
        let mut can_start = progress.first();
        while let Some(place) = can_start.pop() {
            can_start.extend(progress.started(place));
        }
        let mut at = progress.waits_for.iter().position(|left| *left > 0)?;
        let mut path = Vec::new();
        loop {
            if let Some(again) = path.iter().position(|place| *place == at) {
                return Some(path.split_off(again));
            }
            path.push(at);
            // One that can never start needs one that can never start.
            at = *self.needs[at]
                .iter()
                .find(|need| progress.waits_for[**need] > 0)?;
        }
    }
}

/// What is wrong with services of these names that need each other so, for whoever reads them long before they start.
pub fn check_dependencies(names: &[&str], after: &[(&str, &str)]) -> Vec<String> {
    match Order::plan(names, after.iter().copied()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

/// How far a start has come.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// How many each waits for.
    waits_for: Vec<usize>,
    /// Who waits for each.
    dependents: Vec<Vec<usize>>,
}

impl Progress {
    pub(crate) fn new(order: &Order) -> Self {
        let mut dependents = vec![Vec::new(); order.needs.len()];
        for (place, needs) in order.needs.iter().enumerate() {
            for need in needs {
                dependents[*need].push(place);
            }
        }
        Self {
            waits_for: order.needs.iter().map(Vec::len).collect(),
            dependents,
        }
    }

    /// Those that wait for none.
    pub(crate) fn first(&self) -> Vec<usize> {
        let places = 0..self.waits_for.len();
        places.filter(|place| self.waits_for[*place] == 0).collect()
    }

    /// The service at `place` has started, which is said once of each: those that it was the last for to wait for.
    pub(crate) fn started(&mut self, place: usize) -> Vec<usize> {
        let mut can_start = Vec::new();
        for dependent in &self.dependents[place] {
            self.waits_for[*dependent] -= 1;
            if self.waits_for[*dependent] == 0 {
                can_start.push(*dependent);
            }
        }
        can_start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn faults(names: &[&str], after: &[(&str, &str)]) -> String {
        let faults = Order::plan(names, after.iter().copied()).unwrap_err();
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        faults.join("\n")
    }

    #[test]
    fn who_depends_on_nobody_starts_first_and_the_others_when_they_can() {
        let after = [
            ("app", "db"),
            ("app", "cache"),
            ("web", "app"),
            ("app", "db"),
        ];
        let order = Order::plan(&["web", "db", "app", "cache"], after).unwrap();
        let mut progress = Progress::new(&order);
        assert_eq!(progress.first(), [1, 3]);
        assert!(progress.started(1).is_empty());
        assert_eq!(progress.started(3), [2]);
        assert_eq!(progress.started(2), [0]);
        assert!(progress.started(0).is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_told_by_name() {
        insta::assert_snapshot!(
            faults(&["db", "app", "db", "db"], &[("app", "bd"), ("wep", "db"), ("app", "bd")]),
            @r"
        two services are called `db`; give each its own name
        there is no service `bd`; there are app, db
        there is no service `wep`; there are app, db
        "
        );
        insta::assert_snapshot!(
            faults(&["a", "b", "c", "d"], &[("a", "b"), ("b", "c"), ("c", "b"), ("b", "d")]),
            @"none of these could start before the others: `b` after `c` after `b`"
        );
        insta::assert_snapshot!(
            faults(&["a"], &[("a", "a")]),
            @"none of these could start before the others: `a` after `a`"
        );
        insta::assert_snapshot!(faults(&[], &[("a", "a")]), @"there is no service `a`; there is none at all");
    }

    proptest! {
        /// Whatever depends on whatever: either all start, each after what it needs, or there is a ring, and each of
        /// it needs the next.
        #[test]
        fn all_start_in_order_or_a_ring_is_told(
            count in 1usize..12,
            pairs in proptest::collection::vec((0usize..12, 0usize..12), 0..30),
            choices in proptest::collection::vec(any::<proptest::sample::Index>(), 12),
        ) {
            let names: Vec<String> = (0..count).map(|place| format!("s{place}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let pairs: Vec<(usize, usize)> =
                pairs.into_iter().map(|(one, other)| (one % count, other % count)).collect();
            match Order::plan(&names, pairs.iter().map(|&(one, other)| (names[one], names[other]))) {
                Ok(order) => {
                    let mut progress = Progress::new(&order);
                    let (mut can_start, mut started) = (progress.first(), Vec::new());
                    // Whichever is ready first.
                    for choice in choices.iter().take(count) {
                        prop_assert!(!can_start.is_empty(), "{started:?}");
                        let place = can_start.swap_remove(choice.index(can_start.len()));
                        prop_assert!(pairs.iter().all(|(one, other)| *one != place || started.contains(other)));
                        started.push(place);
                        can_start.extend(progress.started(place));
                    }
                    started.sort_unstable();
                    prop_assert_eq!(started, (0..count).collect::<Vec<_>>());
                }
                Err(faults) => {
                    prop_assert_eq!(faults.len(), 1);
                    let DependencyFault::Cycle(ring) = &faults[0] else {
                        return Err(TestCaseError::fail("another fault"));
                    };
                    let next = ring.iter().cycle().skip(1);
                    for (one, other) in ring.iter().zip(next) {
                        let is_asked = |&(a, b): &(usize, usize)| names[a] == *one && names[b] == *other;
                        prop_assert!(pairs.iter().any(is_asked), "{} after {}", one, other);
                    }
                }
            }
        }
    }
}
