//! Freeze, thaw and trim: policy, audit line, the owner's scripts and the answers. The freezing itself is the helper's
//! ([`crate::freeze`]).
//!
//! ```text
//! thawed ─ preparing (freeze.d) ─ freezing ─ frozen ─ thawing (thaw.d) ─ thawed
//!             │                      │          └ asked, or the helper's deadline
//!             └──── refused ─────────┴─ thaw.d ─┘
//! ```
//! From `freezing` to the thaw the daemon writes neither files nor its log, and what might is refused at once. It may be
//! killed meanwhile: a mark in `/run` tells the next one that scripts are owed, and the helper goes on by itself.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::control::{Answer, Ask};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::freeze::{
    FileSystem, Freeze, FreezeReply, FsState, Thaw, ThawCause, ThawReply, TrimReply,
};
use hospes_protocol::keys::PublicKey;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time;

use super::{Daemon, lock};
use crate::audit;
use crate::freeze::helper;
use crate::freeze::wire::{self, Kind, Op, Told};
use crate::verb::Verb;

/// How long the helper may take beyond the time that a freeze was given: it opens everything and writes it out before.
const MARGIN: Duration = Duration::from_secs(120);
/// How long a trim may take: a disk of many terabytes takes minutes.
const TRIM: Duration = Duration::from_secs(1800);

/// What is frozen.
#[derive(Debug)]
pub(super) struct Freezes {
    run: PathBuf,
    state: Mutex<State>,
    thaw: Notify,
    /// The last thaw.
    ended: watch::Sender<Option<ThawReply>>,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    serial: u64,
    /// Refusals that were not logged meanwhile.
    turned_away: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Thawed,
    Preparing,
    Freezing,
    Frozen,
    Thawing,
}

impl Freezes {
    pub(super) fn new(run: PathBuf) -> Self {
        // Somebody else before us may have begun what is not over.
        let serial = fs::read_to_string(mark(&run)).ok().map(|text| text.trim().parse().unwrap_or(0));
        let stage = if serial.is_some() { Stage::Freezing } else { Stage::Thawed };
        let state = State { stage, serial: serial.unwrap_or(0), turned_away: 0 };
        Self { run, state: Mutex::new(state), thaw: Notify::new(), ended: watch::Sender::new(None) }
    }

    /// Why nothing may be written now; none where it may.
    pub(super) fn busy(&self) -> Option<WireError> {
        match lock(&self.state).stage {
            Stage::Freezing | Stage::Frozen => {
                let error = WireError::new(ErrorKind::BUSY, "The guest's file systems are frozen");
                Some(error.hint("hospes thaw ends it; it ends by itself when its time is up"))
            }
            _ => None,
        }
    }

    /// Counts a refusal that may not be logged now: false where it may.
    pub(super) fn keep_quiet(&self) -> bool {
        let mut state = lock(&self.state);
        let quiet = matches!(state.stage, Stage::Freezing | Stage::Frozen);
        state.turned_away += u64::from(quiet);
        quiet
    }

    fn begin(&self, serial: u64) -> Result<(), WireError> {
        let mut state = lock(&self.state);
        let doing = match state.stage {
            Stage::Thawed => {
                *state = State { stage: Stage::Preparing, serial, turned_away: 0 };
                return Ok(());
            }
            Stage::Preparing | Stage::Freezing => "being frozen",
            Stage::Frozen => "frozen",
            Stage::Thawing => "being thawed",
        };
        let error = WireError::new(ErrorKind::BUSY, format!("The guest's file systems are {doing} already"));
        Err(error.hint("Wait, or use hospes thaw"))
    }

    fn set(&self, stage: Stage) {
        lock(&self.state).stage = stage;
    }
}

/// The sign that scripts after a thaw are owed.
fn mark(run: &std::path::Path) -> PathBuf {
    run.join("frozen")
}

