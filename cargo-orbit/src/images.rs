//! `cargo orbit pull`, `images` and `gc`: what is in the store of images, and what goes.

// The texts are clap's, for terminals.
#![expect(rustdoc::broken_intra_doc_links)]

mod progress;

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use orbit::PullPolicy;

use self::progress::Bars;

/// Brings an image into the store, so that the first sandbox that needs it starts at once.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// NAME[:TAG] or NAME@DIGEST in a registry, oci:PATH, or oci-archive:PATH.
    #[arg(value_name = "IMAGE")]
    image: String,

    /// Only make sure that it is there: do not ask the registry whether the tag has moved.
    #[arg(long)]
    missing: bool,
}

/// Lists the images that were pulled.
#[derive(Debug, clap::Args)]
pub(crate) struct ImagesArgs {
    /// Forget this image, written as the list shows it; gc then removes its layers.
    #[arg(long, value_name = "IMAGE")]
    forget: Option<String>,
}

/// Removes images, layers, snapshots and kept sandboxes that nobody uses.
#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    /// Keep what was used within this time, such as 30days or 12h; 0s removes all that is not in use now.
    #[arg(long, value_name = "TIME", default_value = "30days", value_parser = humantime::parse_duration)]
    unused_for: Duration,

    /// Remove all sandboxes that were kept for `cargo orbit shell`, too, whatever their age.
    #[arg(long)]
    kept: bool,
}

/// Pulls, with a line for each layer.
pub(crate) fn pull(args: &PullArgs) -> anyhow::Result<ExitCode> {
    let policy = if args.missing {
        PullPolicy::Missing
    } else {
        PullPolicy::Always
    };
    let bars = Bars::new();
    let image = orbit::images::pull_telling(&args.image, policy, &|progress| bars.show(&progress))?;
    bars.finish();
    crate::write_out(&format!(
        "{} {} {}\n",
        image.reference, image.digest, image.platform
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Lists, or forgets one.
pub(crate) fn images(args: &ImagesArgs) -> anyhow::Result<ExitCode> {
    if let Some(reference) = &args.forget {
        anyhow::ensure!(
            orbit::images::forget(reference)?,
            "there is no image {reference}; `cargo orbit images` lists those there are"
        );
        return Ok(ExitCode::SUCCESS);
    }
    for image in orbit::images::list()? {
        let age = age(image.pulled, SystemTime::now());
        crate::write_out(&format!(
            "{} {} {} {age} ago\n",
            image.reference, image.digest, image.platform
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes, and says how much.
pub(crate) fn gc(args: &GcArgs) -> anyhow::Result<ExitCode> {
    let age = if args.kept {
        Duration::ZERO
    } else {
        args.unused_for
    };
    let kept = orbit::kept::remove_older_than(age)?;
    let removed = orbit::images::remove_unused(args.unused_for)?;
    crate::write_out(&format!(
        "removed {} images and {} layers, {} bytes; {} in use\n",
        removed.images, removed.layers, removed.bytes, removed.in_use
    ))?;
    if kept + removed.snapshots > 0 {
        crate::write_out(&format!(
            "removed {kept} kept sandboxes and {} snapshots\n",
            removed.snapshots
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// To the two largest units: nobody asks for the seconds of a week.
pub(crate) fn age(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    let whole = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units_at_most() {
        let after = |seconds| {
            age(
                SystemTime::UNIX_EPOCH,
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            )
        };
        assert_eq!(after(0), "0s");
        assert_eq!(after(61), "1m 1s");
        assert_eq!(after(90_061), "1day 1h");
        assert_eq!(
            age(
                SystemTime::now() + Duration::from_secs(60),
                SystemTime::now()
            ),
            "0s"
        );
    }
}
