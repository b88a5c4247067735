use super::*;
use crate::error::ErrorKind;
use crate::frame::FrameBuffer;
use crate::limits::INITIAL_CREDIT;

/// Gives every frame of `wire` to `each`.
fn frames(wire: &[u8], mut each: impl FnMut(Frame<'_>)) {
    let mut buffer = FrameBuffer::new();
    let mut rest = wire;
    loop {
        while let Some(frame) = buffer.take().unwrap() {
            each(frame);
        }
        if rest.is_empty() {
            return;
        }
        let space = buffer.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        buffer.filled(n);
        rest = &rest[n..];
    }
}

fn offer(serial: u64, types: &[&str]) -> Offer {
    Offer {
        serial,
        selection: Selection::CLIPBOARD,
        types: types.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn wire<T: Serialize>(id: FrameId, message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(id, message, &mut out);
    out
}

fn said(channel: &mut Channel, wire: &[u8]) -> Result<Said, ClipboardError> {
    let mut last = Ok(Said::Nothing);
    frames(wire, |frame| last = channel.receive(frame));
    last
}

fn ready() -> Ready {
    let share = Share { to_guest: true, to_host: true };
    Ready { user: "dev".into(), back_end: "x11".into(), selections: vec![Selection::CLIPBOARD], share }
}

#[test]
fn an_offer_needs_a_greater_number_and_sane_names() {
    let mut guest = Channel::guest(&ready(), &mut Vec::new());
    let offered = offer(3, &["text/plain", "TARGETS or so"]);
    let taken = said(&mut guest, &wire(FrameId::CLIPBOARD_OFFER, &offered)).unwrap();
    assert_eq!(taken, Said::Offer(offered));
    for serial in [0, 2, 3] {
        let error = said(&mut guest, &wire(FrameId::CLIPBOARD_OFFER, &offer(serial, &[]))).unwrap_err();
        assert!(matches!(error, ClipboardError::Serial { last: 3, .. }), "{error}");
    }
    for name in ["", "text/\u{1b}[31m", "t\u{e4}xt", &"x".repeat(CLIPBOARD_TYPE + 1)] {
        let error = said(&mut guest, &wire(FrameId::CLIPBOARD_OFFER, &offer(9, &[name]))).unwrap_err();
        assert!(matches!(error, ClipboardError::Type(TypeError::Name { .. })), "{error}");
    }
    let many = vec!["a/b"; CLIPBOARD_TYPES + 1];
    assert!(offer(9, &many).check().is_err() && offer(9, &many[1..]).check().is_ok());
}

#[test]
fn each_end_hears_only_what_the_other_may_say() {
    let want = Want { call: [1; 16], selection: Selection::CLIPBOARD, serial: 1, kind: "a/b".into() };
    let decline = Decline { call: [1; 16], error: WireError::new(ErrorKind::NOT_FOUND, "gone") };
    let (want, decline) = (wire(FrameId::CLIPBOARD_WANT, &want), wire(FrameId::CLIPBOARD_DECLINE, &decline));
    let mut out = Vec::new();
    let mut guest = Channel::guest(&ready(), &mut out);
    let mut host = Channel::host();
    // Nothing before the desktop is there.
    assert!(said(&mut host, &want).is_err());
    assert_eq!(said(&mut host, &out).unwrap(), Said::Ready(ready()));
    assert!(said(&mut host, &out).is_err(), "ready twice");
    assert!(matches!(said(&mut host, &want), Ok(Said::Want(_))));
    assert!(matches!(said(&mut guest, &decline), Ok(Said::Decline(_))));
    assert!(said(&mut guest, &want).is_err() && said(&mut host, &decline).is_err());
}

#[test]
fn bytes_cross_either_way_and_the_last_word_is_the_sinks() {
    for side in [Side::Host, Side::Guest] {
        let other = if side == Side::Host { Side::Guest } else { Side::Host };
        let (mut source, mut sink) = (Source::new(side), Sink::new(other));
        let (mut to_sink, mut to_source) = (Vec::new(), Vec::new());
        let header = source.data(5);
        to_sink.extend_from_slice(&header.to_bytes());
        to_sink.extend_from_slice(b"hello");
        source.end(&mut to_sink);
        let mut got = Vec::new();
        frames(&to_sink, |frame| match sink.receive(frame).unwrap() {
            SinkStep::Bytes(bytes) => got.extend_from_slice(bytes),
            step => assert_eq!(step, SinkStep::Ended),
        });
        assert_eq!(got, b"hello");
        sink.taken(5, &mut to_source);
        sink.done(&mut to_source);
        frames(&to_source, |frame| assert_eq!(source.receive(frame).unwrap(), SourceStep::Taken));
        assert!(source.is_over() && sink.closed().is_ok());
    }
}

#[test]
fn a_cut_is_no_end_and_an_overrun_is_refused() {
    let mut sink = Sink::new(Side::Host);
    let some = Frame { id: FrameId::DATA, channel: TO_HOST, payload: b"abc" };
    assert_eq!(sink.receive(some).unwrap(), SinkStep::Bytes(b"abc"));
    assert!(matches!(sink.closed(), Err(ClipboardError::Cut { bytes: 3 })));
    let flood = vec![0; INITIAL_CREDIT as usize - 3];
    let flood = Frame { id: FrameId::DATA, channel: TO_HOST, payload: &flood };
    assert!(sink.receive(flood).is_ok() && sink.receive(some).is_err(), "{INITIAL_CREDIT} bytes of credit");
    let stray = Frame { id: FrameId::DATA, channel: TO_GUEST, payload: b"x" };
    assert!(Sink::new(Side::Host).receive(stray).is_err());
}

#[test]
fn a_source_stops_when_nobody_wants_it_and_believes_no_wrong_count() {
    let mut source = Source::new(Side::Host);
    frames(&wire(FrameId::FAILED, &WireError::new(ErrorKind::OTHER, "x")), |frame| {
        assert!(matches!(source.receive(frame), Ok(SourceStep::Refused(Some(_)))));
    });
    assert_eq!(source.room(), 0);
    let mut source = Source::new(Side::Host);
    source.data(2);
    source.end(&mut Vec::new());
    frames(&wire(FrameId::CLIPBOARD_TAKEN, &Taken { bytes: 1 }), |frame| {
        assert!(matches!(source.receive(frame), Err(ClipboardError::Stream(StreamError::Count { .. }))));
    });
}
