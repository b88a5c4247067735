//! A running command joined to its connection, or to what is kept of it: one task, one place where it waits.
//!
//! ```text
//!             host's frames ──► listen ──► stdin, signals, window size
//! outputs ──► pump ──► connection                      while a host is there
//!                └───► ring ──► whoever comes back     once the command is kept
//! ```
//! A turn does everything that can be done without waiting; then the task waits for whatever lets it go on.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::{
    Attach, Exec, ExecError, ExecId, Exited, Guest, GuestStep, STDERR, STDOUT, Started, Usage,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use tokio::time::{self, Instant};

use super::end;
use super::kept::{Entry, KEPT_FOR, kept_bytes};
use super::plan::Plan;
use super::ring::Ring;
use super::start::{self, Ends};
use super::stdin::{Closed, StdinPipe};
use crate::connection::{Connection, ConnectionError};
use crate::handoff::Handoff;
use crate::session::Worker;
use crate::sys::children::{Child, Ended};
use crate::sys::descriptor::{Descriptor, Moved};
use crate::sys::terminal;

/// What one turn may do before others get theirs.
const ROUNDS: usize = 16;
/// Bytes that an output's pipe is made to hold once it proves to be a long stream; an ordinary user's most.
const PIPE: i32 = 1024 * 1024;
/// Bytes that an output may still hold when its command has ended: a terminal less, a pipe no more, unless the command
/// itself has made it larger.
const LEFT: usize = 1024 * 1024;
/// The highest signal number there is (`SIGRTMAX`).
const SIGNAL_MAX: u8 = 64;

/// Serves an [`Exec`].
pub(crate) async fn serve(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    let request: Exec = match codec::decode(&handoff.request) {
        Ok(request) => request,
        Err(error) => return connection.refuse(&WireError::protocol(error)).await,
    };
    drop(handoff);
    let began = Instant::now();
    let started = request
        .check()
        .map_err(WireError::protocol)
        .and_then(|()| Plan::new(&request, &worker.account, &worker.environment()))
        .and_then(|plan| start::start(&worker, &request, &plan));
    let (child, raw) = match started {
        Ok(started) => started,
        Err(error) => return connection.refuse(&error).await,
    };
    let entry = worker.commands.add(child, request.argv.clone(), request.detach);
    let mut guest = Guest::new();
    let started = Started { id: entry.id, pid: entry.child.pid().unsigned_abs(), lost: [0; 2] };
    guest.started(&started, connection.out());
    // The host is told before anything else is done; whether that fails is found out below.
    let _ = connection.try_flush();
    let ends = match raw.register() {
        Ok(ends) => ends,
        Err(error) => {
            worker.commands.remove(entry.id);
            let error =
                WireError::new(ErrorKind::OS, format!("The guest could not watch the command: {error}"));
            guest.failed(&error, connection.out());
            connection.finish().await;
            return end::hang_up(&worker, &entry.child).await;
        }
    };
    let link = Link { connection, guest, quiet: request.detach, unwanted: [false; 2], position: [0; 2] };
    let mut run = Run::new(Rc::clone(&worker), Rc::clone(&entry), ends, link, &request, began);
    run.run().await;
    worker.commands.remove(entry.id);
    if let Some(connection) = entry.caller() {
        connection.refuse(&not_kept(entry.id)).await;
    }
}

/// Serves an [`Attach`].
pub(crate) async fn attach(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    let id = match codec::decode::<Attach>(&handoff.request) {
        Ok(Attach { id, .. }) => id,
        Err(error) => return connection.refuse(&WireError::protocol(error)).await,
    };
    let Some(entry) = worker.commands.get(id) else {
        return connection.refuse(&not_kept(id)).await;
    };
    if !entry.is_kept() {
        let error = WireError::new(ErrorKind::BUSY, format!("Command {} has its connection still", id.0))
            .hint("Only a command that was detached can be attached to");
        return connection.refuse(&error).await;
    }
    entry.call(connection);
}

