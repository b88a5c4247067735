//! `hospes-session`: one user's commands in the guest. Started by systemd, or by hand with a socket of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use guest_tools::session::accept;
use lexopt::{Arg, Parser, ValueExt};

const HELP: &str = "\
Runs the commands that Hospes' host starts as this user. systemd starts it when it is needed.

Usage: hospes-session [--listen PATH] [--idle SECONDS]

      --listen PATH   Listen at a new socket, which this user alone may use, instead of systemd's
      --idle SECONDS  End after so long with nothing to do (600)
  -h, --help          Print this text
  -V, --version       Print the version
";

struct Arguments {
    listen: Option<PathBuf>,
    idle: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hospes-session: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Some(arguments) = arguments()? else { return Ok(()) };
    guest_tools::logging::start();
    accept::run(arguments.listen.as_deref(), arguments.idle).context("The session's worker ended")
}

fn arguments() -> anyhow::Result<Option<Arguments>> {
    let mut arguments = Arguments { listen: None, idle: accept::IDLE };
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => arguments.listen = Some(parser.value()?.into()),
            Arg::Long("idle") => arguments.idle = Duration::from_secs(parser.value()?.parse()?),
            Arg::Short('h') | Arg::Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            Arg::Short('V') | Arg::Long("version") => {
                println!("hospes-session {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(arguments))
}
