//! Power: shutdown, reboot, halt and suspend, and the owner's scripts around them.
//!
//! ```text
//!  request ─ inhibitors? ─ scripts ─ logind, else systemd, else the kernel ─ reply ─ down
//!               │            │
//!               └── refused ─┴─ the same request within a minute, or a forced one, goes through
//! ```
//! The scripts are `/etc/hospes/poweroff.d/*` before a shutdown, a reboot and a halt, `suspend.d` before a suspend,
//! `resume.d` after it and `poweron.d` once after boot. Each has its time, and the end of its output is kept. A script
//! runs as a unit of its own: it has nothing of the daemon's restrictions, and outlives it.
//!
//! While the guest is on its way, [`Going`] holds back the shutdown (a delay lock of logind's) until the host has its
//! answer.

mod kernel;
mod logind;
mod run;
pub mod script;
mod systemd;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::power::{Inhibitor, Power, PowerAction, PowerReply, ScriptEnd, ScriptReport};

use self::logind::{Logind, Sleep};
use self::run::Runner;

/// A refusal is overridden by the same request within this time.
const AGAIN: Duration = Duration::from_secs(60);
/// The longest that a script may be given, whatever was asked.
const SCRIPT_MOST: Duration = Duration::from_secs(3600);
/// How long the bus may take for an answer.
const BUS: Duration = Duration::from_secs(25);

/// What has power over this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Manner {
    /// systemd and logind; scripts are transient units.
    #[default]
    Machine,
    /// A logind on the bus at this address and nothing else; scripts are the daemon's children. For tests.
    Bus(String),
    /// Nothing: this daemon has been started beside a system that is not its own.
    Nothing,
}

/// The power over this machine, one action at a time.
#[derive(Debug)]
pub struct Powers {
    manner: Manner,
    etc: PathBuf,
    run: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: Option<(PowerAction, Instant)>,
    refused: Option<(PowerAction, Instant)>,
}

/// What came of a request: the answer, and the way down where there is one.
#[derive(Debug)]
pub struct Outcome {
    /// For the host.
    pub reply: PowerReply,
    /// There where the guest goes down, or to sleep. To be followed once the reply has left.
    pub going: Option<Going>,
}

/// A guest on its way. Dropping it lets go of what holds the shutdown back.
#[derive(Debug)]
pub struct Going {
    /// Why sessions end.
    pub word: &'static str,
    way: Way,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is never moved about")]
#[derive(Debug)]
enum Way {
    Bus { _delay: Option<zbus::OwnedFd>, sleep: Option<Sleep> },
    Kernel(PowerAction),
}

impl Powers {
    /// Power in this manner, with the scripts under `etc` and scratch space under `run`.
    #[must_use]
    pub fn new(manner: Manner, etc: PathBuf, run: PathBuf) -> Self {
        Self { manner, etc, run, state: Mutex::default() }
    }

    /// Does what is asked, up to the point of no return. `script_timeout` is the guest's own setting.
    ///
    /// # Errors
    /// `UNSUPPORTED`, `BUSY`: what never began. What was refused on the way is in the reply, with the scripts' output.
    pub async fn perform(&self, power: &Power, script_timeout: Duration) -> Result<Outcome, WireError> {
        let folder = folder(power.action)?;
        if self.manner == Manner::Nothing {
            let message = "This hospes-toolsd has no power over the machine that it runs on";
            return Err(WireError::new(ErrorKind::UNSUPPORTED, message));
        }
        let forced = power.force || self.asked_again(power.action);
        let overtakes = self.begin(power, forced)?;
        let _end = End(self);
        let timeout = power.script_timeout_ms.map_or(script_timeout, Duration::from_millis).min(SCRIPT_MOST);
        // A forced request does not wait for the scripts of the one that it overtakes, nor run them again.
        let folder = if overtakes { None } else { Some(folder) };
        let outcome = self.act(power.action, folder, forced, timeout).await;
        self.state().refused = outcome.reply.refused.is_some().then(|| (power.action, Instant::now()));
        Ok(outcome)
    }