fn not_kept(id: ExecId) -> WireError {
    WireError::new(ErrorKind::NOT_FOUND, format!("The guest keeps no command {}", id.0)).hint(
        "hospes ps shows those that it keeps; one that has ended is kept for an hour, or until it was fetched",
    )
}

/// A host that a command is connected to.
#[derive(Debug)]
struct Link {
    connection: Connection,
    guest: Guest,
    /// It has started a detached command: it may send its input and is sent nothing.
    quiet: bool,
    /// Outputs that it wants no more of.
    unwanted: [bool; 2],
    /// How far into each kept output it has been sent.
    position: [u64; 2],
}

/// One of the command's outputs.
#[derive(Debug)]
struct Output {
    fd: Option<Rc<Descriptor>>,
    /// Bytes read so far.
    total: u64,
    /// What is kept of them, once the command is kept.
    ring: Option<Ring>,
    /// Once the command has ended: how many bytes it may have left behind at most.
    left: Option<usize>,
    /// Whether it was asked how much it holds.
    asked: bool,
    grown: bool,
}

/// Why a host is gone.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Protocol(#[from] ExecError),
    #[error("The host said goodbye before the end")]
    Bye,
    #[error("The host let the command run on")]
    Detached,
}

/// What a time runs out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The command's own time limit.
    Limit,
    /// The grace after it.
    Kill,
    /// The time for which an ended command is kept.
    Forget,
}

#[derive(Debug)]
struct Run {
    worker: Rc<Worker>,
    entry: Rc<Entry>,
    link: Option<Link>,
    stdin: StdinPipe,
    outputs: [Output; 2],
    terminal: Option<Rc<Descriptor>>,
    began: Instant,
    deadline: Option<(Instant, Stage)>,
    timed_out: bool,
    exited: Option<Exited>,
    keep_bytes: usize,
}

/// What the task waited for.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Ready,
    Ended,
    Time,
    Called,
    Stopping,
}

impl Run {
    fn new(
        worker: Rc<Worker>,
        entry: Rc<Entry>,
        ends: Ends,
        link: Link,
        request: &Exec,
        began: Instant,
    ) -> Self {
        let Ends { stdin, outputs, terminal } = ends;
        let limit = request.timeout_ms.and_then(|ms| began.checked_add(Duration::from_millis(ms)));
        let mut run = Self {
            worker,
            link: Some(link),
            stdin: StdinPipe::new(stdin, terminal.is_some()),
            outputs: outputs.map(|fd| Output {
                fd,
                total: 0,
                ring: None,
                left: None,
                asked: false,
                grown: false,
            }),
            terminal,
            began,
            deadline: limit.map(|at| (at, Stage::Limit)),
            timed_out: false,
            exited: None,
            keep_bytes: kept_bytes(request.keep_output),
            entry,
        };
        if run.entry.is_kept() {
            run.keep();
        }
        run
    }

    /// From here on the command needs no host.
    fn keep(&mut self) {
        self.entry.keep();
        for output in &mut self.outputs {
            output.ring.get_or_insert_with(|| Ring::new(output.total, self.keep_bytes));
        }
    }

