//! Files of peers, shown on this machine: the mount, what programs ask of it, and a connection to each lender.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hospes_fuse::abi::IN_HEADER;
use hospes_fuse::request::{self, Header, Operation};
use hospes_protocol::clipboard::Selection;
use hospes_protocol::clipboard::files::{Borrower, FilesError, Lent, Roots, Shared};
use hospes_protocol::error::WireError;
use hospes_protocol::frame::FrameError;
use hospes_protocol::limits::CLIPBOARD_LENDINGS;
use tokio::sync::{Mutex, Notify, OnceCell};
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::sleep;

use super::engine::{Engine, TreeId};
use super::list::{self, Item};
use super::mount::{Device, MountError, Mounter};
use crate::hub::PeerId;
use crate::pump::Wire;

/// How long the files of a copy that another one has taken the place of stay while nobody reads them: a program that
/// was given their names may be about to.
const LINGER: Duration = Duration::from_secs(60);
/// Names that the kernel is asked to forget at once.
const FORGOTTEN: usize = 256;

/// Why a list of files cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum BorrowError {
    /// They cannot be shown.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The lender's connection broke.
    #[error("The connection that lends files was lost: {0}")]
    Io(#[from] io::Error),
    /// The lender broke the protocol.
    #[error("The peer broke the protocol: {0}")]
    Protocol(#[from] FilesError),
    /// Its frames are none.
    #[error("The peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The lender does not lend them, and why.
    #[error("{0}")]
    Failed(WireError),
    /// There is no lender, or none any more.
    #[error("The files that were copied cannot be had any more")]
    Gone,
}

/// A copy of a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Copied {
    /// The peer.
    pub peer: PeerId,
    /// The selection.
    pub selection: Selection,
    /// The peer's number for its offer.
    pub serial: u64,
}

/// Finds places in a peer's shared folders on this machine; it may wait for a disk.
pub type Lookup = Box<dyn FnOnce(Vec<Option<Shared>>) -> Vec<Option<PathBuf>> + Send>;
/// What knows a peer's shared folders, where it has some.
pub type Folders = Box<dyn Fn(PeerId) -> Option<Lookup>>;

/// A place in a folder, where there is something and no symbolic link on the way to it.
#[must_use]
pub fn in_folder(folder: &Path, path: &[u8]) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    let path = if path.is_empty() { folder } else { folder.join(OsStr::from_bytes(path)) };
    (path.canonicalize().ok()? == path).then_some(path)
}

/// All files that are borrowed.
pub struct Borrowing {
    mounter: Mounter,
    folders: Folders,
    mount: Mutex<Option<Rc<Mount>>>,
    /// The oldest first.
    copies: RefCell<Vec<Shown>>,
}

impl std::fmt::Debug for Borrowing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Borrowing").field("mounter", &self.mounter).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct Shown {
    copied: Copied,
    tree: Rc<OnceCell<Tree>>,
    /// Another copy has taken its place.
    replaced: bool,
}

#[derive(Debug)]
struct Tree {
    mount: Rc<Mount>,
    id: TreeId,
    /// Where what was copied lies on this machine anyway.
    here: Vec<Option<PathBuf>>,
}

/// The mount, while there is one.
#[derive(Debug)]
struct Mount {
    device: Device,
    engine: RefCell<Engine>,
    lenders: RefCell<HashMap<TreeId, Rc<Lender>>>,
    /// The kernel is being asked to forget.
    forgets: Cell<bool>,
    /// It is unmounted.
    over: Cell<bool>,
}

#[derive(Debug, Default)]
struct Lender {
    news: Notify,
    over: Cell<bool>,
    /// Nothing of the tree is open any more, nor waited for; or the lender is gone.
    idle: Notify,
}

impl Borrowing {
    /// None so far. Nothing is mounted before somebody pastes.
    #[must_use]
    pub fn new(mounter: Mounter, folders: Folders) -> Self {
        Self { mounter, folders, mount: Mutex::default(), copies: RefCell::default() }
    }

