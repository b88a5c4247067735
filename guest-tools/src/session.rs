//! The per-user worker: it owns its user's commands and the connections that belong to them.
//!
//! ```text
//! hospes-toolsd ──handoff──► accept ─► dispatch ─► exec, attach, ps, kill …   (one task each)
//!                                       SIGCHLD ─► children ─► whoever waits
//! ```
//! systemd starts it by its socket, as the user and in a PAM session. It runs on one thread, forks on that thread and
//! shares its state without locks. It ends when nothing runs, nothing is kept, and nobody has come for ten minutes;
//! systemd keeps the socket, so that whoever comes at that moment starts the next one.

pub mod accept;
pub mod dispatch;

use std::cell::{Cell, RefCell, RefMut};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use tokio::sync::{Notify, watch};

use crate::connection::Connection;
use crate::copy::Copies;
use crate::exec::environment::{self, Account, Variables};
use crate::exec::kept::Commands;
use crate::forward;
use crate::process::census::Census;
use crate::sys::children::{Child, Children};
use crate::sys::clone::{CloneError, Cloner, Program};
use crate::sys::limits;

/// Bytes read at once from an output that nobody listens to.
const SCRATCH: usize = 64 * 1024;

/// Tasks at once whose memory is worth giving back.
const RUSH: usize = 32;

/// What the worker's tasks share.
#[derive(Debug)]
pub struct Worker {
    /// Whose worker it is.
    pub(crate) account: Account,
    pub(crate) commands: Commands,
    pub(crate) copies: Copies,
    /// Callers of forwards' listeners that wait for the host.
    pub(crate) calls: forward::Calls,
    pub(crate) census: Census,
    pub(crate) children: Children,
    environment: RefCell<Variables>,
    cloner: RefCell<Cloner>,
    null: File,
    scratch: RefCell<Vec<u8>>,
    tasks: Cell<usize>,
    /// The most tasks at once since memory was last given back.
    peak: Cell<usize>,
    quiet: Notify,
    stop: watch::Sender<bool>,
}

impl Worker {
    /// A worker that serves nobody yet.
    ///
    /// # Errors
    /// What open(2) says of `/dev/null`.
    pub fn new(account: Account) -> io::Result<Rc<Self>> {
        let environment = environment::base(&account, std::env::vars_os());
        Ok(Rc::new(Self {
            account,
            commands: Commands::default(),
            copies: Copies::default(),
            calls: forward::Calls::default(),
            census: Census::default(),
            children: Children::default(),
            environment: RefCell::new(environment),
            cloner: RefCell::new(Cloner::new(limits::raise_descriptors())),
            null: File::open("/dev/null")?,
            scratch: RefCell::default(),
            tasks: Cell::new(0),
            peak: Cell::new(0),
            quiet: Notify::new(),
            stop: watch::Sender::new(false),
        }))
    }

    /// The environment that commands start from now.
    pub(crate) fn environment(&self) -> RefMut<'_, Variables> {
        let mut variables = self.environment.borrow_mut();
        environment::add_bus(&mut variables);
        variables
    }

    /// `/dev/null`, for commands without an input.
    pub(crate) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// A buffer for whoever needs one until it next waits.
    pub(crate) fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        let mut scratch = self.scratch.borrow_mut();
        scratch.resize(SCRATCH, 0);
        scratch
    }

    /// Starts a program as a child that can be waited for.
    pub(crate) fn start(&self, program: &Program<'_>) -> Result<Rc<Child>, CloneError> {
        // Nobody reaps between the two: both happen in one step of one thread.
        let pid = self.cloner.borrow_mut().start(program)?;
        Ok(self.children.add(pid))
    }

    /// Keeps the worker from ending while the guard lives.
    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.tasks.set(self.tasks.get() + 1);
        self.peak.set(self.peak.get().max(self.tasks.get()));
        Busy(Rc::clone(self))
    }

    /// Sees a connection off whose last frames are queued, without holding up who queued them.
    pub(crate) fn accompany(self: &Rc<Self>, connection: Connection) -> impl Future<Output = ()> + 'static {
        let busy = self.busy();
        async move {
            let _busy = busy;
            connection.finish().await;
        }
    }

    /// Whether nothing runs and nothing is kept.
    fn is_idle(&self) -> bool {
        self.tasks.get() == 0 && self.commands.is_empty()
    }

    /// After a rush: gives back what it has taken.
    fn tidy(&self) {
        if self.tasks.get() < RUSH / 4 && self.peak.get() >= RUSH {
            self.peak.set(self.tasks.get());
            limits::give_memory_back();
        }
    }

    /// Tells every command that the session ends.
    fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for the session's end.
    pub(crate) async fn stopping(&self) {
        // The sender is our own and lives as long as we do.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}

/// Something under way.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Worker>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        if self.0.is_idle() || (self.0.peak.get() >= RUSH && self.0.tasks.get() < RUSH / 4) {
            self.0.quiet.notify_one();
        }
    }
}
