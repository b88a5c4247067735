//! Frames, messages, handshakes, tickets, archives: what a connection's bytes become first.

use std::collections::HashSet;
use std::sync::OnceLock;

use hospes_protocol::codec;
use hospes_protocol::control::{self, Request};
use hospes_protocol::copy::archive::Decoder;
use hospes_protocol::frame::{Frame, FrameBuffer, FrameId, Header};
use hospes_protocol::handshake::{Entropy, Guest, Host, SessionId, machine_digest};
use hospes_protocol::keys::SecretKey;
use hospes_protocol::limits::{HEADER_LEN, TICKET_WINDOW};
use hospes_protocol::ticket::{Issuer, Opened, SessionSecret, Ticket, Window};
use hospes_protocol::version::Capabilities;

use super::input::{Input, frames};
use super::recode::recode;

/// Bytes cut anywhere are the same frames, data in pieces, and end in the same refusal, as uncut.
pub fn frame(data: &[u8]) {
    let mut input = Input(data);
    let cuts: Vec<usize> = (0..1 + input.byte() % 8).map(|_| 1 + usize::from(input.u16())).collect();
    let wire = input.0;
    let (expected, refused) = in_one_piece(wire);
    let mut buffer = FrameBuffer::new();
    // Frames that were seen to their ends, and the bytes of a data frame that were seen before its end.
    let (mut rest, mut seen, mut of_data) = (wire, 0, 0);
    for cut in cuts.iter().cycle() {
        loop {
            let ready = buffer.is_ready();
            match buffer.take() {
                Ok(Some(frame)) => {
                    assert_eq!(ready, Ok(true));
                    let Some(whole) = expected.get(seen) else { panic!("frame {seen} was never sent") };
                    let to = of_data + frame.payload.len();
                    assert!(frame.id == FrameId::DATA || of_data == 0, "a message in pieces");
                    let piece = Frame { payload: &whole.payload[of_data..to], ..*whole };
                    assert_eq!(frame, piece, "frame {seen} depends on the cuts");
                    of_data = if to == whole.payload.len() { 0 } else { to };
                    seen += usize::from(of_data == 0);
                }
                Ok(None) => break assert_eq!(ready, Ok(false)),
                Err(_) => {
                    assert!(refused && seen == expected.len(), "refused early, after {seen}");
                    return;
                }
            }
        }
        if rest.is_empty() {
            break;
        }
        let space = buffer.space();
        assert!(!space.is_empty(), "no room to read into");
        let n = rest.len().min(*cut).min(space.len());
        space[..n].copy_from_slice(&rest[..n]);
        buffer.filled(n);
        rest = &rest[n..];
    }
    assert!(!refused && seen == expected.len(), "{seen} frames of {}", expected.len());
}

/// The frames without a buffer, a data frame at the end as far as it goes, and whether a header behind them is refused.
fn in_one_piece(mut wire: &[u8]) -> (Vec<Frame<'_>>, bool) {
    let mut frames = Vec::new();
    while let Some(bytes) = wire.first_chunk::<HEADER_LEN>() {
        let Ok(header) = Header::parse(*bytes) else { return (frames, true) };
        let after = &wire[HEADER_LEN..];
        let (payload, rest) = match after.split_at_checked(header.len as usize) {
            Some(split) => split,
            None if header.id == FrameId::DATA && !after.is_empty() => (after, &[][..]),
            None => break,
        };
        frames.push(Frame { id: header.id, channel: header.channel, payload });
        wire = rest;
    }
    (frames, false)
}

/// A payload that decodes, as whatever its id says, encodes to bytes that decode to the same.
pub fn messages(data: &[u8]) {
    let Some((header, payload)) = data.split_at_checked(HEADER_LEN) else { return };
    let id = FrameId(u16::from_le_bytes([header[0], header[1]]));
    if payload.len() > id.max_len() as usize {
        return;
    }
    let Some(Ok(once)) = recode(id, payload) else { return };
    let Some(Ok(twice)) = recode(id, &once) else { panic!("{id} does not decode what it encoded") };
    assert_eq!(once, twice, "{id} has two encodings of one message");
}

/// A request that decodes has the number that is read alone.
pub fn control_number(data: &[u8]) {
    let number = control::number(data);
    if let Ok(request) = codec::decode::<Request>(data) {
        assert_eq!(number.ok(), Some(request.number), "the number alone differs");
    }
}

fn capabilities() -> Capabilities {
    Capabilities::EXEC.with(Capabilities::COPY).with(Capabilities(1 << 40))
}

