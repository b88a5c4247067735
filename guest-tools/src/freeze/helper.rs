//! The helper: it serves the daemon, freezes, and thaws when it is told, when its own deadline comes, or when it has to
//! end. That whoever asked is gone is no reason to thaw before: the host may be in the middle of its snapshot, and the
//! next daemon can ask for the thaw as well as the last one.
//!
//! From the first freeze to the last thaw it uses what it has made before, and nothing else: no memory, no file, no log.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::freeze::{FileSystem, FsState, ThawCause, TrimReply, Trimmed};
use hospes_protocol::limits::{FREEZE_FILE_SYSTEMS, FREEZE_MS};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::edge::Edge;
use super::engine::Engine;
use super::mounts::Device;
use super::plan::{Candidate, Place, plan};
use super::wire::{self, Kind, Op};

/// Connections that are served while something is frozen. One is the daemon's, one the next daemon's.
const CALLERS: usize = 4;
/// Bytes of names of what is left out that are told at most: users mount FUSE file systems as they like, and an answer that is
/// too long is none.
const LEFT_OUT: usize = 512 * 1024;
/// How long a caller may take to say what it wants, or to take a long answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the freezing thread's stack. All of it is locked.
const STACK: usize = 128 * 1024;

/// The socket's place.
#[must_use]
pub fn socket(run: &Path) -> PathBuf {
    run.join("freeze.sock")
}

/// The list of what is being frozen, for whoever comes after a helper that was killed.
#[must_use]
pub fn record(run: &Path) -> PathBuf {
    run.join("freezing")
}

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
#[error("Could not {act}: {source}")]
pub struct HelperError {
    act: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(act: &'static str) -> impl Fn(E) -> HelperError {
    move |source| HelperError { act, source: source.into() }
}

/// What came of one caller's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next may come.
    Serve,
    /// A signal asked us to end.
    End,
}

/// Serves callers, one wish at a time. With `once`, one caller: a socket of systemd's starts the next of us.
///
/// # Errors
/// [`HelperError`].
pub fn serve<E: Edge>(listener: &UnixListener, edge: &E, run: &Path, once: bool) -> Result<(), HelperError> {
    listener.set_nonblocking(false).map_err(failed("wait at the socket"))?;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("take a caller")(error)),
        };
        match attend(edge, run, listener, stream) {
            Ok(After::Serve) if !once => {}
            Ok(_) => return Ok(()),
            Err(error) => tracing::warn!("{error}"),
        }
        if once {
            return Ok(());
        }
    }
}

fn attend<E: Edge>(
    edge: &E,
    run: &Path,
    listener: &UnixListener,
    mut stream: UnixStream,
) -> Result<After, HelperError> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed("bound a caller's time"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed("bound a caller's time"))?;
    if !is_root(&stream) {
        return Ok(After::Serve);
    }
    let mut bytes = [0; wire::REQUEST];
    stream.read_exact(&mut bytes).map_err(failed("read a request"))?;
    let mut out = Vec::new();
    match Op::decode(&bytes) {
        Some(Op::Freeze { timeout_ms, serial }) => {
            return freeze(edge, run, listener, stream, timeout_ms, serial);
        }
        Some(Op::Trim { minimum }) => match trim(edge, minimum) {
            Ok(reply) => put_encoded(Kind::Trimmed, &reply, &mut out),
            Err(error) => put_encoded(Kind::Refused, &error, &mut out),
        },
        Some(Op::Thaw | Op::Status) => wire::put(Kind::Nothing, &[], &mut out),
        None => put_encoded(Kind::Refused, &wire::foreign(), &mut out),
    }
    stream.write_all(&out).map_err(failed("answer"))?;
    Ok(After::Serve)
}

/// The daemon is root; beside a system that is not its own it is whoever we are.
fn is_root(stream: &UnixStream) -> bool {
    let caller = getsockopt(stream, sockopt::PeerCredentials).map(|caller| caller.uid());
    caller.is_ok_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
}

