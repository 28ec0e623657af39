//! What was measured, by name, and what was not, with the reason.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Medians by name: seconds, or what the name says.
#[derive(Default)]
pub(crate) struct Figures {
    found: BTreeMap<String, f64>,
    skipped: BTreeMap<String, String>,
}

impl Figures {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64) {
        self.found.insert(name.into(), value);
    }

    /// Says why there is no figure of this name.
    pub(crate) fn skip(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.skipped.insert(name.into(), why.into());
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.found.get(name).copied()
    }

    pub(crate) fn why_not(&self, name: &str) -> &str {
        self.skipped
            .get(name)
            .map_or("not measured: see above", String::as_str)
    }

    /// A figure that was measured before.
    pub(crate) fn need(&self, name: &str) -> Result<f64> {
        self.get(name)
            .with_context(|| format!("{name}: {}", self.why_not(name)))
    }

    /// Reads the lines of the program in `benches/`; the names of its figures follow `whose`.
    pub(crate) fn read(&mut self, whose: &str, output: &[u8]) -> Result<()> {
        for line in output
            .split(|byte| *byte == b'\n')
            .filter(|it| !it.is_empty())
        {
            let line: Value = serde_json::from_slice(line).context("a line is no JSON")?;
            let name = line["figure"].as_str().context("a line has no figure")?;
            let value = line["value"].as_f64().context("a figure has no value")?;
            self.add(format!("{whose}{name}"), value);
        }
        Ok(())
    }
}

/// The middle one, of as many as there are.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_program_prints() {
        let mut figures = Figures::default();
        let lines = b"{\"figure\":\"floor\",\"samples\":3,\"value\":0.5}\n";
        figures.read("a ", lines).expect("they are well-formed");
        assert_eq!(figures.get("a floor"), Some(0.5));
        assert!(figures.read("", b"floor 0.5\n").is_err());
        figures.skip("docker run", "no dockerd");
        assert_eq!(figures.why_not("docker run"), "no dockerd");
        assert!(figures.need("docker run").is_err());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}
