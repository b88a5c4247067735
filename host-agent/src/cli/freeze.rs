//! `hospes freeze`, `hospes thaw`, `hospes trim`

mod command;

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hospes_protocol::control::{Answer, Ask};
use hospes_protocol::error::WireError;
use hospes_protocol::freeze::{
    FileSystem, Freeze as Hold, FreezeReply, FsState, Thaw as Release, ThawCause, ThawReply, Trim as Wish,
    TrimReply, Trimmed,
};
use hospes_protocol::power::{ScriptEnd, ScriptReport};
use serde::Serialize;

use crate::cli::power::{ToldScript, told_script, words as script_words};
use crate::cli::target::{Reach, command_words, duration};
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::command_error::CommandError;
use crate::printable;
use crate::request::{mismatch, request};
use crate::ui;
use crate::vm::VmName;
use command::Interrupts;

/// How long the guest may take for what is not counted: its scripts, and to write out what it has.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a trim may take.
const TRIM: Duration = Duration::from_secs(1800);
/// How soon a thaw is asked for again where the guest's daemon is being started anew.
const AGAIN: Duration = Duration::from_millis(200);

/// Freeze a VM's file systems, so that a snapshot of its disks is whole
///
/// Everything is written out, and nothing more is, until hospes thaw, or until --timeout is over: then the guest thaws by
/// itself, whatever became of this machine. With a command behind --, that runs on this machine while the file systems are
/// frozen, and they are thawed when it ends:
///
///   hospes freeze dev -- qemu-img snapshot -c before-upgrade dev.qcow2
///
/// Where the guest thawed before the command ended, its snapshot is none to rely on, and that is an error. Ctrl-C ends the
/// command, and the file systems are thawed then too.
///
/// ext4, xfs, btrfs and their like are frozen; what the host, other machines or programs keep is left out and named. The
/// guest's scripts in /etc/hospes/freeze.d run before, and thaw.d after it. Until the thaw, other requests to the guest are
/// refused at once.
///
/// With --json: {"vm", "serial", "took_us", "file_systems": [{"mount", "kind", "state", "error"}], "scripts": [{"name",
/// "end", "status", "output"}]}, and with a command "thaw", as hospes thaw prints it, and "status". "state" is frozen, pseudo,
/// network, fuse, shared, stacked, read_only, incapable, failed or undone. A command's output then goes to the standard
/// error.
///
/// Exit codes: 0 where it is frozen, or the command's own; 125 where the guest is not frozen, or did not stay so; 126 and
/// 127 where the command cannot be run or is not there.
#[derive(Debug, Parser)]
pub struct Freeze {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// When the guest thaws by itself
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    timeout: Duration,
    /// How long each of the guest's scripts may take [default: the guest's own setting]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    script_timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
    /// A command of this machine's, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Thaw a VM's file systems
///
/// With --json: {"vm", "serial", "cause", "held_us", "whole", "file_systems", "scripts"}, as of hospes freeze. "cause" is
/// asked, deadline or ended; "whole" is whether everything was frozen until now.
///
/// Exit codes: 0 where all was frozen until now; 125 where nothing is frozen, or something was not until now.
#[derive(Debug, Parser)]
pub struct Thaw {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// The freeze that is meant, as hospes freeze --json prints it
    #[arg(long)]
    serial: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Tell a VM's disks what its file systems no longer need
///
/// The disks' files on this machine can then give the room back, where the VMM lets them: discard=unmap for QEMU.
///
/// With --json: {"vm", "bytes", "file_systems": [{"mount", "kind", "bytes", "error"}]}.
///
/// Exit codes: 0; 125 where none could be trimmed.
#[derive(Debug, Parser)]
pub struct Trim {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// The smallest free range that is worth telling, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    minimum: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Serialize)]
struct ToldFreeze<'t> {
    vm: &'t VmName,
    serial: u64,
    took_us: u64,
    file_systems: Vec<ToldFileSystem<'t>>,
    scripts: Vec<ToldScript<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thaw: Option<ToldThaw<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
}

#[derive(Serialize)]
struct ToldThaw<'t> {
    vm: &'t VmName,
    serial: u64,
    cause: String,
    held_us: u64,
    whole: bool,
    file_systems: Vec<ToldFileSystem<'t>>,
    scripts: Vec<ToldScript<'t>>,
}

#[derive(Serialize)]
struct ToldFileSystem<'t> {
    mount: String,
    kind: &'t str,
    state: String,
    error: Option<&'t str>,
}

