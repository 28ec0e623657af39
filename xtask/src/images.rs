//! The test images: `images/build.sh` does the work.

use std::time::Instant;

use anyhow::Result;

use crate::{run, tally::Tally};

/// Builds the images that are not up to date.
pub(crate) fn build(tally: &mut Tally) -> Result<()> {
    let started = Instant::now();
    let status = run::status(&mut run::command("images/build.sh"))?;
    tally.checked(
        "images",
        status.success(),
        &status.to_string(),
        started.elapsed(),
    );
    Ok(())
}
