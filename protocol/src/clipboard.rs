//! Clipboard: what could be pasted crosses at once, the bytes when somebody pastes.
//!
//! ```text
//! host                                       guest's desktop
//!  | CLIPBOARD                                |
//!  |----------------------------------------->|
//!  |    CLIPBOARD_READY, CLIPBOARD_OFFER 5    |  what can be pasted there now
//!  |<-----------------------------------------|
//!  | CLIPBOARD_OFFER 3 …                      |  either end, for each copy
//!  |<---------------------------------------->|
//!  |    CLIPBOARD_WANT: call, of offer 3      |  somebody pastes in the guest
//!  |<-----------------------------------------|
//!  | on a new connection: CLIPBOARD_FEED call |
//!  | DATA 0 … END 0                           |
//!  |----------------------------------------->|
//!  |    CLIPBOARD_TAKEN                       |
//!  | or on the first: CLIPBOARD_DECLINE call  |
//!
//!  | CLIPBOARD_FETCH of offer 5               |  somebody pastes on the host
//!  |----------------------------------------->|
//!  |    DATA 1 … END 1                        |
//! ```
//! Behind `CLIPBOARD` and `CLIPBOARD_READY` each end that will offer anything makes an offer on each selection, of no types
//! where there is nothing: that first one says what was there before, and takes the place of nothing that the other has.
//!
//! Bytes have a connection of their own, which the host opens, so that a large picture delays no offer, and whoever
//! closes it has cancelled that one paste. An offer replaces the one before it on the same selection; asking for a
//! replaced one fails, and nobody is given the new one's bytes in its place. [`FrameId::CLIPBOARD_SET`] leaves bytes
//! with the guest's desktop, which offers them itself.
//!
//! [`Channel`] is the rules of the long connection; [`Source`] and [`Sink`] those of one that carries bytes. Copied files
//! are lent and not carried: [`files`].

use serde::{Deserialize, Serialize};

use crate::codec::CodecError;
use crate::error::WireError;
use crate::frame::{self, Frame, FrameId, Header};
use crate::limits::{CLIPBOARD_TYPE, CLIPBOARD_TYPES};
use crate::open_enum;
use crate::stream::{Receiver, Sender, StreamError};

pub mod files;

/// The stream from host to guest.
pub const TO_GUEST: u16 = 0;
/// The stream from guest to host.
pub const TO_HOST: u16 = 1;

open_enum! {
    /// Which of a desktop's selections.
    pub struct Selection(u8) {
        /// What Copy and Paste are about.
        CLIPBOARD = 0,
        /// The text that was last marked, for the middle button. X11's, and some Wayland compositors'.
        PRIMARY = 1,
    }
}

/// Opens the clipboard's long connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Share {
    /// The host will offer what is copied there.
    pub to_guest: bool,
    /// The host wants to know what is copied in the guest.
    pub to_host: bool,
}

/// The guest's desktop answers. First from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Whose desktop it is.
    pub user: String,
    /// How its clipboard is reached, for people: `ext-data-control`, `x11` …
    pub back_end: String,
    /// The selections it has.
    pub selections: Vec<Selection>,
    /// What the host asked for, as far as the guest's policy allows it.
    pub share: Share,
}

/// What can be pasted from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its number: greater than that of every offer that this end made before on the connection.
    pub serial: u64,
    /// On which selection.
    pub selection: Selection,
    /// As what it can be had: media types, and other names that the owner's desktop has. None where nothing can be
    /// pasted any more.
    pub types: Vec<String>,
}

/// Why an offer, or a name in another message, is refused. Its sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// Too many.
    #[error("The offer has {count} types, at most {CLIPBOARD_TYPES} may be")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// One is empty, too long, or not printable ASCII.
    #[error("A type's name of {len} bytes is not 1 to {CLIPBOARD_TYPE} of printable ASCII")]
    Name {
        /// Its bytes.
        len: usize,
    },
}