#[derive(Serialize)]
struct ToldTrim<'t> {
    vm: &'t VmName,
    bytes: u64,
    file_systems: Vec<ToldTrimmed<'t>>,
}

#[derive(Serialize)]
struct ToldTrimmed<'t> {
    mount: String,
    kind: &'t str,
    bytes: Option<u64>,
    error: Option<&'t str>,
}

impl Verb for Freeze {
    const NAME: &'static str = "freeze";
    const VM: VmPlace = VmPlace::First;

    fn run(mut self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let command = command_words(std::mem::take(&mut self.command));
        // From here on no signal may end us before the thaw.
        let interrupts = if command.is_empty() { None } else { Some(Interrupts::take()?) };
        let reply = freeze(&client, self.timeout, self.script_timeout)?;
        let due = Instant::now() + self.timeout;
        if let Some(error) = &reply.refused {
            if self.json {
                ui::json(&told_freeze(&self.vm, &reply))?;
            } else {
                warn_of(&reply);
            }
            return Err(CommandError::refused(error));
        }
        if !self.json {
            warn_of(&reply);
        }
        let Some(interrupts) = interrupts else {
            if self.json {
                ui::json(&told_freeze(&self.vm, &reply))?;
            } else {
                ui::line(summary(&reply, self.timeout))?;
            }
            return Ok(0);
        };
        let ran = match interrupts.status() {
            Some(status) => Ok(status),
            None => interrupts.run(&command, self.json),
        };
        let thaw = thaw_by(&client, reply.serial, due);
        let status = ran.as_ref().ok().copied();
        if self.json {
            let mut told = told_freeze(&self.vm, &reply);
            told.thaw = thaw.as_ref().ok().map(|thaw| told_thaw(&self.vm, thaw));
            told.status = status;
            ui::json(&told)?;
        }
        // A command that failed has said why, and its snapshot is nobody's: its own status tells more.
        let status = ran?;
        match thaw.and_then(|thaw| self.held(&thaw)) {
            Err(error) if status == 0 => Err(error),
            Err(error) => {
                ui::warn(&error.message);
                Ok(status)
            }
            Ok(()) => Ok(status),
        }
    }
}

impl Freeze {
    fn held(&self, thaw: &ThawReply) -> Result<(), CommandError> {
        if !self.json {
            warn_of_scripts(&thaw.scripts);
        }
        whole(thaw).map_err(|error| {
            error.hint("The snapshot is none to rely on: make another one, with a longer --timeout")
        })
    }
}

impl Verb for Thaw {
    const NAME: &'static str = "thaw";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let reply = thaw(&client, self.serial)?;
        if self.json {
            ui::json(&told_thaw(&self.vm, &reply))?;
        } else {
            warn_of_scripts(&reply.scripts);
            let (count, time) = (reply.file_systems.len(), crate::time::length(nanoseconds(reply.held_us)));
            ui::line(format_args!("{count} {} thawed after {time}", plural(count)))?;
        }
        whole(&reply).map(|()| 0)
    }
}

impl Verb for Trim {
    const NAME: &'static str = "trim";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let ask = Ask::Trim(Wish { minimum: self.minimum });
        let Answer::Trim(reply) = request(&client, ask, Some(Instant::now() + TRIM))?.0 else {
            return Err(mismatch().into());
        };
        if self.json {
            ui::json(&told_trim(&self.vm, &reply))?;
        } else {
            for one in &reply.file_systems {
                ui::line(trimmed_words(one))?;
            }
        }
        let one_was = reply.file_systems.iter().any(|one| one.bytes.is_ok());
        let error = reply.file_systems.iter().find_map(|one| one.bytes.as_ref().err());
        match error {
            _ if one_was => Ok(0),
            Some(error) => Err(CommandError::refused(error)),
            None => {
                Err(CommandError::new("unsupported", "The guest has no file system on a disk of its own"))
            }
        }
    }
}

fn freeze(
    client: &Client,
    timeout: Duration,
    script_timeout: Option<Duration>,
) -> Result<FreezeReply, CommandError> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let ask = Ask::Freeze(Hold {
        timeout_ms: milliseconds(timeout),
        script_timeout_ms: script_timeout.map(milliseconds),
    });
    let deadline = Instant::now() + timeout + script_timeout.unwrap_or_default() + PATIENCE;
    match request(client, ask, Some(deadline))?.0 {
        Answer::Freeze(reply) => Ok(reply),
        _ => Err(mismatch().into()),
    }
}