    async fn run(&mut self) {
        while !self.entry.is_forgotten() || self.link.is_some() {
            let more = match self.turn() {
                Ok(more) => more,
                Err(gone) => {
                    if self.host_is_gone(&gone).await {
                        return;
                    }
                    continue;
                }
            };
            if self.is_over() {
                if self.goodbye().await {
                    return;
                }
                continue;
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            match self.wait().await {
                Event::Ready => {}
                Event::Ended => self.ended(),
                Event::Called => self.called(),
                Event::Time => {
                    if self.time_is_up().await {
                        return;
                    }
                }
                Event::Stopping => return self.stop().await,
            }
        }
    }

    /// Everything that can be done without waiting. True where more could be, and others should have their turn first.
    fn turn(&mut self) -> Result<bool, Gone> {
        let mut more = self.listen()?;
        self.feed();
        self.flush()?;
        more |= self.pump();
        self.flush()?;
        // What is kept has no readiness of its own to wait for: where there is room now, on it goes.
        Ok(more || (0..self.outputs.len()).any(|at| self.may_replay(at)))
    }

    fn flush(&mut self) -> Result<(), Gone> {
        if let Some(link) = &mut self.link {
            link.connection.try_flush()?;
        }
        Ok(())
    }

    /// Obeys the frames that the host has sent.
    fn listen(&mut self) -> Result<bool, Gone> {
        let Some(link) = &mut self.link else { return Ok(false) };
        let mut reads = 0;
        loop {
            let (frame, out) = link.connection.take_with_out().map_err(ConnectionError::from)?;
            let Some(frame) = frame else {
                if !link.connection.try_fill()? {
                    return Ok(false);
                }
                reads += 1;
                if reads == ROUNDS {
                    return Ok(true);
                }
                continue;
            };
            match link.guest.receive(frame, out)? {
                GuestStep::Nothing | GuestStep::OutputRoom(_) => {}
                GuestStep::Stdin(bytes) => {
                    match self.stdin.push(bytes) {
                        Ok(written) => link.guest.stdin_written(written, out),
                        Err(Closed) => link.guest.stdin_closed(out),
                    }
                    // Credit is due at once: the host would stand still until this turn ends.
                    link.connection.try_flush()?;
                }
                GuestStep::StdinEnd => self.stdin.end(),
                GuestStep::OutputUnwanted(channel) => {
                    let at = index(channel);
                    link.unwanted[at] = true;
                    if self.outputs[at].ring.is_none() {
                        // The command gets SIGPIPE at its next write.
                        self.outputs[at].fd = None;
                    }
                }
                GuestStep::Signal(number) => signal(&self.entry.child, self.terminal.as_deref(), number),
                GuestStep::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        // A terminal that is gone has no size; its end is on its way.
                        let _ = terminal::resize(&terminal.as_fd(), size);
                    }
                }
                GuestStep::Detach => return Err(Gone::Detached),
                GuestStep::Bye => return Err(Gone::Bye),
            }
        }
    }

    /// Writes on what waits for the command to read it.
    fn feed(&mut self) {
        if self.stdin.blocked().is_none() {
            return;
        }
        let fed = self.stdin.resume();
        if let Some(Link { connection, guest, .. }) = &mut self.link {
            match fed {
                Ok(written) => guest.stdin_written(written, connection.out()),
                Err(Closed) => guest.stdin_closed(connection.out()),
            }
        }
    }

    /// Moves output on, each stream in its turn. True where more could be moved.
    fn pump(&mut self) -> bool {
        for _ in 0..ROUNDS {
            let mut moved = false;
            for at in 0..self.outputs.len() {
                moved |= match self.outputs[at].ring {
                    None => self.pass(at),
                    Some(_) => self.store(at) | self.replay(at),
                };
            }
            if !moved {
                return false;
            }
        }
        true
    }

    /// From the command to the host, as much as one frame takes. True where something moved.
    fn pass(&mut self, at: usize) -> bool {
        let Some(Link { connection, guest, .. }) = &mut self.link else { return false };
        let output = &mut self.outputs[at];
        let room = guest.room(channel(at));
        if output.fd.is_none() || room == 0 || !connection.is_clear() {
            return false;
        }
        let n = output.read(connection.bulk(room));
        if n > 0 {
            let filled = connection.send_bulk(guest.output_data(channel(at), n));
            if filled {
                output.grow(self.terminal.is_some());
            }
            // A connection that is lost says so again at the next call that can.
            let _ = connection.try_flush();
        }
        n > 0
    }

    /// From the command to what is kept. A host that is attached and slow holds the command up, as it does without.
    fn store(&mut self, at: usize) -> bool {
        if !self.may_store(at) {
            return false;
        }
        let mut buffer = self.worker.scratch();
        let output = &mut self.outputs[at];
        let n = output.read(&mut buffer);
        if let Some(ring) = output.ring.as_mut().filter(|_| n > 0) {
            ring.push(&buffer[..n]);
        }
        n > 0
    }

    fn may_store(&self, at: usize) -> bool {
        let Output { fd: Some(_), ring: Some(ring), .. } = &self.outputs[at] else { return false };
        match &self.link {
            Some(link) if !link.quiet && !link.unwanted[at] => {
                link.position[at] == ring.end()
                    && link.guest.room(channel(at)) > 0
                    && link.connection.is_clear()
            }
            _ => true,
        }
    }

    /// From what is kept to the host.
    fn replay(&mut self, at: usize) -> bool {
        if !self.may_replay(at) {
            return false;
        }
        let (Some(link), Some(ring)) = (&mut self.link, &self.outputs[at].ring) else { return false };
        let room = link.guest.room(channel(at));
        let n = ring.copy_from(link.position[at], link.connection.bulk(room));
        link.position[at] += n as u64;
        link.connection.send_bulk(link.guest.output_data(channel(at), n));
        let _ = link.connection.try_flush();
        n > 0
    }

    fn may_replay(&self, at: usize) -> bool {
        let (Some(link), Some(ring)) = (&self.link, &self.outputs[at].ring) else { return false };
        !link.quiet
            && !link.unwanted[at]
            && link.position[at] < ring.end()
            && link.guest.room(channel(at)) > 0
            && link.connection.is_clear()
    }

    /// Whether the command has ended and all its output is read, and sent to whoever listens.
    fn is_over(&self) -> bool {
        let caught_up = |at: usize, output: &Output| match (&output.ring, &self.link) {
            (Some(ring), Some(link)) => link.quiet || link.unwanted[at] || link.position[at] == ring.end(),
            _ => true,
        };
        self.exited.is_some()
            && self.link.is_some()
            && self
                .outputs
                .iter()
                .enumerate()
                .all(|(at, output)| output.fd.is_none() && caught_up(at, output))
    }

    /// Tells the host the end, and waits for it to have it. True where nothing is left to do.
    async fn goodbye(&mut self) -> bool {
        let Some(Link { mut connection, mut guest, quiet, .. }) = self.link.take() else { return false };
        let Some(exited) = self.exited.as_ref().filter(|_| !quiet) else {
            // It started a detached command and was told so; the end is for whoever comes back.
            tokio::task::spawn_local(self.worker.accompany(connection));
            return false;
        };
        guest.exited(exited, connection.out());
        self.let_go();
        let fetched = connection.finish().await;
        fetched || !self.entry.is_kept()
    }

    /// The host is gone. True where the command is over with it.
    async fn host_is_gone(&mut self, gone: &Gone) -> bool {
        let Some(Link { mut connection, mut guest, .. }) = self.link.take() else { return false };
        match gone {
            Gone::Protocol(error) => guest.failed(&WireError::protocol(error), connection.out()),
            Gone::Connection(ConnectionError::Frame(error)) => {
                guest.failed(&WireError::protocol(error), connection.out());
            }
            _ => {}
        }
        match gone {
            Gone::Connection(ConnectionError::Lost) => drop(connection),
            _ => drop(tokio::task::spawn_local(self.worker.accompany(connection))),
        }
        if matches!(gone, Gone::Detached) {
            self.keep();
        }
        if self.entry.is_kept() {
            return false;
        }
        tracing::debug!("Command {} is hung up: {gone}", self.entry.id.0);
        self.let_go();
        end::hang_up(&self.worker, &self.entry.child).await;
        true
    }

    /// Closes our ends: readers see the end, writers get `SIGPIPE`, a terminal's session is hung up by the kernel.
    fn let_go(&mut self) {
        self.stdin.close();
        self.terminal = None;
        for output in &mut self.outputs {
            output.fd = None;
        }
    }

    /// The command has ended. What is in its outputs now is all that it wrote.
    fn ended(&mut self) {
        let Some(Ended { status, cpu_us: [user_us, system_us], max_rss_kib }) = self.entry.child.ended()
        else {
            return;
        };
        let elapsed_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let usage = Usage { user_us, system_us, elapsed_us, max_rss_kib };
        let exited = Exited { status, timed_out: self.timed_out, usage };
        for output in &mut self.outputs {
            output.end();
        }
        self.deadline = None;
        if self.entry.is_kept() {
            self.worker.commands.ended(&self.entry, &exited);
            self.deadline = Some((Instant::now() + KEPT_FOR, Stage::Forget));
        }
        if self.timed_out {
            tokio::task::spawn_local(end::end_rest(Rc::clone(&self.worker), Rc::clone(&self.entry.child)));
        }
        self.exited = Some(exited);
    }

    /// Somebody comes back to the command.
    fn called(&mut self) {
        let Some(mut connection) = self.entry.caller() else { return };
        if let Some(Link { mut connection, mut guest, quiet, .. }) = self.link.take() {
            if !quiet {
                let error = WireError::new(
                    ErrorKind::CANCELLED,
                    format!("Command {} was attached to from elsewhere", self.entry.id.0),
                );
                guest.failed(&error, connection.out());
            }
            tokio::task::spawn_local(self.worker.accompany(connection));
        }
        let lost = [0, 1].map(|at| self.outputs[at].ring.as_ref().map_or(0, Ring::start));
        let mut guest = Guest::new();
        let started = Started { id: self.entry.id, pid: self.entry.child.pid().unsigned_abs(), lost };
        guest.started(&started, connection.out());
        if !self.stdin.is_open() {
            guest.stdin_closed(connection.out());
        }
        self.link = Some(Link { connection, guest, quiet: false, unwanted: [false; 2], position: lost });
    }

    /// A time has come. True where the task is over with it.
    async fn time_is_up(&mut self) -> bool {
        match self.deadline.take() {
            Some((at, Stage::Limit)) => {
                self.timed_out = true;
                self.deadline = Some((at + end::GRACE, Stage::Kill));
                end::signal_all(&self.worker, &self.entry.child, Signal::SIGTERM as u8).await;
                end::signal_all(&self.worker, &self.entry.child, Signal::SIGCONT as u8).await;
                false
            }
            Some((_, Stage::Kill)) => {
                end::signal_all(&self.worker, &self.entry.child, Signal::SIGKILL as u8).await;
                false
            }
            Some((_, Stage::Forget)) => {
                self.deadline = Some((Instant::now() + KEPT_FOR, Stage::Forget));
                self.link.is_none()
            }
            None => false,
        }
    }

    /// The session ends, and every command with it.
    async fn stop(&mut self) {
        if let Some(Link { mut connection, mut guest, quiet, .. }) = self.link.take() {
            if !quiet {
                let error = WireError::new(ErrorKind::CANCELLED, "The user's session in the guest ends");
                guest.failed(&error, connection.out());
            }
            tokio::task::spawn_local(self.worker.accompany(connection));
        }
        self.let_go();
        end::hang_up(&self.worker, &self.entry.child).await;
    }

    async fn wait(&self) -> Event {
        let child = &self.entry.child;
        let running = self.exited.is_none();
        let output = |at: usize| self.outputs[at].fd.as_deref().filter(|_| running && self.wants(at));
        let connection = self.link.as_ref().map(|link| &link.connection);
        let unsent = connection.filter(|connection| !connection.is_flushed());
        tokio::select! {
            biased;
            _ = child.wait(), if running => Event::Ended,
            // Whether it has failed is told by the call that follows.
            () = when(connection, async |it| drop(it.readable().await)) => Event::Ready,
            () = when(unsent, async |it| drop(it.writable().await)) => Event::Ready,
            () = when(output(0), async |it| drop(it.readable().await)) => Event::Ready,
            () = when(output(1), async |it| drop(it.readable().await)) => Event::Ready,
            () = when(self.stdin.blocked(), async |it| drop(it.writable().await)) => Event::Ready,
            () = self.entry.news() => Event::Called,
            () = when(self.deadline.as_ref(), async |(at, _)| time::sleep_until(*at).await) => Event::Time,
            () = self.worker.stopping() => Event::Stopping,
        }
    }

    /// Whether an output would be read now.
    fn wants(&self, at: usize) -> bool {
        match (&self.outputs[at].ring, &self.link) {
            (Some(_), _) => self.may_store(at),
            (None, Some(link)) => link.guest.room(channel(at)) > 0 && link.connection.is_clear(),
            (None, None) => false,
        }
    }
}

