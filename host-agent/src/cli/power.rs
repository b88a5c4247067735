//! `hospes stop`, `hospes reboot`, `hospes suspend`

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, Parser};
use hospes_protocol::control::{Answer, Ask};
use hospes_protocol::power::{Power, PowerAction, PowerReply, ScriptEnd, ScriptReport};
use serde::Serialize;

use crate::agent::ask::{Ask as AskAgent, Question};
use crate::cli::target::{Reach, duration};
use crate::cli::{Verb, VmPlace, wait};
use crate::client::{Client, ClientError};
use crate::command_error::{CommandError, TIMED_OUT};
use crate::connection::{Connection, ConnectionError};
use crate::endpoint::{DialError, Endpoint};
use crate::printable;
use crate::request::{mismatch, request};
use crate::ui;
use crate::vm::VmName;

/// An endpoint that refuses for so long is that of a guest that is down, and not of tools that restart.
const STEADY: Duration = Duration::from_secs(3);
/// How long one look at an endpoint may take.
const LOOK: Duration = Duration::from_secs(2);

/// Shut a VM down, in order
///
/// The guest is asked, as by a press of its power button: its owner's scripts in /etc/hospes/poweroff.d run, programs
/// that asked it to wait (inhibitor locks) are honoured, and its services end. A script that fails, or a lock, keeps it
/// up; --force, or the same command again within a minute, goes through all the same.
///
/// Waits until the guest is down. With --json: {"vm", "action", "by", "down", "scripts": [{"name", "end", "status",
/// "output"}], "inhibitors": [{"who", "why"}]}. "by" is logind, systemd or kernel, or null where the guest refused;
/// "end" is ended, timed_out, skipped or broken.
///
/// Exit codes: 0 when it is down, 124 when --timeout is over first, 125 where the guest refuses or cannot be asked.
#[derive(Debug, Parser)]
pub struct Stop {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Stop the processors and leave the VM on
    #[arg(long)]
    halt: bool,
    #[command(flatten)]
    how: How,
    /// Do not wait until the guest is down
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Restart a VM's guest
///
/// As hospes stop, and the guest starts again. Waits until it is on its way down; with --wait, until its tools answer
/// again after the new boot.
///
/// With --json: as hospes stop, with "back" for whether it was seen to be back.
///
/// Exit codes: 0, 124 when --timeout is over first, 125 where the guest refuses or cannot be asked.
#[derive(Debug, Parser)]
pub struct Reboot {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    #[command(flatten)]
    how: How,
    /// Wait until the guest is back
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Suspend a VM's guest to memory
///
/// The scripts in the guest's /etc/hospes/suspend.d run before, and resume.d after it. It wakes as its VMM wakes it.
///
/// With --json: as hospes stop, without "down".
///
/// Exit codes: 0 when it is on its way, 124 when --timeout is over first, 125 where the guest refuses or cannot.
#[derive(Debug, Parser)]
pub struct Suspend {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reach: Reach,
}

/// What the three have in common.
#[derive(Debug, Args)]
struct How {
    /// Go on where a script or an inhibitor says no
    #[arg(short, long)]
    force: bool,
    /// How long all of it may take, the guest's scripts too
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    timeout: Duration,
    /// How long each script may take [default: the guest's own setting]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    script_timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Told<'t> {
    vm: &'t VmName,
    action: &'static str,
    by: Option<&'t str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    back: Option<bool>,
    scripts: Vec<ToldScript<'t>>,
    inhibitors: Vec<ToldInhibitor<'t>>,
}

/// What a script did, as JSON has it.
#[derive(Serialize)]
pub(super) struct ToldScript<'t> {
    name: &'t str,
    end: String,
    status: u8,
    output: String,
}

#[derive(Serialize)]
struct ToldInhibitor<'t> {
    who: &'t str,
    why: &'t str,
}

impl Verb for Stop {
    const NAME: &'static str = "stop";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let action = if self.halt { PowerAction::HALT } else { PowerAction::POWEROFF };
        let deadline = Instant::now() + self.how.timeout;
        let (reply, connection) = self.how.ask(&client, action, deadline)?;
        // A halted guest keeps its VM, and its endpoint may go on refusing for ever: refusing is all there is to see.
        let down = if self.no_wait { Ok(false) } else { down(&client, connection, deadline).map(|()| true) };
        self.how
            .tell(&client, action, &reply, |told| told.down = Some(down.as_ref().is_ok_and(|down| *down)))?;
        down.map(|_| 0)
    }
}

