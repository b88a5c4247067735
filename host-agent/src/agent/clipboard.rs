//! This machine's clipboard, shared with the VMs for which somebody said so.
//!
//! The hub and the way to the desktop are [`hospes_clipboard`]'s; here are the connections. A host opens them all: the
//! long one when a guest says that its desktop is in front, and one for each paste, either way.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use hospes_clipboard::back_end::{self, Event};
use hospes_clipboard::clipboard::{Clipboard, Paste, Pasted};
use hospes_clipboard::desktop::{self, Places};
use hospes_clipboard::files::borrow::{Borrowing, Lookup, in_folder};
use hospes_clipboard::files::mount::Mounter;
use hospes_clipboard::hub::PeerId;
use hospes_clipboard::peer::{self, Outbox, PeerError};
use hospes_clipboard::pump::{self, Into, Wire};
use hospes_protocol::clipboard::files::{Files, Lend, Shared, WantFiles};
use hospes_protocol::clipboard::{Channel, Decline, Feed, Fetch, Said, Share, Side, Want};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::CLIPBOARD_PASTES;
use nix::sys::socket::{Shutdown, shutdown};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{spawn_blocking, spawn_local};

use crate::agent::state::Agent;
use crate::client::{Client, ClientError};
use crate::printable;
use crate::vm::Vm;
use crate::{dirs, hv};

/// The clipboard, and the VMs among its peers.
#[derive(Debug)]
pub(crate) struct Sharing {
    clipboard: Clipboard,
    vms: Rc<RefCell<BTreeMap<PeerId, Vm>>>,
    /// Connections over which files of this machine are lent.
    lent: RefCell<Vec<(PeerId, OwnedFd)>>,
    /// Whether it is known what was copied here before.
    looked: watch::Sender<bool>,
}

/// Why a paste did not come to its end.
#[derive(Debug, thiserror::Error)]
enum PasteError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Pump(#[from] pump::PumpError),
    #[error("The connection cannot be used: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Lend(hospes_clipboard::files::lend::LendError),
    #[error("The thread that lends files is gone")]
    Lost,
}

impl Sharing {
    /// Looks for this machine's desktop, from now on.
    pub(crate) fn start(agent: &Rc<Agent>) -> Rc<Self> {
        let (handle, orders, mut events) = back_end::ends();
        let (pastes, mut wanted) = mpsc::unbounded_channel();
        let vms = Rc::<RefCell<BTreeMap<PeerId, Vm>>>::default();
        let point = dirs::runtime().unwrap_or_default().join("clip");
        let known = Rc::clone(&vms);
        let files = Borrowing::new(Mounter::Fusermount(point), Box::new(move |peer| lookup(&known, peer)));
        let sharing = Rc::new(Self {
            clipboard: Clipboard::host(handle, pastes, files),
            vms,
            lent: RefCell::default(),
            looked: watch::Sender::new(false),
        });
        spawn_local(desktop::serve(Places::from_env(), orders));
        let (this, log) = (Rc::clone(&sharing), Rc::clone(agent));
        spawn_local(async move {
            while let Some(event) = events.recv().await {
                match &event {
                    Event::Came { back_end, .. } => {
                        log.log(None, format_args!("this machine's clipboard is reached by {back_end}"));
                    }
                    Event::Gone => log.log(None, "this machine's desktop is gone"),
                    _ => (),
                }
                let looked = matches!(event, Event::Looked);
                this.clipboard.happened(event);
                if looked {
                    this.looked.send_replace(true);
                }
            }
        });
        let (this, log) = (Rc::clone(&sharing), Rc::clone(agent));
        spawn_local(async move {
            let room = Arc::new(Semaphore::new(CLIPBOARD_PASTES));
            while let Some(paste) = wanted.recv().await {
                let vm = this.vms.borrow().get(&paste.peer).cloned();
                // One too many is dropped, and its program sees an end without a byte.
                let (Some(vm), Ok(place)) = (vm, Arc::clone(&room).try_acquire_owned()) else { continue };
                let log = Rc::clone(&log);
                spawn_local(async move {
                    if let Err(error) = fetch(&vm, paste).await {
                        log.log(Some(&vm.name), format_args!("a paste failed: {error}"));
                    }
                    drop(place);
                });
            }
        });
        sharing
    }
}