impl Offer {
    /// Holds the offer against its limits.
    ///
    /// # Errors
    /// [`TypeError`].
    pub fn check(&self) -> Result<(), TypeError> {
        if self.types.len() > CLIPBOARD_TYPES {
            return Err(TypeError::TooMany { count: self.types.len() });
        }
        self.types.iter().try_for_each(|name| check_type(name))
    }
}

/// Whether a type's name may cross: desktops have names with spaces and semicolons, and no others than ASCII.
///
/// # Errors
/// [`TypeError::Name`].
pub fn check_type(name: &str) -> Result<(), TypeError> {
    let good = (1..=CLIPBOARD_TYPE).contains(&name.len()) && name.bytes().all(|b| (0x20..0x7f).contains(&b));
    if good { Ok(()) } else { Err(TypeError::Name { len: name.len() }) }
}

/// Somebody pastes in the guest what the host offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The paste's number, random: whoever knows it may feed it.
    pub call: [u8; 16],
    /// On which selection.
    pub selection: Selection,
    /// The offer.
    pub serial: u64,
    /// As which of its types.
    pub kind: String,
}

/// The host will not feed a paste.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The paste's number.
    pub call: [u8; 16],
    /// Why.
    pub error: WireError,
}

/// Asks for what the guest offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// On which selection.
    pub selection: Selection,
    /// The offer.
    pub serial: u64,
    /// As which of its types.
    pub kind: String,
}

/// Brings what a [`Want`] asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// The paste's number.
    pub call: [u8; 16],
}

/// Leaves bytes with the guest's desktop to be pasted there, for as long as nobody copies something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// On which selection.
    pub selection: Selection,
    /// As what they are offered. The first is what they are.
    pub types: Vec<String>,
}

/// The guest has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes.
    pub bytes: u64,
}

/// How the peer broke the clipboard's rules.
#[derive(Debug, thiserror::Error)]
pub enum ClipboardError {
    /// A stream's rules.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A message does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A name or an offer over its limits.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// An offer whose number is not greater than the last one's.
    #[error("Peer made offer {serial} after offer {last}")]
    Serial {
        /// Its number.
        serial: u64,
        /// The last one's.
        last: u64,
    },
    /// A frame that may not come now, or not from this side.
    #[error("Peer sent {id} where it may not come on a clipboard's connection")]
    Unexpected {
        /// The frame.
        id: FrameId,
    },
    /// The connection closed before the last byte's end was said.
    #[error("The clipboard's connection was cut after {bytes} bytes")]
    Cut {
        /// Bytes that had come or gone.
        bytes: u64,
    },
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host's.
    Host,
    /// The guest's.
    Guest,
}

/// What came on the long connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that matters here.
    Nothing,
    /// The guest's desktop is there (host only, once).
    Ready(Ready),
    /// The peer's selection changed.
    Offer(Offer),
    /// Somebody pastes in the guest (host only).
    Want(Want),
    /// Somebody pastes files in the guest (host only).
    WantFiles(files::WantFiles),
    /// The host will not feed a paste (guest only).
    Decline(Decline),
    /// The peer ends it, and why.
    Failed(WireError),
    /// The host leaves (guest only).
    Bye,
}

/// One end of the clipboard's long connection.
#[derive(Debug)]
pub struct Channel {
    side: Side,
    /// The peer's last offer.
    heard: u64,
    ready: bool,
}

impl Channel {
    /// The host's end, whose `CLIPBOARD` has been sent.
    #[must_use]
    pub const fn host() -> Self {
        Self { side: Side::Host, heard: 0, ready: false }
    }

