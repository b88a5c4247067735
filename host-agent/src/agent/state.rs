//! What the agent knows: each VM's state, who announced itself, and the events that tell of changes.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hospes_protocol::info::Info;
use hospes_protocol::ticket::Issuer;
use hospes_protocol::time::Occasion;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::agent::ask::{Announced, Event, IssuedTicket, Listing, LogLine, State, Told, VmStatus, What};
use crate::agent::clipboard::Sharing;
use crate::agent::{AgentError, announce, qmp, session};
use crate::endpoint::Endpoint;
use crate::pins::Pins;
use crate::printable;
use crate::registry::Registry;
use crate::sys::watch::Watcher;
use crate::vm::{Vm, VmName};

/// Events that a subscriber may be behind.
const EVENTS: usize = 256;
/// A guest that had said that it goes, and whose endpoint refuses for so long, is down: its tools, which restart, are not.
const STEADY: Duration = Duration::from_secs(3);
/// Lines of log that are kept.
const LOG_LINES: usize = 512;
/// Announcements that are kept. They prove nothing, so a guest cannot be let fill our memory with them.
const ANNOUNCED: usize = 64;

/// The agent.
#[derive(Debug)]
pub struct Agent {
    registry: Registry,
    pins_dir: PathBuf,
    pub(crate) watcher: Watcher,
    vms: RefCell<BTreeMap<VmName, Entry>>,
    announced: RefCell<VecDeque<Announced>>,
    events: broadcast::Sender<Event>,
    lines: RefCell<VecDeque<LogLine>>,
    log: broadcast::Sender<LogLine>,
    /// This machine's clipboard, from when it is first shared.
    sharing: OnceCell<Rc<Sharing>>,
}

/// A VM, with its tasks.
#[derive(Debug)]
struct Entry {
    status: VmStatus,
    vm: Option<Vm>,
    /// Why and when the guest said that it goes down.
    going: Option<(String, Instant)>,
    /// Which boot it was, and how long it had been up, when it was last heard.
    boot: Option<(String, u64)>,
    /// Makes tickets while connected.
    issuer: Option<Issuer>,
    /// Wakes the session to try now.
    wake: Rc<Notify>,
    /// Wakes who listens to QEMU.
    heard: Rc<Notify>,
    /// Names occasions to look at the guest's clock, while connected.
    clock: Option<mpsc::UnboundedSender<Occasion>>,
    /// Asks the session, while connected.
    asks: Option<mpsc::UnboundedSender<SessionAsk>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a session is asked while connected.
#[derive(Debug)]
pub enum SessionAsk {
    /// Guest information as it is now.
    Info(oneshot::Sender<Info>),
    /// Is the guest still there? A session whose guest does not answer ends.
    Ping,
}

impl Agent {
    /// An agent that knows nothing yet.
    ///
    /// # Errors
    /// What keeps the VMs' files from being found.
    pub fn new() -> Result<Self, AgentError> {
        let registry = Registry::open()?;
        let pins_dir = Pins::open()?.dir().to_owned();
        let watcher = Watcher::new().map_err(|source| AgentError::Io { act: "watch files", source })?;
        for dir in [registry.dir(), &pins_dir] {
            crate::dirs::create(dir)?;
            // Where nothing tells of changes, commands do.
            let _ = watcher.watch_files(dir);
        }
        Ok(Self {
            registry,
            pins_dir,
            watcher,
            vms: RefCell::default(),
            announced: RefCell::default(),
            events: broadcast::channel(EVENTS).0,
            lines: RefCell::default(),
            log: broadcast::channel(EVENTS).0,
            sharing: OnceCell::new(),
        })
    }

    /// Reads the VMs' files: starts, ends and changes sessions to match.
    pub fn reload(self: &Rc<Self>) {
        let list = match self.registry.list() {
            Ok(list) => list,
            Err(error) => return self.log(None, crate::command_error::chain(&error)),
        };
        let names: Vec<VmName> = list
            .iter()
            .map(|entry| entry.as_ref().map_or_else(|(name, _)| name.clone(), |vm| vm.name.clone()))
            .collect();
        let gone: Vec<VmName> =
            self.vms.borrow().keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in gone {
            self.vms.borrow_mut().remove(&name);
            self.log(Some(&name), "removed");
            self.tell(Some(&name), What::Removed);
        }
        for entry in list {
            match entry {
                Ok(vm) => self.adopt(vm),
                Err((name, error)) => {
                    self.hold_broken(&name, Told { message: error.to_string(), hint: error.hint() });
                }
            }
        }
    }

