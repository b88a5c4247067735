//! Whose desktop a host reaches, its clipboard and its screens: the helpers that are there, and whose desktop is in front.
//!
//! A helper (`hospes-desktop`, one for each user with a desktop) connects to [`socket`] once it has found a desktop, and
//! takes connections there as workers do. The kernel says whose it is. logind says who sits at the screen (`seat`): only
//! that user's helper is given a host's connection, and only until somebody else sits there, the session is locked, or a
//! greeter takes the screen. What was handed over then ends at once: the daemon keeps a descriptor of each connection, and
//! shuts it down itself, whatever the helper does.
//!
//! A helper says of its own accord only that its clipboard is another than before ([`handoff::NEWS`]), which hosts then
//! hear of. What was handed over is not disturbed by it.

mod seat;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hospes_protocol::clipboard::Share;
use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::FrameId;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time;

use super::{Daemon, lock};
use crate::config::Config;
use crate::handoff::{self, Handoff};
use crate::verb::Verb;
use crate::{async_fd, audit};

/// Helpers of one user at once: one is usual, and a second while the first is replaced.
const PER_USER: usize = 4;
/// Helpers of all users.
const HELPERS: usize = 64;
/// Connections that are handed over and not over yet.
const CONNECTIONS: usize = 512;
/// How long a helper may take to take a connection.
const TAKE: Duration = Duration::from_secs(10);

/// Who says whose desktop is in front.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seat {
    /// This machine's logind.
    #[default]
    Machine,
    /// A logind on the bus at this address. For tests.
    Bus(String),
    /// Nobody: whichever helper came last is in front. For tests, and for machines without logind.
    Anybody,
}

/// The desktops of this guest.
#[derive(Debug)]
pub struct Desktops {
    seat: Seat,
    state: Mutex<State>,
    current: watch::Sender<Option<Current>>,
    connections: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct State {
    helpers: Vec<Helper>,
    /// Who sits at the screen.
    active: Option<u32>,
    next: u64,
}

#[derive(Debug)]
struct Helper {
    id: u64,
    uid: u32,
    name: String,
    /// How often its clipboard was another one.
    anew: u64,
    deliveries: mpsc::Sender<Delivery>,
}

/// The helper that a host's connection would reach now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    id: u64,
    uid: u32,
    name: String,
    anew: u64,
}

#[derive(Debug)]
struct Delivery {
    connection: OwnedFd,
    handoff: Handoff,
    taken: oneshot::Sender<()>,
}

/// News of whose desktop is in front.
#[derive(Debug)]
pub(super) struct News {
    current: watch::Receiver<Option<Current>>,
    told: Option<Current>,
}

impl News {
    /// The user's name, once it is another desktop than was told before (of the same user's, where the helper or
    /// its clipboard came anew); none where it is nobody's.
    pub(super) async fn changed(&mut self) -> Result<Option<String>, watch::error::RecvError> {
        loop {
            let now = self.current.borrow_and_update().clone();
            if now != self.told {
                self.told.clone_from(&now);
                return Ok(now.map(|current| current.name));
            }
            self.current.changed().await?;
        }
    }
}

/// The socket's place.
#[must_use]
pub fn socket(run: &Path) -> PathBuf {
    run.join("desktop.sock")
}