/// Shares the clipboard with a VM whose desktop is there, until that ends.
pub(crate) async fn share(agent: Rc<Agent>, vm: Vm) {
    let sharing = agent.sharing();
    let share = Share { to_guest: true, to_host: true };
    let connection = match open(&vm, FrameId::CLIPBOARD, &share).await {
        Ok(connection) => connection,
        Err(error) => return agent.log(Some(&vm.name), format_args!("no clipboard: {error}")),
    };
    // What was here before is not to be overwritten, so it must be known.
    let _ = sharing.looked.subscribe().wait_for(|looked| *looked).await;
    let (stream, input) = connection;
    let (id, outbox) = sharing.clipboard.peer_came(share);
    sharing.vms.borrow_mut().insert(id, vm.clone());
    // Also where this task is ended from outside.
    let _membership = Membership { sharing: &sharing, id };
    let room = Arc::new(Semaphore::new(CLIPBOARD_PASTES));
    let answer = || Answer {
        agent: Rc::clone(&agent),
        sharing: Rc::clone(&sharing),
        vm: vm.clone(),
        peer: id,
        outbox: Rc::clone(&outbox),
    };
    let too_many = |call| {
        let error = WireError::new(ErrorKind::LIMIT, "Too many pastes are under way");
        let _ = outbox.message(FrameId::CLIPBOARD_DECLINE, &Decline { call, error });
    };
    let heard = |said| match said {
        Said::Ready(ready) => {
            let (user, back_end) = (printable::line(&ready.user), printable::line(&ready.back_end));
            agent.log(Some(&vm.name), format_args!("the clipboard is shared with {user} by {back_end}"));
        }
        Said::Want(want) => {
            let paste = answer();
            match Arc::clone(&room).try_acquire_owned() {
                Ok(place) => drop(spawn_local(async move {
                    paste.feed(want).await;
                    drop(place);
                })),
                Err(_) => too_many(want.call),
            }
        }
        Said::WantFiles(want) => {
            let paste = answer();
            match Arc::clone(&room).try_acquire_owned() {
                Ok(place) => drop(spawn_local(async move {
                    paste.lend(want).await;
                    drop(place);
                })),
                Err(_) => too_many(want.call),
            }
        }
        other => sharing.clipboard.peer_said(id, other),
    };
    let end = peer::converse(stream, &input, Vec::new(), Channel::host(), &outbox, heard).await;
    if !matches!(end, PeerError::Closed) {
        let words = end.to_string();
        agent.log(Some(&vm.name), format_args!("the clipboard is not shared any more: {words}"));
    }
}

