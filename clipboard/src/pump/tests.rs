use std::os::unix::net::UnixStream;

use super::*;
use crate::pipe::pipe;

fn pair() -> (Wire, Wire) {
    let (one, two) = UnixStream::pair().unwrap();
    (Wire::new(one.into(), &[]).unwrap(), Wire::new(two.into(), &[]).unwrap())
}

/// Bytes that are nowhere the same for long.
fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 7 + n / 251) % 256).unwrap()).collect()
}

#[tokio::test]
async fn bytes_of_any_number_arrive_whole_on_either_side() {
    for side in [Side::Host, Side::Guest] {
        let other = if side == Side::Host { Side::Guest } else { Side::Host };
        for len in [0, 1, 65_536, 3_000_001] {
            let (mut near, mut far) = pair();
            let (paste, program) = pipe().unwrap();
            let (reader, writer) = pipe().unwrap();
            let bytes = noise(len);
            let copy = bytes.clone();
            let copier = std::thread::spawn(move || File::from(program).write_all(&copy).unwrap());
            let mut got = Vec::new();
            let mut reader = Reader::new(From::Pipe(reader)).unwrap();
            let read = async {
                let mut chunk = vec![0; 100_000];
                while let n @ 1.. = reader.read(&mut chunk).await.unwrap() {
                    got.extend_from_slice(&chunk[..n]);
                }
            };
            let (sent, taken, ()) = tokio::join!(
                source(&mut near, side, From::Pipe(paste)),
                sink(&mut far, other, Into::Pipe(writer)),
                read
            );
            assert_eq!((sent.unwrap(), taken.unwrap()), (len as u64, len as u64));
            assert!(got == bytes, "{len} bytes");
            copier.join().unwrap();
        }
    }
}

#[tokio::test]
async fn a_paste_that_is_given_up_stops_its_source() {
    let (mut near, mut far) = pair();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let endless = File::open("/dev/zero").unwrap();
    let (sent, taken) = tokio::join!(
        source(&mut near, Side::Guest, From::File(endless)),
        sink(&mut far, Side::Host, Into::Pipe(writer))
    );
    assert!(matches!(sent, Err(PumpError::Cancelled)), "{sent:?}");
    assert!(matches!(taken, Err(PumpError::Program(_))), "{taken:?}");
}

#[tokio::test]
async fn more_than_may_be_is_refused_and_its_sender_told_why() {
    let (mut near, mut far) = pair();
    let kept = crate::kept::Kept::new().unwrap();
    let endless = File::open("/dev/zero").unwrap();
    let (sent, taken) = tokio::join!(
        source(&mut near, Side::Host, From::File(endless)),
        sink(&mut far, Side::Guest, Into::File(kept.writer().unwrap(), 1_000_000))
    );
    assert!(matches!(taken, Err(PumpError::TooLong { most: 1_000_000 })), "{taken:?}");
    let Err(PumpError::Failed(told)) = sent else { panic!("{sent:?}") };
    assert_eq!(told.kind, ErrorKind::LIMIT);
}

#[tokio::test]
async fn a_connection_that_closes_early_is_no_end() {
    let (near, mut far) = pair();
    let (_reader, writer) = pipe().unwrap();
    let cut = async {
        let mut bytes = Source::new(Side::Guest).data(3).to_bytes().to_vec();
        bytes.extend_from_slice(b"abc");
        near.write_all(&bytes).await.unwrap();
        drop(near);
    };
    let (taken, ()) = tokio::join!(sink(&mut far, Side::Host, Into::Pipe(writer)), cut);
    assert!(matches!(taken, Err(PumpError::Protocol(ClipboardError::Cut { bytes: 3 }))), "{taken:?}");
}
