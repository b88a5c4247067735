//! `hospes shell`

use std::ffi::OsString;
use std::io::{IsTerminal, stdin};

use clap::Parser;

use crate::cli::exec::How;
use crate::cli::target::{Reach, command_words};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::vm::VmName;

/// Open a shell in a VM
///
/// It is the user's login shell, with a terminal where stdin is one here; commands that are piped in are run without
/// one. With a COMMAND, the login shell's environment runs that in its place.
#[derive(Debug, Parser)]
pub struct Shell {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// A command to run in place of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reach: Reach,
}

impl Verb for Shell {
    const NAME: &'static str = "shell";
    const VM: VmPlace = VmPlace::First;

    fn run(mut self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let tty = stdin().is_terminal() && !self.how.no_stdin;
        self.how.login = true;
        self.how.perform(&client, command_words(self.command), tty, false)
    }
}
