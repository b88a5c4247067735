//! What the shell's completion is given: VM names, and paths in a guest.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use hospes_protocol::exec::{Exec, Host, HostStep, STDOUT};
use hospes_protocol::frame::{self, FrameId};

use crate::cli::target::VARIABLE;
use crate::client::Client;
use crate::connection::Connection;
use crate::printable;
use crate::registry::Registry;
use crate::vm::VmName;

/// How long somebody who pressed a key waits.
const PATIENCE: Duration = Duration::from_millis(800);

/// Bytes of a directory's names that are looked at.
const NAMES_LEN: usize = 256 * 1024;

/// Completes VM names.
#[must_use]
pub fn vms() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(current, ""))
}

/// Completes what hospes cp takes: `VM:PATH` with the guest's paths, `:PATH` with those of the guest of `HOSPES_VM`, and
/// paths here.
#[must_use]
pub fn paths() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let Some(text) = current.to_str() else { return Vec::new() };
        match text.split_once(':') {
            Some(("", path)) => {
                std::env::var(VARIABLE).map_or_else(|_| Vec::new(), |vm| guest_paths(&vm, path, ":"))
            }
            Some((vm, path)) if !vm.contains('/') => guest_paths(vm, path, &format!("{vm}:")),
            _ => {
                let mut found = names(current, ":");
                found.extend(PathCompleter::any().complete(current));
                found
            }
        }
    })
}

/// Completes paths in the guest that is the verb's first word, as in `hospes file VM ls PATH`, or else `HOSPES_VM`'s.
#[must_use]
pub fn paths_in_vm() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let vm = first_word().or_else(|| std::env::var(VARIABLE).ok());
        match (vm, current.to_str()) {
            (Some(vm), Some(path)) => guest_paths(&vm, path, ""),
            _ => Vec::new(),
        }
    })
}

/// The VM among the words that the shell shows us: those behind the program's, the verb's and its options.
fn first_word() -> Option<String> {
    let mut words = std::env::args_os().skip_while(|word| word != "--").skip(3);
    let word = words.find(|word| !word.as_encoded_bytes().starts_with(b"-"))?.into_string().ok()?;
    let name = word.parse::<VmName>().ok()?;
    Registry::open().is_ok_and(|registry| registry.has(&name)).then_some(word)
}

fn names(current: &OsStr, suffix: &str) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let names = Registry::open().and_then(|registry| registry.names()).unwrap_or_default();
    let matching = names.into_iter().filter(|name| name.as_str().starts_with(current));
    matching.map(|name| CompletionCandidate::new(format!("{name}{suffix}"))).collect()
}

fn guest_paths(vm: &str, path: &str, prefix: &str) -> Vec<CompletionCandidate> {
    let (dir, start) = path.rsplit_once('/').map_or(("", path), |(dir, start)| (&path[..=dir.len()], start));
    let client =
        vm.parse::<VmName>().ok().and_then(|name| Registry::open().ok()?.load(&name).ok()).map(Client::new);
    let Some(listing) = client.and_then(|client| list(&client.timeout(PATIENCE), dir)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for name in listing.split(|byte| *byte == b'\n').filter_map(|name| std::str::from_utf8(name).ok()) {
        let hidden = name.starts_with('.') && !start.starts_with('.');
        // A name that could move the cursor is not offered.
        if !name.is_empty() && !hidden && name.starts_with(start) && name.chars().all(printable::is_plain) {
            found.push(CompletionCandidate::new(format!("{prefix}{dir}{name}")));
        }
    }
    found
}

/// The names in a guest's directory, one to a line, with a slash behind directories.
fn list(client: &Client, dir: &str) -> Option<Vec<u8>> {
    let dir = if dir.is_empty() { "." } else { dir };
    let argv = ["ls", "-1ApL", "--", dir].map(|word| word.as_bytes().to_vec()).to_vec();
    let env = vec![(b"LC_ALL".to_vec(), b"C".to_vec())];
    let exec = Exec { user: client.user(None), argv, env, timeout_ms: Some(1000), ..Exec::default() };
    let mut operation = Vec::new();
    frame::put(FrameId::EXEC, &exec, &mut operation);
    let mut connection = client.open(&operation).ok()?;
    connection.set_deadline(Some(Instant::now() + PATIENCE));
    collect(&mut connection)
}

fn collect(connection: &mut Connection) -> Option<Vec<u8>> {
    let mut host = Host::new();
    host.stdin_end(connection.queue());
    let mut output = Vec::new();
    let mut grants = Vec::new();
    loop {
        connection.queue().append(&mut grants);
        connection.flush().ok()?;
        match host.receive(connection.frame().ok()?).ok()? {
            HostStep::Output(channel, bytes) => {
                let len = bytes.len();
                if channel == STDOUT {
                    output.extend_from_slice(bytes);
                }
                host.written(channel, len, &mut grants);
                if output.len() > NAMES_LEN {
                    return Some(output);
                }
            }
            // Some names may have been readable even where ls complains.
            HostStep::Exited(_) => return Some(output),
            HostStep::Failed(_) => return None,
            _ => (),
        }
    }
}