    fn adopt(self: &Rc<Self>, vm: Vm) {
        if self.vms.borrow().get(&vm.name).is_some_and(|entry| entry.vm.as_ref() == Some(&vm)) {
            return;
        }
        let (name, endpoint) = (vm.name.clone(), vm.spec.endpoint.clone());
        self.announced.borrow_mut().retain(|guest| guest.endpoint != endpoint);
        let wake = Rc::new(Notify::new());
        let mut tasks = vec![
            tokio::task::spawn_local(session::run(Rc::clone(self), vm.clone(), Rc::clone(&wake)))
                .abort_handle(),
        ];
        let heard = Rc::new(Notify::new());
        if let Some(path) = vm.spec.qmp.clone() {
            let task = qmp::follow(Rc::clone(self), vm.name.clone(), path, Rc::clone(&heard));
            tasks.push(tokio::task::spawn_local(task).abort_handle());
        }
        if matches!(endpoint, Endpoint::Unix(_)) {
            let task = announce::unix(Rc::clone(self), endpoint.clone());
            tasks.push(tokio::task::spawn_local(task).abort_handle());
        }
        let status = VmStatus {
            name: name.clone(),
            endpoint: Some(endpoint.clone()),
            state: State::Connecting,
            since: Some(now_ms() / 1000),
            error: None,
            fingerprint: None,
            info: None,
        };
        let entry = Entry {
            status,
            vm: Some(vm),
            going: None,
            boot: None,
            issuer: None,
            wake,
            heard,
            clock: None,
            asks: None,
            tasks,
        };
        self.vms.borrow_mut().insert(name.clone(), entry);
        self.log(Some(&name), format_args!("at {endpoint}"));
        self.tell(Some(&name), What::Added { endpoint });
    }

    fn hold_broken(&self, name: &VmName, error: Told) {
        let status = VmStatus {
            name: name.clone(),
            endpoint: None,
            state: State::Refused,
            since: Some(now_ms() / 1000),
            error: Some(error.clone()),
            fingerprint: None,
            info: None,
        };
        let entry = Entry {
            status,
            vm: None,
            going: None,
            boot: None,
            issuer: None,
            wake: Rc::default(),
            heard: Rc::default(),
            clock: None,
            asks: None,
            tasks: Vec::new(),
        };
        let before = self.vms.borrow_mut().insert(name.clone(), entry);
        if before.is_none_or(|before| before.status.error.as_ref() != Some(&error)) {
            self.log(Some(name), &error.message);
            self.tell(Some(name), What::Refused { error });
        }
    }

    /// A session stands.
    pub(crate) fn connected(
        &self,
        vm: &VmName,
        issuer: Issuer,
        fingerprint: String,
        first_use: bool,
        asks: mpsc::UnboundedSender<SessionAsk>,
    ) {
        self.change(vm, |entry| {
            entry.issuer = Some(issuer);
            entry.asks = Some(asks);
            entry.status.fingerprint = Some(fingerprint.clone());
            entry.status.error = None;
            entry.status.set(State::Connected);
            entry.going = None;
            entry.heard.notify_one();
        });
        self.log(Some(vm), format_args!("connected, key {fingerprint}"));
        self.tell(Some(vm), What::Connected { fingerprint, first_use });
    }

    /// A session ended or could not be had.
    pub(crate) fn disconnected(&self, vm: &VmName, state: State, error: Told) {
        let mut news = false;
        self.change(vm, |entry| {
            entry.issuer = None;
            entry.asks = None;
            entry.clock = None;
            news = entry.status.state != state || entry.status.error.as_ref() != Some(&error);
            entry.status.error = Some(error.clone());
            if entry.status.state != state {
                entry.status.set(state);
            }
        });
        if news {
            self.log(Some(vm), format_args!("{}: {}", state.word(), error.message));
            let refused = state == State::Refused;
            self.tell(Some(vm), if refused { What::Refused { error } } else { What::Disconnected { error } });
        }
    }

