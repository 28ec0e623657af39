//! What runs beside the suites that audit this machine: it is slow, and leaves the machine's mounts, links and processes
//! alone. What it prints is shown when they have ended.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, ExitStatus},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    run,
    tally::{Suite, Tally},
};

/// A program, and what its end means.
pub(crate) struct Task {
    pub(crate) name: &'static str,
    pub(crate) command: Command,
    pub(crate) means: Means,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// What the tests say that it prints; a summary of its own comes after them.
    Tests,
    /// One check, passed or not.
    Check,
}

/// How one ended.
struct Done {
    name: &'static str,
    means: Means,
    printed: PathBuf,
    status: Result<ExitStatus>,
    took: Duration,
}

/// Tasks on their way, one after the other.
pub(crate) struct Beside(JoinHandle<Vec<Done>>);

impl Beside {
    /// Starts the first; each of the others comes when the one before has ended.
    pub(crate) fn start(tasks: Vec<Task>) -> Self {
        Self(thread::spawn(|| tasks.into_iter().map(Task::run).collect()))
    }

    /// Waits for all, and counts them.
    pub(crate) fn end(self, tally: &mut Tally) -> Result<()> {
        let all = self
            .0
            .join()
            .map_err(|_| anyhow!("what runs beside the suites panicked"))?;
        for done in all {
            tally.add(done.counted()?);
        }
        Ok(())
    }
}

impl Task {
    fn run(mut self) -> Done {
        let printed =
            crate::workspace().join(format!("target/{}.log", self.name.replace(' ', "-")));
        let started = Instant::now();
        let status = File::create(&printed)
            .and_then(|log| Ok((log.try_clone()?, log)))
            .with_context(|| format!("make {}", printed.display()))
            .and_then(|(out, err)| {
                println!("$ {} > {}", run::line_of(&self.command), printed.display());
                let ended = self.command.stdout(out).stderr(err).status();
                ended.with_context(|| format!("start {}", run::line_of(&self.command)))
            });
        Done {
            name: self.name,
            means: self.means,
            printed,
            status,
            took: started.elapsed(),
        }
    }
}

impl Done {
    fn counted(self) -> Result<Suite> {
        let mut suite = Suite::new(self.name);
        let status = self.status?;
        let text = fs::read(&self.printed)?;
        let text = String::from_utf8_lossy(&text);
        println!("---- {}, which ran beside the others", self.name);
        for line in text
            .lines()
            .take_while(|line| !line.starts_with("---- summary"))
        {
            println!("{line}");
            if self.means == Means::Tests {
                suite.read(line);
            }
        }
        if self.means == Means::Check && status.success() {
            suite.pass();
        }
        suite.end(status.success(), &format!("{status}: see above"), self.took);
        Ok(suite)
    }
}
