//! Steps that are shown, held against the truth, and counted at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use integration_tests::{Host, Ran};

/// The steps so far, for the table at the end.
#[derive(Default)]
pub(crate) struct Story {
    steps: Vec<(String, Duration, Option<String>)>,
    pub(crate) failed: bool,
}

/// What a step shows.
pub(crate) struct Say;

impl Say {
    pub(crate) fn typed(&self, command: &str) {
        println!("  $ {command}");
    }

    pub(crate) fn printed(&self, text: &str) {
        for line in text.lines() {
            println!("    {line}");
        }
    }

    /// Shows a command, runs it, and shows what it printed and how it ended.
    pub(crate) fn run(&self, host: &Host, words: &[&str]) -> Result<Ran> {
        let quote = |word: &&str| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() };
        self.typed(&format!("hospes {}", words.iter().map(quote).collect::<Vec<_>>().join(" ")));
        let ran = host.run(words)?;
        self.printed(&String::from_utf8_lossy(&ran.stdout));
        self.printed(&ran.stderr);
        if ran.status != 0 {
            println!("    (exit status {})", ran.status);
        }
        Ok(ran)
    }
}

impl Story {
    /// A step without which the rest makes no sense.
    pub(crate) fn must<T>(&mut self, name: &str, act: impl FnOnce(&Say) -> Result<T>) -> Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = act(&Say);
        let failure = result.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            println!("  FAILED: {failure}");
            self.failed = true;
        }
        self.steps.push((name.to_owned(), start.elapsed(), failure));
        match result {
            Ok(value) => Ok(value),
            Err(_) => bail!("\"{name}\" failed"),
        }
    }

    /// A step after which the story goes on whatever happened.
    pub(crate) fn step(&mut self, name: &str, act: impl FnOnce(&Say) -> Result<()>) {
        let _ = self.must(name, act);
    }

    pub(crate) fn table(&self) {
        println!("\n  {:<8} {:>7}  step", "result", "seconds");
        for (name, took, failure) in &self.steps {
            let result = if failure.is_none() { "worked" } else { "FAILED" };
            println!("  {result:<8} {:>7.1}  {name}", took.as_secs_f32());
        }
        if self.failed {
            println!(
                "\nNot everything worked. The guest's console and logs are in the target directory, under lab-runs."
            );
        }
    }
}
