//! Finds the desktop's screens, again and again, and does with them what is decided.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hospes_clipboard::desktop::Places;
use hospes_clipboard::watch::Watch;
use hospes_protocol::display::{Ask, State};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};

use super::back_end::kwin::KWin;
use super::back_end::mutter::Mutter;
use super::back_end::sway::Sway;
use super::back_end::wlr::Wlr;
use super::back_end::x11::X11;
use super::back_end::{BackEnd, BackEndError, PATIENCE};
use super::follow::{Action, Follow, Refusal};
use super::source::{self, Uevents};

/// A socket is there a moment before somebody listens on it: it is tried so often, with so much time between.
const TRIES: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(250);
/// Where there is a socket, but nothing that sets screens yet, it is tried so often again, each time after twice as long:
/// for some two minutes.
const MORE_TRIES: u32 = 8;
/// A desktop that goes away at once is not tried again at once.
const SHORT: Duration = Duration::from_secs(2);
/// Requests of hosts that wait for what they asked for.
const WAITING: usize = 64;
/// Where the kernel has its connectors.
const CLASS: &str = "/sys/class/drm";

/// The note's name in the user's runtime directory.
const NOTE: &str = "hospes-screens";

/// A host's request, checked.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes: the screens as they are then.
    pub reply: oneshot::Sender<Result<State, Refusal>>,
}

/// Our end of the screens.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    present: watch::Receiver<bool>,
}

/// The other end, for [`serve`].
#[derive(Debug)]
pub struct Orders {
    requests: mpsc::Receiver<Request>,
    present: watch::Sender<bool>,
}

/// The two ends.
#[must_use]
pub fn ends() -> (Handle, Orders) {
    let (requests, orders) = mpsc::channel(WAITING);
    let (told, present) = watch::channel(false);
    (Handle { requests, present }, Orders { requests: orders, present: told })
}

impl Handle {
    /// Asks, and waits for the answer. The user's name in it is the caller's to fill.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn ask(&self, ask: Ask) -> Result<State, Refusal> {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request { ask, reply }).await;
        answer.await.unwrap_or(Err(Refusal::NoDesktop))
    }

    /// Whether there are screens that can be reached, and news of that.
    #[must_use]
    pub fn present(&self) -> watch::Receiver<bool> {
        self.present.clone()
    }
}

/// All that is known of a desktop's screens.
struct Screens {
    follow: Follow,
    /// Requests that wait until nothing is under way.
    waiting: VecDeque<oneshot::Sender<Result<State, Refusal>>>,
    back_end: &'static str,
    why: String,
    class: PathBuf,
}