/// Takes helpers, for ever.
pub(super) async fn serve(daemon: Arc<Daemon>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(attend(Arc::clone(&daemon), stream))),
            Err(error) if super::is_passing(&error) => {}
            Err(error) => {
                tracing::error!("The desktops' socket takes no connection: {error}");
                time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Keeps one helper for as long as it is there.
async fn attend(daemon: Arc<Daemon>, stream: UnixStream) {
    let Ok(uid) = stream.peer_cred().map(|credentials| credentials.uid()) else { return };
    let name = name_of(uid).await;
    let (deliveries, mut waiting) = mpsc::channel(1);
    let desktops = &daemon.desktops;
    let Some((id, first)) = desktops.enter(uid, name, deliveries) else {
        return tracing::warn!("User {uid} has too many desktop helpers, another one is refused");
    };
    if first && desktops.seat != Seat::Anybody {
        tokio::spawn(follow_seat(Arc::clone(&daemon)));
    }
    loop {
        let mut words = [0; 64];
        let delivery = tokio::select! {
            delivery = waiting.recv() => delivery,
            read = stream.async_io(Interest::READABLE, || stream.try_read(&mut words)) => match read {
                Ok(1..) => {
                    desktops.renew(id);
                    continue;
                }
                Ok(0) | Err(_) => None,
            },
        };
        let Some(Delivery { connection, handoff, taken }) = delivery else { break };
        let delivered = handoff::deliver_beside(&stream, connection.as_fd(), &handoff, || desktops.renew(id));
        match time::timeout(TAKE, delivered).await {
            Ok(Ok(())) => drop(taken.send(())),
            Ok(Err(error)) => {
                tracing::warn!("The desktop helper of user {uid} takes no connection: {error}");
                break;
            }
            Err(_) => {
                tracing::warn!("The desktop helper of user {uid} takes too long");
                break;
            }
        }
    }
    desktops.leave(id);
}

async fn name_of(uid: u32) -> String {
    let found = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into())).await;
    match found {
        Ok(Ok(Some(user))) => user.name,
        _ => uid.to_string(),
    }
}

/// Follows who sits at the screen while there are helpers.
async fn follow_seat(daemon: Arc<Daemon>) {
    let desktops = &daemon.desktops;
    let bus = if let Seat::Bus(address) = &desktops.seat { Some(address.as_str()) } else { None };
    let mut helpers = desktops.current.subscribe();
    tokio::select! {
        error = seat::follow(bus, |active| desktops.seated(active)) => {
            tracing::warn!("Nobody says whose desktop is in front, so none can be reached: {error}");
        }
        () = async { while !desktops.state().helpers.is_empty() && helpers.changed().await.is_ok() {} } => (),
    }
    desktops.seated(None);
}

impl Desktops {
    /// Desktops of which nothing is known yet.
    #[must_use]
    pub fn new(seat: Seat) -> Self {
        let current = watch::Sender::new(None);
        Self { seat, state: Mutex::default(), current, connections: Arc::default() }
    }

    /// News from now on. Where somebody's desktop is in front already, that is the first.
    pub(super) fn subscribe(&self) -> News {
        News { current: self.current.subscribe(), told: None }
    }