struct Membership<'s> {
    sharing: &'s Sharing,
    id: PeerId,
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.sharing.vms.borrow_mut().remove(&self.id);
        self.sharing.clipboard.peer_left(self.id);
        for (_, connection) in self.sharing.lent.borrow_mut().extract_if(.., |(peer, _)| *peer == self.id) {
            let _ = shutdown(connection.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// A guest's paste of what this machine, or another VM, has.
struct Answer {
    agent: Rc<Agent>,
    sharing: Rc<Sharing>,
    vm: Vm,
    peer: PeerId,
    outbox: Rc<Outbox>,
}

impl Answer {
    async fn feed(self, want: Want) {
        let Want { call, selection, serial, kind } = want;
        let from = match self.sharing.clipboard.give(Some(self.peer), selection, serial, &kind).await {
            Ok(from) => from,
            Err(error) => {
                let _ = self.outbox.message(FrameId::CLIPBOARD_DECLINE, &Decline { call, error });
                return;
            }
        };
        let fed: Result<u64, PasteError> = async {
            let (stream, input) = open(&self.vm, FrameId::CLIPBOARD_FEED, &Feed { call }).await?;
            let mut wire = Wire::new(stream, &input)?;
            let bytes = pump::source(&mut wire, Side::Host, from).await?;
            let mut bye = Vec::new();
            frame::put_raw(FrameId::BYE, 0, &[], &mut bye);
            wire.write_all(&bye).await?;
            Ok(bytes)
        }
        .await;
        match fed {
            // The program there changed its mind: no news.
            Ok(_) | Err(PasteError::Pump(pump::PumpError::Cancelled)) => (),
            Err(error) => self.agent.log(Some(&self.vm.name), format_args!("a paste failed: {error}")),
        }
    }
}

impl Answer {
    /// Lends this machine's files, until the guest wants no more of them.
    async fn lend(self, want: WantFiles) {
        let WantFiles { call, selection, serial } = want;
        let folders = folders_of(&self.vm).await;
        let shared = |path: &Path| {
            let path = path.canonicalize().ok()?;
            folders.iter().find_map(|(share, folder)| {
                let path = path.strip_prefix(folder).ok()?.as_os_str().as_bytes().to_vec();
                Some(Shared { share: share.clone(), path })
            })
        };
        let lending = match self.sharing.clipboard.lend(Some(self.peer), selection, serial, shared).await {
            Ok(lending) => lending,
            Err(error) => {
                let _ = self.outbox.message(FrameId::CLIPBOARD_DECLINE, &Decline { call, error });
                return;
            }
        };
        let lent: Result<(), PasteError> = async {
            let (stream, input) = open(&self.vm, FrameId::CLIPBOARD_LEND, &Lend { call }).await?;
            let copy = stream.try_clone()?;
            let number = copy.as_raw_fd();
            self.sharing.lent.borrow_mut().push((self.peer, copy));
            let (done, over) = oneshot::channel();
            let begun = lending.spawn(stream, Vec::new(), input, |end| {
                let _ = done.send(end);
            });
            let end = match begun {
                Ok(()) => over.await.map_err(|_| PasteError::Lost),
                Err(error) => Err(error.into()),
            };
            self.sharing.lent.borrow_mut().retain(|(_, copy)| copy.as_raw_fd() != number);
            end?.map_err(PasteError::Lend)
        }
        .await;
        if let Err(error) = lent {
            self.agent.log(Some(&self.vm.name), format_args!("files were not lent to the end: {error}"));
        }
    }
}

/// The folders that a VM shares with this machine: their names in the guest, and where they are here.
async fn folders_of(vm: &Vm) -> Vec<(String, PathBuf)> {
    let Some(control) = vm.spec.hv.clone() else { return Vec::new() };
    spawn_blocking(move || shares(&control)).await.unwrap_or_default()
}

fn shares(control: &Path) -> Vec<(String, PathBuf)> {
    let shares: Vec<hv::Share> = hv::ask(control, &hv::Ask::ListShares).unwrap_or_default();
    let real = |share: hv::Share| Some((share.name, share.path.canonicalize().ok()?));
    shares.into_iter().filter_map(real).collect()
}

/// Finds places in the folders that a VM shares with this machine.
fn lookup(vms: &RefCell<BTreeMap<PeerId, Vm>>, peer: PeerId) -> Option<Lookup> {
    let control = vms.borrow().get(&peer)?.spec.hv.clone()?;
    Some(Box::new(move |places| {
        let folders = shares(&control);
        let find = |Shared { share, path }: Shared| {
            let (_, folder) = folders.iter().find(|(name, _)| *name == share)?;
            in_folder(folder, &path)
        };
        places.into_iter().map(|place| place.and_then(find)).collect()
    }))
}

/// A paste here of what a guest has.
async fn fetch(vm: &Vm, paste: Paste) -> Result<u64, PasteError> {
    let Paste { selection, serial, what, .. } = paste;
    let (kind, into) = match what {
        Pasted::Bytes { kind, into } => (kind, into),
        Pasted::Files(waits) => {
            let files = Files { selection, serial };
            let (stream, input) = open(vm, FrameId::CLIPBOARD_FILES, &files).await?;
            // Where nobody waits any more it is closed.
            let _ = waits.send(Wire::new(stream, &input)?);
            return Ok(0);
        }
    };
    let (stream, input) = open(vm, FrameId::CLIPBOARD_FETCH, &Fetch { selection, serial, kind }).await?;
    let mut wire = Wire::new(stream, &input)?;
    match pump::sink(&mut wire, Side::Host, Into::Pipe(into)).await {
        Err(pump::PumpError::Program(_)) => Ok(0),
        result => Ok(result?),
    }
}

/// Opens a connection whose first request this is, on a thread of its own: dialling may block, and the loop may not.
async fn open<T: Serialize>(vm: &Vm, id: FrameId, request: &T) -> Result<(OwnedFd, Vec<u8>), ClientError> {
    let mut operation = Vec::new();
    frame::put(id, request, &mut operation);
    let client = Client::new(vm.clone());
    match spawn_blocking(move || client.open(&operation)).await {
        Ok(result) => {
            let (stream, input) = result?.into_parts();
            Ok((stream.into_fd(), input.rest().to_vec()))
        }
        Err(error) => Err(ClientError::Protocol(error.to_string())),
    }
}