impl Verb for Reboot {
    const NAME: &'static str = "reboot";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let deadline = Instant::now() + self.how.timeout;
        // Which boot this is: a look at the endpoint could miss a quick guest's time away.
        let boot = if self.wait { Some(boot(&client, deadline)?) } else { None };
        let (reply, connection) = self.how.ask(&client, PowerAction::REBOOT, deadline)?;
        let done = match &boot {
            Some(before) => back(&client, before, deadline),
            None => closed(connection, deadline).map_err(|_| late(&client)),
        };
        self.how.tell(&client, PowerAction::REBOOT, &reply, |told| {
            told.back = Some(boot.is_some() && done.is_ok());
        })?;
        done.map(|()| 0)
    }
}

impl Verb for Suspend {
    const NAME: &'static str = "suspend";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let deadline = Instant::now() + self.how.timeout;
        let (reply, _) = self.how.ask(&client, PowerAction::SUSPEND, deadline)?;
        self.how.tell(&client, PowerAction::SUSPEND, &reply, |_| ())?;
        Ok(0)
    }
}

impl How {
    fn ask(
        &self,
        client: &Client,
        action: PowerAction,
        deadline: Instant,
    ) -> Result<(PowerReply, Connection), CommandError> {
        let script_timeout_ms =
            self.script_timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let power = Power { action, force: self.force, script_timeout_ms };
        let (answer, connection) = match request(client, Ask::Power(power), Some(deadline)) {
            Ok(answered) => answered,
            Err(ClientError::Connection(ConnectionError::TimedOut)) => return Err(late(client)),
            Err(error) => return Err(error.into()),
        };
        let Answer::Power(reply) = answer else { return Err(mismatch().into()) };
        if let Some(error) = &reply.refused {
            self.tell(client, action, &reply, |_| ())?;
            return Err(CommandError::refused(error));
        }
        Ok((reply, connection))
    }

    fn tell(
        &self,
        client: &Client,
        action: PowerAction,
        reply: &PowerReply,
        add: impl FnOnce(&mut Told<'_>),
    ) -> Result<(), CommandError> {
        if self.json {
            let mut told = told(&client.vm().name, action, reply);
            add(&mut told);
            return ui::json(&told);
        }
        for script in
            reply.scripts.iter().filter(|script| script.objects() || script.end == ScriptEnd::SKIPPED)
        {
            ui::warn(words(script));
        }
        Ok(())
    }
}

fn told<'t>(vm: &'t VmName, action: PowerAction, reply: &'t PowerReply) -> Told<'t> {
    let scripts = reply.scripts.iter().map(told_script);
    let inhibitors = reply.inhibitors.iter().map(|one| ToldInhibitor { who: &one.who, why: &one.why });
    Told {
        vm,
        action: action.word(),
        by: Some(reply.by.as_str()).filter(|by| !by.is_empty()),
        down: None,
        back: None,
        scripts: scripts.collect(),
        inhibitors: inhibitors.collect(),
    }
}

pub(super) fn told_script(script: &ScriptReport) -> ToldScript<'_> {
    ToldScript {
        name: &script.name,
        end: script.end.name().unwrap_or("unknown").to_ascii_lowercase(),
        status: script.status,
        output: String::from_utf8_lossy(&script.output).into_owned(),
    }
}

/// A script's trouble, its output below it.
pub(super) fn words(script: &ScriptReport) -> String {
    let name = printable::line(&script.name);
    let output = String::from_utf8_lossy(&script.output);
    let said = match script.end {
        ScriptEnd::ENDED => format!("The guest's script {name} failed with status {}", script.status),
        ScriptEnd::TIMED_OUT => format!("The guest's script {name} took too long and was killed"),
        ScriptEnd::SKIPPED => format!("The guest's script {name} was not run"),
        _ => format!("The guest's script {name} could not be run"),
    };
    output.lines().fold(said, |said, line| said + "\n  " + &printable::line(line))
}

/// Waits until the connection ends, as it does when the guest's daemon goes.
fn closed(mut connection: Connection, deadline: Instant) -> Result<(), ConnectionError> {
    connection.set_deadline(Some(deadline));
    loop {
        match connection.frame() {
            Ok(_) => {}
            Err(ConnectionError::TimedOut) => return Err(ConnectionError::TimedOut),
            Err(_) => return Ok(()),
        }
    }
}

/// Waits until the guest is down: its endpoint is gone, or has refused for a while.
fn down(client: &Client, connection: Connection, deadline: Instant) -> Result<(), CommandError> {
    closed(connection, deadline).map_err(|_| late(client))?;
    let endpoint = &client.vm().spec.endpoint;
    let mut refusing: Option<Instant> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match look(endpoint, LOOK.min(left.max(Duration::from_millis(1)))) {
            Look::Gone => return Ok(()),
            Look::Up => refusing = None,
            Look::Refuses if refusing.get_or_insert_with(Instant::now).elapsed() >= STEADY => return Ok(()),
            Look::Refuses => {}
        }
        if left.is_zero() {
            return Err(late(client));
        }
        sleep(Duration::from_millis(100).min(left));
    }
}