    /// The guest's end: says that it is there.
    pub fn guest(ready: &Ready, out: &mut Vec<u8>) -> Self {
        frame::put(FrameId::CLIPBOARD_READY, ready, out);
        Self { side: Side::Guest, heard: 0, ready: true }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ClipboardError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive(&mut self, frame: Frame<'_>) -> Result<Said, ClipboardError> {
        match (frame.id, self.side) {
            (FrameId::CLIPBOARD_READY, Side::Host) if !self.ready => {
                self.ready = true;
                Ok(Said::Ready(frame.decode()?))
            }
            (FrameId::CLIPBOARD_OFFER, _) if self.ready => {
                let offer: Offer = frame.decode()?;
                offer.check()?;
                if offer.serial <= self.heard {
                    return Err(ClipboardError::Serial { serial: offer.serial, last: self.heard });
                }
                self.heard = offer.serial;
                Ok(Said::Offer(offer))
            }
            (FrameId::CLIPBOARD_WANT, Side::Host) if self.ready => {
                let want: Want = frame.decode()?;
                check_type(&want.kind)?;
                Ok(Said::Want(want))
            }
            (FrameId::CLIPBOARD_WANT_FILES, Side::Host) if self.ready => Ok(Said::WantFiles(frame.decode()?)),
            (FrameId::CLIPBOARD_DECLINE, Side::Guest) => Ok(Said::Decline(frame.decode()?)),
            (FrameId::FAILED, _) => Ok(Said::Failed(frame.decode()?)),
            (FrameId::BYE, Side::Guest) => Ok(Said::Bye),
            (FrameId::UNKNOWN, _) => Ok(Said::Nothing),
            // A later release's word, on a connection that has no last frame to miss.
            (id, _) if id.name().is_none() => Ok(Said::Nothing),
            (id, _) => Err(ClipboardError::Unexpected { id }),
        }
    }
}

/// The end that has the bytes: the guest after a [`Fetch`], the host after a [`Feed`] or a [`Set`].
#[derive(Debug)]
pub struct Source {
    side: Side,
    sender: Sender,
    /// Nothing more may come from the sink.
    over: bool,
}

/// What a source's rim does next.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceStep {
    /// Nothing; read on.
    Nothing,
    /// The sink takes more: [`Source::room`] has grown.
    Room,
    /// The sink has it all.
    Taken,
    /// The sink wants no more, or broke: stop.
    Refused(Option<WireError>),
}

impl Source {
    /// A source on this side.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        let stream = match side {
            Side::Host => TO_GUEST,
            Side::Guest => TO_HOST,
        };
        Self { side, sender: Sender::new(stream), over: false }
    }

    /// Bytes that may be sent in one frame now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.over { 0 } else { self.sender.room() }
    }

    /// The header of a frame of `len` bytes; the rim sends the bytes behind it.
    pub fn data(&mut self, len: usize) -> Header {
        self.sender.data(len)
    }

    /// All was sent.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.sender.end(out);
    }

    /// The bytes cannot be had: nothing follows.
    pub fn failed(&mut self, error: &WireError, out: &mut Vec<u8>) {
        if !self.over {
            self.over = true;
            frame::put(FrameId::FAILED, error, out);
        }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ClipboardError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive(&mut self, frame: Frame<'_>) -> Result<SourceStep, ClipboardError> {
        let stream = if self.side == Side::Host { TO_GUEST } else { TO_HOST };
        match frame.id {
            FrameId::CREDIT => {
                on_stream(frame, stream)?;
                self.sender.granted(frame.decode()?)?;
                Ok(SourceStep::Room)
            }
            FrameId::UNWANTED => {
                on_stream(frame, stream)?;
                self.sender.refused();
                self.over = true;
                Ok(SourceStep::Refused(None))
            }
            FrameId::FAILED => {
                self.over = true;
                Ok(SourceStep::Refused(Some(frame.decode()?)))
            }
            FrameId::CLIPBOARD_TAKEN if self.side == Side::Host && !self.sender.is_open() => {
                let Taken { bytes } = frame.decode()?;
                let sent = self.sender.total();
                if bytes != sent {
                    return Err(StreamError::Count { channel: stream, received: bytes, claimed: sent }.into());
                }
                self.over = true;
                Ok(SourceStep::Taken)
            }
            FrameId::BYE if self.side == Side::Guest => {
                self.over = true;
                Ok(if self.sender.is_open() { SourceStep::Refused(None) } else { SourceStep::Taken })
            }
            FrameId::UNKNOWN => Ok(SourceStep::Nothing),
            id => Err(ClipboardError::Unexpected { id }),
        }
    }

    /// Whether nothing more can come or go.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes sent so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.sender.total()
    }
}

