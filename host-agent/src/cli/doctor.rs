//! `hospes doctor`

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use crate::agent::ask::{Answer, Ask, Question};
use crate::cli::{Verb, VmPlace};
use crate::client::Client;
use crate::command_error::{CommandError, chain};
use crate::dirs;
use crate::endpoint::Endpoint;
use crate::identity;
use crate::pins::Pins;
use crate::printable;
use crate::registry::Registry;
use crate::ui::{self, Paint};
use crate::vm::Vm;

/// Look for what is wrong, and say what to do about it
///
/// Ends with exit code 1 where something is.
///
/// With --json: {"checks": [{"subject", "state", "message", "remedy"}]}; "state" is ok, warning or problem, "remedy"
/// null where nothing is to be done.
#[derive(Debug, Parser)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Works, and not as well as it could.
    Warning,
    Problem,
}

#[derive(Debug, Serialize)]
struct Check {
    subject: String,
    state: State,
    message: String,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Told<'d> {
    checks: &'d [Check],
}

/// How long a guest may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Verb for Doctor {
    const NAME: &'static str = "doctor";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let mut checks = vec![key(), runtime_dir(), agent()];
        checks.extend(vms());
        if self.json {
            ui::json(&Told { checks: &checks })?;
        } else {
            let paint = Paint::of(&std::io::stdout());
            for check in &checks {
                let state = match check.state {
                    State::Ok => paint.green("ok     "),
                    State::Warning => paint.yellow("warning"),
                    State::Problem => paint.red("problem"),
                };
                ui::line(format_args!("{state} {}: {}", check.subject, check.message))?;
                if let Some(remedy) = &check.remedy {
                    ui::line(format_args!("        {remedy}"))?;
                }
            }
        }
        Ok(u8::from(checks.iter().any(|check| check.state == State::Problem)))
    }
}

fn check(subject: &str, state: State, message: impl Into<String>, remedy: Option<String>) -> Check {
    Check { subject: subject.to_owned(), state, message: message.into(), remedy }
}

fn key() -> Check {
    match identity::load_or_create() {
        Ok(key) => check("host key", State::Ok, key.public().fingerprint(), None),
        Err(error) => check("host key", State::Problem, chain(&error), error.hint()),
    }
}

fn runtime_dir() -> Check {
    const SUBJECT: &str = "runtime directory";
    let Ok(dir) = dirs::runtime() else {
        let remedy = "Set HOME or XDG_RUNTIME_DIR".to_owned();
        return check(SUBJECT, State::Problem, "There is no place for the agent's socket", Some(remedy));
    };
    let shown = dir.display().to_string();
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        return check(SUBJECT, State::Ok, format!("{shown} (XDG_RUNTIME_DIR is not set)"), None);
    }
    if dir.parent().is_some_and(Path::is_dir) {
        check(SUBJECT, State::Ok, shown, None)
    } else {
        let remedy = "Log in through PAM (not su), or unset XDG_RUNTIME_DIR".to_owned();
        check(SUBJECT, State::Problem, format!("{shown}: its parent is not there"), Some(remedy))
    }
}

fn agent() -> Check {
    const SUBJECT: &str = "agent";
    let start =
        "systemctl --user enable --now hospes-agent.socket, or hospes agent in the foreground".to_owned();
    let Ok(path) = dirs::agent_socket() else {
        return check(SUBJECT, State::Problem, "There is no place for its socket", Some(start));
    };
    match fs::metadata(&path) {
        Err(_) => {
            return check(
                SUBJECT,
                State::Warning,
                "It does not run: every command does a whole handshake",
                Some(start),
            );
        }
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            let message = format!("Others can reach {} (mode {:03o})", path.display(), meta.mode() & 0o777);
            return check(SUBJECT, State::Problem, message, Some(format!("chmod 600 {}", path.display())));
        }
        Ok(_) => (),
    }
    match Ask::once(&Question::List, PATIENCE) {
        Ok(Answer::List(listing)) => {
            check(SUBJECT, State::Ok, format!("It runs and keeps {} VMs", listing.vms.len()), None)
        }
        Ok(_) => check(SUBJECT, State::Problem, "It is of another release", Some("Restart it".to_owned())),
        Err(error) => check(SUBJECT, State::Problem, format!("It does not answer: {error}"), Some(start)),
    }
}

/// Every VM at the same time.
fn vms() -> Vec<Check> {
    let list = match Registry::open().and_then(|registry| registry.list()) {
        Ok(list) => list,
        Err(error) => return vec![check("VMs", State::Problem, chain(&error), error.hint())],
    };
    if list.is_empty() {
        return vec![check(
            "VMs",
            State::Warning,
            "None was added",
            Some("hospes add NAME ENDPOINT".to_owned()),
        )];
    }
    let running: Vec<_> = list
        .into_iter()
        .map(|entry| {
            thread::spawn(move || match entry {
                Ok(vm) => guest(vm),
                Err((name, error)) => {
                    check(&format!("VM {name}"), State::Problem, error.to_string(), error.hint())
                }
            })
        })
        .collect();
    let lost = |_| check("VM", State::Problem, "The check itself failed", None);
    running.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
}

fn guest(vm: Vm) -> Check {
    let subject = format!("VM {}", vm.name);
    if let Endpoint::Vsock(_) = vm.spec.endpoint
        && cfg!(target_os = "linux")
        && !Path::new("/dev/vsock").exists()
    {
        let remedy = "modprobe vhost_vsock, as root".to_owned();
        return check(&subject, State::Problem, "This machine has no /dev/vsock", Some(remedy));
    }
    let pinned = Pins::open().and_then(|pins| pins.load(&vm.name)).ok().flatten().is_some();
    let endpoint = vm.spec.endpoint.to_string();
    // A look pins nothing: only a guest that is known is asked who it is.
    let result = if pinned {
        Client::new(vm).without_agent().timeout(PATIENCE).greet(&[]).map(|(_, greeting)| Some(greeting))
    } else {
        vm.spec.endpoint.dial(PATIENCE).map(|_| None).map_err(Into::into)
    };
    match result {
        Ok(Some(greeting)) => {
            let release = printable::line(&greeting.ready.release).into_owned();
            let ours = env!("CARGO_PKG_VERSION");
            if release == ours {
                check(&subject, State::Ok, format!("It answers at {endpoint}, release {release}"), None)
            } else {
                let message = format!("It answers at {endpoint} with release {release}, this is {ours}");
                check(&subject, State::Warning, message, Some("Upgrade the older of the two".to_owned()))
            }
        }
        Ok(None) => check(
            &subject,
            State::Ok,
            format!("Something listens at {endpoint}; its key is not known yet"),
            None,
        ),
        Err(error) => check(&subject, State::Problem, chain(&error), error.hint()),
    }
}