fn entropy(share: u8, nonce: u8, session: u8) -> Entropy {
    Entropy { share: [share; 32], nonce: [nonce; 32], session: [session; 16] }
}

/// A guest's hello: only the one who holds the key gets a session. The keys are those of the golden vectors.
pub fn handshake_host(data: &[u8]) {
    let (host_key, guest_key) = (SecretKey::from_bytes(&[0x11; 32]), SecretKey::from_bytes(&[0x22; 32]));
    frames(data, |frame| {
        let host = Host::start(&host_key, capabilities(), &entropy(0x33, 0x44, 0), &mut Vec::new());
        let mut auth = Vec::new();
        match host.finish(frame.payload, &mut auth) {
            Ok(session) => assert_eq!(session.peer, guest_key.public(), "a key of nobody's was proved"),
            Err(error) => {
                assert!(auth.is_empty(), "our proof went to somebody who gave none");
                drop(error.to_wire());
            }
        }
        true
    });
}

/// A host's hello and its proof: only the one who holds the key gets a session.
pub fn handshake_guest(data: &[u8]) {
    let (host_key, guest_key) = (SecretKey::from_bytes(&[0x11; 32]), SecretKey::from_bytes(&[0x22; 32]));
    let machine = machine_digest("00000000000000000000000000000001");
    let mut answered = None;
    frames(data, |frame| match answered.take() {
        None => {
            let (entropy, mut out) = (entropy(0x55, 0x66, 0x77), Vec::new());
            match Guest::answer(frame.payload, &guest_key, machine, capabilities(), &entropy, &mut out) {
                Ok(guest) => answered = Some(guest),
                Err(error) => {
                    assert!(out.is_empty(), "a refused hello was answered");
                    drop(error.to_wire());
                }
            }
            answered.is_some()
        }
        Some(guest) => {
            if let Ok(session) = guest.finish(frame.payload) {
                assert_eq!(session.peer, host_key.public(), "a key of nobody's was proved");
            }
            false
        }
    });
}

const SESSION: SessionId = SessionId([0x88; 16]);
const SECRET: [u8; 32] = [0x99; 32];

fn tickets() -> &'static [(Ticket, Opened)] {
    static TICKETS: OnceLock<Vec<(Ticket, Opened)>> = OnceLock::new();
    TICKETS.get_or_init(|| {
        let mut issuer = Issuer::new(SESSION, SessionSecret::new(SECRET));
        (0..4 * TICKET_WINDOW).map(|_| issuer.issue()).collect()
    })
}

/// Tickets in any order, and forged ones: each opens once, and not when it is too old.
pub fn ticket(data: &[u8]) {
    let mut window = Window::new(SESSION, SessionSecret::new(SECRET));
    let (mut used, mut top) = (HashSet::new(), 0);
    let mut input = Input(data);
    while let Some(what) = input.next() {
        if what == 0xff {
            if let Ok(forged) = codec::decode::<Ticket>(input.take(64)) {
                let known = tickets().iter().any(|(ticket, _)| *ticket == forged);
                assert!(known || window.take(&forged).is_err(), "a forged ticket opens");
            }
            continue;
        }
        let (ticket, opened) = &tickets()[usize::from(input.u16()) % tickets().len()];
        let fresh = !used.contains(&ticket.serial) && ticket.serial + TICKET_WINDOW > top;
        match window.take(ticket) {
            Ok(answer) => {
                assert!(fresh, "ticket {} opens again", ticket.serial);
                assert!(opened.matches(&answer), "the guest's own proof does not hold");
            }
            Err(error) => assert!(!fresh, "ticket {} is refused: {error}", ticket.serial),
        }
        used.insert(ticket.serial);
        top = top.max(ticket.serial);
    }
}

/// An archive in frames of any size: what is read is written the same way again, and names stay inside.
pub fn archive(data: &[u8]) {
    let mut decoder = Decoder::new();
    let mut input = Input(data);
    while !input.0.is_empty() {
        let len = input.len(1024);
        for record in decoder.records(input.take(len)) {
            let Ok(record) = record else { return };
            let mut once = Vec::new();
            record.encode(&mut once);
            let mut alone = Decoder::new();
            // Where a record may stand is the first decoder's affair; its bytes mean the same anywhere.
            if let Some(Ok(again)) = alone.records(&once).next() {
                let mut twice = Vec::new();
                again.encode(&mut twice);
                assert_eq!(once, twice, "a record has two encodings");
            }
        }
    }
    let _ = decoder.end();
}
