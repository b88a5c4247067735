//! `hospes completions`

use std::io::{self, Write};

use clap::{Parser, ValueEnum};
use clap_complete::env::Shells;

use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;

/// Print what makes a shell complete hospes' words, VM names and guest paths among them
///
/// For bash: source <(hospes completions bash). For fish: hospes completions fish | source.
#[derive(Debug, Parser)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Zsh,
}

impl Verb for Completions {
    const NAME: &'static str = "completions";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Elvish => "elvish",
            Shell::Fish => "fish",
            Shell::Zsh => "zsh",
        };
        let shells = Shells::builtins();
        let completer = shells.completer(name).ok_or_else(|| CommandError::local("No such shell"))?;
        let mut script = Vec::new();
        completer
            .write_registration("COMPLETE", "hospes", "hospes", "hospes", &mut script)
            .and_then(|()| io::stdout().write_all(&script))
            .map_err(|error| CommandError::io("Cannot write the completions", &error))?;
        Ok(0)
    }
}
