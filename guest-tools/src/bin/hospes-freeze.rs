//! `hospes-freeze`: holds file systems still for a snapshot, and lets them go when it is told, or when its time is up.
//! Started by systemd, or by hand with a socket of its own.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use guest_tools::freeze::edge::Kernel;
use guest_tools::freeze::helper;
use guest_tools::paths::Paths;
use guest_tools::{logging, mount};
use lexopt::Arg::{Long, Short};
use nix::sys::stat::{Mode, umask};

const HELP: &str = "\
Freezes this machine's file systems for hospes-toolsd, and thaws them when it says so, or when the time that it was given is
up. systemd starts it when it is needed.

Usage: hospes-freeze [--run DIRECTORY]
       hospes-freeze --thaw

      --run DIRECTORY  Listen at a new socket in this directory, instead of systemd's
      --thaw           Thaw what a hospes-freeze that was killed has left frozen, and end
  -h, --help           Print this text
  -V, --version        Print the version
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hospes-freeze: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (mut run, mut thaw): (Option<PathBuf>, bool) = (None, false);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("run") => run = Some(arguments.value()?.into()),
            Long("thaw") => thaw = true,
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Short('V') | Long("version") => {
                println!("hospes-freeze {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    logging::init("hospes-freeze");
    let place = run.clone().unwrap_or_else(|| Paths::default().run);
    // Before anything is asked of us: who was here before may have been killed.
    let left = helper::thaw_left(&Kernel, &place)?;
    if left > 0 {
        tracing::warn!("{left} file systems were left frozen by a hospes-freeze that ended, and are thawed");
    }
    if thaw {
        return Ok(());
    }
    let listener = match &run {
        Some(_) => listen(&helper::socket(&place))?,
        None => mount::inherited().context("systemd starts hospes-freeze, or say --run")?,
    };
    helper::serve(&listener, &Kernel, &place, run.is_none())?;
    Ok(())
}

/// A socket that only our own user may connect to.
fn listen(path: &std::path::Path) -> anyhow::Result<UnixListener> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.with_context(|| format!("Cannot listen at {}", path.display()))
}
