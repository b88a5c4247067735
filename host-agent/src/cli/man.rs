//! `hospes man`

use std::path::PathBuf;

use clap::Parser;

use crate::cli::{Verb, VmPlace, whole};
use crate::command_error::CommandError;

/// Write the manual pages into a directory
///
/// hospes.1, and hospes-VERB.1 for each verb.
#[derive(Debug, Parser)]
pub struct Man {
    /// The directory, which must exist
    directory: PathBuf,
}

impl Verb for Man {
    const NAME: &'static str = "man";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        clap_mangen::generate_to(whole().disable_help_subcommand(true), &self.directory).map_err(
            |error| {
                CommandError::io(
                    format_args!("Cannot write manual pages to {}", self.directory.display()),
                    &error,
                )
            },
        )?;
        Ok(0)
    }
}
