//! The worker's commands, by number: for `ps`, `kill`, and whoever comes back to one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hospes_protocol::exec::{ExecId, Exited};
use hospes_protocol::limits::KEPT_OUTPUT;
use tokio::sync::Notify;

use crate::connection::Connection;
use crate::sys::children::Child;

/// How long a command that has ended waits for somebody to fetch its output and status.
pub(crate) const KEPT_FOR: Duration = Duration::from_hours(1);
/// Commands that have ended and still wait for that. The oldest make room.
const ENDED_MAX: usize = 64;
/// Bytes of output that may be kept per stream, whatever a request says.
const KEPT_OUTPUT_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of output that a request's command keeps per stream.
pub(crate) fn kept_bytes(asked: Option<u64>) -> usize {
    usize::try_from(asked.unwrap_or(KEPT_OUTPUT).min(KEPT_OUTPUT_MAX)).unwrap_or(usize::MAX)
}

/// One command as others see it. Its own task serves it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its number.
    pub(crate) id: ExecId,
    /// Its process.
    pub(crate) child: Rc<Child>,
    /// Program and arguments, as they were asked for.
    pub(crate) argv: Vec<Vec<u8>>,
    /// When it started, in seconds since 1970.
    pub(crate) started: u64,
    kept: Cell<bool>,
    exited: RefCell<Option<Exited>>,
    caller: RefCell<Option<Connection>>,
    forgotten: Cell<bool>,
    news: Notify,
}

impl Entry {
    /// Whether it runs, or waits, without a connection too.
    pub(crate) const fn is_kept(&self) -> bool {
        self.kept.get()
    }

    /// From now on it does.
    pub(crate) fn keep(&self) {
        self.kept.set(true);
    }

    /// Its end, once it has ended.
    pub(crate) fn exited(&self) -> Option<Exited> {
        self.exited.borrow().clone()
    }

    /// Somebody comes back to it. Whoever did before and was not yet served is turned away: the last one wins, since
    /// the one before may sit on a machine that sleeps.
    pub(crate) fn call(&self, connection: Connection) {
        *self.caller.borrow_mut() = Some(connection);
        self.news.notify_one();
    }

    /// Who has come back, if anybody.
    pub(crate) fn caller(&self) -> Option<Connection> {
        self.caller.borrow_mut().take()
    }

    /// Whether it must make room for others.
    pub(crate) const fn is_forgotten(&self) -> bool {
        self.forgotten.get()
    }

    /// Waits for a caller, or to be forgotten.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }
}

/// All commands.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    table: RefCell<BTreeMap<ExecId, Rc<Entry>>>,
    last: Cell<u64>,
}

impl Commands {
    /// A command that has just started gets its number.
    pub(crate) fn add(&self, child: Rc<Child>, argv: Vec<Vec<u8>>, kept: bool) -> Rc<Entry> {
        let id = ExecId(self.last.get() + 1);
        self.last.set(id.0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let entry = Rc::new(Entry {
            id,
            child,
            argv,
            started: now.map_or(0, |now| now.as_secs()),
            kept: Cell::new(kept),
            exited: RefCell::default(),
            caller: RefCell::default(),
            forgotten: Cell::new(false),
            news: Notify::new(),
        });
        self.table.borrow_mut().insert(id, Rc::clone(&entry));
        entry
    }

    /// The command with this number.
    pub(crate) fn get(&self, id: ExecId) -> Option<Rc<Entry>> {
        self.table.borrow().get(&id).cloned()
    }

    /// All, by number.
    pub(crate) fn all(&self) -> Vec<Rc<Entry>> {
        self.table.borrow().values().cloned().collect()
    }

    /// Whether there is none, running or kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }

    /// A kept command has ended. Where too many wait, the oldest is told to go.
    pub(crate) fn ended(&self, entry: &Entry, exited: &Exited) {
        *entry.exited.borrow_mut() = Some(exited.clone());
        let table = self.table.borrow();
        let waiting =
            || table.values().filter(|entry| entry.exited.borrow().is_some() && !entry.is_forgotten());
        if waiting().count() > ENDED_MAX
            && let Some(oldest) = waiting().next()
        {
            oldest.forgotten.set(true);
            oldest.news.notify_one();
        }
    }

    /// The command is over and nothing of it is kept.
    pub(crate) fn remove(&self, id: ExecId) {
        self.table.borrow_mut().remove(&id);
    }
}
