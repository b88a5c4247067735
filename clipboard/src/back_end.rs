//! Ways to a desktop's clipboard. All have one face: a task that shows what it is told to and tells what happens.

pub mod data_control;
pub mod mutter;
pub mod x11;

use std::os::fd::OwnedFd;

use hospes_protocol::clipboard::Selection;
use tokio::sync::{mpsc, oneshot, watch};

use crate::hub::{SELECTIONS, Shown};

/// What happened on the desktop.
#[derive(Debug)]
pub enum Event {
    /// A clipboard is there.
    Came {
        /// How it is reached, in a word.
        back_end: &'static str,
        /// The selections it has.
        selections: Vec<Selection>,
    },
    /// A program took a selection, or nobody has it any more. Never what we show ourselves.
    Changed {
        /// The selection.
        selection: Selection,
        /// As what it can be had.
        types: Vec<String>,
        /// The [`Shown::serial`] of what we were last told to show there by then; zero before the first. What happened
        /// before a later one was shown is over.
        after: u64,
        /// It was so when we came.
        first: bool,
    },
    /// A program pastes what we show.
    Wanted(Wanted),
    /// It is gone; another [`Came`](Self::Came) may follow.
    Gone,
    /// The first look is over, whether or not it found anything: what there was then has been told.
    Looked,
}

/// A program's paste of what we show.
#[derive(Debug)]
pub struct Wanted {
    /// The selection.
    pub selection: Selection,
    /// The [`Shown::serial`] that it pastes.
    pub serial: u64,
    /// As what.
    pub kind: String,
    /// Where the bytes go. Closing it is the end.
    pub into: OwnedFd,
}

/// Asks for what a program of the desktop has.
#[derive(Debug)]
pub struct Read {
    /// The selection.
    pub selection: Selection,
    /// As what.
    pub kind: String,
    /// Gets the end to read from; dropped where it cannot be had.
    pub reply: oneshot::Sender<OwnedFd>,
}

/// Our end of a back end.
#[derive(Debug)]
pub struct Handle {
    show: [watch::Sender<Option<Shown>>; SELECTIONS.len()],
    reads: mpsc::UnboundedSender<Read>,
}

/// Its own end.
#[derive(Debug)]
pub struct Orders {
    /// What each selection is to show. What it was told before it looked is not shown first: a flood costs nothing.
    pub(crate) show: [watch::Receiver<Option<Shown>>; SELECTIONS.len()],
    pub(crate) reads: mpsc::UnboundedReceiver<Read>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

/// The two ends, and where events come.
#[must_use]
pub fn ends() -> (Handle, Orders, mpsc::UnboundedReceiver<Event>) {
    let (reads, asked) = mpsc::unbounded_channel();
    let (events, happened) = mpsc::unbounded_channel();
    let ([one, two], [first, second]) = {
        let (one, first) = watch::channel(None);
        let (two, second) = watch::channel(None);
        ([one, two], [first, second])
    };
    let handle = Handle { show: [one, two], reads };
    (handle, Orders { show: [first, second], reads: asked, events }, happened)
}

impl Handle {
    /// Shows this from now on.
    pub fn show(&self, shown: Shown) {
        if let Some(at) = crate::hub::place(shown.selection) {
            self.show[at].send_replace(Some(shown));
        }
    }

    /// Asks for what a program has.
    pub fn read(&self, read: Read) {
        // Without a back end it is dropped, and so answered.
        let _ = self.reads.send(read);
    }
}

/// What a back end is told next.
#[derive(Debug)]
pub(crate) enum Order {
    Show(Shown),
    Read(Read),
    /// Nobody is interested any more.
    End,
}

impl Orders {
    /// The next order. Losing the future loses no order.
    pub(crate) async fn next(&mut self) -> Order {
        let [clipboard, primary] = &mut self.show;
        let changed = |shown: &mut watch::Receiver<Option<Shown>>| shown.borrow_and_update().clone();
        tokio::select! {
            biased;
            Ok(()) = clipboard.changed() => changed(clipboard).map_or(Order::End, Order::Show),
            Ok(()) = primary.changed() => changed(primary).map_or(Order::End, Order::Show),
            read = self.reads.recv() => read.map_or(Order::End, Order::Read),
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What was to be shown on a desktop that is gone is not for the next one.
    pub(crate) fn forget(&mut self) {
        for shown in &mut self.show {
            shown.mark_unchanged();
        }
        while self.reads.try_recv().is_ok() {}
    }
}

/// Why a back end cannot be used, or ended.
#[derive(Debug, thiserror::Error)]
pub enum BackEndError {
    /// The compositor offers no such thing.
    #[error("The compositor offers no clipboard to programs without a window")]
    Missing,
    /// It cannot be reached.
    #[error("The desktop cannot be reached: {0}")]
    Unreachable(String),
    /// It has one, and gives it to nobody for now.
    #[error("The desktop gives its clipboard to nobody now: {0}")]
    Refused(String),
    /// The connection ended.
    #[error("The desktop's connection ended: {0}")]
    Ended(String),
    /// Nobody is interested any more.
    #[error("Nobody asks for the clipboard any more")]
    Unused,
}
