//! One VM's control session: connects, keeps what the guest says, and waits for a reason to try again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use hospes_protocol::codec::CodecError;
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::WireError;
use hospes_protocol::frame::{self, Frame, FrameBuffer, FrameError, FrameId};
use hospes_protocol::info::Info;
use hospes_protocol::ticket::Issuer;
use hospes_protocol::version::Capabilities;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::agent::ask::{State, Told, What};
use crate::agent::clipboard;
use crate::agent::folders;
use crate::agent::state::{Agent, SessionAsk};
use crate::agent::time;
use crate::cli::list::state_of;
use crate::client::{Client, ClientError};
use crate::connection::Connection;
use crate::endpoint::DialError;
use crate::pins::Verdict;
use crate::sys::readiness;
use crate::vm::Vm;

/// How long a guest that is asked whether it is there may take.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// Unanswered questions to one guest. One that answers none is not asked more.
const UNANSWERED: usize = 64;

const SUBSCRIBE: u64 = 1;
const FIRST_INFO: u64 = 2;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("The guest closed the connection")]
    Closed,
    #[error("The connection to the guest was lost: {0}")]
    Io(#[from] io::Error),
    #[error("The guest broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("The guest broke the protocol: {0}")]
    Codec(#[from] CodecError),
    #[error("The guest ended the session: {}", crate::printable::line(&.0.message))]
    Failed(WireError),
    #[error("The guest broke the protocol: it sent {0} in a control session")]
    Unexpected(FrameId),
    #[error("The guest did not answer in {} s", PING_PATIENCE.as_secs())]
    Silent,
}

/// Keeps one VM connected, for as long as it is among the VMs.
pub(crate) async fn run(agent: Rc<Agent>, vm: Vm, wake: Rc<Notify>) {
    let mut backoff = Backoff::default();
    loop {
        // Before the attempt, so that a socket which appears behind it is not missed.
        let watched = vm
            .spec
            .endpoint
            .path()
            .and_then(Path::parent)
            .is_some_and(|dir| agent.watcher.watch_names(dir).is_ok());
        let wait = match connect(&vm).await {
            Ok((connection, greeting)) => {
                let (asks, questions) = mpsc::unbounded_channel();
                let fingerprint = greeting.session.peer.fingerprint();
                let issuer = Issuer::new(greeting.session.id, greeting.session.secret);
                let first_use = greeting.verdict == Verdict::FirstUse;
                agent.connected(&vm.name, issuer, fingerprint, first_use, asks);
                let serve = async {
                    match Link::new(connection) {
                        Ok(link) => link.serve(&agent, &vm, questions).await,
                        Err(error) => error.into(),
                    }
                };
                // A guest that is older, or whose owner does not want it, is not asked.
                let keeps = greeting.session.capabilities.has(Capabilities::TIME);
                let told = async {
                    if keeps {
                        time::keep(Rc::clone(&agent), vm.clone()).await;
                    }
                    std::future::pending::<()>().await;
                };
                let tell = async {
                    if vm.spec.hv.is_some() {
                        folders::watch(Rc::clone(&agent), vm.name.clone()).await;
                    }
                    std::future::pending::<()>().await;
                };
                let error = tokio::select! {
                    error = serve => error,
                    () = tell => continue,
                    () = told => continue,
                };
                let told = Told { message: error.to_string(), hint: None };
                agent.disconnected(&vm.name, State::Unreachable, told);
                backoff = Backoff::default();
                // Its end is the event: a daemon that restarted is back in a moment.
                Wait::For(backoff.next())
            }
            Err(error) => {
                let state = state_of(&error);
                if state == State::Unreachable {
                    agent.silent(&vm.name);
                }
                agent.disconnected(&vm.name, state, Told::from(&error));
                wait_after(&error, state, watched, agent.goes(&vm.name), &mut backoff)
            }
        };
        match wait {
            Wait::Event => wake.notified().await,
            Wait::For(delay) => {
                tokio::select! {
                    () = wake.notified() => (),
                    () = sleep_until(Instant::now() + delay) => continue,
                }
            }
        }
        // Somebody knows better than the back-off.
        backoff = Backoff::default();
    }
}

/// What ends the wait for the next attempt.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// An event alone.
    Event,
    /// An event, or this long.
    For(Duration),
}

