//! The guests' clocks: a connection to each, on which the guest asks for the time, and we name occasions to do so.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::time::{Deed, Occasion, Probe, Report, Stamp, Time};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::agent::ask::What;
use crate::agent::state::Agent;
use crate::client::{Client, ClientError};
use crate::sys::readiness;
use crate::sys::wake::{Watch, Woke};
use crate::time::{now, words};
use crate::vm::Vm;

/// Bytes that a guest may leave unread. Each answer has 30.
const UNREAD: usize = 64 * 1024;

/// Why a connection about the clock ended.
#[derive(Debug, thiserror::Error)]
enum TimeError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("The connection was lost: {0}")]
    Io(#[from] io::Error),
    #[error("The guest closed it")]
    Closed,
    #[error("{}", crate::printable::line(&.0.message))]
    Failed(WireError),
    #[error("The guest broke the protocol: {0}")]
    Protocol(String),
}

/// Serves a guest's clock until it, or its session, ends. What goes wrong here ends no session.
pub(crate) async fn keep(agent: Rc<Agent>, vm: Vm) {
    let error = serve(&agent, &vm).await;
    // A guest that does not want it, or is older: there is nothing to be told of each time.
    let quiet = match &error {
        TimeError::Client(ClientError::Refused(error)) | TimeError::Failed(error) => {
            matches!(error.kind, ErrorKind::UNSUPPORTED | ErrorKind::FORBIDDEN | ErrorKind::PROTOCOL)
        }
        TimeError::Closed | TimeError::Client(_) => true,
        _ => false,
    };
    if !quiet {
        agent.log(Some(&vm.name), format_args!("its clock is not looked after: {error}"));
    }
}

/// Tells every guest when this machine has slept, or its clock was set.
pub(crate) async fn follow_this_machine(agent: Rc<Agent>) {
    let followed = async {
        let mut watch = Watch::new()?;
        loop {
            match watch.next().await? {
                Woke::Slept => agent.occasion(None, Occasion::HOST_WOKE),
                Woke::ClockSet => agent.occasion(None, Occasion::HOST_SET),
            }
        }
    };
    let ended: io::Result<()> = followed.await;
    if let Err(error) = ended {
        agent.log(None, format_args!("this machine's own sleep is not seen: {error}"));
    }
}

async fn serve(agent: &Rc<Agent>, vm: &Vm) -> TimeError {
    match try_serve(agent, vm).await {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

async fn try_serve(agent: &Rc<Agent>, vm: &Vm) -> Result<std::convert::Infallible, TimeError> {
    let mut operation = Vec::new();
    frame::put(FrameId::TIME, &Time { occasion: Occasion::OPENED }, &mut operation);
    let client = Client::new(vm.clone());
    let opened = spawn_blocking(move || client.open(&operation)).await;
    let connection = opened.map_err(|error| TimeError::Protocol(error.to_string()))??;
    let (stream, input) = connection.into_parts();
    let fd = stream.into_fd();
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    let mut link = Link { fd: readiness::register(fd)?, input, output: Vec::new() };
    let (clock, mut occasions) = mpsc::unbounded_channel();
    agent.keeps_time(&vm.name, clock);
    loop {
        link.answer(agent, vm)?;
        let waits = !link.output.is_empty();
        tokio::select! {
            ready = link.fd.readable() => {
                let mut ready = ready?;
                match recv(link.fd.get_ref().as_raw_fd(), link.input.space(), MsgFlags::empty()) {
                    Ok(0) => return Err(TimeError::Closed),
                    Ok(n) => link.input.filled(n),
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(Errno::EINTR) => (),
                    Err(Errno::ECONNRESET) => return Err(TimeError::Closed),
                    Err(error) => return Err(io::Error::from(error).into()),
                }
            }
            ready = link.fd.writable(), if waits => {
                ready?.clear_ready();
                link.send()?;
            }
            Some(occasion) = occasions.recv() => {
                frame::put(FrameId::TIME, &Time { occasion }, &mut link.output);
                link.send()?;
            }
        }
    }
}

struct Link {
    fd: AsyncFd<OwnedFd>,
    input: FrameBuffer,
    output: Vec<u8>,
}

impl Link {
    fn answer(&mut self, agent: &Rc<Agent>, vm: &Vm) -> Result<(), TimeError> {
        let broken = |error: &dyn std::fmt::Display| TimeError::Protocol(error.to_string());
        // What has been read has just come: the loop takes it in at once.
        let received_ns = now();
        while let Some(frame) = self.input.take().map_err(|error| broken(&error))? {
            match frame.id {
                FrameId::TIME_PROBE => {
                    let Probe { serial } = frame.decode().map_err(|error| broken(&error))?;
                    if self.output.len() > UNREAD {
                        return Err(TimeError::Protocol("it asks and does not read".to_owned()));
                    }
                    let stamp = Stamp { serial, received_ns, sent_ns: now() };
                    frame::put(FrameId::TIME_STAMP, &stamp, &mut self.output);
                }
                FrameId::TIME_REPORT => {
                    let report = frame.decode().map_err(|error| broken(&error))?;
                    told(agent, vm, &report);
                }
                FrameId::FAILED => {
                    return Err(TimeError::Failed(frame.decode().map_err(|error| broken(&error))?));
                }
                FrameId::UNKNOWN => return Err(TimeError::Closed),
                id if id.name().is_none() => (),
                id => return Err(TimeError::Protocol(format!("it sent {id} about its clock"))),
            }
        }
        self.send()
    }

    /// Sends what the socket takes now.
    fn send(&mut self) -> Result<(), TimeError> {
        while !self.output.is_empty() {
            match send(self.fd.get_ref().as_raw_fd(), &self.output, crate::sys::SEND) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => (),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(TimeError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }
}

fn told(agent: &Rc<Agent>, vm: &Vm, report: &Report) {
    let why = report.occasion.words();
    match report.deed {
        Deed::STEPPED => {
            agent.log(Some(&vm.name), format_args!("its clock was set by {}: {why}", words(report.moved_ns)));
            agent.tell(Some(&vm.name), What::ClockSet { by_ns: report.moved_ns, why: why.to_owned() });
        }
        Deed::FAILED => agent.log(Some(&vm.name), "its clock is wrong and cannot be set"),
        _ => (),
    }
}
