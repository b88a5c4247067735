//! `hospes-tools status`.

use std::fs;
use std::io::Write;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{NOT_RUNNING, json};
use crate::audit::printable;
use crate::daemon::device;
use crate::daemon::status::{self, State};
use crate::paths::Paths;

/// Is the daemon running, whom does it trust, who is connected, and if not: why.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// The daemon as it is found.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// Whether it runs and listens.
    pub(super) running: bool,
    /// Why there is no vsock device to listen on; none where there is one.
    pub(super) no_device: Option<String>,
    /// The guest's address on the host's vsock, which some hosts go by.
    pub(super) cid: Option<u32>,
    /// What it said of itself last, since boot.
    pub(super) daemon: Option<status::Status>,
}

impl Found {
    /// Looks.
    pub(super) fn look(paths: &Paths) -> anyhow::Result<Self> {
        let path = paths.status();
        let daemon =
            status::Status::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let listening = daemon.as_ref().filter(|daemon| daemon.state == State::Listening);
        let running = listening.is_some_and(|daemon| is_daemon(daemon.pid));
        let no_device = device::find().err().map(|why| why.to_string());
        let cid = if no_device.is_none() { vsock::get_local_cid().ok() } else { None };
        Ok(Self { running, no_device, cid, daemon })
    }

    /// Why it does not run: the nearest cause that can be seen from here.
    pub(super) fn why_not(&self) -> String {
        match (&self.no_device, &self.daemon) {
            (Some(why), _) => why.clone(),
            (_, None) => "it has not been started since boot: systemctl start hospes-toolsd".into(),
            (_, Some(daemon)) => match daemon.state {
                State::Listening => "it ended without a word: journalctl -u hospes-toolsd".into(),
                State::Failed => format!("{} (journalctl -u hospes-toolsd)", daemon.detail),
                State::NoDevice => "the vsock device came later: systemctl start hospes-toolsd".into(),
                State::Stopped => "it was stopped: systemctl start hospes-toolsd".into(),
            },
        }
    }
}

impl Status {
    pub(super) fn run(&self, paths: &Paths, out: &mut impl Write) -> anyhow::Result<u8> {
        let found = Found::look(paths)?;
        if self.json {
            json(&found, out)?;
        } else {
            print(&found, out)?;
        }
        Ok(if found.running { 0 } else { NOT_RUNNING })
    }
}

fn print(found: &Found, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(daemon) = found.daemon.as_ref().filter(|_| found.running) else {
        writeln!(out, "Not running: {}", found.why_not())?;
        return Ok(());
    };
    writeln!(out, "Running     release {}, process {}, on {}", daemon.release, daemon.pid, daemon.detail)?;
    let cid = found.cid.map_or_else(String::new, |cid| format!(" (vsock cid {cid})"));
    writeln!(out, "This guest  {}{cid}", daemon.fingerprint)?;
    match (daemon.trusted.is_empty(), daemon.takes_first) {
        (false, _) => {}
        (true, true) => writeln!(out, "Trusted     nobody yet: the first host to come")?,
        (true, false) => writeln!(out, "Trusted     nobody: hospes-tools trust add KEY")?,
    }
    for host in &daemon.trusted {
        let comment = printable(host.comment.as_bytes());
        let line = format!("Trusted     {} ({}) {comment}", host.fingerprint, host.source);
        writeln!(out, "{}", line.trim_end())?;
    }
    for problem in &daemon.trust_problems {
        writeln!(out, "Problem     {}", printable(problem.as_bytes()))?;
    }
    for session in &daemon.sessions {
        writeln!(out, "Connected   {session}")?;
    }
    writeln!(out, "Settings    {}", daemon.config.as_deref().unwrap_or("built in"))?;
    if let Some(error) = &daemon.config_error {
        writeln!(out, "Problem     {} (not in force)", printable(error.as_bytes()))?;
    }
    Ok(())
}

/// Whether the process is still the daemon, and not another that got its number. Everybody may read this file.
fn is_daemon(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "hospes-toolsd")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(state: Option<State>) -> Found {
        let daemon = state.map(|state| status::Status { state, ..status::Status::default() });
        Found { running: false, no_device: None, cid: None, daemon }
    }

    #[test]
    fn the_reason_for_not_running_is_the_nearest_one() {
        let no_device = Found { no_device: Some("no device".into()), ..found(Some(State::Listening)) };
        assert_eq!(no_device.why_not(), "no device");
        assert!(found(None).why_not().contains("systemctl start"));
        assert!(found(Some(State::Listening)).why_not().contains("journalctl"));
    }

    #[test]
    fn the_number_of_a_daemon_that_is_gone_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths { run: directory.path().into(), ..Paths::default() };
        let mine =
            status::Status { state: State::Listening, pid: std::process::id(), ..status::Status::default() };
        mine.write(&paths.status()).unwrap();
        assert!(!Found::look(&paths).unwrap().running);
    }
}