fn wait_after(error: &ClientError, state: State, watched: bool, going: bool, backoff: &mut Backoff) -> Wait {
    if state == State::Refused {
        // Only a person changes that, and the file that they change is watched.
        return Wait::Event;
    }
    // Nobody serves the socket: its next server makes it anew, and that is an event. A few attempts bridge the moment
    // between a socket's bind and its listen.
    let absent = matches!(error, ClientError::Dial(DialError::Connect { source, .. })
        if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused));
    if absent && watched && backoff.is_past_the_first() && !going {
        return Wait::Event;
    }
    Wait::For(backoff.next())
}

/// The time between attempts: a moment at first, a minute at most.
#[derive(Debug, Default)]
struct Backoff(usize);

impl Backoff {
    const STEPS: [u64; 10] = [20, 100, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000];

    fn next(&mut self) -> Duration {
        let step = Self::STEPS[self.0.min(Self::STEPS.len() - 1)];
        self.0 += 1;
        Duration::from_millis(step)
    }

    const fn is_past_the_first(&self) -> bool {
        self.0 >= 3
    }
}

/// Dials on a thread of its own: connecting may block for as long as its deadline, and the loop may not.
async fn connect(vm: &Vm) -> Result<(Connection, crate::client::Greeting), ClientError> {
    let client = Client::new(vm.clone()).without_agent();
    let mut operation = Vec::new();
    frame::put_raw(FrameId::CONTROL, 0, &[], &mut operation);
    frame::put(FrameId::REQUEST, &Request { number: SUBSCRIBE, ask: Ask::Subscribe }, &mut operation);
    frame::put(FrameId::REQUEST, &Request { number: FIRST_INFO, ask: Ask::Info }, &mut operation);
    match tokio::task::spawn_blocking(move || client.greet(&operation)).await {
        Ok(result) => result,
        Err(error) => Err(ClientError::Protocol(error.to_string())),
    }
}

/// A control session's connection in the event loop.
struct Link {
    fd: AsyncFd<OwnedFd>,
    input: FrameBuffer,
    output: Vec<u8>,
    next: u64,
    infos: HashMap<u64, oneshot::Sender<Info>>,
    /// An unanswered ping's number and the end of our patience.
    ping: Option<(u64, Instant)>,
    /// Shares the clipboard, while there is a desktop to share it with.
    sharing: Option<AbortOnDrop>,
}