    /// The guest said what it is.
    pub(crate) fn informed(&self, vm: &VmName, info: &Info, is_event: bool) {
        let restored = self.is_earlier(vm, info);
        self.change(vm, |entry| entry.status.info = Some(Box::new(info.clone())));
        if restored {
            self.log(Some(vm), "goes on from an earlier moment");
            self.tell(Some(vm), What::Restored);
        }
        if is_event {
            self.tell(Some(vm), What::Info { info: Box::new(info.clone()) });
        }
    }

    /// The guest said that it is about to stop.
    pub(crate) fn stopping(&self, vm: &VmName, why: &str) {
        self.log(Some(vm), format_args!("stopping: {why}"));
        let why = printable::line(why).into_owned();
        self.tell(Some(vm), What::Stopping { why: why.clone() });
        match why.as_str() {
            "poweroff" | "halt" => self.change(vm, |entry| entry.going = Some((why.clone(), Instant::now()))),
            "reboot" => self.tell(Some(vm), What::Rebooting),
            _ => (),
        }
    }

    /// Nothing answers at the VM's endpoint: the end of a guest that had said that it goes, once that lasts.
    pub(crate) fn silent(&self, vm: &VmName) {
        let gone = |entry: &Entry| entry.going.as_ref().is_some_and(|(_, since)| since.elapsed() >= STEADY);
        if self.vms.borrow().get(vm).is_some_and(gone) {
            self.stopped(vm, None);
        }
    }

    /// Whether the guest has said that it goes down, and is not seen to be yet.
    pub(crate) fn goes(&self, vm: &VmName) -> bool {
        self.vms.borrow().get(vm).is_some_and(|entry| entry.going.is_some())
    }

    /// The guest is down. Told once for each time that it goes.
    pub(crate) fn stopped(&self, vm: &VmName, unsaid: Option<&str>) {
        let mut why = unsaid.map(str::to_owned);
        self.change(vm, |entry| why = entry.going.take().map(|(why, _)| why).or(why.take()));
        let Some(why) = why else { return };
        self.log(Some(vm), format_args!("stopped: {why}"));
        self.tell(Some(vm), What::Stopped { why });
    }

    /// Whether the guest, which is heard for the first time in this session, goes on from an earlier moment.
    fn is_earlier(&self, vm: &VmName, info: &Info) -> bool {
        let mut earlier = false;
        self.change(vm, |entry| {
            let before = entry.boot.replace((info.boot_id.clone(), info.uptime_ms));
            earlier = before.is_some_and(|(boot, up)| boot == info.boot_id && info.uptime_ms < up);
        });
        earlier
    }

    /// A guest announced itself: a reason to try a VM that we know, and else something to show.
    pub(crate) fn announced(&self, guest: Announced) {
        let known: Vec<VmName> = self
            .vms
            .borrow()
            .values()
            .filter(|entry| entry.status.endpoint.as_ref() == Some(&guest.endpoint))
            .map(|entry| entry.status.name.clone())
            .collect();
        for vm in &known {
            self.wake(vm);
        }
        if !known.is_empty() {
            return;
        }
        let mut list = self.announced.borrow_mut();
        let before = list.len();
        list.retain(|other| other.endpoint != guest.endpoint);
        if list.len() >= ANNOUNCED {
            list.pop_front();
        }
        list.push_back(guest.clone());
        let is_new = list.len() > before;
        drop(list);
        if is_new {
            self.log(None, format_args!("{} announced itself at {}", guest.hostname, guest.endpoint));
        }
        self.tell(None, What::Announced { guest });
    }

    /// A ticket for a VM at this endpoint, or why there is none. A VM that is not connected is tried now.
    ///
    /// # Errors
    /// Why there is none.
    pub fn ticket(&self, vm: &VmName, endpoint: &Endpoint) -> Result<IssuedTicket, String> {
        let mut vms = self.vms.borrow_mut();
        let entry = vms.get_mut(vm).ok_or("no such VM")?;
        if entry.status.endpoint.as_ref() != Some(endpoint) {
            return Err("the VM is at another endpoint".to_owned());
        }
        let Some(issuer) = &mut entry.issuer else {
            entry.wake.notify_one();
            return Err("not connected".to_owned());
        };
        let (ticket, opened) = issuer.issue();
        Ok(IssuedTicket { ticket, opened })
    }

    /// Tries a VM now; one that is connected is asked whether it is still there.
    pub fn wake(&self, vm: &VmName) {
        if let Some(entry) = self.vms.borrow().get(vm) {
            match &entry.asks {
                Some(asks) => drop(asks.send(SessionAsk::Ping)),
                None => entry.wake.notify_one(),
            }
        }
    }