fn thaw(client: &Client, serial: Option<u64>) -> Result<ThawReply, ClientError> {
    let ask = Ask::Thaw(Release { serial });
    match request(client, ask, Some(Instant::now() + PATIENCE))?.0 {
        Answer::Thaw(reply) => Ok(reply),
        _ => Err(mismatch()),
    }
}

/// Asks for the thaw of one freeze, again and again until the guest thaws by itself: its daemon may be away for a moment, and
/// knows after it what is frozen.
fn thaw_by(client: &Client, serial: u64, due: Instant) -> Result<ThawReply, CommandError> {
    loop {
        match thaw(client, Some(serial)) {
            Err(error) if error.may_pass() && Instant::now() < due => thread::sleep(AGAIN),
            result => return Ok(result?),
        }
    }
}

/// Whether everything was frozen up to the request.
fn whole(reply: &ThawReply) -> Result<(), CommandError> {
    let early = |why: &str| {
        CommandError::new("thawed_early", format_args!("The guest thawed before it was told to: {why}"))
    };
    match reply.cause {
        ThawCause::ASKED => {}
        ThawCause::DEADLINE => return Err(early("its time was up")),
        _ => return Err(early("its helper ended")),
    }
    match reply.file_systems.iter().find(|one| one.state != FsState::FROZEN) {
        None => Ok(()),
        Some(one) => {
            let (mount, error) = (point(&one.mount), printable::line(&one.error));
            let message = format!("{mount} was not frozen any more, or cannot be thawed: {error}");
            Err(CommandError::new("thawed_early", message))
        }
    }
}

fn point(bytes: &[u8]) -> String {
    printable::line(&String::from_utf8_lossy(bytes)).into_owned()
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "file system" } else { "file systems" }
}

fn nanoseconds(us: u64) -> u64 {
    us.saturating_mul(1000)
}

fn summary(reply: &FreezeReply, timeout: Duration) -> String {
    let frozen: Vec<String> = reply
        .file_systems
        .iter()
        .filter(|one| one.state == FsState::FROZEN)
        .map(|one| point(&one.mount))
        .collect();
    let took = crate::time::length(nanoseconds(reply.took_us));
    format!("Frozen in {took}, for {timeout:?} at most: {}", frozen.join(" "))
}

/// What was left out although it may hold files of the guest's own, and scripts' trouble.
fn warn_of(reply: &FreezeReply) {
    warn_of_scripts(&reply.scripts);
    reply.file_systems.iter().filter_map(left_out).for_each(ui::warn);
}

fn warn_of_scripts(scripts: &[ScriptReport]) {
    let trouble = |script: &&ScriptReport| script.objects() || script.end == ScriptEnd::SKIPPED;
    scripts.iter().filter(trouble).for_each(|script| ui::warn(script_words(script)));
}

fn left_out(one: &FileSystem) -> Option<String> {
    let (mount, kind) = (point(&one.mount), printable::line(&one.kind));
    let why = match one.state {
        FsState::NETWORK => "another machine keeps it".to_owned(),
        FsState::FUSE => "a program keeps it".to_owned(),
        FsState::INCAPABLE if one.error.is_empty() => {
            "its kind cannot be frozen; it was written out".to_owned()
        }
        FsState::INCAPABLE | FsState::FAILED => printable::line(&one.error).into_owned(),
        _ => return None,
    };
    Some(format!("{mount} ({kind}) is not frozen: {why}"))
}

fn trimmed_words(one: &Trimmed) -> String {
    let mount = point(&one.mount);
    match &one.bytes {
        Ok(bytes) => format!("{mount}: {bytes} bytes"),
        Err(error) => format!("{mount}: {}", printable::line(&error.message)),
    }
}

fn told_file_systems(list: &[FileSystem]) -> Vec<ToldFileSystem<'_>> {
    list.iter()
        .map(|FileSystem { mount, kind, state, error }| ToldFileSystem {
            mount: String::from_utf8_lossy(mount).into_owned(),
            kind,
            state: state.name().unwrap_or("unknown").to_ascii_lowercase(),
            error: Some(error.as_str()).filter(|error| !error.is_empty()),
        })
        .collect()
}

