//! A guest that asks hundreds of thousands of times for what there is, and forgets and closes nothing: a hundred times
//! what the limits let it have, so that a million would be no different.
//!
//! Alone in its program: it counts what the whole process holds.
#![cfg(target_os = "linux")]

use std::fs;

use host_hv::fuse::abi::op;
use host_hv::fuse::{Limits, Owner, Server, ShareSpec};
use host_hv::testing::fuse::Client;

const ROUNDS: usize = 200_000;
const LIMITS: Limits = Limits { nodes: 2000, handles: 100, directories: 20 };
/// What an allocator may keep for itself over so many requests.
const SLACK: usize = 4 << 20;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("descriptors").count()
}

/// Bytes of memory in use.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/statm").expect("its size");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}

#[test]
fn lookups_and_opens_without_end_hold_no_more_than_the_limits() {
    let host = tempfile::tempdir().expect("a directory");
    for directory in 0..30 {
        let directory = host.path().join(format!("d{directory}"));
        fs::create_dir(&directory).expect("a directory");
        for file in 0..100 {
            fs::write(directory.join(format!("f{file}")), "").expect("a file");
        }
    }
    let server = Server::new(LIMITS);
    let spec =
        ShareSpec { name: "src".into(), path: host.path().into(), read_only: false, owner: Owner::default() };
    server.add_share(spec).expect("a share");
    let before = descriptors();
    let mut guest = Client::mount(&server);
    let root = guest.lookup(1, "src").expect("the share").node;
    let directories: Vec<_> =
        (0..30).map(|at| guest.lookup(root, &format!("d{at}")).expect("a directory").node).collect();
    let node = guest.lookup(directories[0], "f0").expect("a file").node;

    let mut after_a_tenth = 0;
    for at in 0..ROUNDS {
        // Every fourth name leads nowhere, and there are more files than a guest may know.
        let name = format!("f{}", at / 30 % 133);
        let _ = guest.lookup(directories[at % 30], &name);
        match at % 3 {
            0 => drop(guest.open(node, 2)),
            1 => drop(guest.call(op::OPENDIR, directories[at % 30], &[0; 8], 64)),
            _ => drop(guest.call(op::CREATE, root, &[&[0; 16][..], b"made\0"].concat(), 256)),
        }
        if at == ROUNDS / 10 {
            after_a_tenth = resident();
        }
    }
    assert_eq!((server.nodes(), server.handles()), (LIMITS.nodes, LIMITS.handles));
    let more = descriptors() - before;
    assert!(more <= LIMITS.handles + LIMITS.directories + 2, "{more} descriptors");
    let grown = resident().saturating_sub(after_a_tenth);
    assert!(grown < SLACK, "{grown} bytes more than after a tenth of it");

    // And all of it is let go of with the guest.
    server.reset();
    assert_eq!((server.nodes(), server.handles()), (0, 0));
    assert!(descriptors() <= before + 1);
}
