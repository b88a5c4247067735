//! The root daemon: it decides who may do what, and lets others do it.
//!
//! It listens, proves and checks hosts, holds their control sessions, and gives each operation to its user's worker. It
//! starts no program of a user's and is in no operation's path, so it can be restarted at any time.

pub mod announce;
pub mod device;
pub mod status;
pub mod transport;
pub mod users;
pub mod worker;

mod connection;
mod control;
pub mod desktop;
mod freeze;
mod qga;
mod sessions;
pub(crate) mod systemd;
mod time;
mod wake;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hospes_protocol::control::Answer;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::HANDSHAKE_MS;
use hospes_protocol::power::Power;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch as channel};
use tokio::time as timer;

use self::desktop::{Desktops, Seat};
use self::freeze::Freezes;
use self::sessions::Sessions;
use self::status::{State, Status, Trusted};
use self::time::Times;
use self::transport::{Address, Listener, Peer, Stream, is_passing};
use self::worker::{Starter, Workers};
use crate::audit::Refusals;
use crate::config::{Config, ConfigError, TrustMode};
use crate::identity::{Identity, IdentityError};
use crate::local_socket::{self, Callers};
use crate::logging;
use crate::paths::Paths;
use crate::power::{Manner, Powers};
use crate::trust::TrustStore;
use crate::variable::{self, Variables};
use crate::watch::Watcher;

/// How long the listener rests when the kernel has no descriptor or memory for another connection.
const EXHAUSTED: Duration = Duration::from_millis(500);
/// What came of a power request, for the connection that it came on.
#[derive(Debug)]
struct PowerAnswer {
    reply: Result<Answer, WireError>,
    /// Told, or dropped, when the reply has left.
    sent: oneshot::Sender<()>,
}