impl Output {
    /// Reads what is there, at most a buffer's worth. Closes it at its end.
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        let moved = match self.left {
            None => fd.read(buffer),
            Some(left) => {
                let len = buffer.len().min(left);
                fd.read_anyway(&mut buffer[..len])
            }
        };
        let n = match (moved, self.left) {
            (Ok(Moved::Bytes(n)), _) => n,
            (Ok(Moved::NotReady), None) => return 0,
            // A terminal whose other end is closed says EIO.
            (Ok(Moved::NotReady), Some(_)) | (Err(_), _) => 0,
        };
        self.total += n as u64;
        self.left = self.left.map(|left| left - n);
        if n == 0 || self.is_drained() {
            self.fd = None;
        }
        n
    }

    /// The command has ended: an output holds no more than fits, so what others write meanwhile cannot go on for ever.
    fn end(&mut self) {
        self.left = self.fd.as_ref().map(|_| LEFT);
    }

    /// Whether all that was there when the command ended is read. Only an output that held so much is asked for its size.
    fn is_drained(&mut self) -> bool {
        if self.left != Some(0) {
            return false;
        }
        let Some(fd) = self.fd.as_ref().filter(|_| !self.asked) else { return true };
        self.asked = true;
        let capacity =
            fcntl(fd.as_fd(), FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok());
        self.left = Some(capacity.unwrap_or(0).saturating_sub(LEFT));
        self.left == Some(0)
    }

    /// Makes the pipe hold more, once. Where the system has no more to give it stays as it is.
    fn grow(&mut self, is_terminal: bool) {
        if let Some(fd) = self.fd.as_ref().filter(|_| !self.grown && !is_terminal) {
            self.grown = true;
            let _ = fcntl(fd.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE));
        }
    }
}

/// Signals the command's group; a signal that a terminal's keys make goes where the keys would send it.
fn signal(child: &Child, terminal: Option<&Descriptor>, number: u8) {
    if number == 0 || number > SIGNAL_MAX {
        return;
    }
    let by_key = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP].iter().any(|key| *key as u8 == number);
    let group = terminal.filter(|_| by_key).and_then(|terminal| terminal::foreground(&terminal.as_fd()));
    match group {
        // It was in the foreground just now; its session is ours, so the number is not yet a stranger's.
        Some(group) if group != child.pid() => drop(end::signal_number(group, number)),
        _ => drop(end::signal_group(child, number)),
    }
}

/// Waits with `it` where there is one, and for ever where not.
async fn when<T>(it: Option<T>, wait: impl AsyncFnOnce(T)) {
    match it {
        Some(it) => wait(it).await,
        None => std::future::pending().await,
    }
}

const fn channel(at: usize) -> u16 {
    if at == 0 { STDOUT } else { STDERR }
}

fn index(channel: u16) -> usize {
    usize::from(channel == STDERR)
}
