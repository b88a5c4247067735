use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use hospes_protocol::copy::archive::Record;
use hospes_protocol::frame;

use super::*;
use crate::exclude::Exclude;
use crate::fault::Summary;
use crate::frames::{Frames, Stopped};
use crate::read::{Produce, Reader, Source};
use crate::write::{Consume, Options, Target, Writer};

/// Both ends' connections for one side.
struct Spare(mpsc::Receiver<(UnixStream, u64)>, mpsc::Sender<u64>);

impl Relink for Spare {
    fn relink(&mut self, taken: u64) -> Option<(Link, u64)> {
        self.1.send(taken).ok()?;
        let (stream, position) = self.0.recv().ok()?;
        Some((Link::new(stream.into(), Vec::new()), position))
    }
}

/// Passes bytes from `from` to `to` until `allow` have gone or either closes; then closes both for good.
fn pass(from: &UnixStream, to: &UnixStream, allow: usize) {
    let (mut left, mut buffer) = (allow, vec![0; 4096]);
    while left > 0 {
        let most = left.min(buffer.len());
        match (&*from).read(&mut buffer[..most]) {
            Ok(n) if n > 0 => {
                if (&*to).write_all(&buffer[..n]).is_err() {
                    break;
                }
                left -= n;
            }
            _ => break,
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// A connection that is cut after so many bytes in each direction.
fn fragile(forth: usize, back: usize) -> (UnixStream, UnixStream) {
    let (ours, near) = UnixStream::pair().unwrap();
    let (far, theirs) = UnixStream::pair().unwrap();
    let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || pass(&near, &far, forth));
    thread::spawn(move || pass(&far2, &near2, back));
    (ours, theirs)
}

type Ends = (Result<(Summary, Option<Summary>), TransferError>, Result<Summary, TransferError>);

/// A copy over connections that are cut as said; the last one holds.
fn run(
    producer: Box<dyn Produce>,
    consumer: Box<dyn Consume>,
    cuts: &[(usize, usize)],
    report: bool,
) -> Ends {
    let ((to_sender, sender_spare), (to_receiver, receiver_spare)) = (mpsc::channel(), mpsc::channel());
    let ((sender_lost, lost_s), (receiver_lost, lost_r)) = (mpsc::channel(), mpsc::channel());
    let connection = |n: usize| match cuts.get(n) {
        Some((forth, back)) => fragile(*forth, *back),
        None => UnixStream::pair().unwrap(),
    };
    let (ours, theirs) = connection(0);
    let ways = if report { (Send::Report, Receive::Report) } else { (Send::Goodbye, Receive::Goodbye) };
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut spare = Spare(sender_spare, sender_lost);
            send(Link::new(ours.into(), vec![]), &mut spare, producer, ways.0, &Cancel::default())
        });
        let receiving = scope.spawn(move || {
            let mut spare = Spare(receiver_spare, receiver_lost);
            receive(Link::new(theirs.into(), vec![]), &mut spare, consumer, ways.1, &Cancel::default())
        });
        let mut n = 0;
        // Both have to lose it, as both do; then both get the next.
        while let (Ok(_), Ok(taken)) = (lost_s.recv(), lost_r.recv()) {
            n += 1;
            let (ours, theirs) = connection(n);
            to_sender.send((ours, taken)).unwrap();
            to_receiver.send((theirs, 0)).unwrap();
        }
        drop((to_sender, to_receiver));
        (sending.join().unwrap(), receiving.join().unwrap())
    })
}

fn reader(path: &Path) -> Box<Reader> {
    let source = Source::new(path.as_os_str().as_bytes()).unwrap();
    Box::new(Reader::new(vec![source], Exclude::default(), false, Arc::default()).unwrap())
}

fn writer(path: &Path) -> Box<Writer> {
    let target = Target::new(path.as_os_str().as_bytes(), false);
    Box::new(Writer::new(target, Options::default(), Arc::default()).unwrap())
}

fn files(top: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(top).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.display().to_string().split_off(top.as_os_str().len()), fs::read(&path).unwrap());
    }
    found
}