    /// The list of a copy's files, of this type, as they lie on this machine. `connect` gives a connection over which
    /// they are lent, where there is none yet.
    ///
    /// # Errors
    /// [`BorrowError`].
    pub async fn list(
        self: &Rc<Self>,
        copied: Copied,
        kind: &str,
        connect: impl Future<Output = Option<Wire>>,
    ) -> Result<Vec<u8>, BorrowError> {
        let shown = self.shown(copied);
        let made = shown.tree.get_or_try_init(|| self.begin(copied.peer, connect)).await;
        let Tree { mount, id, here } = match made {
            Ok(made) => made,
            Err(error) => {
                self.copies.borrow_mut().retain(|other| !Rc::ptr_eq(&other.tree, &shown.tree));
                return Err(error);
            }
        };
        if !self.knows(&copied) {
            // It took so long that nobody waits for it any more.
            end(&shown);
            return Err(BorrowError::Gone);
        }
        let engine = mount.engine.borrow();
        let Some(roots) = engine.roots(*id) else { return Err(BorrowError::Gone) };
        let mut items = Vec::new();
        for (at, (root, named)) in roots.roots.iter().zip(engine.names(*id)).enumerate() {
            items.push(match (here.get(at).cloned().flatten(), named) {
                (Some(path), _) => Item::Path(path),
                (None, Some((top, name))) => {
                    let directory = mount.device.point.join(top.to_string());
                    Item::Path(directory.join(OsStr::from_bytes(&name)))
                }
                (None, None) => Item::Uri(root.uri.clone()),
            });
        }
        Ok(list::write(kind, &items))
    }

    /// Whether this copy's files are shown already, or about to be.
    #[must_use]
    pub fn knows(&self, copied: &Copied) -> bool {
        self.copies.borrow().iter().any(|shown| shown.copied == *copied)
    }

    /// The copy, which is begun where it is new. One too many ends the oldest.
    fn shown(&self, copied: Copied) -> Shown {
        let mut copies = self.copies.borrow_mut();
        if let Some(shown) = copies.iter().find(|shown| shown.copied == copied) {
            return shown.clone();
        }
        while copies.len() >= CLIPBOARD_LENDINGS {
            end(&copies.remove(0));
        }
        let shown = Shown { copied, tree: Rc::default(), replaced: false };
        copies.push(shown.clone());
        shown
    }

    async fn begin(
        &self,
        peer: PeerId,
        connect: impl Future<Output = Option<Wire>>,
    ) -> Result<Tree, BorrowError> {
        let mount = self.mount().await?;
        let mut wire = connect.await.ok_or(BorrowError::Gone)?;
        let mut borrower = Borrower::new();
        let roots = roots(&mut wire, &mut borrower).await?;
        let shared: Vec<Option<Shared>> = roots.roots.iter().map(|root| root.shared.clone()).collect();
        let id = mount.engine.borrow_mut().add(roots, borrower);
        let lender = Rc::new(Lender::default());
        mount.lenders.borrow_mut().insert(id, Rc::clone(&lender));
        spawn_local(attend(Rc::clone(&mount), id, lender, wire));
        let lookup = (self.folders)(peer).filter(|_| shared.iter().any(Option::is_some));
        let here = match lookup {
            Some(lookup) => spawn_blocking(move || lookup(shared)).await.unwrap_or_default(),
            None => Vec::new(),
        };
        Ok(Tree { mount, id, here })
    }