/// How long the word of a suspend may take to leave: the sessions stay, so nobody says that it has.
const LAST_WORD: Duration = Duration::from_millis(100);
/// How long sessions may take to say good-bye.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// What the daemon is told on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where its files are.
    pub paths: Paths,
    /// Where it listens.
    pub listen: Address,
    /// How workers are started.
    pub starter: Starter,
    /// How long a connection may take to say what it is.
    pub handshake: Duration,
    /// What has power over this machine.
    pub power: Manner,
    /// Who says whose desktop is in front.
    pub seat: Seat,
    /// Where the QEMU guest agent's protocol is served; a Unix socket in place of vsock and virtio-serial is for tests.
    pub qga: Option<Address>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paths: Paths::default(),
            listen: Address::Vsock,
            starter: Starter::Systemd,
            handshake: Duration::from_millis(HANDSHAKE_MS),
            power: Manner::default(),
            seat: Seat::default(),
            qga: Some(Address::Vsock),
        }
    }
}

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It has no key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot listen.
    #[error("Cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// It cannot be told of changes or signals.
    #[error("Cannot watch {what}: {source}")]
    Watch {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The daemon's state, shared by its tasks. They run on one thread: a lock is never waited for, and never held across an
/// await.
#[derive(Debug)]
pub struct Daemon {
    options: Options,
    identity: Identity,
    workers: Workers,
    policy: Mutex<Policy>,
    trust: Mutex<TrustStore>,
    sessions: Mutex<Sessions>,
    refusals: Mutex<Refusals>,
    pending: Pending,
    stopping: channel::Sender<&'static str>,
    /// Counts the times that the guest came back from suspend.
    resumed: channel::Sender<u64>,
    variables: Mutex<Variables>,
    powers: Powers,
    freezes: Freezes,
    desktops: Desktops,
    times: Times,
}

#[derive(Debug)]
struct Policy {
    config: Arc<Config>,
    source: Option<PathBuf>,
    error: Option<ConfigError>,
}

/// Connections that have not yet said what they are. While there are as many as the limit, the next ones wait in the
/// kernel's backlog: a crowd is served late, and not refused.
#[derive(Debug, Default)]
struct Pending {
    count: AtomicUsize,
    fewer: Notify,
}

impl Pending {
    /// Waits until there are fewer than `max`.
    async fn room(&self, max: usize) {
        while self.count.load(Ordering::Relaxed) >= max {
            self.fewer.notified().await;
        }
    }

    /// Takes a place, to be held by [`Place`] once the connection's task runs.
    fn enter(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection's place among them.
struct Place<'a>(&'a Pending);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.fewer.notify_one();
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// [`DaemonError`]: what it cannot run without.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    let status = options.paths.status();
    let outcome = serve(options).await;
    if let Err(error) = &outcome {
        let failed = Status { state: State::Failed, detail: error.to_string(), ..Status::default() };
        write_status(&failed, &status);
    }
    outcome
}

async fn serve(options: Options) -> Result<(), DaemonError> {
    if let Err(error) = std::fs::create_dir_all(&options.paths.run) {
        tracing::warn!("{} cannot be made: {error}", options.paths.run.display());
    }
    if options.listen == Address::Vsock
        && let Err(why) = device::find()
    {
        tracing::info!("Nothing to do: {why}");
        let status = Status { state: State::NoDevice, detail: why.to_string(), ..Status::default() };
        write_status(&status, &options.paths.status());
        // Ready and then gone: systemd takes an end before the word for a failure.
        notify(&[NotifyState::Ready, NotifyState::Status(&why.to_string())]);
        return Ok(());
    }
    let daemon = Arc::new(Daemon::new(options)?);
    let address = &daemon.options.listen;
    let listener =
        Listener::bind(address).map_err(|source| DaemonError::Listen { address: address.clone(), source })?;
    let watcher = daemon.watcher().map_err(|source| DaemonError::Watch { what: "the policy", source })?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| DaemonError::Watch { what: "signals", source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| DaemonError::Watch { what: "signals", source })?;

    tracing::info!("Listening on {address} as {}", daemon.identity.key.public());
    daemon.write_status();
    notify(&[NotifyState::Ready]);
    if daemon.config().announce.enabled && *address == Address::Vsock {
        let key = daemon.identity.key.public();
        tokio::spawn(announce::announce(key));
    }
    tokio::spawn(Arc::clone(&daemon).follow_files(watcher));
    let run = &daemon.options.paths.run;
    match local_socket::bind(&variable::local::socket(run), Callers::Root) {
        Ok(listener) => {
            let daemon = Arc::clone(&daemon);
            let answer = move |ask| variable::local::dispatch(&mut daemon.variables(), ask);
            tokio::spawn(variable::local::serve(listener, answer));
        }
        Err(error) => tracing::error!("The guest's root cannot set variables: {error}"),
    }
    match local_socket::bind(&desktop::socket(run), Callers::Everybody) {
        Ok(listener) => drop(tokio::spawn(desktop::serve(Arc::clone(&daemon), listener))),
        Err(error) => tracing::error!("No desktop can share its clipboard: {error}"),
    }
    tokio::spawn(wake::follow(Arc::clone(&daemon)));
    qga::open(&daemon);
    tokio::spawn(freeze::resume(Arc::clone(&daemon)));
    let started = Arc::clone(&daemon);
    tokio::spawn(async move {
        let timeout = started.config().power.timeout();
        started.powers.started(timeout).await;
    });
    tokio::select! {
        () = accept(&daemon, &listener) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify(&[NotifyState::Stopping]);
    daemon.stop().await;
    Ok(())
}

async fn accept(daemon: &Arc<Daemon>, listener: &Listener) {
    loop {
        daemon.pending.room(daemon.config().limits.handshakes).await;
        match listener.accept().await {
            Ok((stream, peer)) => daemon.admit(stream, peer),
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::error!("Cannot take a connection: {error}");
                timer::sleep(EXHAUSTED).await;
            }
        }
    }
}

impl Daemon {
    fn new(options: Options) -> Result<Self, DaemonError> {
        let identity = Identity::load_or_create(&options.paths)?;
        let policy = match Config::load(&options.paths) {
            Ok((config, source)) => Policy { config: Arc::new(config), source, error: None },
            Err(error) => {
                // A guest whose policy cannot be read allows nothing: what it forbids may be what was cut off.
                tracing::error!("{error}. Until it is mended, nothing is allowed");
                Policy { config: Arc::new(Config::forbidding()), source: None, error: Some(error) }
            }
        };
        logging::set_level(policy.config.log.level);
        let trust = TrustStore::load(&options.paths, &identity.machine);
        for problem in &trust.problems {
            tracing::error!("Trusted hosts: {problem}");
        }
        Ok(Self {
            workers: Workers::new(options.paths.run.clone(), options.starter.clone()),
            policy: Mutex::new(policy),
            trust: Mutex::new(trust),
            sessions: Mutex::default(),
            refusals: Mutex::default(),
            pending: Pending::default(),
            stopping: channel::Sender::new(""),
            resumed: channel::Sender::new(0),
            variables: Mutex::new(Variables::load(&options.paths.run)),
            powers: Powers::new(options.power.clone(), options.paths.etc.clone(), options.paths.run.clone()),
            freezes: Freezes::new(options.paths.run.clone()),
            desktops: Desktops::new(options.seat.clone()),
            // A daemon beside another system than its own leaves that one's clock alone.
            times: Times::new(options.power == Manner::Machine, &options.paths.run),
            identity,
            options,
        })
    }

    fn admit(self: &Arc<Self>, stream: Stream, peer: Peer) {
        if !peer.may_speak() {
            let error = WireError::new(ErrorKind::UNTRUSTED, "Only the host may connect here");
            return connection::turn_away(self, &stream, &peer.to_string(), &error);
        }
        self.pending.enter();
        let daemon = Arc::clone(self);
        tokio::spawn(async move {
            let place = Place(&daemon.pending);
            connection::serve(&daemon, stream, peer, place).await;
        });
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&lock(&self.policy).config)
    }

    fn trust(&self) -> MutexGuard<'_, TrustStore> {
        lock(&self.trust)
    }

    fn variables(&self) -> MutexGuard<'_, Variables> {
        lock(&self.variables)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }

    /// Does what is asked, whoever still listens, and tells everybody. `answer` gets the reply, and says when it has
    /// left.
    async fn power(self: Arc<Self>, power: Power, answer: oneshot::Sender<PowerAnswer>) {
        let timeout = self.config().power.timeout();
        let outcome = self.powers.perform(&power, timeout).await;
        let (reply, going) = match outcome {
            Ok(outcome) => (Ok(Answer::Power(outcome.reply)), outcome.going),
            Err(error) => (Err(error), None),
        };
        let (sent, told) = oneshot::channel();
        let _ = answer.send(PowerAnswer { reply, sent });
        let Some(going) = going else { return };
        let _ = timer::timeout(GOOD_BYE, told).await;
        let word = going.word;
        self.stopping.send_replace(word);
        if word == "suspend" {
            let _ = timer::timeout(LAST_WORD, std::future::pending::<()>()).await;
        } else {
            let _ = timer::timeout(GOOD_BYE, self.stopping.closed()).await;
        }
        let awake = going.follow(&self.powers, timeout).await;
        if word == "suspend" {
            // The next stop is another one.
            self.stopping.send_if_modified(|said| {
                *said = "";
                false
            });
        }
        if awake {
            self.resumed.send_modify(|times| *times += 1);
        }
    }

    /// Changes when the daemon or the guest stops: why, in a word.
    fn stopping(&self) -> channel::Receiver<&'static str> {
        self.stopping.subscribe()
    }

    fn refused(&self, who: &str, what: &str) {
        // The log's own file may be frozen, and whoever writes to it then waits.
        if self.freezes.keep_quiet() {
            return;
        }
        lock(&self.refusals).refused(Instant::now(), who, what);
    }

    fn watcher(&self) -> io::Result<Watcher> {
        let paths = &self.options.paths;
        let mut watcher = Watcher::new()?;
        watcher.add(&paths.etc, Some("tools.toml"));
        watcher.add(&paths.etc, Some("trusted-hosts.d"));
        watcher.add(&paths.trusted_hosts(), None);
        watcher.add(&paths.state, Some("first-use"));
        Ok(watcher)
    }

    async fn follow_files(self: Arc<Self>, mut watcher: Watcher) {
        // What changed between the first reading and the watch.
        loop {
            self.reload();
            if let Err(error) = watcher.changed().await {
                return tracing::error!("Changes of the policy are no longer seen: {error}");
            }
        }
    }

    /// Reads the policy and the trusted keys again. A bad policy leaves the old one in force.
    fn reload(&self) {
        {
            let mut policy = lock(&self.policy);
            match Config::load(&self.options.paths) {
                Ok((config, source)) => {
                    if *policy.config != config || policy.error.is_some() {
                        tracing::info!("The policy is read again");
                        logging::set_level(config.log.level);
                    }
                    *policy = Policy { config: Arc::new(config), source, error: None };
                }
                Err(error) => {
                    if policy.error.as_ref().map(ToString::to_string) != Some(error.to_string()) {
                        tracing::error!("{error}. The policy before it stays in force");
                    }
                    policy.error = Some(error);
                }
            }
        }
        let fresh = TrustStore::load(&self.options.paths, &self.identity.machine);
        let mut store = self.trust();
        if *store != fresh {
            for problem in &fresh.problems {
                tracing::error!("Trusted hosts: {problem}");
            }
            *store = fresh;
            let trusted = |key: &_| store.hosts.iter().any(|host| host.key == *key);
            let ended = self.sessions().revoke(trusted, |key| store.refusal(key));
            tracing::info!(
                "Trusted hosts are read again: {} trusted, {ended} sessions ended",
                store.hosts.len()
            );
        }
        drop(store);
        self.write_status();
    }

    async fn stop(&self) {
        // Where the machine goes down, sessions were told so before, unless somebody else asked for that.
        let word = self.powers.going_down().await.unwrap_or("upgrade");
        self.stopping.send_if_modified(|said| {
            let silent = said.is_empty();
            if silent {
                *said = word;
            }
            silent
        });
        let _ = timer::timeout(GOOD_BYE, self.stopping.closed()).await;
        let mut status = self.status();
        status.state = State::Stopped;
        status.detail = "It was told to stop".into();
        write_status(&status, &self.options.paths.status());
    }

    fn status(&self) -> Status {
        let (policy, store, sessions) = (lock(&self.policy), self.trust(), self.sessions());
        let trusted = |host: &crate::trust::TrustedHost| Trusted {
            fingerprint: host.key.fingerprint(),
            source: host.source.to_string(),
            comment: host.comment.clone(),
        };
        Status {
            release: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            state: State::Listening,
            detail: self.options.listen.to_string(),
            fingerprint: self.identity.key.public().fingerprint(),
            trusted: store.hosts.iter().map(trusted).collect(),
            trust_problems: store.problems.clone(),
            takes_first: policy.config.trust.mode == TrustMode::FirstUse
                && store.hosts.is_empty()
                && store.problems.is_empty(),
            sessions: sessions.hosts().map(|host| host.fingerprint()).collect(),
            config: policy.source.as_ref().map(|path| path.display().to_string()),
            config_error: policy.error.as_ref().map(ToString::to_string),
        }
    }

    fn write_status(&self) {
        let status = self.status();
        write_status(&status, &self.options.paths.status());
        let trusted = match (status.trusted.len(), status.takes_first) {
            (0, true) => "the first host to come will be trusted".to_owned(),
            (0, false) => "no host is trusted".to_owned(),
            (count, _) => format!("{count} trusted, {} connected", status.sessions.len()),
        };
        notify(&[NotifyState::Status(&format!("Listening on {}; {trusted}", status.detail))]);
    }
}

fn write_status(status: &Status, path: &std::path::Path) {
    if let Err(error) = status.write(path) {
        tracing::warn!("{} cannot be written: {error}", path.display());
    }
}

/// Tells systemd, where it listens.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}

/// A panic in one task poisons nothing that the next one cannot use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
