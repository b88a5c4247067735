//! The helper: a desktop, a daemon, and the hosts' connections between them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use guest_tools::handoff::Handoff;
use guest_tools::tools::MOUNT_POINT;
use hospes_clipboard::back_end::{self, Event};
use hospes_clipboard::clipboard::Clipboard;
use hospes_clipboard::desktop::{self, Places};
use hospes_clipboard::files::borrow::{Borrowing, Lookup, in_folder};
use hospes_clipboard::files::mount::Mounter;
use hospes_clipboard::hub::PeerId;
use hospes_clipboard::kept::{self, Kept};
use hospes_clipboard::peer;
use hospes_clipboard::pump::{self, Into, Wire};
use hospes_protocol::clipboard::files::{Files, Lend, Shared};
use hospes_protocol::clipboard::{Channel, Feed, Fetch, Set, Share, Side};
use hospes_protocol::codec;
use hospes_protocol::display::{Display, State};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{User, geteuid};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Duration, sleep};

use crate::daemon::Daemon;
use crate::display::follow::Refusal;
use crate::display::serve as screens;

/// How long after the daemon has left it is looked for.
const AGAIN: Duration = Duration::from_millis(200);

/// Characters of a desktop's words that cross.
const WORDS: usize = 300;
/// Screens that are told of.
const SCREENS: usize = 32;

/// What the helper is told on its command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The daemon's socket.
    pub daemon: PathBuf,
    /// Where a desktop may be.
    pub places: Places,
    /// hospes-mount's socket.
    pub mount: PathBuf,
}

/// Serves until nobody is interested any more, which is never.
pub async fn run(options: Options) {
    let (handle, orders, mut events) = back_end::ends();
    let files = Borrowing::new(Mounter::Socket(options.mount), Box::new(folders));
    let clipboard = Rc::new(Clipboard::guest(handle, files));
    let (screens, screen_orders) = screens::ends();
    spawn_local(screens::serve(options.places.clone(), screen_orders));
    spawn_local(desktop::serve(options.places, orders));
    let (present, presence) = watch::channel(false);
    let desktop = Desktop { clipboard: Rc::clone(&clipboard), screens };
    let seen = desktop.screens.present();
    spawn_local(attend(options.daemon, Rc::new(desktop), presence, seen));
    while let Some(event) = events.recv().await {
        match &event {
            Event::Came { back_end, .. } => {
                tracing::info!("The desktop's clipboard is reached by {back_end}");
            }
            Event::Gone => tracing::info!("The desktop is gone"),
            _ => (),
        }
        let (came, gone) = (matches!(event, Event::Came { .. }), matches!(event, Event::Gone));
        clipboard.happened(event);
        if gone {
            // Hosts share the one that comes next anew.
            clipboard.close_all();
        }
        if came || gone {
            present.send_replace(came);
        }
    }
}

/// What there is of a desktop.
#[derive(Debug)]
struct Desktop {
    clipboard: Rc<Clipboard>,
    screens: screens::Handle,
}

/// Is connected to the daemon while there is a desktop, of which a clipboard and screens may come and go each by themselves.
async fn attend(
    socket: PathBuf,
    desktop: Rc<Desktop>,
    mut clipboard: watch::Receiver<bool>,
    mut screens: watch::Receiver<bool>,
) {
    let user =
        User::from_uid(geteuid()).ok().flatten().map_or_else(|| geteuid().to_string(), |user| user.name);
    loop {
        tokio::select! {
            there = clipboard.wait_for(|there| *there) => if there.is_err() { return },
            there = screens.wait_for(|there| *there) => if there.is_err() { return },
        }
        clipboard.borrow_and_update();
        tokio::select! {
            () = connected(&socket, &desktop, &user, clipboard.clone()) => (),
            () = gone(clipboard.clone(), screens.clone()) => (),
        }
        // What the daemon handed over ends with it: it alone knows who sits at the screen.
        desktop.clipboard.close_all();
    }
}

/// Takes what the daemon hands over, until it leaves.
async fn connected(socket: &Path, desktop: &Rc<Desktop>, user: &str, mut clipboard: watch::Receiver<bool>) {
    let daemon = Daemon::connect(socket).await;
    tracing::info!("Connected to hospes-toolsd");
    let handed = async {
        loop {
            match daemon.next().await {
                Ok((connection, handoff)) => {
                    spawn_local(serve(Rc::clone(desktop), connection, handoff, user.to_owned()));
                }
                Err(error) => break error,
            }
        }
    };
    let news = async {
        // Hosts hear of a clipboard that comes, and share it anew; screens are asked for.
        while clipboard.changed().await.is_ok() {
            if *clipboard.borrow_and_update() {
                daemon.tell_anew();
            }
        }
        std::future::pending().await
    };
    let error = tokio::select! {
        error = handed => error,
        error = news => error,
    };
    tracing::info!("hospes-toolsd left: {error}");
    // One that turns everybody away is not asked at once again.
    sleep(AGAIN).await;
}