/// Answers one of the three requests.
pub(super) async fn answer(daemon: &Arc<Daemon>, host: &PublicKey, ask: Ask) -> Result<Answer, WireError> {
    super::control::allowed(daemon, Verb::Freeze)?;
    match ask {
        Ask::Freeze(freeze) => {
            let most = daemon.config().freeze.longest();
            let timeout = Duration::from_millis(freeze.timeout_ms);
            if timeout > most || timeout.is_zero() {
                let message = format!(
                    "The guest lets itself be frozen for 1 ms to {} s, and not for {} ms",
                    most.as_secs(),
                    freeze.timeout_ms
                );
                let hint = "In the guest: [freeze] longest in /etc/hospes/tools.toml";
                return Err(WireError::new(ErrorKind::LIMIT, message).hint(hint));
            }
            let serial = serial()?;
            daemon.freezes.begin(serial)?;
            audit::allowed(host, Verb::Freeze, "root", format!("freeze for {timeout:?}").as_bytes());
            // It goes on where the host leaves.
            let task = tokio::spawn(perform(Arc::clone(daemon), freeze, serial));
            task.await.map_err(|_| super::control::lost()).map(Answer::Freeze)
        }
        Ask::Thaw(thaw) => thawed(daemon, &thaw).await.map(Answer::Thaw),
        Ask::Trim(trim) => {
            if let Some(busy) = daemon.freezes.busy() {
                return Err(busy);
            }
            audit::allowed(host, Verb::Freeze, "root", b"trim");
            let run = &daemon.options.paths.run;
            let reply = Helper::ask(run, Op::Trim { minimum: trim.minimum }, TRIM).await?;
            match reply {
                (Kind::Trimmed, payload) => {
                    codec::decode::<TrimReply>(&payload).map(Answer::Trim).map_err(|_| wire::foreign())
                }
                other => Err(refusal(&other)),
            }
        }
        _ => Err(super::control::unsupported()),
    }
}

/// A number that nobody else has, and that is not zero.
fn serial() -> Result<u64, WireError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| WireError::new(ErrorKind::OS, format!("The guest has no random bytes: {error}")))?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// From the scripts to the freeze. What holds it then is a task of its own.
async fn perform(daemon: Arc<Daemon>, freeze: Freeze, serial: u64) -> FreezeReply {
    let own = daemon.config().power.timeout();
    let timeout = freeze.script_timeout_ms.map_or(own, Duration::from_millis).min(Duration::from_secs(3600));
    // From the first script on, those of thaw.d are owed.
    if let Err(error) = fs::write(mark(&daemon.freezes.run), format!("{serial}\n")) {
        tracing::warn!("A daemon after this one will not know that something is frozen: {error}");
    }
    let mut reply = FreezeReply {
        scripts: daemon.powers.scripts("freeze.d", "freeze", timeout).await,
        ..FreezeReply::default()
    };
    let objecting: Vec<&str> =
        reply.scripts.iter().filter(|script| script.objects()).map(|script| &*script.name).collect();
    let begun = if objecting.is_empty() {
        daemon.freezes.set(Stage::Freezing);
        begin(&daemon, &freeze, serial, &mut reply).await
    } else {
        let message = format!("The guest is not frozen: failed in freeze.d: {}", objecting.join(", "));
        Err(WireError::new(ErrorKind::SCRIPT, message))
    };
    match begun {
        Ok(held) => {
            reply.serial = serial;
            daemon.freezes.set(Stage::Frozen);
            tokio::spawn(hold(Arc::clone(&daemon), held, timeout));
        }
        Err(error) => {
            // Not the thaw of anything: nobody is to wait for that.
            daemon.freezes.set(Stage::Preparing);
            tracing::warn!("{}", audit::printable(error.message.as_bytes()));
            let after = daemon.powers.scripts("thaw.d", "thaw", timeout).await;
            reply.scripts.extend(after);
            reply.refused = Some(error);
            let _ = fs::remove_file(mark(&daemon.freezes.run));
            daemon.freezes.set(Stage::Thawed);
        }
    }
    reply
}

/// What is frozen, and who holds it.
struct Held {
    helper: Helper,
    serial: u64,
    list: Vec<FileSystem>,
}

async fn begin(
    daemon: &Daemon,
    freeze: &Freeze,
    serial: u64,
    reply: &mut FreezeReply,
) -> Result<Held, WireError> {
    let mut helper = Helper::connect(&daemon.options.paths.run).await?;
    let patience = Duration::from_millis(freeze.timeout_ms) + MARGIN;
    helper.send(Op::Freeze { timeout_ms: freeze.timeout_ms, serial }).await?;
    let (_, list) = helper.plan(patience).await?.ok_or_else(wire::foreign)?;
    reply.file_systems.clone_from(&list);
    let told = helper.frozen(patience).await?;
    told.apply(&mut reply.file_systems);
    reply.took_us = told.microseconds;
    if told.word != 0 {
        return Ok(Held { helper, serial, list });
    }
    Err(why_not(&reply.file_systems))
}