fn put_encoded<T: serde::Serialize>(kind: Kind, message: &T, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    codec::encode_into(message, &mut payload);
    wire::put(kind, &payload, out);
}

/// What is about to be frozen.
struct Prepared<H> {
    handles: Vec<H>,
    points: Vec<Vec<u8>>,
    /// Those first, in the same order, then what is left out.
    list: Vec<FileSystem>,
}

/// Reads the tables and opens everything.
fn prepare<E: Edge>(edge: &E) -> Result<Prepared<E::Handle>, WireError> {
    let told = |act: &str, error: &dyn std::fmt::Display| {
        WireError::new(ErrorKind::OS, format!("The guest cannot {act}: {error}"))
    };
    let (mounts, kinds) = edge.tables().map_err(|error| told("read what is mounted", &error))?;
    let plan = plan(&mounts, &kinds, |device: Device| edge.beneath(device));
    if plan.freeze.len() > FREEZE_FILE_SYSTEMS {
        let message = format!("The guest has {} file systems on disks", plan.freeze.len());
        let error = WireError::new(ErrorKind::LIMIT, message);
        return Err(error.hint(format!("{FREEZE_FILE_SYSTEMS} can be frozen at once")));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut prepared = Prepared { handles: Vec::new(), points: Vec::new(), list: Vec::new() };
    let mut rest = Vec::new();
    for candidate in &plan.freeze {
        let mount = candidate.places[0].point.clone();
        let (kind, state) = (text(&candidate.kind), FsState::UNDONE);
        let mut told_of = FileSystem { mount: mount.clone(), kind, state, error: String::new() };
        match edge.open(candidate) {
            Ok(handle) => {
                prepared.handles.push(handle);
                prepared.points.push(mount);
                prepared.list.push(told_of);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                told_of.state = FsState::INCAPABLE;
                told_of.error = "Something else is mounted over it".into();
                rest.push(told_of);
            }
            Err(error) => return Err(told(&format!("open {}", text(&mount)), &error)),
        }
    }
    let mut room = LEFT_OUT;
    rest.extend(plan.left_out.iter().map_while(|out| {
        let (mount, kind, state) = (out.point.clone(), text(&out.kind), out.why);
        room = room.checked_sub(mount.len() + kind.len() + size_of::<FileSystem>())?;
        Some(FileSystem { mount, kind, state, error: String::new() })
    }));
    prepared.list.append(&mut rest);
    // What can be written before is: so the freeze itself is short.
    prepared.handles.iter().for_each(|handle| edge.sync(handle));
    Ok(prepared)
}

fn freeze<E: Edge>(
    edge: &E,
    run: &Path,
    listener: &UnixListener,
    mut stream: UnixStream,
    timeout_ms: u64,
    serial: u64,
) -> Result<After, HelperError> {
    let Prepared { handles, points, list } = match prepare(edge) {
        Ok(prepared) => prepared,
        Err(error) => return refuse(&mut stream, &error),
    };
    let mut payload = serial.to_le_bytes().to_vec();
    codec::encode_into(&list, &mut payload);
    let mut plan = Vec::new();
    wire::put(Kind::Plan, &payload, &mut plan);
    stream.write_all(&plan).map_err(failed("tell the plan"))?;
    if handles.is_empty() {
        let message = "No file system of this guest can be frozen";
        let error = WireError::new(ErrorKind::UNSUPPORTED, message);
        return refuse(&mut stream, &error.hint("ext4, xfs and btrfs on a disk of the VM's own can"));
    }
    fs::write(record(run), points.join(&0)).map_err(failed("write down what is frozen"))?;
    let engine = Engine::new(edge, handles);
    let timeout = Duration::from_millis(timeout_ms.clamp(1, FREEZE_MS));
    let after = hold(edge, &engine, listener, stream, &plan, timeout);
    // Whatever happened: nothing of ours stays frozen.
    engine.thaw();
    edge.unlock_memory();
    fs::remove_file(record(run)).map_err(failed("forget what was frozen"))?;
    after
}

fn refuse(stream: &mut UnixStream, error: &WireError) -> Result<After, HelperError> {
    let mut out = Vec::new();
    put_encoded(Kind::Refused, error, &mut out);
    stream.write_all(&out).map_err(failed("refuse"))?;
    Ok(After::Serve)
}

/// What the freezing thread tells of itself.
#[derive(Debug, Default)]
struct Freezer {
    whole: AtomicBool,
    took_us: AtomicU64,
}

/// The signals that end us, taken as messages for as long as this lives.
struct Signals {
    before: SigSet,
    messages: SignalFd,
}

impl Signals {
    fn take() -> nix::Result<Self> {
        let mut ending = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| ending.add(signal));
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ending), Some(&mut before))?;
        let messages = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { before, messages })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Freezes, and returns when all is thawed again.