    /// The user whose desktop is in front and shared.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        self.current.borrow().as_ref().map(|current| current.name.clone())
    }

    /// Gives a host's connection to the desktop in front, where the policy allows.
    ///
    /// # Errors
    /// `BUSY` where there is none, `FORBIDDEN`, `LIMIT`, `SESSION`. The connection is still ours.
    pub(super) async fn hand_over(
        &self,
        config: &Config,
        connection: BorrowedFd<'_>,
        handoff: &Handoff,
        verb: Verb,
        subject: &[u8],
    ) -> Result<(), WireError> {
        let mut handoff = handoff.clone();
        apply(config, &mut handoff)?;
        let os = |error: io::Error| WireError::new(ErrorKind::OS, format!("The guest failed: {error}"));
        let (current, deliveries) = self.front().ok_or_else(absent)?;
        let Current { id, uid, name, .. } = current;
        if !config.users.allows(&name, uid) {
            let message = format!("The guest's policy does not allow the user {name}");
            return Err(WireError::new(ErrorKind::FORBIDDEN, message)
                .hint("In the guest: [users] in /etc/hospes/tools.toml"));
        }
        if self.connections.load(Ordering::Relaxed) >= CONNECTIONS {
            let message = format!("{CONNECTIONS} connections to desktops are open, the guest's limit");
            return Err(WireError::new(ErrorKind::LIMIT, message));
        }
        audit::allowed(&handoff.host, verb, &name, subject);
        let kept = connection.try_clone_to_owned().map_err(os)?;
        let guard = Guard {
            // Nothing is read through it: it is told of the connection's end alone.
            connection: async_fd::register(kept, Interest::PRIORITY).map_err(os)?,
            helper: id,
            current: self.current.subscribe(),
            count: Arc::clone(&self.connections),
        };
        self.connections.fetch_add(1, Ordering::Relaxed);
        let guard = tokio::spawn(guard.stand());
        let (taken, answer) = oneshot::channel();
        let connection = connection.try_clone_to_owned().map_err(os)?;
        let sent = deliveries.send(Delivery { connection, handoff, taken }).await;
        if sent.is_ok() && answer.await.is_ok() {
            return Ok(());
        }
        // Only what was handed over may be shut down.
        guard.abort();
        Err(absent())
    }

    fn front(&self) -> Option<(Current, mpsc::Sender<Delivery>)> {
        let current = self.current.borrow().clone()?;
        let state = self.state();
        let helper = state.helpers.iter().find(|helper| helper.id == current.id)?;
        Some((current, helper.deliveries.clone()))
    }

    /// A helper came: its number, and whether it is the only one.
    fn enter(&self, uid: u32, name: String, deliveries: mpsc::Sender<Delivery>) -> Option<(u64, bool)> {
        let mut state = self.state();
        let of_user = state.helpers.iter().filter(|helper| helper.uid == uid).count();
        if of_user >= PER_USER || state.helpers.len() >= HELPERS {
            return None;
        }
        state.next += 1;
        let id = state.next;
        state.helpers.push(Helper { id, uid, name, anew: 0, deliveries });
        let first = state.helpers.len() == 1;
        self.choose(&state);
        Some((id, first))
    }

    /// A helper's clipboard is another one.
    fn renew(&self, id: u64) {
        let mut state = self.state();
        for helper in state.helpers.iter_mut().filter(|helper| helper.id == id) {
            helper.anew += 1;
        }
        self.choose(&state);
    }

    fn leave(&self, id: u64) {
        let mut state = self.state();
        state.helpers.retain(|helper| helper.id != id);
        self.choose(&state);
        // Whoever waits for the last to leave looks again.
        self.current.send_modify(|_| ());
    }

    /// Another user sits at the screen, or nobody.
    fn seated(&self, active: Option<u32>) {
        let mut state = self.state();
        state.active = active;
        self.choose(&state);
    }

    fn choose(&self, state: &State) {
        let anybody = self.seat == Seat::Anybody;
        let front = state.helpers.iter().rev().find(|helper| anybody || Some(helper.uid) == state.active);
        let front = front.map(|helper| {
            let Helper { id, uid, name, anew, .. } = helper;
            Current { id: *id, uid: *uid, name: name.clone(), anew: *anew }
        });
        self.current.send_if_modified(|current| {
            let changed = *current != front;
            *current = front;
            changed
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn absent() -> WireError {
    WireError::new(ErrorKind::BUSY, "No desktop in the guest can be reached now")
        .hint("In the guest: is hospes-desktop installed, somebody logged in, and the screen not locked?")
}

/// Holds a request of the clipboard against the policy's directions.
fn apply(config: &Config, handoff: &mut Handoff) -> Result<(), WireError> {
    let directions = config.clipboard;
    let closed = |setting: &str| {
        let message = "The guest's policy does not let the clipboard go that way";
        let hint = format!("In the guest: [clipboard] {setting} in /etc/hospes/tools.toml");
        Err(WireError::new(ErrorKind::FORBIDDEN, message).hint(hint))
    };
    match FrameId(handoff.request_id) {
        FrameId::CLIPBOARD_FETCH | FrameId::CLIPBOARD_FILES if !directions.to_host => closed("to-host"),
        FrameId::CLIPBOARD_FEED | FrameId::CLIPBOARD_SET | FrameId::CLIPBOARD_LEND
            if !directions.to_guest =>
        {
            closed("to-guest")
        }
        FrameId::CLIPBOARD => {
            let asked: Share = codec::decode(&handoff.request).map_err(WireError::protocol)?;
            let allowed = Share {
                to_guest: asked.to_guest && directions.to_guest,
                to_host: asked.to_host && directions.to_host,
            };
            handoff.request.clear();
            codec::encode_into(&allowed, &mut handoff.request);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A handed connection's end, which comes at the latest when another desktop is in front.
struct Guard {
    connection: tokio::io::unix::AsyncFd<OwnedFd>,
    helper: u64,
    current: watch::Receiver<Option<Current>>,
    count: Arc<AtomicUsize>,
}

impl Guard {
    async fn stand(mut self) {
        let helper = self.helper;
        let connection = &self.connection;
        let over = async {
            loop {
                match connection.ready(Interest::PRIORITY).await {
                    Ok(mut ready) if !ready.ready().is_read_closed() && !ready.ready().is_error() => {
                        ready.clear_ready();
                    }
                    _ => return,
                }
            }
        };
        tokio::select! {
            () = over => (),
            _ = self.current.wait_for(|now| now.as_ref().is_none_or(|now| now.id != helper)) => {
                let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(connection.get_ref()), Shutdown::Both);
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream as StdStream;

    use hospes_protocol::keys::PublicKey;
    use hospes_protocol::version::Capabilities;

    use super::*;

    fn request() -> Handoff {
        let mut request = Vec::new();
        codec::encode_into(&Share { to_guest: true, to_host: true }, &mut request);
        Handoff {
            request_id: FrameId::CLIPBOARD.0,
            request,
            rest: Vec::new(),
            preamble: Vec::new(),
            host: PublicKey([7; 32]),
            capabilities: Capabilities::CLIPBOARD,
        }
    }

    #[tokio::test]
    async fn a_connection_goes_to_the_user_at_the_screen_and_ends_when_that_changes() {
        let desktops = Desktops::new(Seat::Machine);
        let mut news = desktops.subscribe();
        let (ada, mut for_ada) = mpsc::channel(1);
        let (eve, mut for_eve) = mpsc::channel(1);
        desktops.enter(1000, "ada".into(), ada).unwrap();
        desktops.enter(1001, "eve".into(), eve).unwrap();
        let (mut host, guest) = StdStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let config = Config::default();
        let greeter = desktops.hand_over(&config, guest.as_fd(), &request(), Verb::Clipboard, b"").await;
        assert_eq!(greeter.unwrap_err().kind, ErrorKind::BUSY, "a greeter, a lock, or nobody");

        desktops.seated(Some(1000));
        assert_eq!(news.changed().await.unwrap().as_deref(), Some("ada"));
        let request = request();
        let handed = desktops.hand_over(&config, guest.as_fd(), &request, Verb::Clipboard, b"");
        let taken = async {
            let Delivery { connection, taken, .. } = for_ada.recv().await.unwrap();
            taken.send(()).unwrap();
            connection
        };
        let (handed, kept) = tokio::join!(handed, taken);
        handed.unwrap();
        // A clipboard that comes later is news, and disturbs nothing.
        desktops.renew(1);
        let told = time::timeout(TAKE, news.changed()).await.expect("nobody is told");
        assert_eq!(told.unwrap().as_deref(), Some("ada"));
        assert_eq!(desktops.connections.load(Ordering::Relaxed), 1);
        host.set_nonblocking(true).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(host.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        host.set_nonblocking(false).unwrap();
        assert!(for_eve.try_recv().is_err(), "eve was handed ada's connection");

        // Ada's helper holds on to it; it ends for it all the same.
        desktops.seated(Some(1001));
        assert_eq!(news.changed().await.unwrap().as_deref(), Some("eve"));
        while desktops.connections.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
        drop(kept);
        desktops.seated(None);
        assert_eq!(news.changed().await.unwrap(), None);
    }

    #[test]
    fn the_policys_directions_are_the_handed_ones() {
        let mut config = Config::default();
        config.clipboard.to_host = false;
        let mut handoff = request();
        apply(&config, &mut handoff).unwrap();
        let left: Share = codec::decode(&handoff.request).unwrap();
        assert_eq!(left, Share { to_guest: true, to_host: false });
        handoff.request_id = FrameId::CLIPBOARD_FETCH.0;
        assert_eq!(apply(&config, &mut handoff).unwrap_err().kind, ErrorKind::FORBIDDEN);
    }

    #[test]
    fn one_user_cannot_crowd_the_others_out() {
        let desktops = Desktops::new(Seat::Machine);
        for n in 0..PER_USER + 3 {
            let entered = desktops.enter(1000, "ada".into(), mpsc::channel(1).0);
            assert_eq!(entered.is_some(), n < PER_USER);
        }
        assert!(desktops.enter(1001, "eve".into(), mpsc::channel(1).0).is_some());
    }
}
