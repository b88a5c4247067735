//! `hospes-desktop`, the helper on a user's desktop.

use std::process::ExitCode;

use anyhow::Context;
use guest_desktop::helper::{self, Options};
use guest_tools::daemon::desktop::socket;
use guest_tools::logging;
use guest_tools::mount;
use guest_tools::paths::Paths;
use hospes_clipboard::desktop::Places;
use lexopt::Arg::{Long, Short};
use tokio::task::LocalSet;

const HELP: &str = "\
Usage: hospes-desktop

Shares the clipboard of this user's desktop with the host of this virtual machine. The user's systemd starts it; it waits
for a desktop, and there is nothing to configure here. What is shared is the guest's to say: see hospes-tools(1).

  --version  the release
  --help     this
";

fn main() -> ExitCode {
    match parse() {
        Err(error) => {
            eprintln!("hospes-desktop: {error}");
            ExitCode::from(2)
        }
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(options)) => {
            logging::init("hospes-desktop");
            match run(options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error:#}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("The event loop could not be made")?;
    let mut terminate = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("Signals cannot be taken")?
    };
    LocalSet::new().block_on(&runtime, async {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            () = helper::run(options) => (),
            _ = terminate.recv() => (),
        }
    });
    // A compositor that does not answer keeps nobody waiting.
    runtime.shutdown_background();
    Ok(())
}

/// The command line. What `--help` leaves out is for tests.
fn parse() -> Result<Option<Options>, lexopt::Error> {
    let run = Paths::default().run;
    let mut options =
        Options { daemon: socket(&run), places: Places::from_env(), mount: mount::socket(&run) };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") => {
                println!("hospes-desktop {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("run") => {
                let run: std::path::PathBuf = arguments.value()?.into();
                options.daemon = socket(&run);
                options.mount = mount::socket(&run);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}
