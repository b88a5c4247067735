//! Clipboard: each of its machines against a hostile peer.

use hospes_protocol::clipboard::files::{Ask, Borrower, Deed, Lender, Lent, READ_MOST, Roots, check_name};
use hospes_protocol::clipboard::{Channel, Ready, Share, Side, Sink, SinkStep, Source};
use hospes_protocol::frame::FrameId;
use hospes_protocol::limits::{INITIAL_CREDIT, MESSAGE_LEN};

use super::input::{Input, own_frames};

/// The machine that the first byte says, and a peer that says anything.
pub fn clipboard(data: &[u8]) {
    let mut input = Input(data);
    let which = input.byte();
    let side = if which % 2 == 0 { Side::Host } else { Side::Guest };
    let mut out = Vec::new();
    match which / 2 % 5 {
        0 => channel(side, input, &mut out),
        1 => sink(side, input, &mut out),
        2 => source(side, input, &mut out),
        3 => borrower(input, &mut out),
        _ => lender(input, &mut out),
    }
    own_frames(&out, |_| ());
}

fn channel(side: Side, mut input: Input<'_>, out: &mut Vec<u8>) {
    let ready = Ready {
        user: String::new(),
        back_end: String::new(),
        selections: Vec::new(),
        share: Share { to_guest: true, to_host: true },
    };
    let mut channel = if side == Side::Host { Channel::host() } else { Channel::guest(&ready, out) };
    while input.next().is_some() {
        let frame = input.frame();
        let offer = frame.id == FrameId::CLIPBOARD_OFFER;
        match channel.receive(frame) {
            Ok(_) => assert!(!offer || frame.payload.len() <= MESSAGE_LEN as usize),
            Err(error) => return drop(error.to_string()),
        }
    }
}

fn sink(side: Side, mut input: Input<'_>, out: &mut Vec<u8>) {
    let mut sink = Sink::new(side);
    let (mut waiting, mut refused) = (0usize, false);
    while let Some(what) = input.next() {
        match what % 4 {
            0 => {
                let len = input.len(waiting);
                waiting -= len;
                sink.taken(len, out);
            }
            1 if what > 200 => {
                sink.refuse(out);
                refused = true;
            }
            _ => match sink.receive(input.frame()) {
                Ok(SinkStep::Bytes(bytes)) => {
                    waiting += bytes.len();
                    assert!(waiting <= INITIAL_CREDIT as usize && !refused, "{waiting} bytes are buffered");
                }
                Ok(SinkStep::Ended) => assert!(sink.closed().is_ok()),
                Ok(_) => (),
                Err(error) => return drop(error.to_string()),
            },
        }
    }
}

fn source(side: Side, mut input: Input<'_>, out: &mut Vec<u8>) {
    let mut source = Source::new(side);
    while let Some(what) = input.next() {
        match what % 4 {
            0 => {
                let len = input.len(source.room());
                if source.room() > 0 {
                    assert_eq!(source.data(len).len as usize, len);
                }
            }
            1 => source.end(out),
            _ => {
                if let Err(error) = source.receive(input.frame()) {
                    return drop(error.to_string());
                }
                assert!(!source.is_over() || source.room() == 0, "bytes after the last word");
            }
        }
    }
}

fn borrower(mut input: Input<'_>, out: &mut Vec<u8>) {
    let mut borrower = Borrower::new();
    let mut open = 0usize;
    while let Some(what) = input.next() {
        if what % 2 == 0 {
            let deed = Deed(what / 2 % 7);
            let len = u32::from(what) * 1024;
            let ask = Ask { id: 0, deed, root: 0, path: Vec::new(), handle: 0, offset: 0, len };
            open += usize::from(borrower.ask(ask, out).is_some_and(|id| id != 0));
            continue;
        }
        let said = match borrower.receive(input.frame()) {
            Ok(said) => said,
            Err(error) => return drop(error.to_string()),
        };
        match said {
            Lent::Nothing | Lent::Failed(_) => continue,
            Lent::Roots(roots) => {
                assert!(
                    roots.roots.iter().all(|root| root.name.is_empty() || check_name(&root.name).is_ok())
                );
                continue;
            }
            Lent::Entries(_, entries) => assert!(entries.iter().all(|entry| check_name(&entry.name).is_ok())),
            Lent::Bytes(_, bytes) => assert!(bytes.len() <= 255 * 1024),
            Lent::Node(..) | Lent::Refused(..) => (),
        }
        open = open.checked_sub(1).expect("an answer to no question");
    }
}

fn lender(mut input: Input<'_>, out: &mut Vec<u8>) {
    let mut lender = Lender::new(&Roots::default(), out);
    while input.next().is_some() {
        match lender.receive(input.frame()) {
            Ok(Some(ask)) => {
                let parts = || ask.path.split(|byte| *byte == b'/');
                assert!(ask.path.is_empty() || parts().all(|name| check_name(name).is_ok()));
                assert!(ask.len <= READ_MOST);
            }
            Ok(None) => (),
            Err(error) => return drop(error.to_string()),
        }
    }
}
