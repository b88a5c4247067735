//! `hospes list`

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hospes_protocol::control::{Answer as GuestAnswer, Ask as AskGuest};

use crate::agent::ask::{Answer, Ask, Listing, Question, State, Told, VmStatus};
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::command_error::CommandError;
use crate::control;
use crate::pins::Pins;
use crate::printable;
use crate::registry::{Listed, Registry};
use crate::ui::{self, Paint, Table};
use crate::vm::Vm;

/// List the VMs, and guests that announced themselves
///
/// With the agent, its knowledge is shown at once; without, every VM is asked, all at the same time and not for long.
///
/// With --json: {"vms": [{"name", "endpoint", "state", "since", "error": {"message", "hint"}, "fingerprint", "info"}],
/// "announced": [{"endpoint", "hostname", "fingerprint", "at"}]}. "state" is connected, connecting, unreachable or
/// refused; "info" is as hospes info shows it; what is not known is null. Names and host names of guests are their own
/// word.
#[derive(Debug, Parser)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print names alone, one to a line
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Ask every VM now, and not the agent
    #[arg(long)]
    fresh: bool,
}

/// How long all VMs together may take without the agent.
const PATIENCE: Duration = Duration::from_secs(2);

impl Verb for List {
    const NAME: &'static str = "list";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let registry = Registry::open()?;
        if self.quiet {
            for name in registry.names()? {
                ui::line(name)?;
            }
            return Ok(0);
        }
        let cached = if self.fresh { None } else { cached() };
        let listing = match cached {
            Some(listing) => listing,
            None => Listing { vms: probe(registry.list()?), announced: Vec::new() },
        };
        if self.json {
            ui::json(&listing)?;
        } else {
            print(&listing)?;
        }
        Ok(0)
    }
}

fn cached() -> Option<Listing> {
    match Ask::once(&Question::List, Duration::from_millis(500)) {
        Ok(Answer::List(listing)) => Some(listing),
        _ => None,
    }
}

/// Asks all at the same time. A VM that takes too long is told so; its thread ends with the process.
fn probe(entries: Vec<Listed>) -> Vec<VmStatus> {
    let (sender, answers) = mpsc::channel();
    let mut list: Vec<VmStatus> = Vec::new();
    let mut awaited = 0;
    for (at, entry) in entries.into_iter().enumerate() {
        match entry {
            Ok(vm) => {
                list.push(status(&vm, State::Unreachable, Some(late())));
                awaited += 1;
                let sender = sender.clone();
                thread::spawn(move || {
                    let client = Client::new(vm).without_agent().timeout(PATIENCE);
                    let _ = sender.send((at, control::ask(&client, AskGuest::Info)));
                });
            }
            Err((name, error)) => list.push(VmStatus {
                name,
                endpoint: None,
                state: State::Refused,
                since: None,
                error: Some(Told { message: error.to_string(), hint: error.hint() }),
                fingerprint: None,
                info: None,
            }),
        }
    }
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..awaited {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((at, answer)) = answers.recv_timeout(left) else { break };
        let entry: &mut VmStatus = &mut list[at];
        match answer {
            Ok(answer) => {
                entry.state = State::Connected;
                entry.error = None;
                let pin = Pins::open().ok().and_then(|pins| pins.load(&entry.name).ok().flatten());
                entry.fingerprint = pin.map(|pin| pin.key.fingerprint());
                if let GuestAnswer::Info(info) = answer {
                    entry.info = Some(info);
                }
            }
            Err(error) => {
                entry.state = state_of(&error);
                entry.error = Some(Told::from(&error));
            }
        }
    }
    list
}

/// Whether a failed attempt means that nothing answers, or that something forbids it.
#[must_use]
pub fn state_of(error: &ClientError) -> State {
    if error.may_pass() || matches!(error, ClientError::Dial(_)) {
        State::Unreachable
    } else {
        State::Refused
    }
}

impl From<&ClientError> for Told {
    fn from(error: &ClientError) -> Self {
        Self { message: crate::command_error::chain(error), hint: error.hint() }
    }
}

fn late() -> Told {
    Told { message: format!("No answer in {} s", PATIENCE.as_secs()), hint: None }
}

fn status(vm: &Vm, state: State, error: Option<Told>) -> VmStatus {
    VmStatus {
        name: vm.name.clone(),
        endpoint: Some(vm.spec.endpoint.clone()),
        state,
        since: None,
        error,
        fingerprint: None,
        info: None,
    }
}

fn print(listing: &Listing) -> Result<(), CommandError> {
    if listing.vms.is_empty() && listing.announced.is_empty() {
        ui::note("No VM was added yet: hospes add NAME ENDPOINT");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATE", "ADDRESS", "SYSTEM", "ENDPOINT"]);
    for vm in &listing.vms {
        // What a guest said before it went is not so any more.
        let info = vm.info.as_deref().filter(|_| vm.state == State::Connected);
        let address = info.and_then(|info| crate::cli::ip::addresses(info).next());
        let address = address.map_or("-".to_owned(), |address| printable::line(&address).into_owned());
        let system = info.map_or("-".to_owned(), |info| printable::line(&info.os).into_owned());
        let endpoint = vm.endpoint.as_ref().map_or("-".to_owned(), ToString::to_string);
        table.row([vm.name.to_string(), vm.state.word().to_owned(), address, system, endpoint]);
        table.style(
            1,
            match vm.state {
                State::Connected => Paint::green,
                State::Connecting => Paint::yellow,
                State::Unreachable | State::Refused => Paint::red,
            },
        );
    }
    if !listing.vms.is_empty() {
        table.print()?;
    }
    for vm in &listing.vms {
        if let Some(error) = vm.error.as_ref().filter(|_| vm.state == State::Refused) {
            ui::note(format_args!("{}: {}", vm.name, printable::line(&error.message)));
        }
    }
    if listing.announced.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["ANNOUNCED", "ENDPOINT", "KEY"]);
    for guest in &listing.announced {
        table.row([
            printable::line(&guest.hostname).into_owned(),
            guest.endpoint.to_string(),
            guest.fingerprint.clone(),
        ]);
    }
    if !listing.vms.is_empty() {
        ui::line("")?;
    }
    table.print()
}
