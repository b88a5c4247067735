//! `hospes wait`

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::agent::ask::{Ask, Question};
use crate::cli::ip::addresses;
use crate::cli::target::{Reach, duration};
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::command_error::{CommandError, TIMED_OUT};
use crate::connection::ConnectionError;
use crate::vm::VmName;
use crate::{control, ui};

/// Wait for a VM
///
/// Ends with exit code 0 as soon as it is so, and with 124 when --timeout is over. What waiting cannot change, such as
/// a key that is not trusted, ends it at once.
///
/// With --json: {"vm", "for", "waited_ms"}.
#[derive(Debug, Parser)]
pub struct Wait {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t = For::Agent)]
    what: For,
    /// How long, such as 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum For {
    /// The guest tools answer
    Agent,
    /// The guest has an address on a network
    Address,
    /// Nothing answers any more
    Gone,
}

#[derive(Serialize)]
struct Told<'w> {
    vm: &'w VmName,
    #[serde(rename = "for")]
    what: For,
    waited_ms: u128,
}

impl Verb for Wait {
    const NAME: &'static str = "wait";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let start = Instant::now();
        let deadline = self.timeout.map(|time| start + time);
        match self.what {
            For::Agent => {
                until(&client, deadline, "the guest tools", |client, _| client.greet(&[]).map(drop))?;
            }
            For::Address => until(&client, deadline, "an address", |client, deadline| {
                control::info_until(client, deadline, |info| addresses(info).next())
            })
            .map(drop)?,
            For::Gone => gone(&client, deadline)?,
        }
        // The agent may be in the middle of a long back-off.
        Ask::tell(&Question::Retry { vm: self.vm.clone() });
        if self.json {
            ui::json(&Told { vm: &self.vm, what: self.what, waited_ms: start.elapsed().as_millis() })?;
        }
        Ok(0)
    }
}

/// Tries until it works, while what stands in the way may pass.
///
/// # Errors
/// What does not pass, and the deadline with what was last in the way.
pub fn until<T>(
    client: &Client,
    deadline: Option<Instant>,
    what: &str,
    mut attempt: impl FnMut(&Client, Option<Instant>) -> Result<T, ClientError>,
) -> Result<T, CommandError> {
    let mut pause = Duration::from_millis(50);
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        // An attempt at a guest that is not up yet may be swallowed whole: it is soon given up for another.
        let patience = client.patience().min(left.unwrap_or(Duration::MAX)).min(Duration::from_secs(5));
        let bounded = client.clone().without_agent().timeout(patience.max(Duration::from_millis(1)));
        match attempt(&bounded, deadline) {
            Ok(found) => return Ok(found),
            Err(error) => {
                let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
                if left == Some(Duration::ZERO) {
                    return Err(late(client, what, &error));
                }
                if !error.may_pass()
                    && !matches!(error, ClientError::Connection(ConnectionError::Closed { .. }))
                {
                    return Err(error.into());
                }
                sleep(pause.min(left.unwrap_or(pause)));
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

fn gone(client: &Client, deadline: Option<Instant>) -> Result<(), CommandError> {
    let bounded = client.clone().without_agent().timeout(Duration::from_secs(2));
    loop {
        let Ok(mut control) = control::Control::open(&bounded, []) else { return Ok(()) };
        control.set_deadline(deadline);
        // The guest has nothing to say here, so what comes is its end.
        match control.incoming() {
            Err(ClientError::Connection(ConnectionError::TimedOut)) => {
                let error =
                    CommandError::new("timed_out", format_args!("{} is still there", client.vm().name));
                return Err(CommandError { code: TIMED_OUT, ..error });
            }
            _ => sleep(Duration::from_millis(100)),
        }
    }
}

fn late(client: &Client, what: &str, error: &ClientError) -> CommandError {
    let name = &client.vm().name;
    let message = format!("{name} did not get {what} in time; last: {}", crate::command_error::chain(error));
    CommandError { code: TIMED_OUT, hint: error.hint(), ..CommandError::new("timed_out", message) }
}