    async fn mount(&self) -> Result<Rc<Mount>, BorrowError> {
        let mut mounted = self.mount.lock().await;
        if let Some(mount) = &*mounted
            && !mount.over.get()
        {
            return Ok(Rc::clone(mount));
        }
        let device = self.mounter.mount().await?;
        tracing::debug!("Copied files are shown in {}", device.point.display());
        let owner = Engine::new(nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mount = Rc::new(Mount {
            device,
            engine: RefCell::new(owner),
            lenders: RefCell::default(),
            forgets: Cell::new(false),
            over: Cell::new(false),
        });
        spawn_local(serve(Rc::clone(&mount)));
        *mounted = Some(Rc::clone(&mount));
        Ok(mount)
    }

    /// These are the copies that can be pasted now; others stay for as long as somebody reads them, and a little more.
    pub fn retain(self: &Rc<Self>, is_current: impl Fn(&Copied) -> bool) {
        for shown in &mut *self.copies.borrow_mut() {
            if !shown.replaced && !is_current(&shown.copied) {
                shown.replaced = true;
                spawn_local(linger(Rc::clone(self), shown.clone()));
            }
        }
    }

    /// A peer is gone, and what it lent.
    pub fn left(&self, peer: PeerId) {
        self.copies.borrow_mut().retain(|shown| {
            let stays = shown.copied.peer != peer;
            if !stays {
                end(shown);
            }
            stays
        });
    }
}

impl Tree {
    /// [`Engine::use_of`] it.
    fn use_of(&self) -> (u64, bool) {
        self.mount.engine.borrow().use_of(self.id)
    }
}

fn end(shown: &Shown) {
    if let Some(Tree { mount, id, .. }) = shown.tree.get() {
        mount.end(*id);
    }
}

/// Ends a copy once nobody has read it for a while. As long as a program has something of it open, it waits for that
/// program and not for a clock.
async fn linger(borrowing: Rc<Borrowing>, shown: Shown) {
    let mut before = shown.tree.get().map(Tree::use_of);
    loop {
        sleep(LINGER).await;
        let Some(tree) = shown.tree.get() else { break };
        let Some(lender) = tree.mount.lenders.borrow().get(&tree.id).map(Rc::clone) else { break };
        let now = tree.use_of();
        if now.1 {
            lender.idle.notified().await;
        } else if before == Some(now) {
            break;
        }
        before = Some(now);
    }
    end(&shown);
    borrowing.copies.borrow_mut().retain(|other| !Rc::ptr_eq(&other.tree, &shown.tree));
}

/// What was copied, by its lender's first word.
async fn roots(wire: &mut Wire, borrower: &mut Borrower) -> Result<Roots, BorrowError> {
    loop {
        while let Some(frame) = wire.frames().take()? {
            match borrower.receive(frame)? {
                Lent::Roots(roots) => return Ok(roots),
                Lent::Failed(error) => return Err(BorrowError::Failed(error)),
                _ => (),
            }
        }
        if !wire.fill().await? {
            return Err(BorrowError::Gone);
        }
    }
}

/// Answers the kernel until it is unmounted.
async fn serve(mount: Rc<Mount>) {
    let mut space = Vec::new();
    loop {
        match mount.device.request(&mut space).await {
            Ok(Some(bytes)) => mount.request(bytes),
            Ok(None) => break,
            Err(error) => {
                tracing::warn!("Copied files are not shown any more: {error}");
                break;
            }
        }
        mount.relieve();
    }
    mount.over.set(true);
    let trees: Vec<TreeId> = mount.lenders.borrow().keys().copied().collect();
    trees.into_iter().for_each(|tree| mount.end(tree));
}

/// Carries what is asked and answered about one copy, until either end is over.
async fn attend(mount: Rc<Mount>, tree: TreeId, lender: Rc<Lender>, mut wire: Wire) {
    let ended: Result<(), BorrowError> = async {
        let mut out = Vec::new();
        while !lender.over.get() {
            while let Some(frame) = wire.frames().take()? {
                let device = &mount.device;
                let mut reply = |unique, answer: Result<&[u8], _>| device.answer(unique, answer);
                mount.engine.borrow_mut().receive(tree, frame, &mut reply)?;
            }
            mount.wake();
            mount.tell_idle();
            if out.is_empty() {
                out = mount.engine.borrow_mut().outgoing(tree);
            }
            tokio::select! {
                more = wire.advance(&mut out) => if !more? { break },
                () = lender.news.notified() => (),
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = ended {
        tracing::debug!("Files are not lent any more: {error}");
    }
    wire.end();
    lender.idle.notify_waiters();
    mount.lenders.borrow_mut().remove(&tree);
    let mut reply = |unique, answer: Result<&[u8], _>| mount.device.answer(unique, answer);
    mount.engine.borrow_mut().remove(tree, &mut reply);
}

impl Mount {
    fn request(&self, bytes: &[u8]) {
        let Some((header, body)) = bytes.split_first_chunk::<IN_HEADER>() else { return };
        let header = Header::decode(header);
        let mut reply = |unique, answer: Result<&[u8], _>| self.device.answer(unique, answer);
        let operation = request::decode(header.opcode, body);
        let closes = matches!(operation, Ok(Operation::Release { .. } | Operation::ReleaseDir { .. }));
        self.engine.borrow_mut().request(&header, operation, &mut reply);
        self.wake();
        if closes {
            self.tell_idle();
        }
    }

    /// Has what waits to be sent sent.
    fn wake(&self) {
        let engine = self.engine.borrow();
        let lenders = self.lenders.borrow();
        for tree in engine.ready() {
            if let Some(lender) = lenders.get(&tree) {
                lender.news.notify_one();
            }
        }
    }

    /// Wakes who waits until nobody has something of a copy open.
    fn tell_idle(&self) {
        let engine = self.engine.borrow();
        for (tree, lender) in &*self.lenders.borrow() {
            if !engine.use_of(*tree).1 {
                lender.idle.notify_waiters();
            }
        }
    }

    fn end(&self, tree: TreeId) {
        if let Some(lender) = self.lenders.borrow().get(&tree) {
            lender.over.set(true);
            lender.news.notify_one();
        }
    }

    /// Where the kernel knows very many names, has it forget some.
    fn relieve(self: &Rc<Self>) {
        if self.forgets.get() {
            return;
        }
        let names = self.engine.borrow_mut().crowded(FORGOTTEN);
        if names.is_empty() {
            return;
        }
        self.forgets.set(true);
        let names = names.into_iter().map(|(directory, name)| (directory, name.to_vec())).collect();
        let mount = Rc::clone(self);
        spawn_local(async move {
            mount.device.forget(names).await;
            mount.forgets.set(false);
        });
    }
}