/// Why a helper froze nothing.
fn why_not(list: &[FileSystem]) -> WireError {
    let point = |one: &FileSystem| audit::printable(&one.mount).to_string();
    if let Some(one) = list.iter().find(|one| one.state == FsState::FAILED) {
        let message = format!("{} cannot be frozen: {}", point(one), one.error);
        let error = WireError::new(ErrorKind::OS, message);
        // The kernel's word for what is frozen already.
        return if one.error == nix::errno::Errno::EBUSY.desc() {
            error.hint(format!("Somebody else may have frozen it; in the guest: fsfreeze -u {}", point(one)))
        } else {
            error
        };
    }
    if list.iter().any(|one| one.state == FsState::UNDONE) {
        let error = WireError::new(ErrorKind::TIMED_OUT, "The time was up before all was frozen");
        return error.hint("The guest writes much: --timeout gives it longer");
    }
    WireError::new(ErrorKind::UNSUPPORTED, "No file system of this guest can be frozen")
        .hint("ext4, xfs and btrfs on a disk of the VM's own can")
}

/// Waits for the thaw, asks for it where somebody does, and runs the scripts after it.
async fn hold(daemon: Arc<Daemon>, mut held: Held, timeout: Duration) {
    let freezes = &daemon.freezes;
    let told = loop {
        tokio::select! {
            () = freezes.thaw.notified() => {
                // Where it cannot be asked, it is gone, which shows below; and its deadline holds.
                let _ = held.helper.send(Op::Thaw).await;
            }
            answer = held.helper.next() => break answer,
        }
    };
    let (cause, held_us) = match told {
        Ok((Kind::Thawed, payload)) => match Told::decode(&payload) {
            Ok(told) => {
                held.list.truncate(told.standings.len());
                told.apply(&mut held.list);
                (told.cause(), told.microseconds)
            }
            Err(_) => (ThawCause::ENDED, 0),
        },
        _ => {
            // It was killed. The next one thaws what it left, before it says anything.
            let _ = Helper::ask(&daemon.options.paths.run, Op::Status, MARGIN).await;
            (ThawCause::ENDED, 0)
        }
    };
    let turned_away = {
        let mut state = lock(&freezes.state);
        state.stage = Stage::Thawing;
        state.turned_away
    };
    // Whoever asked in the last moment asked for this thaw, and not for the next freeze's.
    tokio::select! {
        biased;
        () = freezes.thaw.notified() => {}
        () = std::future::ready(()) => {}
    }
    let frozen = |one: &FileSystem| one.state == FsState::FROZEN || one.state == FsState::FAILED;
    held.list.retain(frozen);
    held.list.reverse();
    tracing::info!(
        "{} file systems were frozen for {} ms and thawed ({cause}); {turned_away} requests were turned away",
        held.list.len(),
        held_us / 1000
    );
    let scripts = daemon.powers.scripts("thaw.d", "thaw", timeout).await;
    let _ = fs::remove_file(mark(&freezes.run));
    freezes.set(Stage::Thawed);
    let reply = ThawReply { serial: held.serial, cause, held_us, file_systems: held.list, scripts };
    freezes.ended.send_replace(Some(reply));
}

/// Asks for the thaw of what is meant, and waits for it.
async fn thawed(daemon: &Daemon, thaw: &Thaw) -> Result<ThawReply, WireError> {
    let freezes = &daemon.freezes;
    let mut ended = freezes.ended.subscribe();
    let (stage, serial) = {
        let state = lock(&freezes.state);
        (state.stage, state.serial)
    };
    let meant = thaw.serial.is_none_or(|meant| meant == serial);
    match stage {
        Stage::Preparing | Stage::Freezing if meant => {
            let error = WireError::new(ErrorKind::BUSY, "The guest's file systems are being frozen");
            return Err(error.hint("Wait: what is frozen thaws by itself when its time is up"));
        }
        Stage::Frozen | Stage::Thawing if meant => {
            if stage == Stage::Frozen {
                freezes.thaw.notify_one();
            }
            let late = WireError::new(
                ErrorKind::TIMED_OUT,
                "The guest's freeze helper does not say that it has thawed",
            );
            let changed = ended.wait_for(|reply| reply.as_ref().is_some_and(|reply| reply.serial == serial));
            // The scripts' time is their own; the helper's is short.
            let waited = time::timeout(MARGIN + Duration::from_secs(3600), changed).await;
            return match waited {
                Ok(Ok(reply)) => reply.clone().ok_or(late),
                _ => Err(late),
            };
        }
        _ => {}
    }
    // It may be over: its deadline came first, and whoever asks must know.
    let last = ended.borrow().clone();
    let over = last.filter(|last| thaw.serial == Some(last.serial));
    over.ok_or_else(|| WireError::new(ErrorKind::NOT_FOUND, "Nothing is frozen in the guest"))
}