    /// Runs the scripts for a machine that has just started, once in a boot.
    pub async fn started(&self, script_timeout: Duration) {
        let mark = self.run.join("started");
        if self.manner == Manner::Nothing || mark.exists() {
            return;
        }
        if let Err(error) = std::fs::write(&mark, "") {
            return tracing::warn!("{} cannot be written, no script runs: {error}", mark.display());
        }
        self.scripts("poweron.d", "poweron", script_timeout).await;
    }

    /// Why the machine goes down, in a word, where somebody has asked it to.
    pub async fn going_down(&self) -> Option<&'static str> {
        if self.manner != Manner::Machine {
            return None;
        }
        tokio::time::timeout(Duration::from_millis(500), systemd::going_down()).await.ok()?
    }

    fn asked_again(&self, action: PowerAction) -> bool {
        self.state().refused.is_some_and(|(refused, when)| refused == action && when.elapsed() < AGAIN)
    }

    /// Whether it overtakes another.
    fn begin(&self, power: &Power, forced: bool) -> Result<bool, WireError> {
        let mut state = self.state();
        if let Some((action, since)) = state.under_way
            && !forced
        {
            let seconds = since.elapsed().as_secs();
            let message = format!("The guest has been working on a {} for {seconds} s", action.word());
            return Err(WireError::new(ErrorKind::BUSY, message).hint("Wait for its scripts, or use --force"));
        }
        let overtakes = state.under_way.is_some();
        state.under_way = Some((power.action, Instant::now()));
        Ok(overtakes)
    }

    async fn act(
        &self,
        action: PowerAction,
        folder: Option<&str>,
        forced: bool,
        timeout: Duration,
    ) -> Outcome {
        let logind = Logind::connect(&self.manner).await;
        if let Err(error) = &logind {
            tracing::warn!("logind cannot be asked: {error}");
        }
        let logind = logind.ok();
        let mut reply = PowerReply::default();
        if let Some(logind) = &logind {
            if logind.cannot(action).await {
                let message = format!("This guest cannot {}", verb(action));
                return refused(reply, WireError::new(ErrorKind::UNSUPPORTED, message));
            }
            reply.inhibitors = logind.inhibitors(action).await;
            if !forced && !reply.inhibitors.is_empty() {
                let error = inhibited(action, &reply.inhibitors);
                return refused(reply, error);
            }
        }
        if let Some(folder) = folder {
            reply.scripts = self.scripts(folder, action.word(), timeout).await;
            let objecting: Vec<&str> =
                reply.scripts.iter().filter(|script| script.objects()).map(|script| &*script.name).collect();
            if !forced && !objecting.is_empty() {
                let error = objected(action, folder, &objecting);
                return refused(reply, error);
            }
        }
        match self.go(action, forced, logind).await {
            Ok((by, way)) => {
                reply.by = by.into();
                Outcome { reply, going: Some(Going { word: action.word(), way }) }
            }
            Err(error) => refused(reply, error),
        }
    }

    /// Asks whoever is there, the most polite way first.
    async fn go(
        &self,
        action: PowerAction,
        forced: bool,
        logind: Option<Logind>,
    ) -> Result<(&'static str, Way), WireError> {
        let mut reasons = Vec::new();
        if let Some(logind) = logind {
            let delay = logind.delay(action).await;
            let sleep = if action == PowerAction::SUSPEND { logind.sleep().await } else { None };
            match logind.go(action, forced).await {
                Ok(()) => return Ok(("logind", Way::Bus { _delay: delay, sleep })),
                Err(logind::GoError::Declined(error)) => return Err(error),
                Err(logind::GoError::Absent(error)) => {
                    tracing::warn!("logind does not {}, somebody else is asked: {error}", verb(action));
                    reasons.push(format!("logind: {error}"));
                }
            }
        }
        if self.manner == Manner::Machine {
            match systemd::go(action).await {
                Ok(()) => return Ok(("systemd", Way::Bus { _delay: None, sleep: None })),
                Err(error) => reasons.push(format!("systemd: {error}")),
            }
            match kernel::can(action) {
                Ok(()) => return Ok(("kernel", Way::Kernel(action))),
                Err(error) => reasons.push(format!("the kernel: {error}")),
            }
        }
        let message = format!("Nobody in the guest could {} it ({})", verb(action), reasons.join("; "));
        Err(WireError::new(ErrorKind::OS, message))
    }

