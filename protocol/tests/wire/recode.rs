//! Every frame's payload, decoded and encoded again.

use hospes_protocol::clipboard::files;
use hospes_protocol::codec::{self, CodecError};
use hospes_protocol::frame::FrameId;
use hospes_protocol::{
    clipboard, control, copy, display, error, exec, file, forward, handshake, process, ticket, time,
};
use serde::{Serialize, de::DeserializeOwned};

/// Decodes a payload as its id's message and encodes it again. `None` for an id without a message of its own.
///
/// An id that is new in this release belongs here: the test of the golden vectors fails until it is.
pub(crate) fn recode(id: FrameId, payload: &[u8]) -> Option<Result<Vec<u8>, CodecError>> {
    let again = match id {
        FrameId::CLIENT_HELLO => message::<handshake::ClientHello>,
        FrameId::SERVER_HELLO => message::<handshake::ServerHello>,
        FrameId::CLIENT_AUTH => message::<handshake::ClientAuth>,
        FrameId::READY => message::<handshake::Ready>,
        FrameId::ANNOUNCE => message::<handshake::Announce>,
        FrameId::TICKET => message::<ticket::Ticket>,
        FrameId::OPENED => message::<ticket::Opened>,
        FrameId::FAILED => message::<error::WireError>,
        FrameId::UNKNOWN => message::<error::Unknown>,
        FrameId::CREDIT => message::<u32>,
        FrameId::END => message::<u64>,
        FrameId::EXEC => message::<exec::Exec>,
        FrameId::EXEC_STARTED => message::<exec::Started>,
        FrameId::EXEC_SIGNAL => message::<exec::Signal>,
        FrameId::EXEC_RESIZE => message::<exec::WindowSize>,
        FrameId::EXEC_EXITED => message::<exec::Exited>,
        FrameId::EXEC_ATTACH => message::<exec::Attach>,
        FrameId::PS => message::<process::Ps>,
        FrameId::PROCESSES => message::<process::Processes>,
        FrameId::KILL => message::<process::Kill>,
        FrameId::KILLED => message::<process::Killed>,
        FrameId::REQUEST => message::<control::Request>,
        FrameId::REPLY => message::<control::Reply>,
        FrameId::EVENT => message::<control::Event>,
        FrameId::COPY_PUSH => message::<copy::Push>,
        FrameId::COPY_PULL => message::<copy::Pull>,
        FrameId::COPY_RESUME => message::<copy::Resume>,
        FrameId::COPY_POSITION => message::<copy::Position>,
        FrameId::COPY_PROBLEM => message::<copy::Problem>,
        FrameId::COPY_DONE => message::<copy::Done>,
        FrameId::FILE => message::<file::FileRequest>,
        FrameId::FILE_REPLY => message::<file::FileReply>,
        FrameId::FILE_ENTRIES => message::<file::Entries>,
        FrameId::FORWARD_CONNECT => message::<forward::Connect>,
        FrameId::FORWARD_LISTEN => message::<forward::Listen>,
        FrameId::FORWARD_ACCEPT => message::<forward::Accept>,
        FrameId::FORWARD_OPEN => message::<forward::Open>,
        FrameId::FORWARD_LISTENING => message::<forward::Listening>,
        FrameId::FORWARD_INCOMING => message::<forward::Incoming>,
        FrameId::FORWARD_REFUSE => message::<forward::Refuse>,
        FrameId::TIME => message::<time::Time>,
        FrameId::TIME_PROBE => message::<time::Probe>,
        FrameId::TIME_STAMP => message::<time::Stamp>,
        FrameId::TIME_REPORT => message::<time::Report>,
        FrameId::CLIPBOARD => message::<clipboard::Share>,
        FrameId::CLIPBOARD_READY => message::<clipboard::Ready>,
        FrameId::CLIPBOARD_OFFER => message::<clipboard::Offer>,
        FrameId::CLIPBOARD_WANT => message::<clipboard::Want>,
        FrameId::CLIPBOARD_DECLINE => message::<clipboard::Decline>,
        FrameId::CLIPBOARD_FETCH => message::<clipboard::Fetch>,
        FrameId::CLIPBOARD_FEED => message::<clipboard::Feed>,
        FrameId::CLIPBOARD_SET => message::<clipboard::Set>,
        FrameId::CLIPBOARD_TAKEN => message::<clipboard::Taken>,
        FrameId::CLIPBOARD_FILES => message::<files::Files>,
        FrameId::CLIPBOARD_WANT_FILES => message::<files::WantFiles>,
        FrameId::CLIPBOARD_LEND => message::<files::Lend>,
        FrameId::CLIPBOARD_ROOTS => message::<files::Roots>,
        FrameId::CLIPBOARD_ASK => message::<files::Ask>,
        FrameId::CLIPBOARD_NODE => message::<files::Node>,
        FrameId::CLIPBOARD_ENTRIES => message::<files::Entries>,
        FrameId::CLIPBOARD_REFUSAL => message::<files::Refusal>,
        FrameId::DISPLAY => message::<display::Display>,
        FrameId::DISPLAY_STATE => message::<display::State>,
        FrameId::DATA | FrameId::CLIPBOARD_BYTES => raw,
        FrameId::BYE | FrameId::UNWANTED | FrameId::EXEC_DETACH | FrameId::CONTROL => message::<()>,
        _ => return None,
    };
    Some(again(payload))
}

fn message<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut again = Vec::new();
    codec::encode_into(&codec::decode::<T>(payload)?, &mut again);
    Ok(again)
}

#[expect(clippy::unnecessary_wraps, reason = "one of a table of fallible functions")]
fn raw(payload: &[u8]) -> Result<Vec<u8>, CodecError> {
    Ok(payload.to_vec())
}