fn hold<E: Edge>(
    edge: &E,
    engine: &Engine<'_, E>,
    listener: &UnixListener,
    stream: UnixStream,
    plan: &[u8],
    timeout: Duration,
) -> Result<After, HelperError> {
    let event = |flags| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | flags);
    let start = event(EfdFlags::empty()).map_err(failed("make an event"))?;
    let end = event(EfdFlags::empty()).map_err(failed("make an event"))?;
    let done = event(EfdFlags::EFD_NONBLOCK).map_err(failed("make an event"))?;
    let deadline = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)
        .map_err(failed("make a timer"))?;
    let signals = Signals::take().map_err(failed("take signals"))?;
    listener.set_nonblocking(true).map_err(failed("look at the socket"))?;
    stream.set_nonblocking(true).map_err(failed("look at the daemon"))?;
    let mut busy = Vec::new();
    let words = WireError::new(ErrorKind::BUSY, "The guest's file systems are frozen");
    put_encoded(Kind::Refused, &words, &mut busy);
    let freezer = Freezer::default();
    let (out, frozen) = (Vec::with_capacity(wire::FIXED), Vec::with_capacity(wire::FIXED));
    let result = thread::scope(|scope| {
        let thread = || {
            // Whatever becomes of these two, the other side of each is this program's.
            let _ = start.read();
            let began = Instant::now();
            let whole = engine.freeze();
            freezer.took_us.store(microseconds(began.elapsed()), Ordering::SeqCst);
            freezer.whole.store(whole, Ordering::SeqCst);
            let _ = done.write(1);
            // A thread's end gives memory back: not now.
            let _ = end.read();
        };
        let spawned = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, thread);
        spawned.map_err(failed("start a thread"))?;
        let ready = edge.lock_memory().map_err(failed("lock its memory")).and_then(|()| {
            let once = Expiration::OneShot(timeout.into());
            deadline.set(once, TimerSetTimeFlags::empty()).map_err(failed("set the deadline"))
        });
        let result = ready.and_then(|()| {
            let mut hold = Hold {
                engine,
                listener,
                callers: [Some(stream), None, None, None],
                plan,
                busy: &busy,
                freezer: &freezer,
                out,
                frozen,
            };
            start.write(1).map_err(failed("begin"))?;
            hold.run(done.as_fd(), deadline.as_fd(), &signals.messages)
        });
        // A thread that was never begun finds nothing to do.
        if result.is_err() {
            engine.thaw();
        }
        let _ = start.write(1);
        let _ = end.write(1);
        result
    });
    drop(signals);
    listener.set_nonblocking(false).map_err(failed("wait at the socket"))?;
    result
}

/// All that there is while file systems are frozen.
struct Hold<'h, 'e, E: Edge> {
    engine: &'h Engine<'e, E>,
    listener: &'h UnixListener,
    callers: [Option<UnixStream>; CALLERS],
    plan: &'h [u8],
    busy: &'h [u8],
    freezer: &'h Freezer,
    out: Vec<u8>,
    /// The `FROZEN` that was told, for those who come later.
    frozen: Vec<u8>,
}