/// Serves whatever desktop there is, for as long as anybody holds a [`Handle`].
pub async fn serve(places: Places, mut orders: Orders) {
    let uevents = Uevents::new();
    if let Err(error) = &uevents {
        tracing::warn!(
            "Screens do not follow the VM's display, since the kernel's events cannot be had: {error}"
        );
    }
    let uevents = uevents.ok();
    let mut screens = Screens {
        follow: Follow::default(),
        waiting: VecDeque::new(),
        back_end: "",
        why: "No desktop has been found yet".to_owned(),
        class: PathBuf::from(CLASS),
    };
    let mut tries = 0;
    loop {
        // Before looking, so that what appears behind our back is not missed.
        let watch = Watch::new(places.directories());
        match find(&places).await {
            Ok((back_end, why)) => {
                let began = Instant::now();
                tracing::info!("The desktop's screens are reached by {}: {why}", back_end.name());
                screens.back_end = back_end.name();
                screens.why = why;
                screens.note(&places);
                orders.present.send_replace(true);
                let end = screens.attend(back_end, &mut orders.requests, uevents.as_ref()).await;
                orders.present.send_replace(false);
                let Err(error) = end else { return };
                tracing::info!("The desktop's screens are gone: {error}");
                screens.lose(error.to_string());
                screens.note(&places);
                if began.elapsed() < SHORT {
                    sleep(SHORT).await;
                }
                tries = 0;
                continue;
            }
            Err(why) if why != screens.why => {
                screens.why = why;
                screens.note(&places);
            }
            Err(_) => (),
        }
        tries += 1;
        let appeared = async {
            match &watch {
                _ if tries < TRIES => sleep(BETWEEN).await,
                // What is there may have more to offer when it has come so far.
                _ if tries < TRIES + MORE_TRIES && places.promising() => {
                    sleep(BETWEEN * 2_u32.pow(tries - TRIES + 1)).await;
                }
                Ok(watch) => {
                    if watch.appeared(&["wayland-", "X", places.name().unwrap_or("wayland-")]).await.is_err()
                    {
                        std::future::pending::<()>().await;
                    }
                    tries = 0;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = appeared => (),
            () = screens.without(&mut orders.requests) => return,
        }
    }
}

/// The first way that there is, and why it is that one; or why there is none.
///
/// What a compositor offers itself comes first: a bus may have another session's Mutter, and an X server beside a
/// compositor is Xwayland, whose screens are the compositor's.
async fn find(places: &Places) -> Result<(BackEnd, String), String> {
    let mut none = Vec::new();
    for socket in places.sockets() {
        match timeout(PATIENCE, Wlr::connect(&socket)).await.unwrap_or(Err(BackEndError::Silent)) {
            Ok(wlr) => {
                let compositor = wlr.peer().name.clone();
                let runtime = places.runtime.as_deref().or_else(|| socket.parent());
                return Ok(match Sway::socket(&wlr, runtime.unwrap_or(Path::new("/"))) {
                    Some(socket) => {
                        let why = "The compositor is sway, which has a socket of its own".to_owned();
                        (BackEnd::Sway(Sway::new(wlr, socket)), why)
                    }
                    None => {
                        let why = format!("The compositor, {compositor}, offers zwlr_output_manager_v1");
                        (BackEnd::Wlr(wlr), why)
                    }
                });
            }
            Err(BackEndError::Missing) => (),
            Err(error) => {
                none.push(format!("{}: {error}", socket.display()));
                continue;
            }
        }
        match timeout(PATIENCE, KWin::connect(&socket)).await.unwrap_or(Err(BackEndError::Silent)) {
            Ok(kwin) => {
                return Ok((
                    BackEnd::KWin(kwin),
                    "The compositor is KWin, which offers kde_output_management_v2".to_owned(),
                ));
            }
            Err(BackEndError::Missing) => (),
            Err(error) => none.push(format!("{}: {error}", socket.display())),
        }
        let Some(address) = places.bus() else { continue };
        match timeout(PATIENCE, Mutter::connect(&address)).await.unwrap_or(Err(BackEndError::Silent)) {
            Ok(mutter) => {
                let why =
                    "The compositor offers no protocol for its screens, and Mutter is on the session's bus";
                return Ok((BackEnd::Mutter(mutter), why.to_owned()));
            }
            Err(error) => none.push(format!("{}: {error}", socket.display())),
        }
    }
    if places.sockets().is_empty()
        && let Some((display, authority)) = places.x_display().await
    {
        let x11 = X11::connect(&display, authority.as_deref());
        match timeout(PATIENCE, x11).await.unwrap_or(Err(BackEndError::Silent)) {
            Ok(x11) => {
                let why = format!("There is no Wayland compositor, and the X server {display} has RandR");
                return Ok((BackEnd::X11(x11), why));
            }
            Err(error) => none.push(format!("{display}: {error}")),
        }
    }
    if none.is_empty() {
        none.push("Neither a compositor's socket nor an X server's was found".to_owned());
    }
    Err(none.join("; "))
}

impl Screens {
    /// Serves one desktop until it goes away; returns without an error once nobody is interested any more.
    async fn attend(
        &mut self,
        mut back_end: BackEnd,
        requests: &mut mpsc::Receiver<Request>,
        uevents: Option<&Uevents>,
    ) -> Result<(), BackEndError> {
        self.follow.came(back_end.manners());
        let _ = self.follow.offered(Instant::now(), source::offered(&self.class));
        let outputs = back_end.outputs().await?;
        let action = self.follow.seen(Instant::now(), outputs);
        self.act(&mut back_end, action).await?;
        loop {
            let deadline = self.follow.deadline();
            let past = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let offered = async {
                match uevents {
                    Some(uevents) if uevents.changed().await.is_ok() => (),
                    _ => std::future::pending().await,
                }
            };
            let action = tokio::select! {
                biased;
                () = offered => self.follow.offered(Instant::now(), source::offered(&self.class)),
                changed = back_end.changed() => {
                    changed?;
                    self.look(&mut back_end).await?
                }
                request = requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => return Ok(()),
                },
                () = past => self.follow.woke(Instant::now()),
            };
            self.act(&mut back_end, action).await?;
            self.answer();
        }
    }

    /// What is offered is read first: a desktop that follows by itself may be quicker than the kernel's word reaches us.
    async fn look(&mut self, back_end: &mut BackEnd) -> Result<Option<Action>, BackEndError> {
        let outputs = back_end.outputs().await?;
        let now = Instant::now();
        let first = self.follow.offered(now, source::offered(&self.class));
        let second = self.follow.seen(now, outputs);
        Ok(first.or(second))
    }

    async fn act(&mut self, back_end: &mut BackEnd, mut action: Option<Action>) -> Result<(), BackEndError> {
        while let Some(Action::Apply { goals, way }) = action.take() {
            let answer = match back_end.apply(&goals, way).await {
                Ok(()) => Ok(()),
                Err(BackEndError::Refused(why)) => Err(why),
                Err(error) => return Err(error),
            };
            tracing::debug!("{goals:?} by {way:?}: {answer:?}");
            action = self.follow.answered(Instant::now(), answer);
            if action.is_none() {
                action = self.look(back_end).await?;
            }
        }
        Ok(())
    }

    fn take(&mut self, request: Request) -> Option<Action> {
        let now = Instant::now();
        let taken = match &request.ask {
            Ask::State => Ok(None),
            Ask::Set(wants) => self.follow.want(now, wants),
            Ask::Follow(output) => self.follow.follow(now, output),
        };
        match taken {
            Err(refusal) => {
                let _ = request.reply.send(Err(refusal));
                None
            }
            Ok(_) if request.ask == Ask::State => {
                let _ = request.reply.send(Ok(self.state()));
                None
            }
            Ok(action) => {
                if self.waiting.len() >= WAITING
                    && let Some(oldest) = self.waiting.pop_front()
                {
                    let _ = oldest.send(Ok(self.state()));
                }
                self.waiting.push_back(request.reply);
                action
            }
        }
    }

    /// Tells those who wait, once nothing is under way.
    fn answer(&mut self) {
        if self.follow.is_settled() {
            while let Some(reply) = self.waiting.pop_front() {
                let _ = reply.send(Ok(self.state()));
            }
        }
    }

    fn lose(&mut self, why: String) {
        self.follow.gone();
        self.back_end = "";
        self.why = why;
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(Refusal::NoDesktop));
        }
    }

    /// Answers while there is no desktop; returns once nobody is interested any more.
    async fn without(&mut self, requests: &mut mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            let answer = if request.ask == Ask::State { Ok(self.state()) } else { Err(Refusal::NoDesktop) };
            let _ = request.reply.send(answer);
        }
    }

    /// Leaves word of how it is for `hospes-tools doctor`, where the user and root find it.
    fn note(&self, places: &Places) {
        let Some(runtime) = &places.runtime else { return };
        let (note, new) = (runtime.join(NOTE), runtime.join(format!("{NOTE}.new")));
        let written = std::fs::write(&new, format!("{}\n{}\n", self.back_end, self.why));
        if let Err(error) = written.and_then(|()| std::fs::rename(&new, &note)) {
            tracing::debug!("{}: {error}", note.display());
        }
    }

    fn state(&self) -> State {
        State {
            user: String::new(),
            back_end: self.back_end.to_owned(),
            why: self.why.clone(),
            outputs: self.follow.state(),
        }
    }
}
