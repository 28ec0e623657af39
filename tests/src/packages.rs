//! Which Debian package brings which program: `packages.txt`, shared with xtask.

use std::path::Path;

const TABLE: &str = include_str!("../packages.txt");

/// The packages among `wanted` whose file is not on this machine.
///
/// # Panics
/// Where a name is not in `packages.txt`: a test that needs it must be listed there.
pub fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    wanted
        .iter()
        .copied()
        .filter(|package| !Path::new(file_of(package)).exists())
        .collect()
}

fn file_of(package: &str) -> &'static str {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(package))
                .then(|| words.next())
                .flatten()
        })
        .unwrap_or_else(|| panic!("{package} is not in tests/packages.txt"))
}

#[cfg(test)]
mod tests {
    use super::{TABLE, file_of, missing};

    #[test]
    fn every_line_has_a_package_a_file_and_a_reason() {
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<_> = line.split_whitespace().collect();
            assert!(words.len() > 2 && words[1].starts_with('/'), "{line}");
        }
    }

    #[test]
    fn names_the_file_of_a_package() {
        assert_eq!(file_of("uidmap"), "/usr/bin/newuidmap");
        assert_eq!(missing(&[]), Vec::<&str>::new());
    }
}