/// Waits until there is neither a clipboard nor a screen.
async fn gone(mut clipboard: watch::Receiver<bool>, mut screens: watch::Receiver<bool>) {
    while *clipboard.borrow_and_update() || *screens.borrow_and_update() {
        let changed = tokio::select! {
            changed = clipboard.changed() => changed,
            changed = screens.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Serves one connection of a host's to its end, and ends it for everybody who has a copy of its descriptor.
async fn serve(desktop: Rc<Desktop>, connection: OwnedFd, handoff: Handoff, user: String) {
    let Ok(copy) = connection.as_fd().try_clone_to_owned() else { return };
    let clipboard = &desktop.clipboard;
    let outcome = match FrameId(handoff.request_id) {
        FrameId::CLIPBOARD => share(clipboard, connection, &handoff, &user).await,
        // It ends when its files are not lent any more.
        FrameId::CLIPBOARD_LEND => match borrow(clipboard, connection, &handoff).await {
            Ok(()) => return,
            Err(why) => Err(why),
        },
        FrameId::CLIPBOARD_FILES => lend(clipboard, connection, &handoff).await,
        FrameId::DISPLAY => display(&desktop.screens, connection, &handoff, user).await,
        id => body(clipboard, connection, id, &handoff).await,
    };
    if let Err(why) = outcome {
        tracing::debug!("A connection of a host's ended: {why}");
    }
    let _ = shutdown(copy.as_raw_fd(), Shutdown::Both);
}

/// A request about the screens.
async fn display(
    screens: &screens::Handle,
    connection: OwnedFd,
    handoff: &Handoff,
    user: String,
) -> anyhow::Result<()> {
    let mut wire = Wire::new(connection, &handoff.rest)?;
    let mut out = handoff.preamble.clone();
    let display: Display = codec::decode(&handoff.request)?;
    display.check()?;
    match screens.ask(display.ask).await {
        Ok(state) => frame::put(FrameId::DISPLAY_STATE, &short(State { user, ..state }), &mut out),
        Err(refusal) => {
            let kind = match &refusal {
                Refusal::NoDesktop => ErrorKind::BUSY,
                Refusal::NoOutput(..) => ErrorKind::NOT_FOUND,
                Refusal::Several(_) | Refusal::Off(_) => ErrorKind::OTHER,
                Refusal::NoScale => ErrorKind::UNSUPPORTED,
            };
            let error = WireError::new(kind, refusal.to_string());
            frame::put(FrameId::FAILED, &error.hint("hospes display VM tells what the guest has"), &mut out);
        }
    }
    wire.write_all(&out).await?;
    pump::part(&mut wire).await;
    Ok(())
}

/// What a desktop says may be longer than a frame.
fn short(mut state: State) -> State {
    let cut = |words: &mut String| *words = words.chars().take(WORDS).collect();
    state.outputs.truncate(SCREENS);
    for output in &mut state.outputs {
        cut(&mut output.name);
        output.problem.iter_mut().for_each(cut);
    }
    cut(&mut state.why);
    state
}

/// The long connection.
async fn share(
    clipboard: &Clipboard,
    connection: OwnedFd,
    handoff: &Handoff,
    user: &str,
) -> anyhow::Result<()> {
    let share: Share = codec::decode(&handoff.request)?;
    let mut first = handoff.preamble.clone();
    let Some(ready) = clipboard.ready(user, share) else {
        let wire = Wire::new(connection, &[])?;
        frame::put(FrameId::FAILED, &WireError::new(ErrorKind::BUSY, "The desktop is gone"), &mut first);
        return Ok(wire.write_all(&first).await?);
    };
    let channel = Channel::guest(&ready, &mut first);
    let (id, outbox) = clipboard.peer_came(share);
    let heard = |said| clipboard.peer_said(id, said);
    let end = peer::converse(connection, &handoff.rest, first, channel, &outbox, heard).await;
    clipboard.peer_left(id);
    Err(end.into())
}

/// A host lends its files.
async fn borrow(clipboard: &Clipboard, connection: OwnedFd, handoff: &Handoff) -> anyhow::Result<()> {
    let Lend { call } = codec::decode(&handoff.request)?;
    let wire = Wire::new(connection, &handoff.rest)?;
    wire.write_all(&handoff.preamble).await?;
    let sent = match clipboard.borrower(&call) {
        Some(waits) => waits.send(wire),
        None => Err(wire),
    };
    match sent {
        Ok(()) => Ok(()),
        Err(mut unwanted) => {
            let error = WireError::new(ErrorKind::NOT_FOUND, "Nobody waits for these files any more");
            pump::refuse(&mut unwanted, &error).await;
            anyhow::bail!("nobody waits for them");
        }
    }
}

/// A host reads this desktop's files.
async fn lend(clipboard: &Clipboard, connection: OwnedFd, handoff: &Handoff) -> anyhow::Result<()> {
    let Files { selection, serial } = codec::decode(&handoff.request)?;
    let lending = match clipboard.lend(None, selection, serial, shared).await {
        Ok(lending) => lending,
        Err(error) => {
            let mut wire = Wire::new(connection, &handoff.rest)?;
            wire.write_all(&handoff.preamble).await?;
            pump::refuse(&mut wire, &error).await;
            return Ok(());
        }
    };
    let (done, over) = oneshot::channel();
    lending.spawn(connection, handoff.preamble.clone(), handoff.rest.clone(), |end| {
        let _ = done.send(end);
    })?;
    Ok(over.await??)
}

/// Which of the host's folders a path is in.
fn shared(path: &Path) -> Option<Shared> {
    let mut inside = path.strip_prefix(MOUNT_POINT).ok()?.components();
    let share = inside.next()?.as_os_str().to_str()?.to_owned();
    Some(Shared { share, path: inside.as_path().as_os_str().as_bytes().to_vec() })
}

/// Finds places in the host's folders.
fn folders(_: PeerId) -> Option<Lookup> {
    Some(Box::new(|places| {
        let find = |Shared { share, path }| in_folder(&Path::new(MOUNT_POINT).join(share), &path);
        places.into_iter().map(|place| place.and_then(find)).collect()
    }))
}

/// A connection that carries bytes.
async fn body(
    clipboard: &Clipboard,
    connection: OwnedFd,
    id: FrameId,
    handoff: &Handoff,
) -> anyhow::Result<()> {
    let mut wire = Wire::new(connection, &handoff.rest)?;
    wire.write_all(&handoff.preamble).await?;
    let done = match id {
        FrameId::CLIPBOARD_FETCH => {
            let Fetch { selection, serial, kind } = codec::decode(&handoff.request)?;
            match clipboard.give(None, selection, serial, &kind).await {
                Ok(from) => pump::source(&mut wire, Side::Guest, from).await,
                Err(error) => {
                    pump::refuse(&mut wire, &error).await;
                    return Ok(());
                }
            }
        }
        FrameId::CLIPBOARD_FEED => {
            let Feed { call } = codec::decode(&handoff.request)?;
            match clipboard.feed(&call) {
                Some(into) => pump::sink(&mut wire, Side::Guest, Into::Pipe(into)).await,
                None => {
                    let error = WireError::new(ErrorKind::NOT_FOUND, "Nobody waits for this paste any more");
                    pump::refuse(&mut wire, &error).await;
                    return Ok(());
                }
            }
        }
        FrameId::CLIPBOARD_SET => {
            let Set { selection, types } = codec::decode(&handoff.request)?;
            let kept = Kept::new()?;
            let into = Into::File(kept.writer()?, kept::MOST);
            // Shown before the host is told that it is: a script that copies may paste at once.
            let taken = pump::receive(&mut wire, Side::Guest, into).await;
            match taken {
                Ok(sink) => {
                    clipboard.keep(selection, types, kept);
                    sink.acknowledge(&mut wire).await
                }
                Err(error) => Err(error),
            }
        }
        other => anyhow::bail!("{other} is no request of the clipboard's"),
    };
    pump::part(&mut wire).await;
    tracing::debug!("{id}: {} bytes", done?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use guest_tools::handoff::NEWS;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_clipboard_that_comes_after_the_screens_is_told_on_the_same_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("desktop.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (handle, _orders, _events) = back_end::ends();
        let files = Borrowing::new(Mounter::Socket(directory.path().join("mount.sock")), Box::new(folders));
        let (screens, _screen_orders) = screens::ends();
        let desktop = Rc::new(Desktop { clipboard: Rc::new(Clipboard::guest(handle, files)), screens });
        let (clipboard, presence) = watch::channel(false);
        let (_seen, screens) = watch::channel(true);
        let daemon = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            for there in [true, false, true] {
                clipboard.send_replace(there);
                if there {
                    assert_eq!(
                        timeout(PATIENCE, stream.read_u8()).await.expect("nobody is told").unwrap(),
                        NEWS
                    );
                }
            }
            // Nor is there another connection.
            assert!(timeout(AGAIN * 2, listener.accept()).await.is_err());
        };
        let helper = async {
            attend(socket.clone(), desktop, presence, screens).await;
            pending::<()>().await;
        };
        LocalSet::new()
            .run_until(async {
                tokio::select! { () = daemon => (), () = helper => () }
            })
            .await;
    }
}
