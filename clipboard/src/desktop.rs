//! Finds the user's desktop, again and again: a compositor may come after us, and be restarted under us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::back_end::data_control::DataControl;
use crate::back_end::{BackEndError, Event, Order, Orders};
use crate::watch::Watch;

/// How long a compositor may take to say what it offers.
const HELLO: Duration = Duration::from_secs(5);
/// A socket is there a moment before somebody listens on it, and a compositor that starts may not yet have all it will
/// offer: it is tried so often, with so much time between.
const TRIES: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(250);
/// A desktop that goes away at once is not tried again at once.
const SHORT: Duration = Duration::from_secs(2);

/// Where a desktop may be.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The user's runtime directory, in which compositors have their sockets.
    pub runtime: Option<PathBuf>,
    /// The compositor's socket, where somebody said which: a name in that directory, or a path.
    pub wayland: Option<OsString>,
}

impl Places {
    /// As this process's environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self { runtime: get("XDG_RUNTIME_DIR").map(PathBuf::from), wayland: get("WAYLAND_DISPLAY") }
    }

    /// Where a socket may appear.
    fn directories(&self) -> impl Iterator<Item = &Path> {
        let named = self.wayland.as_deref().map(Path::new).filter(|path| path.is_absolute());
        named.and_then(Path::parent).into_iter().chain(self.runtime.as_deref())
    }

    /// The name that the likeliest socket will have there.
    fn name(&self) -> Option<&str> {
        Path::new(self.wayland.as_deref()?).file_name()?.to_str()
    }

    /// The sockets to try, the likeliest first.
    fn sockets(&self) -> Vec<PathBuf> {
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

/// Serves whatever desktop there is, for as long as somebody is interested.
pub async fn serve(places: Places, mut orders: Orders) {
    let mut tries = 0;
    let mut looked = false;
    loop {
        // Before looking, so that what appears behind our back is not missed.
        let watch = Watch::new(places.directories());
        if let Some(mut found) = find(&places).await {
            let began = Instant::now();
            // What was to be shown while there was no desktop waits for the hub's word on what this one has.
            orders.forget();
            orders.tell(Event::Came { back_end: found.name(), selections: found.selections() });
            found.tell(&orders);
            if !std::mem::replace(&mut looked, true) {
                orders.tell(Event::Looked);
            }
            let end = found.run(&mut orders).await;
            drop(found);
            orders.tell(Event::Gone);
            orders.forget();
            if matches!(end, Err(BackEndError::Unused)) {
                return;
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
        let appeared = async {
            match &watch {
                _ if tries < TRIES => sleep(BETWEEN).await,
                Ok(watch) => {
                    if watch.appeared(&["wayland-", places.name().unwrap_or("wayland-")]).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    tries = 0;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = appeared => (),
            () = unused(&mut orders) => return,
        }
    }
}

/// Passes over what nobody can do; returns once nobody is interested any more.
async fn unused(orders: &mut Orders) {
    while !matches!(orders.next().await, Order::End) {}
}

async fn find(places: &Places) -> Option<DataControl> {
    for socket in places.sockets() {
        let attempt = spawn_blocking(move || DataControl::connect(&socket));
        if let Ok(Ok(Ok(found))) = timeout(HELLO, attempt).await {
            return Some(found);
        }
    }
    None
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
        let mut places = Places { runtime: Some(runtime.path().into()), wayland: Some("wayland-1".into()) };
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
