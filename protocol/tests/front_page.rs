//! The crate's front page is the specification: what it says in numbers is what the code says.
#![expect(clippy::unwrap_used, reason = "a page that is not as the test knows it fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use hospes_protocol::frame::FrameId;
use hospes_protocol::limits::{
    DATA_LEN, HANDSHAKE_LEN, HANDSHAKE_MS, HANDSHAKES, HEADER_LEN, INITIAL_CREDIT, LARGE_MESSAGE_LEN,
    MAX_CREDIT, MESSAGE_LEN, SESSIONS,
};

/// The rows of the table under `# Limits`, by their first column.
fn limits() -> BTreeMap<&'static str, &'static str> {
    let page = include_str!("../src/lib.rs");
    let section = page.split("//! # Limits").nth(1).unwrap().split("//! # ").next().unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter_map(|row| row.trim_end_matches(" |").split_once(" | "))
        .filter(|(what, _)| *what != "what")
        .collect()
}

fn bytes(n: u32) -> String {
    match n {
        n if n >= 1 << 20 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

#[test]
fn the_limits_on_the_front_page_are_the_codes() {
    assert_eq!(SESSIONS, HANDSHAKES);
    let code = [
        ("frame header", bytes(u32::try_from(HEADER_LEN).unwrap())),
        ("payload before anybody has proved anything", bytes(HANDSHAKE_LEN)),
        ("ordinary message", bytes(MESSAGE_LEN)),
        ("exec request, listing, variables", bytes(LARGE_MESSAGE_LEN)),
        ("data frame, with its header", bytes(DATA_LEN + u32::try_from(HEADER_LEN).unwrap())),
        (
            "full data frames under way on a stream: at its start, at most",
            format!("{}, {}", INITIAL_CREDIT / DATA_LEN, MAX_CREDIT / DATA_LEN),
        ),
        ("control sessions, unproved connections, in a guest", format!("{SESSIONS} each")),
        ("from connect to the end of the handshake", format!("{} s", HANDSHAKE_MS / 1000)),
    ];
    let code: BTreeMap<&str, &str> = code.iter().map(|(what, limit)| (*what, limit.as_str())).collect();
    assert_eq!(limits(), code);
}

#[test]
fn ids_of_one_feature_share_their_high_byte_and_no_other_has_it() {
    let mut features: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for id in (0x0100..=u16::MAX).map(FrameId) {
        if let Some(name) = id.name() {
            features.entry(id.0 >> 8).or_default().insert(name.split('_').next().unwrap());
        }
    }
    let expected: [(u16, &[&str]); 9] = [
        (1, &["EXEC"]),
        (2, &["KILL", "KILLED", "PROCESSES", "PS"]),
        (3, &["CONTROL", "EVENT", "REPLY", "REQUEST"]),
        (4, &["COPY"]),
        (5, &["FILE"]),
        (6, &["FORWARD"]),
        (7, &["TIME"]),
        (10, &["CLIPBOARD"]),
        (11, &["DISPLAY"]),
    ];
    let expected =
        expected.into_iter().map(|(byte, words)| (byte, words.iter().copied().collect())).collect();
    assert_eq!(features, expected);
}

#[test]
fn no_frame_that_comes_before_a_proof_is_large() {
    for id in (0..=u16::MAX).map(FrameId).filter(|id| id.name().is_some()) {
        let first = [
            FrameId::CLIENT_HELLO,
            FrameId::SERVER_HELLO,
            FrameId::CLIENT_AUTH,
            FrameId::READY,
            FrameId::TICKET,
            FrameId::OPENED,
            FrameId::ANNOUNCE,
        ];
        assert!(!first.contains(&id) || id.max_len() == HANDSHAKE_LEN, "{id}");
        assert!(id.max_len() <= LARGE_MESSAGE_LEN, "{id}");
    }
}