fn sample(dir: &Path) -> std::path::PathBuf {
    let from = dir.join("from");
    fs::create_dir(&from).unwrap();
    for n in 0..50u8 {
        fs::write(from.join(format!("small{n}")), vec![n; usize::from(n) * 40]).unwrap();
    }
    fs::write(
        from.join("big"),
        (0..2_000_000u32).flat_map(u32::to_le_bytes).take(1_500_000).collect::<Vec<_>>(),
    )
    .unwrap();
    from
}

#[test]
fn a_cut_anywhere_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let from = sample(dir.path());
    let expected = files(&from);
    let total = 1_560_000;
    for (n, report) in (0..24).flat_map(|n| [(n, true), (n, false)]) {
        let to = dir.path().join(format!("to{n}{report}"));
        let forth = total / 23 * n + n;
        let cuts = [(forth, usize::MAX), (usize::MAX, n % 13), (300_000, usize::MAX), (0, usize::MAX)];
        let (sent, received) = run(reader(&from), writer(&to), &cuts, report);
        let received = received.unwrap_or_else(|error| panic!("cut {n}: {error}"));
        assert_eq!((received.done.files, received.done.problems), (51, 0));
        // In a pull, the goodbye itself may be what was lost: then the sender ends with a cut, and the copy is whole.
        match sent {
            Ok((_, reported)) => assert_eq!(reported.is_some(), report),
            Err(TransferError::Cut { .. }) if !report => (),
            Err(error) => panic!("cut {n}: {error}"),
        }
        assert_eq!(files(&to), expected);
    }
}

/// Copies `one` to `to` over a connection that nobody makes anew; how it ended on both sides.
fn once(dir: &tempfile::TempDir, (ours, theirs): (UnixStream, UnixStream), cancel: &Cancel) -> Ends {
    let consumer = writer(&dir.path().join("to"));
    let receiving = thread::spawn(move || {
        let link = Link::new(theirs.into(), vec![]);
        receive(link, &mut NoRelink, consumer, Receive::Report, &Cancel::default())
    });
    let link = Link::new(ours.into(), vec![]);
    let sent = send(link, &mut NoRelink, reader(&dir.path().join("one")), Send::Report, cancel);
    (sent, receiving.join().unwrap())
}

#[test]
fn a_cut_that_nothing_follows_is_an_error_on_both_sides_and_leaves_no_part() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), vec![1; 5_000_000]).unwrap();
    let (ours, theirs) = fragile(3_000_000, usize::MAX);
    let (sent, received) = once(&dir, (ours, theirs), &Cancel::default());
    assert!(matches!(sent, Err(TransferError::Cut { .. })));
    assert!(matches!(received, Err(TransferError::Cut { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_receivers_refusal_reaches_the_sender_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), vec![1; 5_000_000]).unwrap();
    let target =
        Target::new(dir.path().as_os_str().as_bytes(), false).only(&[Source::new(b"other").unwrap()]);
    let consumer = Box::new(Writer::new(target, Options::default(), Arc::default()).unwrap());
    let (sent, received) = run(reader(&dir.path().join("one")), consumer, &[], true);
    let Err(TransferError::Ours(error)) = received else { panic!("{received:?}") };
    let Err(TransferError::Peer(heard)) = sent else { panic!("{sent:?}") };
    assert_eq!(heard, error);
}

#[test]
fn problems_reach_the_sender() {
    let dir = tempfile::tempdir().unwrap();
    let from = sample(dir.path());
    let to = dir.path().join("to");
    fs::create_dir_all(to.join("from/small7/in the way")).unwrap();
    let (sent, received) = run(reader(&from), writer(&to), &[(1_000_000, usize::MAX)], true);
    let reported = sent.unwrap().1.unwrap();
    assert_eq!(reported, received.unwrap());
    assert_eq!(reported.problems.named()[0].path, b"from/small7");
    assert_eq!(reported.done.files, 50);
}

#[test]
fn a_cancelled_copy_tells_the_other_side() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), vec![1; 5_000_000]).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    let (sent, received) = once(&dir, (ours, theirs), &cancel);
    assert!(matches!(sent, Err(TransferError::Ours(error)) if error.kind == ErrorKind::CANCELLED));
    assert!(matches!(received, Err(TransferError::Peer(error)) if error.kind == ErrorKind::CANCELLED));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// A sender that says these bytes and then closes.