enum Look {
    /// Something in the guest answers.
    Up,
    /// Nothing does, though the VM may be there.
    Refuses,
    /// There is no VM.
    Gone,
}

fn look(endpoint: &Endpoint, patience: Duration) -> Look {
    match endpoint.dial(patience) {
        Ok(stream) => {
            // A socket that leads to the guest's port takes connections for a guest that is down, too: what tells is
            // that they end at once.
            let mut connection = Connection::new(stream);
            connection.set_deadline(Some(Instant::now() + Duration::from_millis(500)));
            match connection.frame() {
                Err(ConnectionError::TimedOut) | Ok(_) => Look::Up,
                Err(_) => Look::Refuses,
            }
        }
        Err(DialError::Connect { source, .. }) => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Look::Gone,
            _ if source.raw_os_error() == Some(nix::libc::ENODEV) => Look::Gone,
            _ => Look::Refuses,
        },
        Err(_) => Look::Refuses,
    }
}

fn boot(client: &Client, deadline: Instant) -> Result<String, CommandError> {
    match request(client, Ask::Info, Some(deadline))?.0 {
        Answer::Info(info) => Ok(info.boot_id),
        _ => Err(mismatch().into()),
    }
}

/// Waits until the guest answers from another boot.
fn back(client: &Client, before: &str, deadline: Instant) -> Result<(), CommandError> {
    let until = wait::until(client, Some(deadline), "a new boot", |client, _| {
        let look = Instant::now() + LOOK;
        match request(client, Ask::Info, Some(look.min(deadline)))?.0 {
            Answer::Info(info) if info.boot_id != before => Ok(()),
            // Still the old one, on its way down.
            Answer::Info(_) => Err(ClientError::Connection(ConnectionError::TimedOut)),
            _ => Err(mismatch()),
        }
    });
    // The agent may be in the middle of a long back-off.
    AskAgent::tell(&Question::Retry { vm: client.vm().name.clone() });
    until
}

fn late(client: &Client) -> CommandError {
    let message = format!("{} is still there", client.vm().name);
    let error = CommandError::new("timed_out", message);
    let error =
        error.hint("--timeout waits longer, --force passes scripts and inhibitors; the VMM can end it hard");
    CommandError { code: TIMED_OUT, ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    fn script(end: ScriptEnd, status: u8, output: &[u8]) -> ScriptReport {
        ScriptReport { name: "10-flush\u{1b}[2J".into(), end, status, output: output.to_vec() }
    }

    #[test]
    fn a_scripts_trouble_is_told_with_its_output_and_moves_no_cursor() {
        let told = words(&script(ScriptEnd::ENDED, 3, b"no disk\n\x1b[31mred\xff\n"));
        assert!(
            told.starts_with("The guest's script 10-flush\\u{1b}[2J failed with status 3\n  no disk\n"),
            "{told}"
        );
        assert!(!told.contains('\u{1b}'), "{told}");
        assert!(words(&script(ScriptEnd::TIMED_OUT, 0, b"")).ends_with("took too long and was killed"));
    }

    #[test]
    fn json_has_what_the_guest_said() {
        let reply =
            PowerReply { scripts: vec![script(ScriptEnd::SKIPPED, 0, b"x")], ..PowerReply::default() };
        let name: VmName = "dev".parse().unwrap();
        let json = ui::to_json(&told(&name, PowerAction::POWEROFF, &reply));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["by"], serde_json::Value::Null);
        assert_eq!(value["scripts"][0]["end"], "skipped");
        assert!(value.get("down").is_none());
    }

    #[test]
    fn an_endpoint_without_a_vm_is_told_from_one_whose_guest_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let endpoint = Endpoint::Socket(path.clone());
        assert!(matches!(look(&endpoint, LOOK), Look::Gone));
        let listener = UnixListener::bind(&path).unwrap();
        let guest = thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || {
                let held = listener.accept().unwrap();
                drop(listener.accept().unwrap());
                held
            }
        });
        assert!(matches!(look(&endpoint, LOOK), Look::Up));
        assert!(matches!(look(&endpoint, LOOK), Look::Refuses));
        drop((guest.join().unwrap(), listener));
        assert!(matches!(look(&endpoint, LOOK), Look::Gone));
    }
}