/// Takes up what a daemon before this one has begun.
pub(super) async fn resume(daemon: Arc<Daemon>) {
    if lock(&daemon.freezes.state).stage != Stage::Freezing {
        return;
    }
    let (timeout, run) = (daemon.config().power.timeout(), &daemon.options.paths.run);
    match found(run).await {
        Ok(Some(held)) => {
            {
                let mut state = lock(&daemon.freezes.state);
                state.stage = Stage::Frozen;
                state.serial = held.serial;
            }
            hold(daemon, held, timeout).await;
        }
        outcome => {
            daemon.freezes.set(Stage::Preparing);
            if let Err(error) = outcome {
                tracing::warn!("What was frozen before this start is not known: {}", error.message);
            }
            daemon.powers.scripts("thaw.d", "thaw", timeout).await;
            let _ = fs::remove_file(mark(run));
            daemon.freezes.set(Stage::Thawed);
        }
    }
}

async fn found(run: &std::path::Path) -> Result<Option<Held>, WireError> {
    let mut helper = Helper::connect(run).await?;
    helper.send(Op::Status).await?;
    let Some((serial, list)) = helper.plan(MARGIN).await? else { return Ok(None) };
    let told = helper.frozen(Duration::from_millis(hospes_protocol::limits::FREEZE_MS)).await?;
    Ok((told.word != 0).then_some(Held { helper, serial, list }))
}

/// A connection to the helper.
struct Helper {
    stream: UnixStream,
    /// What has arrived of the next answer: whoever waits for it may be called away.
    arrived: Vec<u8>,
}

impl Helper {
    async fn connect(run: &std::path::Path) -> Result<Self, WireError> {
        let path = helper::socket(run);
        let stream = UnixStream::connect(&path).await.map_err(|error| {
            let message = format!("The guest's freeze helper cannot be reached: {error}");
            let hint = "In the guest: systemctl start hospes-freeze.socket";
            WireError::new(ErrorKind::OS, message).hint(hint)
        })?;
        Ok(Self { stream, arrived: Vec::new() })
    }

    /// One request and its one answer.
    async fn ask(run: &std::path::Path, op: Op, patience: Duration) -> Result<(Kind, Vec<u8>), WireError> {
        let mut helper = Self::connect(run).await?;
        helper.send(op).await?;
        helper.within(patience).await
    }

    async fn send(&mut self, op: Op) -> Result<(), WireError> {
        let bytes = op.encode();
        let mut sent = 0;
        while sent < bytes.len() {
            self.stream.writable().await.map_err(|error| broken(&error))?;
            match self.stream.try_write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(Kind, Vec<u8>), WireError> {
        loop {
            if let Some(head) = self.arrived.first_chunk() {
                let (kind, length) = wire::head(*head)?;
                if self.arrived.len() >= wire::HEAD + length {
                    let rest = self.arrived.split_off(wire::HEAD + length);
                    let payload = std::mem::replace(&mut self.arrived, rest).split_off(wire::HEAD);
                    return Ok((kind, payload));
                }
            }
            self.stream.readable().await.map_err(|error| broken(&error))?;
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.arrived.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    async fn within(&mut self, patience: Duration) -> Result<(Kind, Vec<u8>), WireError> {
        let late = || WireError::new(ErrorKind::TIMED_OUT, "The guest's freeze helper does not answer");
        time::timeout(patience, self.next()).await.unwrap_or_else(|_| Err(late()))
    }

    /// The freeze's number and its list; none where nothing is frozen.
    async fn plan(&mut self, patience: Duration) -> Result<Option<(u64, Vec<FileSystem>)>, WireError> {
        match self.within(patience).await? {
            (Kind::Plan, payload) => {
                let (serial, list) = payload.split_first_chunk().ok_or_else(wire::foreign)?;
                let list = codec::decode(list).map_err(|_| wire::foreign())?;
                Ok(Some((u64::from_le_bytes(*serial), list)))
            }
            (Kind::Nothing, _) => Ok(None),
            other => Err(refusal(&other)),
        }
    }

    async fn frozen(&mut self, patience: Duration) -> Result<Told, WireError> {
        match self.within(patience).await? {
            (Kind::Frozen, payload) => Told::decode(&payload),
            other => Err(refusal(&other)),
        }
    }
}

fn broken(error: &io::Error) -> WireError {
    WireError::new(ErrorKind::OS, format!("The guest's freeze helper has ended: {error}"))
        .hint("In the guest: journalctl -u hospes-freeze")
}

/// What an answer says that is not the one which was to come.
fn refusal((kind, payload): &(Kind, Vec<u8>)) -> WireError {
    match kind {
        Kind::Refused => codec::decode(payload).unwrap_or_else(|_| wire::foreign()),
        _ => wire::foreign(),
    }
}