/// A task that ends with its owner.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    fn new(connection: Connection) -> io::Result<Self> {
        let (stream, input) = connection.into_parts();
        let fd = stream.into_fd();
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let fd = readiness::register(fd)?;
        Ok(Self {
            fd,
            input,
            output: Vec::new(),
            next: FIRST_INFO + 1,
            infos: HashMap::new(),
            ping: None,
            sharing: None,
        })
    }

    /// Obeys the guest and the agent until the session ends.
    async fn serve(
        mut self,
        agent: &Rc<Agent>,
        vm: &Vm,
        mut questions: mpsc::UnboundedReceiver<SessionAsk>,
    ) -> SessionError {
        loop {
            if let Err(error) = self.take_frames(agent, vm) {
                return error;
            }
            let patience = self.ping.map(|(_, end)| end);
            let wants_write = !self.output.is_empty();
            let step = tokio::select! {
                ready = self.fd.readable() => match ready {
                    Ok(mut ready) => match recv(self.fd.get_ref().as_raw_fd(), self.input.space(), MsgFlags::empty()) {
                        Ok(0) => Err(SessionError::Closed),
                        Ok(n) => { self.input.filled(n); Ok(()) }
                        Err(Errno::EAGAIN) => { ready.clear_ready(); Ok(()) }
                        Err(Errno::EINTR) => Ok(()),
                        Err(Errno::ECONNRESET) => Err(SessionError::Closed),
                        Err(error) => Err(io::Error::from(error).into()),
                    },
                    Err(error) => Err(error.into()),
                },
                ready = self.fd.writable(), if wants_write => match ready {
                    Ok(mut ready) => match send(self.fd.get_ref().as_raw_fd(), &self.output, crate::sys::SEND) {
                        Ok(n) => { self.output.drain(..n); Ok(()) }
                        Err(Errno::EAGAIN) => { ready.clear_ready(); Ok(()) }
                        Err(Errno::EINTR) => Ok(()),
                        Err(Errno::EPIPE | Errno::ECONNRESET) => Err(SessionError::Closed),
                        Err(error) => Err(io::Error::from(error).into()),
                    },
                    Err(error) => Err(error.into()),
                },
                Some(question) = questions.recv() => { self.ask(question); Ok(()) }
                () = expired(patience), if patience.is_some() => Err(SessionError::Silent),
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    /// Another desktop is in front in the guest: what was shared with the one before is over.
    fn desktop(&mut self, agent: &Rc<Agent>, vm: &Vm, shared: bool) {
        self.sharing = None;
        if vm.spec.clipboard && shared {
            let share = clipboard::share(Rc::clone(agent), vm.clone());
            self.sharing = Some(AbortOnDrop(tokio::task::spawn_local(share).abort_handle()));
        }
    }

    fn ask(&mut self, question: SessionAsk) {
        let number = self.next;
        let ask = match question {
            SessionAsk::Info(sender) => {
                if self.infos.len() >= UNANSWERED {
                    return;
                }
                self.infos.insert(number, sender);
                Ask::Info
            }
            SessionAsk::Ping if self.ping.is_some() => return,
            SessionAsk::Ping => {
                self.ping = Some((number, Instant::now() + PING_PATIENCE));
                Ask::Ping
            }
        };
        self.next += 1;
        frame::put(FrameId::REQUEST, &Request { number, ask }, &mut self.output);
    }

    fn take_frames(&mut self, agent: &Rc<Agent>, vm: &Vm) -> Result<(), SessionError> {
        let mut desktop = None;
        while let Some(frame) = self.input.take()? {
            let Frame { id, .. } = frame;
            match id {
                FrameId::REPLY => {
                    let Reply { number, answer } = frame.decode()?;
                    // A guest that is asked for more than it knows stays a good guest.
                    let Ok(answer) = answer else { continue };
                    if self.ping.is_some_and(|(ping, _)| ping == number) {
                        self.ping = None;
                    }
                    if let Answer::Info(info) = answer {
                        agent.informed(&vm.name, &info, number == FIRST_INFO);
                        if let Some(sender) = self.infos.remove(&number) {
                            let _ = sender.send(*info);
                        }
                    }
                }
                FrameId::EVENT => match frame.decode() {
                    Ok(Event::Info(info)) => agent.informed(&vm.name, &info, true),
                    Ok(Event::Stopping(why)) => agent.stopping(&vm.name, &why),
                    Ok(Event::Variable(name)) => agent.tell(Some(&vm.name), What::Variable { name }),
                    Ok(Event::Desktop(user)) => desktop = Some(user.is_some()),
                    Ok(Event::Resumed) => agent.tell(Some(&vm.name), What::Resumed),
                    // A newer guest's event.
                    Err(_) => (),
                },
                FrameId::FAILED => return Err(SessionError::Failed(frame.decode()?)),
                FrameId::UNKNOWN => (),
                id if id.name().is_none() => (),
                id => return Err(SessionError::Unexpected(id)),
            }
        }
        if let Some(shared) = desktop {
            self.desktop(agent, vm, shared);
        }
        Ok(())
    }
}

async fn expired(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Waits for an answer from a session, and not for long.
pub(crate) async fn answered(receiver: oneshot::Receiver<Info>) -> Option<Info> {
    timeout(PING_PATIENCE, receiver).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(kind: io::ErrorKind) -> ClientError {
        let endpoint = "unix:/run/vm.sock".parse().unwrap();
        ClientError::Dial(DialError::Connect { endpoint, source: kind.into() })
    }

    #[test]
    fn an_absent_vm_is_not_polled_where_its_socket_is_watched() {
        let mut backoff = Backoff::default();
        let error = dial(io::ErrorKind::NotFound);
        let mut waits = Vec::new();
        while let Wait::For(delay) = wait_after(&error, State::Unreachable, true, false, &mut backoff) {
            waits.push(delay.as_millis());
        }
        assert_eq!(waits, [20, 100, 500]);
    }

    #[test]
    fn without_an_event_the_wait_grows_to_a_minute_and_no_further() {
        let mut backoff = Backoff::default();
        let error = dial(io::ErrorKind::NotFound);
        let last = (0..50).map(|_| wait_after(&error, State::Unreachable, false, false, &mut backoff)).last();
        assert_eq!(last, Some(Wait::For(Duration::from_secs(60))));
    }

    #[test]
    fn a_refusal_waits_for_a_person() {
        let error = ClientError::Impostor;
        assert_eq!(wait_after(&error, State::Refused, false, false, &mut Backoff::default()), Wait::Event);
    }
}