    /// Asks a VM's session for guest information; none where it is not connected.
    pub fn ask_info(&self, vm: &VmName) -> Option<oneshot::Receiver<Info>> {
        let (sender, receiver) = oneshot::channel();
        let vms = self.vms.borrow();
        vms.get(vm)?.asks.as_ref()?.send(SessionAsk::Info(sender)).ok()?;
        Some(receiver)
    }

    /// A connection about the guest's clock stands; occasions go to it.
    pub(crate) fn keeps_time(&self, vm: &VmName, clock: mpsc::UnboundedSender<Occasion>) {
        self.change(vm, |entry| entry.clock = Some(clock));
    }

    /// There is an occasion to look at a VM's clock, or at every VM's.
    pub(crate) fn occasion(&self, vm: Option<&VmName>, occasion: Occasion) {
        let vms = self.vms.borrow();
        for entry in vms.values().filter(|entry| vm.is_none_or(|vm| entry.status.name == *vm)) {
            if let Some(clock) = &entry.clock {
                // A connection that has ended a moment ago looks again when it is back.
                let _ = clock.send(occasion);
            }
        }
    }

    /// What `hospes list` shows.
    pub fn listing(&self) -> Listing {
        Listing {
            vms: self.vms.borrow().values().map(|entry| entry.status.clone()).collect(),
            announced: self.announced.borrow().iter().cloned().collect(),
        }
    }

    /// This machine's clipboard.
    pub(crate) fn sharing(self: &Rc<Self>) -> Rc<Sharing> {
        Rc::clone(self.sharing.get_or_init(|| Sharing::start(self)))
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// The log so far, and each line from now on.
    pub fn log_lines(&self) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        (self.lines.borrow().iter().cloned().collect(), self.log.subscribe())
    }

    /// Writes a line to the log and to stderr, which a service manager keeps.
    pub fn log(&self, vm: Option<&VmName>, text: impl Display) {
        let text = printable::line(&text.to_string()).into_owned();
        match vm {
            Some(vm) => eprintln!("{vm}: {text}"),
            None => eprintln!("{text}"),
        }
        let line = LogLine { at_ms: now_ms(), vm: vm.cloned(), text };
        let mut lines = self.lines.borrow_mut();
        if lines.len() >= LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        let _ = self.log.send(line);
    }

    /// Tells every subscriber.
    pub(crate) fn tell(&self, vm: Option<&VmName>, what: What) {
        // Without subscribers nobody hears it.
        let _ = self.events.send(Event { at_ms: now_ms(), vm: vm.cloned(), what });
    }

    fn change(&self, vm: &VmName, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.vms.borrow_mut().get_mut(vm) {
            change(entry);
        }
    }
}

impl VmStatus {
    fn set(&mut self, state: State) {
        self.state = state;
        self.since = Some(now_ms() / 1000);
    }
}

/// Obeys changes of files for as long as the agent runs; returns when it cannot any more.
pub(crate) async fn watch(agent: Rc<Agent>) -> io::Error {
    loop {
        let changes = match agent.watcher.next().await {
            Ok(changes) => changes,
            Err(error) => return error,
        };
        if changes.iter().any(|(dir, _)| dir == agent.registry.dir()) {
            agent.reload();
        }
        let mut wake = Vec::new();
        for entry in agent.vms.borrow().values() {
            let path = entry.vm.as_ref().and_then(|vm| vm.spec.qmp.as_ref());
            let is_there = |(dir, name): &(PathBuf, Option<OsString>)| {
                name.as_ref().map(|name| dir.join(name)).as_ref() == path
            };
            if path.is_some() && changes.iter().any(is_there) {
                wake.push(Rc::clone(&entry.heard));
            }
        }
        for entry in agent.vms.borrow().values().filter(|entry| entry.issuer.is_none()) {
            let path = entry.status.endpoint.as_ref().and_then(Endpoint::path);
            let pin = PathBuf::from(format!("{}.toml", entry.status.name));
            let concerned = changes.iter().any(|(dir, name)| {
                let Some(name) = name else { return false };
                (*dir == agent.pins_dir && *name == *pin) || path.is_some_and(|path| dir.join(name) == path)
            });
            if concerned {
                wake.push(Rc::clone(&entry.wake));
            }
        }
        for session in wake {
            session.notify_one();
        }
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
