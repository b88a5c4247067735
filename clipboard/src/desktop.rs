//! Finds the user's desktop, again and again: a compositor may come after us, and be restarted under us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::back_end::data_control::DataControl;
use crate::back_end::mutter::Mutter;
use crate::back_end::x11::X11;
use crate::back_end::{BackEndError, Event, Order, Orders};
use crate::bus::{self, Bus, Environment};
use crate::watch::Watch;

/// How long a compositor may take to say what it offers.
const HELLO: Duration = Duration::from_secs(5);
/// A socket is there a moment before somebody listens on it, and a compositor that starts may not yet have all it will
/// offer: it is tried so often, with so much time between.
const TRIES: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(250);
/// Where there is an X server whose display nobody has named yet, or a compositor that offers nothing, it is tried a few
/// times more, each time after twice as long: a session names its display when it has come so far, which on a slow machine
/// is a minute after its server.
const MORE_TRIES: u32 = 8;
/// Where X servers have their sockets.
const X_SOCKETS: &str = "/tmp/.X11-unix";
/// A desktop that goes away at once is not tried again at once.
const SHORT: Duration = Duration::from_secs(2);

/// Where a desktop may be.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The user's runtime directory, in which compositors have their sockets.
    pub runtime: Option<PathBuf>,
    /// The compositor's socket, where somebody said which: a name in that directory, or a path.
    pub wayland: Option<OsString>,
    /// The X display, where somebody said which.
    pub display: Option<String>,
    /// The file with its cookie.
    pub authority: Option<PathBuf>,
    /// The session's bus, where somebody said which.
    pub bus: Option<String>,
}

impl Places {
    /// As this process's environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name| get(name).and_then(|value: OsString| value.into_string().ok());
        let home = || Some(PathBuf::from(get("HOME")?).join(".Xauthority"));
        Self {
            runtime: get("XDG_RUNTIME_DIR").map(PathBuf::from),
            wayland: get("WAYLAND_DISPLAY"),
            display: text("DISPLAY"),
            authority: get("XAUTHORITY").map(PathBuf::from).or_else(home),
            bus: text("DBUS_SESSION_BUS_ADDRESS"),
        }
    }

    /// Where a socket may appear.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        let named = self.wayland.as_deref().map(Path::new).filter(|path| path.is_absolute());
        let all = named.and_then(Path::parent).into_iter().chain(self.runtime.as_deref());
        all.chain(std::iter::once(Path::new(X_SOCKETS)))
    }

    /// The session's bus.
    #[must_use]
    pub fn bus(&self) -> Option<String> {
        self.bus.clone().or_else(|| bus::usual_address(self.runtime.as_deref()?))
    }

    /// The X display, as we or the session's programs were told, and the file with its cookie.
    pub async fn x_display(&self) -> Option<(String, Option<PathBuf>)> {
        if let Some(display) = &self.display {
            return Some((display.clone(), self.authority.clone()));
        }
        let bus = Bus::connect(&self.bus()?).await.ok()?;
        let Environment { display, authority } = bus.environment().await;
        Some((display?, authority.or_else(|| self.authority.clone())))
    }

    /// Whether there is something that may become a desktop.
    #[must_use]
    pub fn promising(&self) -> bool {
        let server = |entries: std::fs::ReadDir| entries.flatten().next().is_some();
        !self.sockets().is_empty() || std::fs::read_dir(X_SOCKETS).is_ok_and(server)
    }

    /// The name that the likeliest socket will have there.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        Path::new(self.wayland.as_deref()?).file_name()?.to_str()
    }

    /// The sockets to try, the likeliest first.
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut sockets = Vec::new();
        if let Some(named) = &self.wayland {
            let path = Path::new(named);
            match &self.runtime {
                _ if path.is_absolute() => sockets.push(path.to_owned()),
                Some(runtime) => sockets.push(runtime.join(path)),
                None => (),
            }
        }
        let entries = self.runtime.iter().filter_map(|runtime| std::fs::read_dir(runtime).ok()).flatten();
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.strip_prefix("wayland-").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
            })
            .filter(|path| !sockets.contains(path))
            .collect();
        found.sort();
        sockets.append(&mut found);
        sockets
    }
}

/// A desktop's clipboard, by whichever way.
#[derive(Debug)]
enum Found {
    Wayland(Box<DataControl>),
    Mutter(Box<Mutter>),
    X11(Box<X11>),
}

impl Found {
    fn name(&self) -> &'static str {
        match self {
            Self::Wayland(found) => found.name(),
            Self::Mutter(found) => found.name(),
            Self::X11(found) => found.name(),
        }
    }

    fn came(&self) -> Event {
        let selections = match self {
            Self::Wayland(found) => found.selections(),
            Self::Mutter(found) => found.selections(),
            Self::X11(found) => found.selections(),
        };
        Event::Came { back_end: self.name(), selections }
    }

    fn tell(&mut self, orders: &Orders) {
        match self {
            Self::Wayland(found) => found.tell(orders),
            Self::Mutter(found) => found.tell(orders),
            Self::X11(found) => found.tell(orders),
        }
    }

    async fn run(&mut self, orders: &mut Orders) -> Result<(), BackEndError> {
        match self {
            Self::Wayland(found) => found.run(orders).await,
            Self::Mutter(found) => found.run(orders).await,
            Self::X11(found) => found.run(orders).await,
        }
    }
}

