use super::*;
use crate::codec;
use crate::error::ErrorKind;

fn golden<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    message: &T,
    bytes: &[u8],
) {
    let mut out = Vec::new();
    codec::encode_into(message, &mut out);
    assert_eq!(out, bytes);
    assert_eq!(&codec::decode::<T>(bytes).unwrap(), message);
}

const ID: CopyId = CopyId(*b"0123456789abcdef");

fn pull(sources: Vec<Vec<u8>>) -> Pull {
    Pull { user: "ada".into(), id: ID, sources, exclude: vec![b"*.o".to_vec()], count: true }
}

#[test]
fn messages_keep_their_bytes() {
    let push = Push {
        user: "ada".into(),
        id: ID,
        target: b"/srv".to_vec(),
        into: true,
        special_bits: false,
        strict: true,
    };
    golden(&push, b"\x03ada0123456789abcdef\x04/srv\x01\x00\x01");
    golden(&pull(vec![b"a/".to_vec()]), b"\x03ada0123456789abcdef\x01\x02a/\x01\x03*.o\x01");
    golden(&Resume { user: String::new(), id: ID, taken: 300 }, b"\x000123456789abcdef\xfb\x2c\x01");
    golden(&Position { taken: 7 }, b"\x07");
    golden(
        &Problem { path: b"x/y".to_vec(), error: WireError::new(ErrorKind::NO_SPACE, "full") },
        b"\x03x/y\x1d\x04full\x00",
    );
    golden(&Done { files: 1, directories: 2, links: 3, bytes: 4, problems: 5 }, b"\x01\x02\x03\x04\x05");
}

#[test]
fn requests_are_held_against_their_limits() {
    assert_eq!(pull(vec![b"a".to_vec()]).check(), Ok(()));
    assert_eq!(pull(vec![]).check(), Err(RequestError::NoSource));
    assert_eq!(pull(vec![b"a\0".to_vec()]).check(), Err(RequestError::Path));
    assert_eq!(pull(vec![vec![]]).check(), Err(RequestError::Path));
    assert!(matches!(pull(vec![vec![b'a'; PATH + 1]]).check(), Err(RequestError::TooMany { .. })));
    assert!(matches!(
        pull(vec![b"a".to_vec(); COPY_SOURCES + 1]).check(),
        Err(RequestError::TooMany { what: "sources", .. })
    ));
}
