//! Completions and manual pages, made from the command's own definition when it is packaged.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print a shell's completions.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

/// Write the manual pages into a directory.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Which directory
    directory: PathBuf,
}

impl Completions {
    pub(super) fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        clap_complete::generate(self.shell, &mut Cli::command(), "hospes-tools", out);
        Ok(0)
    }
}

impl Man {
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        clap_mangen::generate_to(Cli::command(), &self.directory)
            .with_context(|| format!("Manual pages cannot be written to {}", self.directory.display()))?;
        Ok(0)
    }
}
