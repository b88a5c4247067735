use super::*;
use proptest::prelude::*;

fn encode(records: &[Record<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|record| record.encode(&mut out));
    out
}

fn decode(bytes: &[u8]) -> Result<usize, ArchiveError> {
    let mut decoder = Decoder::new();
    let count = decoder.records(bytes).try_fold(0, |count, record| record.map(|_| count + 1))?;
    decoder.end().map(|()| count)
}

fn file<'a>(name: &'a [u8], size: u64) -> Record<'a> {
    Record::File { name, attributes: Attributes::default(), size, linked: false, sparse: false }
}

const ENTER: Record<'_> = Record::Enter { name: b"d", attributes: None };

#[test]
fn every_record_keeps_its_bytes() {
    let mut xattrs = Vec::new();
    put_xattr(b"user.a", b"\x00\xff", &mut xattrs);
    let of = Attributes { mode: 0o644, seconds: -2, nanoseconds: 300, xattrs: &xattrs };
    let fault = Fault { kind: ErrorKind::PERMISSION, message: "no" };
    let golden: [(Record<'_>, &[u8]); 19] = [
        (Record::Here(None), b"\x02"),
        (Record::Here(Some(of)), b"\x01\xa4\x03\x03\xac\x02\x0a\x06user.a\x02\x00\xff"),
        (ENTER, b"\x04\x01d"),
        (Record::Enter { name: b"d", attributes: Some(Attributes::default()) }, b"\x03\x01d\x00\x00\x00\x00"),
        (Record::Leave, b"\x05"),
        (file(b"f", 300), b"\x06\x01f\x00\x00\x00\x00\xac\x02"),
        (
            Record::File { name: b"f", attributes: of, size: 0, linked: true, sparse: false },
            b"\x07\x01f\xa4\x03\x03\xac\x02\x0a\x06user.a\x02\x00\xff\x00",
        ),
        (
            Record::File {
                name: b"f",
                attributes: Attributes::default(),
                size: 9,
                linked: false,
                sparse: true,
            },
            b"\x11\x01f\x00\x00\x00\x00\x09",
        ),
        (
            Record::File {
                name: b"f",
                attributes: Attributes::default(),
                size: 9,
                linked: true,
                sparse: true,
            },
            b"\x12\x01f\x00\x00\x00\x00\x09",
        ),
        (Record::Data(b"abc"), b"\x08\x03\x00\x00\x00abc"),
        (Record::Hole(1 << 20), b"\x09\x80\x80\x40"),
        (Record::End, b"\x0a"),
        (Record::Broken(fault), b"\x0b\x19\x02no"),
        (
            Record::Symlink { name: b"s", attributes: Attributes::default(), target: b"../x" },
            b"\x0c\x01s\x00\x00\x00\x00\x04../x",
        ),
        (Record::HardLink { name: b"h", to: 7 }, b"\x0d\x01h\x07"),
        (
            Record::Fifo { name: b"p", attributes: Attributes { mode: 0o600, ..Attributes::default() } },
            b"\x0e\x01p\x80\x03\x00\x00\x00",
        ),
        (Record::Skipped { name: b"k", fault }, b"\x0f\x01k\x19\x02no"),
        (Record::Skipped { name: b"", fault }, b"\x0f\x00\x19\x02no"),
        (Record::Total { entries: 3, bytes: 128 }, b"\x10\x03\x80\x01"),
    ];
    for (record, bytes) in golden {
        let mut out = Vec::new();
        record.encode(&mut out);
        assert_eq!(out, bytes, "{record:?}");
        let mut fields = decode::Fields::new(&out);
        assert_eq!(decode::read(&mut fields).unwrap(), record);
        assert!(fields.rest().is_empty());
    }
    assert_eq!(of.xattrs().collect::<Vec<_>>(), [(&b"user.a"[..], &b"\x00\xff"[..])]);
}

#[test]
fn a_name_is_one_component() {
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", b"../x", &[b'n'; COPY_NAME + 1]] {
        let bytes = encode(&[Record::Enter { name, attributes: None }, Record::Leave]);
        assert!(decode(&bytes).is_err(), "{:?}", name.escape_ascii().to_string());
    }
    assert_eq!(decode(&encode(&[Record::Enter { name: b"...", attributes: None }, Record::Leave])), Ok(2));
}