impl<E: Edge> Hold<'_, '_, E> {
    /// No `?`, no allocation: nothing here may leave without a thaw.
    fn run(
        &mut self,
        done: BorrowedFd<'_>,
        deadline: BorrowedFd<'_>,
        signals: &SignalFd,
    ) -> Result<After, HelperError> {
        let mut since: Option<Instant> = None;
        let (mut cause, mut held, mut after) = (None, 0, After::Serve);
        let mut finished = false;
        loop {
            let ready = self.wait(done, deadline, signals.as_fd());
            let (timer, signal) = (ready[1], ready[2]);
            let mut why = None;
            if timer {
                why = Some(ThawCause::DEADLINE);
            } else if signal {
                // Taken, or it would end us once signals are let in again.
                let _ = signals.read_signal();
                after = After::End;
                why = Some(ThawCause::ENDED);
            }
            if ready[0] && !finished {
                finished = true;
                since = Some(Instant::now());
                let whole = self.freezer.whole.load(Ordering::SeqCst)
                    && self.engine.standings(false).any(|standing| standing.state == FsState::FROZEN);
                let took = self.freezer.took_us.load(Ordering::SeqCst);
                self.frozen.clear();
                let standings = self.engine.standings(!whole);
                wire::put_fixed(Kind::Frozen, u8::from(whole), took, standings, &mut self.frozen);
                for caller in &mut self.callers {
                    tell(caller, &self.frozen);
                }
                if !whole {
                    self.engine.thaw();
                    return Ok(after);
                }
            }
            if ready[3] {
                self.admit();
            }
            for at in 0..CALLERS {
                if ready[4 + at] && self.listen_to(at) {
                    why = why.or(Some(ThawCause::ASKED));
                }
            }
            if let Some(why) = why
                && cause.is_none()
            {
                held = since.map_or(0, |since| microseconds(since.elapsed()));
                cause = Some(why);
                self.engine.thaw();
            }
            if let Some(cause) = cause
                && finished
            {
                self.out.clear();
                wire::put_fixed(Kind::Thawed, cause.0, held, self.engine.standings(false), &mut self.out);
                for caller in &mut self.callers {
                    tell(caller, &self.out);
                }
                return Ok(after);
            }
            if cause.is_some() {
                // All that is left is the end of a freeze that takes long: the timer stays ready, and would spin.
                let mut only = [PollFd::new(done, PollFlags::POLLIN)];
                let _ = poll(&mut only, PollTimeout::NONE);
            }
        }
    }

    /// What is ready: the freezing thread, the timer, a signal, the socket, and each caller.
    fn wait(
        &self,
        done: BorrowedFd<'_>,
        deadline: BorrowedFd<'_>,
        signals: BorrowedFd<'_>,
    ) -> [bool; 4 + CALLERS] {
        let fds = [done, deadline, signals, self.listener.as_fd()];
        let watched: [PollFd<'_>; 4 + CALLERS] = std::array::from_fn(|at| match fds.get(at) {
            // Once it is told, the thread's event would be ready for ever.
            Some(fd) if at == 0 && !self.frozen.is_empty() => PollFd::new(*fd, PollFlags::empty()),
            Some(fd) => PollFd::new(*fd, PollFlags::POLLIN),
            None => match &self.callers[at - 4] {
                Some(caller) => PollFd::new(caller.as_fd(), PollFlags::POLLIN),
                None => PollFd::new(done, PollFlags::empty()),
            },
        });
        let mut watched = watched;
        // An interruption shows nothing ready; a failure leads to another look.
        let _ = poll(&mut watched, PollTimeout::NONE);
        std::array::from_fn(|at| watched[at].any().unwrap_or(false))
    }

    fn admit(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let free = self.callers.iter_mut().find(|caller| caller.is_none());
        // One too many is closed.
        if let Some(free) = free
            && is_root(&stream)
            && stream.set_nonblocking(true).is_ok()
        {
            *free = Some(stream);
        }
    }

    /// Takes a caller's word: true where it asks for the thaw. One that has left, or says nothing whole, is forgotten.
    fn listen_to(&mut self, at: usize) -> bool {
        let Some(caller) = &self.callers[at] else { return false };
        let mut bytes = [0; wire::REQUEST];
        let whole = match recv_now(caller, &mut bytes) {
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            read => read == Ok(wire::REQUEST),
        };
        match Op::decode(&bytes).filter(|_| whole) {
            Some(Op::Thaw) => return true,
            Some(Op::Status) => {
                tell(&mut self.callers[at], self.plan);
                tell(&mut self.callers[at], &self.frozen);
            }
            Some(Op::Freeze { .. } | Op::Trim { .. }) => {
                tell(&mut self.callers[at], self.busy);
                self.callers[at] = None;
            }
            None => self.callers[at] = None,
        }
        false
    }
}

