//! Bytes as a hostile guest of the file system.
//!
//! The bytes are a program of requests, mostly about files that are there. Nothing may panic, what the server keeps
//! must stay within its limits, and nothing outside the share may change or be told.

use std::fs;
use std::os::unix::fs::symlink;

use super::fuse::raw;
use crate::fuse::{Limits, Owner, Server, ShareSpec};

const LIMITS: Limits = Limits { nodes: 40, handles: 12, directories: 3 };
const MAX_STEPS: usize = 300;
const SECRET: &[u8] = b"what no guest may ever read or change";
const NAMES: [&str; 12] = ["a", "b", "d", "out", "up", "dev", "..", ".", "d/a", "", "share", "c"];

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Mostly small, sometimes anything.
    fn number(&mut self) -> Option<u64> {
        let kind = self.byte()?;
        if kind < 240 {
            return Some(u64::from(kind % 16));
        }
        let mut raw = [0; 8];
        for byte in &mut raw {
            *byte = self.byte()?;
        }
        Some(u64::from_le_bytes(raw))
    }
}

/// Runs one program.
pub fn run(bytes: &[u8]) {
    let outside = tempfile::tempdir().expect("a directory");
    let root = outside.path().join("share");
    fs::create_dir_all(root.join("d")).expect("a directory");
    fs::write(outside.path().join("secret"), SECRET).expect("a file");
    fs::write(root.join("a"), b"in the share").expect("a file");
    symlink("../secret", root.join("out")).expect("a link");
    symlink("..", root.join("up")).expect("a link");
    let server = Server::new(LIMITS);
    for (name, read_only) in [("share", false), ("ro", true)] {
        let spec = ShareSpec { name: name.into(), path: root.clone(), read_only, owner: Owner::default() };
        server.add_share(spec).expect("a share");
    }
    let mut input = Input(bytes);
    for _ in 0..MAX_STEPS {
        if step(&mut input, &server).is_none() {
            break;
        }
        assert!(server.nodes() <= LIMITS.nodes, "more nodes than allowed");
        assert!(server.handles() <= LIMITS.handles, "more handles than allowed");
    }
    server.reset();
    assert_eq!((server.nodes(), server.handles()), (0, 0));
    assert_eq!(fs::read(outside.path().join("secret")).expect("the file"), SECRET);
    assert_eq!(fs::read_dir(outside.path()).expect("the directory").count(), 2, "something appeared outside");
}

fn step(input: &mut Input<'_>, server: &Server) -> Option<()> {
    let opcode = u32::from(input.byte()? % 54);
    let node = match input.byte()? {
        0..32 => 1,
        kind @ 32..240 => u64::from(kind % 20),
        _ => input.number()?,
    };
    let mut body = Vec::new();
    for _ in 0..input.byte()? % 14 {
        let value = input.number()?;
        // Most fields are one word or two; either way the rest shifts, which is half the fun.
        if input.byte()? % 3 == 0 {
            body.extend_from_slice(&value.to_le_bytes());
        } else {
            body.extend_from_slice(&value.to_le_bytes()[..4]);
        }
    }
    for _ in 0..input.byte()? % 3 {
        body.extend_from_slice(NAMES[usize::from(input.byte()?) % NAMES.len()].as_bytes());
        body.push(0);
    }
    let lie = input.byte()?;
    let length = u32::try_from(40 + body.len()).ok()?;
    let length = if lie < 8 { length.wrapping_mul(u32::from(lie)) } else { length };
    let mut request = Vec::new();
    request.extend_from_slice(&length.to_le_bytes());
    request.extend_from_slice(&opcode.to_le_bytes());
    request.extend_from_slice(&7u64.to_le_bytes());
    request.extend_from_slice(&node.to_le_bytes());
    request.extend_from_slice(&[0; 16]);
    request.extend_from_slice(&body);
    if lie == 9 {
        request.truncate(usize::from(input.byte()?));
    }
    let mut reply = vec![0; if lie == 10 { usize::from(input.byte()?) } else { 4096 }];
    let written = raw(server, &mut request, &mut reply);
    assert!(written <= reply.len(), "more written than there is room for");
    let told = reply.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(!told, "the guest was told a secret by operation {opcode}");
    Some(())
}