fn told_freeze<'t>(vm: &'t VmName, reply: &'t FreezeReply) -> ToldFreeze<'t> {
    ToldFreeze {
        vm,
        serial: reply.serial,
        took_us: reply.took_us,
        file_systems: told_file_systems(&reply.file_systems),
        scripts: reply.scripts.iter().map(told_script).collect(),
        thaw: None,
        status: None,
    }
}

fn told_thaw<'t>(vm: &'t VmName, reply: &'t ThawReply) -> ToldThaw<'t> {
    ToldThaw {
        vm,
        serial: reply.serial,
        cause: reply.cause.name().unwrap_or("unknown").to_ascii_lowercase(),
        held_us: reply.held_us,
        whole: whole(reply).is_ok(),
        file_systems: told_file_systems(&reply.file_systems),
        scripts: reply.scripts.iter().map(told_script).collect(),
    }
}

fn told_trim<'t>(vm: &'t VmName, reply: &'t TrimReply) -> ToldTrim<'t> {
    let told = |one: &'t Trimmed| ToldTrimmed {
        mount: String::from_utf8_lossy(&one.mount).into_owned(),
        kind: &one.kind,
        bytes: one.bytes.as_ref().ok().copied(),
        error: one.bytes.as_ref().err().map(|error: &WireError| error.message.as_str()),
    };
    let bytes = reply.file_systems.iter().filter_map(|one| one.bytes.as_ref().ok());
    ToldTrim {
        vm,
        bytes: bytes.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)),
        file_systems: reply.file_systems.iter().map(told).collect(),
    }
}

#[cfg(test)]
mod tests {
    use hospes_protocol::error::ErrorKind;

    use super::*;

    fn file_system(state: FsState, error: &str) -> FileSystem {
        FileSystem { mount: b"/srv\x1b[2J".to_vec(), kind: "xfs".into(), state, error: error.into() }
    }

    fn thawed(cause: ThawCause, state: FsState) -> ThawReply {
        ThawReply {
            serial: 7,
            cause,
            held_us: 5,
            file_systems: vec![file_system(state, "Invalid argument")],
            scripts: Vec::new(),
        }
    }

    #[test]
    fn only_what_was_frozen_until_the_request_is_whole() {
        assert!(whole(&thawed(ThawCause::ASKED, FsState::FROZEN)).is_ok());
        assert!(whole(&thawed(ThawCause::DEADLINE, FsState::FROZEN)).is_err());
        assert!(whole(&thawed(ThawCause::ENDED, FsState::FROZEN)).is_err());
        assert!(whole(&thawed(ThawCause(99), FsState::FROZEN)).is_err());
        let error = whole(&thawed(ThawCause::ASKED, FsState::FAILED)).unwrap_err();
        assert!(error.message.contains("Invalid argument") && !error.message.contains('\u{1b}'));
    }

    #[test]
    fn what_may_hold_the_guests_files_and_is_left_out_is_named() {
        assert!(left_out(&file_system(FsState::FROZEN, "")).is_none());
        assert!(left_out(&file_system(FsState::PSEUDO, "")).is_none());
        assert!(left_out(&file_system(FsState::INCAPABLE, "")).unwrap().contains("written out"));
        let told = left_out(&file_system(FsState::FUSE, "")).unwrap();
        assert!(told.starts_with("/srv\\u{1b}[2J (xfs)"), "{told}");
    }

    #[test]
    fn json_has_what_the_guest_said() {
        let name: VmName = "dev".parse().unwrap();
        let reply = thawed(ThawCause::DEADLINE, FsState::FROZEN);
        let value: serde_json::Value = serde_json::from_str(&ui::to_json(&told_thaw(&name, &reply))).unwrap();
        assert_eq!((&value["cause"], &value["whole"]), (&"deadline".into(), &false.into()));
        assert_eq!(value["file_systems"][0]["state"], "frozen");
        let none = WireError::new(ErrorKind::UNSUPPORTED, "no");
        let trimmed = |bytes| Trimmed { mount: b"/".to_vec(), kind: "ext4".into(), bytes };
        let reply =
            TrimReply { file_systems: vec![trimmed(Ok(u64::MAX)), trimmed(Ok(1)), trimmed(Err(none))] };
        let value: serde_json::Value = serde_json::from_str(&ui::to_json(&told_trim(&name, &reply))).unwrap();
        assert_eq!(value["bytes"], u64::MAX);
        assert_eq!(
            (&value["file_systems"][2]["bytes"], &value["file_systems"][2]["error"]),
            (&serde_json::Value::Null, &"no".into())
        );
    }
}