fn recv_now(stream: &UnixStream, bytes: &mut [u8]) -> nix::Result<usize> {
    use std::os::fd::AsRawFd;
    recv(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)
}

/// Tells a caller, who is forgotten where they do not take it at once.
fn tell(caller: &mut Option<UnixStream>, bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    let Some(stream) = caller else { return };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    if send(stream.as_raw_fd(), bytes, flags) != Ok(bytes.len()) {
        *caller = None;
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Tells each disk what is free.
fn trim<E: Edge>(edge: &E, minimum: u64) -> Result<TrimReply, WireError> {
    let Prepared { handles, list, .. } = prepare(edge)?;
    let trimmed = handles.iter().zip(list).map(|(handle, FileSystem { mount, kind, .. })| {
        let bytes = edge.trim(handle, minimum).map_err(|error| match error {
            Errno::EOPNOTSUPP | Errno::ENOTTY => {
                let error = WireError::new(ErrorKind::UNSUPPORTED, "It or its disk cannot be trimmed");
                error.hint("The VMM has to let its disk discard: discard=unmap for QEMU")
            }
            error => WireError::new(ErrorKind::OS, error.desc()),
        });
        Trimmed { mount, kind, bytes }
    });
    Ok(TrimReply { file_systems: trimmed.collect() })
}

/// Thaws what a helper that was killed had frozen, and gives the number of those that were still frozen.
///
/// # Errors
/// Where its record cannot be read.
pub fn thaw_left<E: Edge>(edge: &E, run: &Path) -> Result<usize, HelperError> {
    let points = match fs::read(record(run)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        points => points.map_err(failed("read what was frozen"))?,
    };
    let (mounts, _) = edge.tables().map_err(failed("read what is mounted"))?;
    let mut thawed = 0;
    for point in points.split(|byte| *byte == 0).rev() {
        // The last one that is mounted there is the one that shows.
        let Some(mount) = mounts.iter().rfind(|mount| mount.point == point) else { continue };
        let places = vec![Place { id: mount.id, point: point.to_vec() }];
        let candidate = Candidate { device: mount.device, kind: mount.kind.clone(), places };
        let handle = edge.open(&candidate).map_err(failed("open what was frozen"));
        match handle.map(|handle| edge.thaw(&handle)) {
            Ok(Ok(())) => thawed += 1,
            // It was not frozen, or not any more.
            Ok(Err(Errno::EINVAL)) => {}
            Ok(Err(error)) => {
                let point = Path::new(std::ffi::OsStr::from_bytes(point));
                tracing::error!("{} cannot be thawed: {error}", point.display());
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
    fs::remove_file(record(run)).map_err(failed("forget what was frozen"))?;
    Ok(thawed)
}

#[cfg(test)]
mod tests;