#[test]
fn a_file_has_exactly_the_bytes_it_said() {
    assert_eq!(decode(&encode(&[file(b"f", 5), Record::Data(b"abc"), Record::Hole(2), Record::End])), Ok(4));
    for wrong in [
        &[file(b"f", 5), Record::Data(b"abc"), Record::End][..],
        &[file(b"f", 2), Record::Data(b"abc")],
        &[file(b"f", 5), Record::Hole(u64::MAX >> 1), Record::Hole(u64::MAX >> 1)],
    ] {
        assert!(matches!(decode(&encode(wrong)), Err(ArchiveError::Size { .. })), "{wrong:?}");
    }
    let fault = Fault { kind: ErrorKind::OS, message: "gone" };
    assert_eq!(decode(&encode(&[file(b"f", 5), Record::Broken(fault)])), Ok(2));
}

#[test]
fn records_keep_their_places() {
    for wrong in [
        &[Record::Leave][..],
        &[Record::Data(b"x")],
        &[Record::End],
        &[file(b"f", 1), ENTER],
        &[ENTER, Record::Here(None)],
        &[Record::HardLink { name: b"h", to: 0 }],
        &[file(b"f", 0), Record::End, Record::HardLink { name: b"h", to: 0 }],
        &[ENTER],
        &[file(b"f", 0)],
    ] {
        assert!(decode(&encode(wrong)).is_err(), "{wrong:?}");
    }
}

#[test]
fn depth_is_capped() {
    let deep = |levels| {
        let mut out = encode(&vec![ENTER; levels]);
        out.extend(encode(&vec![Record::Leave; levels]));
        out
    };
    assert_eq!(decode(&deep(COPY_DEPTH)), Ok(2 * COPY_DEPTH));
    assert_eq!(decode(&deep(COPY_DEPTH + 1)), Err(ArchiveError::Deep));
}

#[test]
fn a_record_never_straddles_frames() {
    let whole = encode(&[file(b"file", 3), Record::Data(b"abc"), Record::End]);
    for cut in 1..whole.len() {
        let mut decoder = Decoder::new();
        let mut records: Vec<_> = decoder.records(&whole[..cut]).collect();
        match records.pop().unwrap() {
            Err(error) => assert_eq!(error, ArchiveError::Short),
            Ok(_) => assert_eq!(decoder.records(&whole[cut..]).filter(Result::is_err).count(), 0),
        }
    }
}

#[test]
fn times_and_lengths_outside_their_range_are_refused() {
    // A file whose nanoseconds are a whole second, one whose mode has a file type, one longer than an offset can say.
    for wrong in [
        &b"\x06\x01f\x00\x00\x80\x94\xeb\xdc\x03\x00\x00\x0a"[..],
        b"\x06\x01f\x80\x80\x02\x00\x00\x00\x00\x0a",
        b"\x06\x01f\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x0a",
        b"\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
    ] {
        assert!(matches!(decode(wrong), Err(ArchiveError::Range { .. })));
    }
}

proptest! {
    #[test]
    fn records_survive_the_wire(
        name in proptest::collection::vec(1u8..=255, 1..255),
        mode in 0u32..=MODE_BITS, seconds in any::<i64>(), nanoseconds in 0u32..1_000_000_000,
        pairs in proptest::collection::vec(("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..5),
        target in proptest::collection::vec(1u8..=255, 1..300), to in any::<u64>(),
    ) {
        let name: Vec<u8> = name.into_iter().map(|byte| if byte == b'/' || byte == b'.' { b'x' } else { byte }).collect();
        let mut xattrs = Vec::new();
        for (key, value) in &pairs { put_xattr(key.as_bytes(), value, &mut xattrs); }
        let attributes = Attributes { mode, seconds, nanoseconds, xattrs: &xattrs };
        for record in [
            Record::Here(Some(attributes)),
            Record::Enter { name: &name, attributes: Some(attributes) },
            Record::File { name: &name, attributes, size: to >> 1, linked: true, sparse: false },
            Record::Symlink { name: &name, attributes, target: &target },
            Record::HardLink { name: &name, to },
            Record::Fifo { name: &name, attributes },
            Record::Total { entries: to, bytes: to },
        ] {
            let mut out = Vec::new();
            record.encode(&mut out);
            prop_assert_eq!(decode::read(&mut decode::Fields::new(&out)).unwrap(), record);
        }
        prop_assert_eq!(attributes.xattrs().count(), pairs.len());
    }

    #[test]
    fn random_bytes_never_panic(frames in proptest::collection::vec(proptest::collection::vec(0u8..=20, 0..400), 1..5)) {
        let mut decoder = Decoder::new();
        for frame in &frames {
            if decoder.records(frame).any(|record| record.is_err()) { break; }
        }
        let _ = decoder.end();
    }

    #[test]
    fn a_flipped_byte_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = encode(&[
            Record::Total { entries: 4, bytes: 9 }, ENTER, file(b"f", 3), Record::Data(b"abc"), Record::End,
            Record::Symlink { name: b"s", attributes: Attributes::default(), target: b"t" }, Record::Leave,
        ]);
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = decode(&bytes);
    }
}