/// The end that wants the bytes.
#[derive(Debug)]
pub struct Sink {
    side: Side,
    receiver: Receiver,
    over: bool,
}

/// What a sink's rim does next.
#[derive(Debug, PartialEq, Eq)]
pub enum SinkStep<'a> {
    /// Nothing; read on.
    Nothing,
    /// Write these bytes, then say [`Sink::taken`].
    Bytes(&'a [u8]),
    /// That was all; once it is written, say [`Sink::done`].
    Ended,
    /// The source cannot give it.
    Failed(WireError),
    /// The host leaves (guest only).
    Bye,
}

impl Sink {
    /// A sink on this side.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        let stream = match side {
            Side::Host => TO_HOST,
            Side::Guest => TO_GUEST,
        };
        Self { side, receiver: Receiver::new(stream), over: false }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ClipboardError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive<'a>(&mut self, frame: Frame<'a>) -> Result<SinkStep<'a>, ClipboardError> {
        let stream = if self.side == Side::Host { TO_HOST } else { TO_GUEST };
        match frame.id {
            FrameId::DATA => {
                on_stream(frame, stream)?;
                let wanted = self.receiver.data(frame.payload.len())?;
                Ok(if wanted { SinkStep::Bytes(frame.payload) } else { SinkStep::Nothing })
            }
            FrameId::END => {
                on_stream(frame, stream)?;
                self.receiver.end(frame.decode()?)?;
                Ok(SinkStep::Ended)
            }
            FrameId::FAILED => {
                self.over = true;
                Ok(SinkStep::Failed(frame.decode()?))
            }
            FrameId::BYE if self.side == Side::Guest => {
                self.over = true;
                Ok(SinkStep::Bye)
            }
            FrameId::UNKNOWN => Ok(SinkStep::Nothing),
            id => Err(ClipboardError::Unexpected { id }),
        }
    }

    /// The reader took `len` bytes.
    pub fn taken(&mut self, len: usize, out: &mut Vec<u8>) {
        self.receiver.taken(len, out);
    }

    /// The reader went away: no more is wanted.
    pub fn refuse(&mut self, out: &mut Vec<u8>) {
        self.receiver.refuse(out);
    }

    /// All is written: the last word to the source.
    pub fn done(&mut self, out: &mut Vec<u8>) {
        self.over = true;
        match self.side {
            Side::Guest => {
                frame::put(FrameId::CLIPBOARD_TAKEN, &Taken { bytes: self.receiver.total() }, out);
            }
            Side::Host => frame::put_raw(FrameId::BYE, 0, &[], out),
        }
    }

    /// Bytes received so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.receiver.total()
    }

    /// The connection closed.
    ///
    /// # Errors
    /// [`ClipboardError::Cut`] unless the end had been said.
    pub const fn closed(&self) -> Result<(), ClipboardError> {
        if self.over || self.receiver.is_ended() {
            Ok(())
        } else {
            Err(ClipboardError::Cut { bytes: self.receiver.total() })
        }
    }
}

fn on_stream(frame: Frame<'_>, expected: u16) -> Result<(), StreamError> {
    if frame.channel == expected {
        Ok(())
    } else {
        Err(StreamError::NoSuchStream { id: frame.id, channel: frame.channel })
    }
}

#[cfg(test)]
mod tests;
