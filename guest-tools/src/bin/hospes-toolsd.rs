//! `hospes-toolsd`, the root daemon in the guest.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use guest_tools::daemon::desktop::Seat;
use guest_tools::daemon::transport::Address;
use guest_tools::daemon::worker::Starter;
use guest_tools::daemon::{self, Options};
use guest_tools::logging;
use guest_tools::power::Manner;
use lexopt::Arg::{Long, Short};
use lexopt::ValueExt;

const HELP: &str = "\
Usage: hospes-toolsd [--listen vsock|unix:PATH]

Serves the host of this virtual machine. systemd starts it when the vsock device arrives; see hospes-tools(1).

  --listen ADDRESS  where to listen: vsock (the default), or unix:PATH
  --version         the release
  --help            this
";

fn main() -> ExitCode {
    match parse() {
        Err(error) => {
            eprintln!("hospes-toolsd: {error}");
            ExitCode::from(2)
        }
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(options)) => {
            logging::init("hospes-toolsd");
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
    runtime.block_on(daemon::run(options))?;
    // A lookup or an announcement that still hangs in another thread keeps nobody waiting.
    runtime.shutdown_background();
    Ok(())
}

/// The command line. What `--help` leaves out is for tests and for machines without systemd.
fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options::default();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") => {
                println!("hospes-toolsd {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("listen") => {
                let text = arguments.value()?.string()?;
                options.listen = Address::parse(&text)
                    .ok_or_else(|| format!("\"{text}\" is neither vsock nor unix:PATH"))?;
            }
            Long("etc") => options.paths.etc = arguments.value()?.into(),
            Long("state") => options.paths.state = arguments.value()?.into(),
            Long("run") => options.paths.run = arguments.value()?.into(),
            Long("machine-id") => options.paths.machine_id = arguments.value()?.into(),
            Long("worker-command") => {
                options.starter = Starter::Command(arguments.value()?.into());
                // A daemon beside another system than its own has no power over that.
                if options.power == Manner::Machine {
                    options.power = Manner::Nothing;
                }
                options.qga = None;
                if options.seat == Seat::Machine {
                    options.seat = Seat::Anybody;
                }
            }
            Long("qga") => {
                let text = arguments.value()?.string()?;
                options.qga = Address::parse(&text);
            }
            Long("seat-bus") => options.seat = Seat::Bus(arguments.value()?.string()?),
            Long("power-bus") => options.power = Manner::Bus(arguments.value()?.string()?),
            Long("handshake-ms") => {
                options.handshake = Duration::from_millis(arguments.value()?.parse()?);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}