    /// Runs the scripts of one folder in order. `word` is what happens.
    pub(crate) async fn scripts(&self, folder: &str, word: &str, timeout: Duration) -> Vec<ScriptReport> {
        let runner = Runner::new(self.manner == Manner::Machine, self.run.join("power"));
        let mut reports = Vec::new();
        for found in script::find(&self.etc.join(folder)) {
            let report = match found {
                Ok(script) => runner.run(&script, word, timeout).await,
                Err(skipped) => skipped,
            };
            log(folder, &report);
            reports.push(report);
        }
        reports
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends an action's turn, however it ends.
struct End<'p>(&'p Powers);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.state().under_way = None;
    }
}

impl Going {
    /// Goes. After a suspend it returns when the guest is awake again and its scripts have run: true then.
    pub async fn follow(self, powers: &Powers, script_timeout: Duration) -> bool {
        match self.way {
            Way::Bus { _delay: delay, sleep } => {
                drop(delay);
                let Some(sleep) = sleep else { return false };
                if !sleep.over().await {
                    return false;
                }
                powers.scripts("resume.d", "resume", script_timeout).await;
                true
            }
            Way::Kernel(action) => {
                let done = tokio::task::spawn_blocking(move || kernel::go(action)).await;
                if let Ok(Err(error)) = done {
                    tracing::error!("The kernel does not {}: {error}", verb(action));
                }
                false
            }
        }
    }
}

fn folder(action: PowerAction) -> Result<&'static str, WireError> {
    match action {
        PowerAction::POWEROFF | PowerAction::REBOOT | PowerAction::HALT => Ok("poweroff.d"),
        PowerAction::SUSPEND => Ok("suspend.d"),
        PowerAction(other) => {
            let message = format!("The guest tools do not know power action {other}");
            Err(WireError::new(ErrorKind::UNSUPPORTED, message).hint("Upgrade hospes-tools in the guest"))
        }
    }
}

const fn verb(action: PowerAction) -> &'static str {
    match action {
        PowerAction::POWEROFF => "power off",
        other => other.word(),
    }
}

fn refused(reply: PowerReply, error: WireError) -> Outcome {
    Outcome { reply: PowerReply { refused: Some(error), ..reply }, going: None }
}

fn inhibited(action: PowerAction, inhibitors: &[Inhibitor]) -> WireError {
    let list: Vec<String> = inhibitors.iter().map(|one| format!("{} ({})", one.who, one.why)).collect();
    let message = format!("The guest was asked not to {} now by {}", verb(action), list.join(", "));
    WireError::new(ErrorKind::INHIBITED, message).hint(AGAIN_HINT)
}

fn objected(action: PowerAction, folder: &str, scripts: &[&str]) -> WireError {
    let message = format!("The guest does not {}: failed in {folder}: {}", verb(action), scripts.join(", "));
    WireError::new(ErrorKind::SCRIPT, message).hint(AGAIN_HINT)
}

const AGAIN_HINT: &str = "The same request within a minute, or --force, goes through all the same";

fn log(folder: &str, report: &ScriptReport) {
    let ScriptReport { name, end, status, output } = report;
    let output = crate::audit::printable(output);
    match *end {
        ScriptEnd::ENDED if *status == 0 => tracing::info!("{folder}/{name} ran"),
        ScriptEnd::ENDED => tracing::warn!("{folder}/{name} failed with status {status}: {output}"),
        ScriptEnd::TIMED_OUT => tracing::warn!("{folder}/{name} took too long and was killed: {output}"),
        ScriptEnd::SKIPPED => tracing::warn!("{folder}/{name} is not run: {output}"),
        _ => tracing::warn!("{folder}/{name} could not be run: {output}"),
    }
}

/// An answer of the bus that comes in time.
pub(crate) async fn in_time<T>(answer: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    let late = || zbus::Error::Failure(format!("no answer within {} s", BUS.as_secs()));
    tokio::time::timeout(BUS, answer).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests;