fn hostile(said: &[u8]) -> Result<Summary, TransferError> {
    let dir = tempfile::tempdir().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let said = said.to_vec();
    let telling = thread::spawn(move || {
        let _ = ours.write_all(&said);
        let _ = ours.shutdown(std::net::Shutdown::Write);
        let mut heard = Vec::new();
        let _ = ours.read_to_end(&mut heard);
    });
    let consumer = writer(&dir.path().join("to"));
    let received = receive(
        Link::new(theirs.into(), vec![]),
        &mut NoRelink,
        consumer,
        Receive::Goodbye,
        &Cancel::default(),
    );
    telling.join().unwrap();
    received
}

fn data(records: &[Record<'_>]) -> Vec<u8> {
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    records.iter().for_each(|record| record.encode(&mut payload));
    frame::put_raw(FrameId::DATA, 0, &payload, &mut out);
    out
}

#[test]
fn lies_about_lengths_and_counts_are_found_out() {
    let enter = data(&[Record::Enter { name: b"d", attributes: None }, Record::Leave]);
    let mut end = Vec::new();
    frame::put(FrameId::END, &4u64, &mut end);
    assert!(hostile(&[&enter[..], &end].concat()).is_ok(), "the honest one");
    // The count does not agree; the connection ends without an end; a frame is longer than any may be.
    let mut wrong = Vec::new();
    frame::put(FrameId::END, &5u64, &mut wrong);
    assert!(matches!(hostile(&[&enter[..], &wrong].concat()), Err(TransferError::Stream(_))));
    assert!(matches!(hostile(&enter), Err(TransferError::Cut { bytes: 4 })));
    let header = [0x10, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(hostile(&header), Err(TransferError::Frame(_))));
    // More than the credit, an archive that ends inside a directory, another feature's frame.
    let flood = data(&[Record::Symlink { name: b"s", attributes: <_>::default(), target: b"t" }]);
    assert!(hostile(&flood.repeat(60_000)).is_err());
    let mut open = data(&[Record::Enter { name: b"d", attributes: None }]);
    frame::put(FrameId::END, &3u64, &mut open);
    assert!(matches!(hostile(&open), Err(TransferError::Ours(error)) if error.kind == ErrorKind::PROTOCOL));
    let mut other = Vec::new();
    frame::put_raw(FrameId::EXEC_DETACH, 0, &[], &mut other);
    assert!(matches!(hostile(&other), Err(TransferError::Unexpected { .. })));
}

/// Fills frames without end.
struct Endless;

impl Produce for Endless {
    fn run(self: Box<Self>, frames: &mut Frames) -> Result<Summary, Stopped> {
        loop {
            frames.record(&Record::Total { entries: 1, bytes: 1 })?;
        }
    }
}

#[test]
fn a_receiver_that_lies_is_found_out_and_the_reader_ends() {
    for lie in [
        {
            let mut out = Vec::new();
            frame::put(FrameId::CREDIT, &u32::MAX, &mut out);
            out
        },
        {
            let mut out = Vec::new();
            frame::put(FrameId::COPY_DONE, &hospes_protocol::copy::Done::default(), &mut out);
            out
        },
        vec![0x10, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lying = thread::spawn(move || {
            let mut theirs = theirs;
            let mut sink = vec![0; 1 << 16];
            theirs.write_all(&lie).unwrap();
            theirs.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            while theirs.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let sent = send(
            Link::new(ours.into(), vec![]),
            &mut NoRelink,
            Box::new(Endless),
            Send::Report,
            &Cancel::default(),
        );
        assert!(sent.is_err());
        lying.join().unwrap();
    }
}