/// Serves whatever desktop there is, for as long as somebody is interested.
pub async fn serve(places: Places, mut orders: Orders) {
    let mut tries = 0;
    let mut looked = false;
    loop {
        // Before looking, so that what appears behind our back is not missed.
        let watch = Watch::new(places.directories());
        let mut bus = match places.bus() {
            Some(address) => Bus::connect(&address).await.ok(),
            None => None,
        };
        if let Some(mut found) = find(&places, bus.as_ref(), tries).await {
            let began = Instant::now();
            drop((watch, bus));
            // What was to be shown while there was no desktop waits for the hub's word on what this one has.
            orders.forget();
            orders.tell(found.came());
            found.tell(&orders);
            if !std::mem::replace(&mut looked, true) {
                orders.tell(Event::Looked);
            }
            let end = found.run(&mut orders).await;
            drop(found);
            orders.tell(Event::Gone);
            orders.forget();
            match end {
                Err(BackEndError::Unused) => return,
                Err(error) => tracing::debug!("{error}"),
                Ok(()) => (),
            }
            if began.elapsed() < SHORT {
                sleep(SHORT).await;
            }
            tries = 0;
            continue;
        }
        if !std::mem::replace(&mut looked, true) {
            orders.tell(Event::Looked);
        }
        tries += 1;
        let again = match tries.checked_sub(TRIES) {
            None => Some(BETWEEN),
            Some(more) if more < MORE_TRIES && places.promising() => Some(BETWEEN * (2 << more)),
            Some(_) => None,
        };
        let appeared = async {
            let names = ["wayland-", "bus", "X", places.name().unwrap_or("wayland-")];
            match &watch {
                Ok(watch) => {
                    if watch.appeared(&names).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Err(_) => std::future::pending().await,
            }
        };
        let told = async {
            match &mut bus {
                Some(bus) => bus.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep(again.unwrap_or_default()), if again.is_some() => (),
            () = appeared => tries = 0,
            () = told => tries = 0,
            () = unused(&mut orders) => return,
        }
    }
}

/// Passes over what nobody can do; returns once nobody is interested any more.
async fn unused(orders: &mut Orders) {
    while !matches!(orders.next().await, Order::End) {}
}

/// The best way to a clipboard that there is now, at the so-manieth try.
async fn find(places: &Places, bus: Option<&Bus>, tries: u32) -> Option<Found> {
    let sockets = places.sockets();
    let wayland = !sockets.is_empty();
    for socket in sockets {
        let attempt = spawn_blocking(move || DataControl::connect(&socket));
        if let Ok(Ok(Ok(found))) = timeout(HELLO, attempt).await {
            return Some(Found::Wayland(Box::new(found)));
        }
    }
    if let Some(address) = places.bus().filter(|_| bus.is_some()) {
        match timeout(HELLO, Mutter::connect(&address)).await {
            Ok(Ok(found)) => return Some(Found::Mutter(Box::new(found))),
            // Its Xwayland is no way around that: the screen is locked.
            Ok(Err(BackEndError::Refused(why))) => {
                tracing::debug!("Mutter gives no session: {why}");
                return None;
            }
            Ok(Err(_)) | Err(_) => (),
        }
    }
    // A compositor's Xwayland comes last, and not before the compositor had time to offer better.
    if wayland && tries + 1 < TRIES {
        return None;
    }
    let mut named = Environment { display: places.display.clone(), authority: places.authority.clone() };
    if let (None, Some(bus)) = (&named.display, bus) {
        let session = bus.environment().await;
        named.display = session.display;
        named.authority = session.authority.or(named.authority);
    }
    let attempt = X11::connect(named.display.as_deref()?, named.authority.as_deref());
    match timeout(HELLO, attempt).await {
        Ok(Ok(found)) => Some(Found::X11(Box::new(found))),
        Ok(Err(error)) => {
            tracing::debug!("{error}");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_socket_is_tried_first_and_locks_are_no_sockets() {
        let runtime = tempfile::tempdir().unwrap();
        for name in ["wayland-1", "wayland-0", "wayland-0.lock", "bus", "wayland-x"] {
            std::fs::write(runtime.path().join(name), "").unwrap();
        }
        let mut places = Places {
            runtime: Some(runtime.path().into()),
            wayland: Some("wayland-1".into()),
            ..Places::default()
        };
        let names = |places: &Places| -> Vec<String> {
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            places.sockets().iter().map(name).collect()
        };
        assert_eq!(names(&places), ["wayland-1", "wayland-0"]);
        places.wayland = None;
        assert_eq!(names(&places), ["wayland-0", "wayland-1"]);
        places.wayland = Some("/somewhere/else".into());
        assert_eq!(places.sockets()[0], PathBuf::from("/somewhere/else"));
    }
}
