//! `hospes-tools doctor`: each thing that may be wrong, with what to do about it.

mod kernel;
mod screens;

use std::io::Write;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::status::Found;
use super::{UNHEALTHY, json};
use crate::audit::printable;
use crate::config::Config;
use crate::daemon::users;
use crate::identity;
use crate::paths::Paths;

/// Look for everything that may be wrong, and say what to do about it.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing; nothing is broken.
    Note,
    /// Something does not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    what: String,
    remedy: String,
}

/// Files of the package without which something does not work.
const PARTS: &[(&str, &str)] = &[
    ("/usr/libexec/hospes/hospes-session", "no user's session can start"),
    ("/usr/lib/systemd/system/hospes-session@.socket", "no user's session can start"),
    ("/etc/pam.d/hospes-session", "users' sessions follow the policy for unknown services"),
    ("/usr/libexec/hospes/hospes-freeze", "file systems cannot be frozen for a snapshot"),
    ("/usr/lib/systemd/system/hospes-freeze.socket", "file systems cannot be frozen for a snapshot"),
    ("/usr/lib/udev/rules.d/70-hospes-tools.rules", "the daemon does not start with the vsock device"),
];

impl Doctor {
    pub(super) fn run(&self, paths: &Paths, out: &mut impl Write) -> anyhow::Result<u8> {
        let findings = examine(paths)?;
        if self.json {
            json(&findings, out)?;
        } else {
            for Finding { verdict, what, remedy } in &findings {
                let sign = match verdict {
                    Verdict::Good => "ok      ",
                    Verdict::Note => "note    ",
                    Verdict::Problem => "PROBLEM ",
                };
                writeln!(out, "{sign}{}", printable(what.as_bytes()))?;
                if !remedy.is_empty() {
                    writeln!(out, "        → {remedy}")?;
                }
            }
        }
        let ill = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
        Ok(if ill { UNHEALTHY } else { 0 })
    }
}

fn examine(paths: &Paths) -> anyhow::Result<Vec<Finding>> {
    let found = Found::look(paths)?;
    let mut findings = vec![device(&found), daemon(&found)];
    findings.extend(policy(paths));
    findings.extend(trust(&found));
    findings.extend(machine(paths));
    findings.extend(running_kernel());
    findings.extend(people());
    findings.extend(screens::look());
    findings.extend(
        PARTS.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(path, effect)| {
            problem(format!("{path} is missing: {effect}"), "Install hospes-tools again")
        }),
    );
    Ok(findings)
}

fn device(found: &Found) -> Finding {
    match &found.no_device {
        None => good("This guest has a vsock device with its driver"),
        Some(why) => problem(
            capital(why),
            "QEMU: -device vhost-vsock-pci,guest-cid=N; libvirt: <vsock/>; Apple silicon: hospes run",
        ),
    }
}

fn daemon(found: &Found) -> Finding {
    match &found.daemon {
        Some(daemon) if found.running && daemon.release != env!("CARGO_PKG_VERSION") => problem(
            format!(
                "The daemon that runs is release {}, installed is {}",
                daemon.release,
                env!("CARGO_PKG_VERSION")
            ),
            "systemctl restart hospes-toolsd (no command of a host ends by it)",
        ),
        Some(daemon) if found.running => good(format!("The daemon listens on {}", daemon.detail)),
        // Said once, by the device.
        _ if found.no_device.is_some() => note("The daemon does not run: it waits for a vsock device", ""),
        _ => {
            problem(format!("The daemon does not run: {}", found.why_not()), "systemctl start hospes-toolsd")
        }
    }
}

fn policy(paths: &Paths) -> Vec<Finding> {
    match Config::load(paths) {
        Err(error) => vec![problem(
            error.to_string(),
            "Mend it (hospes-tools config check); until then the settings before it are in force",
        )],
        Ok((config, _)) => {
            let mut findings = vec![good("The policy file is right")];
            let unknown: Vec<&str> = config
                .users
                .allow
                .iter()
                .map(String::as_str)
                .filter(|name| *name != "*" && !users::exists(name))
                .collect();
            if !unknown.is_empty() {
                findings.push(note(
                    format!("The policy allows users that do not exist: {}", unknown.join(", ")),
                    "[users] allow in /etc/hospes/tools.toml",
                ));
            }
            findings
        }
    }
}

fn trust(found: &Found) -> Vec<Finding> {
    let Some(daemon) = found.daemon.as_ref().filter(|_| found.running) else { return Vec::new() };
    let mut findings: Vec<Finding> = daemon
        .trust_problems
        .iter()
        .map(|what| problem(what.clone(), "Mend or remove the file; until then no first host is taken"))
        .collect();
    findings.push(match (daemon.trusted.len(), daemon.takes_first) {
        (0, true) => note(
            "No host is trusted yet: the first one to come will be",
            "hospes add on the host, or name the host yourself: hospes-tools trust add KEY",
        ),
        (0, false) => problem("No host is trusted, so none can do anything", "hospes-tools trust add KEY"),
        (count, _) => good(format!("{count} trusted, {} connected", daemon.sessions.len())),
    });
    findings
}

fn machine(paths: &Paths) -> Option<Finding> {
    let error = identity::machine(&paths.machine_id).err()?;
    Some(problem(error.to_string(), "systemd-machine-id-setup, then systemctl restart hospes-toolsd"))
}

fn running_kernel() -> Vec<Finding> {
    let Some(configuration) = kernel::configuration() else { return Vec::new() };
    let missing = kernel::missing(&configuration);
    if missing.is_empty() {
        return vec![good("The kernel has all that Hospes can use")];
    }
    missing
        .iter()
        .map(|kernel::Missing { option, effect }| {
            note(
                format!("The kernel is built without {option}: {}", uncapital(effect)),
                "The distribution's general kernel has it (Debian: linux-image-arm64)",
            )
        })
        .collect()
}

fn people() -> Vec<Finding> {
    let humans = users::humans();
    match humans.as_slice() {
        [] => vec![note("There is no human user: a host must name one, for example root", "")],
        [one] => vec![good(format!("A host that names no user means {}", one.name))],
        several => {
            let names: Vec<&str> = several.iter().map(|account| account.name.as_str()).collect();
            vec![note(format!("A host must name one of several users: {}", names.join(", ")), "")]
        }
    }
}

fn good(what: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Good, what: what.into(), remedy: String::new() }
}

fn note(what: impl Into<String>, remedy: &str) -> Finding {
    Finding { verdict: Verdict::Note, what: what.into(), remedy: remedy.into() }
}

fn problem(what: impl Into<String>, remedy: &str) -> Finding {
    Finding { verdict: Verdict::Problem, what: what.into(), remedy: remedy.into() }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn uncapital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}
