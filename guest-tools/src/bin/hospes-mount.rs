//! `hospes-mount`: mounts the file systems in which copied files are shown. Started by systemd, or by hand with a socket
//! of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use guest_tools::paths::Paths;
use guest_tools::{logging, mount};
use lexopt::Arg::{Long, Short};

const HELP: &str = "\
Mounts, for each user's desktop helper, the file system in which files that were copied on the host are shown. systemd
starts it when it is needed.

Usage: hospes-mount [--run DIRECTORY]

      --run DIRECTORY  Listen at a new socket in this directory, instead of systemd's, and mount there
  -h, --help           Print this text
  -V, --version        Print the version
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hospes-mount: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut run: Option<PathBuf> = None;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("run") => run = Some(arguments.value()?.into()),
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Short('V') | Long("version") => {
                println!("hospes-mount {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    logging::init("hospes-mount");
    match run {
        Some(run) => mount::serve(&mount::listen(&mount::socket(&run))?, &mount::directory(&run), false)?,
        None => mount::serve(&mount::inherited()?, &mount::directory(&Paths::default().run), true)?,
    }
    Ok(())
}
