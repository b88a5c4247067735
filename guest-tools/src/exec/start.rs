//! From a plan to a running child, with our ends of its pipes or of its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::{Exec, Stdin, Terminal};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::Interest;

use super::plan::Plan;
use crate::session::Worker;
use crate::sys::children::Child;
use crate::sys::clone::{Program, Stdio};
use crate::sys::descriptor::Descriptor;
use crate::sys::terminal;

/// Our ends of what the command reads and writes.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Its standard input, or its terminal.
    pub(crate) stdin: Option<Rc<Descriptor>>,
    /// Its outputs; the first alone where they are one, or its terminal.
    pub(crate) outputs: [Option<Rc<Descriptor>>; 2],
    /// Its terminal, where it has one.
    pub(crate) terminal: Option<Rc<Descriptor>>,
}

/// Ends that the runtime does not know yet: registering them waits until the host knows that the command runs.
#[derive(Debug)]
pub(crate) struct RawEnds {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
}

impl RawEnds {
    /// Registers them with the runtime.
    pub(crate) fn register(self) -> io::Result<Ends> {
        if let Some(master) = self.terminal {
            let master = Rc::new(Descriptor::stream(master, Interest::READABLE | Interest::WRITABLE)?);
            let stdin = Some(Rc::clone(&master));
            return Ok(Ends { stdin, outputs: [Some(Rc::clone(&master)), None], terminal: Some(master) });
        }
        let stream = |fd: Option<OwnedFd>, interest| {
            fd.map(|fd| Descriptor::stream(fd, interest)).transpose().map(|end| end.map(Rc::new))
        };
        let [stdout, stderr] = self.outputs;
        Ok(Ends {
            stdin: stream(self.stdin, Interest::WRITABLE)?,
            outputs: [stream(stdout, Interest::READABLE)?, stream(stderr, Interest::READABLE)?],
            terminal: None,
        })
    }
}

/// Starts the command.
///
/// # Errors
/// A [`WireError`] for the host: nothing runs.
pub(crate) fn start(worker: &Worker, request: &Exec, plan: &Plan) -> Result<(Rc<Child>, RawEnds), WireError> {
    match &request.terminal {
        Some(terminal) => on_terminal(worker, plan, terminal),
        None => on_pipes(worker, request, plan),
    }
}

fn on_terminal(worker: &Worker, plan: &Plan, asked: &Terminal) -> Result<(Rc<Child>, RawEnds), WireError> {
    let (master, slave) = terminal::open(asked.size).map_err(|error| {
        WireError::new(ErrorKind::OS, format!("The guest could not make a terminal: {error}"))
    })?;
    let slave = slave.as_fd();
    let child = clone(worker, plan, Stdio { fds: [slave; 3], terminal: true })?;
    Ok((child, RawEnds { stdin: None, outputs: [None, None], terminal: Some(master) }))
}

fn on_pipes(worker: &Worker, request: &Exec, plan: &Plan) -> Result<(Rc<Child>, RawEnds), WireError> {
    let input = if request.stdin == Stdin::STREAM { Some(pipe()?) } else { None };
    let (output, child_output) = pipe()?;
    let error = if request.merge_outputs { None } else { Some(pipe()?) };
    let fds: [BorrowedFd<'_>; 3] = [
        input.as_ref().map_or(worker.null(), |(child_end, _)| child_end.as_fd()),
        child_output.as_fd(),
        error.as_ref().map_or(child_output.as_fd(), |(_, child_end)| child_end.as_fd()),
    ];
    let child = clone(worker, plan, Stdio { fds, terminal: false })?;
    let outputs = [Some(output), error.map(|(ours, _)| ours)];
    Ok((child, RawEnds { stdin: input.map(|(_, ours)| ours), outputs, terminal: None }))
}

/// A pipe: its end to read from, its end to write to.
fn pipe() -> Result<(OwnedFd, OwnedFd), WireError> {
    pipe2(OFlag::O_CLOEXEC).map_err(|error| {
        WireError::new(ErrorKind::OS, format!("The guest could not make a pipe: {}", error.desc()))
            .hint("The session has too many commands at once")
    })
}

fn clone(worker: &Worker, plan: &Plan, stdio: Stdio<'_>) -> Result<Rc<Child>, WireError> {
    let program = Program {
        paths: &plan.paths,
        argv: &plan.argv,
        env: &plan.env,
        cwd: &plan.cwd,
        else_cwd: (!plan.cwd_asked).then_some(c"/"),
        stdio,
    };
    worker.start(&program).map_err(|error| plan.error(error))
}
