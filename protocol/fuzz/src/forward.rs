//! Forward: either end against a hostile peer.

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{End, Open, Step, TO_GUEST, TO_HOST};
use hospes_protocol::frame::{Frame, FrameId};
use hospes_protocol::limits::{DATA_LEN, INITIAL_CREDIT, MAX_CREDIT};

use super::input::{Input, ZEROS, own_frames};

fn payload<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    hospes_protocol::codec::encode_into(message, &mut bytes);
    bytes
}

/// One end, the host's or the guest's as the first byte says, and a peer that says anything.
pub fn forward(data: &[u8]) {
    let mut input = Input(data);
    let (host, mut out) = (input.byte() % 2 == 0, Vec::new());
    let mut end = if host { End::host() } else { End::guest(&Open { peer: String::new() }, &mut out) };
    let (inbound, outbound) = if host { (TO_HOST, TO_GUEST) } else { (TO_GUEST, TO_HOST) };
    let (mut received, mut waiting, mut refused) = (0u64, 0usize, false);
    let (mut sent, mut granted) = (0u64, u64::from(INITIAL_CREDIT));
    while let Some(what) = input.next() {
        let bytes;
        let frame = match what % 12 {
            0 => {
                bytes = payload(&Open { peer: "x".into() });
                Frame { id: FrameId::FORWARD_OPEN, channel: 0, payload: &bytes }
            }
            1..=3 => {
                Frame { id: FrameId::DATA, channel: inbound, payload: &ZEROS[..input.len(DATA_LEN as usize)] }
            }
            4 => {
                bytes = payload(&received);
                Frame { id: FrameId::END, channel: inbound, payload: &bytes }
            }
            5 => {
                let grant = input.u32();
                granted += u64::from(grant);
                bytes = payload(&grant);
                Frame { id: FrameId::CREDIT, channel: outbound, payload: &bytes }
            }
            6 => match input.frame() {
                Frame { id: FrameId::CREDIT, .. } => continue,
                other => other,
            },
            7 => {
                let len = input.len(end.room());
                if end.room() > 0 {
                    assert_eq!(end.data(len).len as usize, len);
                    sent += len as u64;
                    assert!(sent <= granted, "{sent} bytes sent with credit for {granted}");
                }
                continue;
            }
            8 => {
                let len = input.len(waiting);
                waiting -= len;
                end.written(len, &mut out);
                continue;
            }
            9 => {
                end.end(&mut out);
                assert_eq!(end.room(), 0, "bytes after the end");
                continue;
            }
            10 => {
                end.refuse(&mut out);
                refused = true;
                continue;
            }
            _ => {
                assert_eq!(end.closed().is_ok(), end.is_done());
                if input.byte() == 0 {
                    end.failed(&WireError::new(ErrorKind::OTHER, "x"), &mut out);
                    assert!(end.is_done());
                }
                continue;
            }
        };
        let (data, len) = (frame.id == FrameId::DATA, frame.payload.len());
        match end.receive(frame) {
            Ok(Step::Bytes(bytes)) => {
                assert!(data, "bytes out of nothing");
                received += bytes.len() as u64;
                waiting += bytes.len();
                assert!(waiting <= MAX_CREDIT as usize, "{waiting} bytes are buffered");
            }
            Ok(Step::Nothing) if data => {
                assert!(refused, "bytes were dropped");
                received += len as u64;
            }
            Ok(Step::Failed(_)) => assert!(end.is_done()),
            Ok(_) => (),
            Err(error) => return drop(error.to_string()),
        }
    }
    own_frames(&out, |_| ());
}
