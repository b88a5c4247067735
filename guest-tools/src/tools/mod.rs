//! `hospes-tools`, the in-guest command: how the guest tools are, what is wrong, and whom they trust.

mod config;
mod doctor;
mod generate;
mod info;
mod replay;
mod share;
pub use self::share::MOUNT_POINT;
mod status;
mod trust;
mod var;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::paths::Paths;

/// The guest tools are not what they should be: not running, or a problem was found.
pub const UNHEALTHY: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The daemon does not run, as systemctl(1) says it.
pub const NOT_RUNNING: u8 = 3;

/// Shows and sets up the Hospes guest tools, which let the machine that this guest runs on work in it.
#[derive(Debug, Parser)]
#[command(name = "hospes-tools", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Is the daemon running, whom does it trust, who is connected, and if not: why
    Status(status::Status),
    /// What this guest tells its host: system, addresses, disks, users, load
    Info(info::Info),
    /// Look for everything that may be wrong, and say what to do about it
    Doctor(doctor::Doctor),
    /// The policy of /etc/hospes/tools.toml
    #[command(subcommand)]
    Config(config::Config),
    /// The hosts that may work in this guest
    #[command(subcommand)]
    Trust(trust::Trust),
    /// Small named values that the host leaves for this guest, and this guest for its host
    #[command(subcommand)]
    Var(var::Var),
    /// The folders that the host shares with this guest
    #[command(subcommand)]
    Share(share::Share),
    /// Print a shell's completions
    #[command(hide = true)]
    Completions(generate::Completions),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(generate::Man),
}

/// Where things are, for tests.
#[derive(Debug, Args)]
struct Places {
    #[arg(long, hide = true, global = true)]
    etc: Option<PathBuf>,
    #[arg(long, hide = true, global = true)]
    state: Option<PathBuf>,
    #[arg(long, hide = true, global = true)]
    run: Option<PathBuf>,
    #[arg(long, hide = true, global = true)]
    machine_id: Option<PathBuf>,
}

impl Places {
    fn paths(self) -> Paths {
        let mut paths = Paths { credentials: None, ..Paths::default() };
        let given = [
            (self.etc, &mut paths.etc),
            (self.state, &mut paths.state),
            (self.run, &mut paths.run),
            (self.machine_id, &mut paths.machine_id),
        ];
        for (given, path) in given {
            if let Some(given) = given {
                *path = given;
            }
        }
        paths
    }
}

/// Runs the command line. Its words go to `out`.
///
/// # Errors
/// What went wrong, for people.
pub fn run(arguments: impl IntoIterator<Item = OsString>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            error.print()?;
            return Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE)));
        }
    };
    let paths = cli.places.paths();
    let code = match cli.command {
        Command::Status(status) => status.run(&paths, out),
        Command::Info(info) => info.run(out),
        Command::Doctor(doctor) => doctor.run(&paths, out),
        Command::Config(config) => config.run(&paths, out),
        Command::Trust(trust) => trust.run(&paths, out),
        Command::Var(var) => var.run(&paths, out),
        Command::Share(share) => share.run(out),
        Command::Completions(completions) => completions.run(out),
        Command::Man(man) => man.run(),
    };
    match code {
        // Somebody who reads no further: `hospes-tools info | head -1`.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        code => code.map(ExitCode::from),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn json(value: &impl serde::Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(value)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
