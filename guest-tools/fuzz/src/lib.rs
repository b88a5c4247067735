//! What the fuzz targets do with an input. `tests/smoke.rs` runs the same with a seeded generator in every `cargo test`.

use std::collections::{BTreeSet, HashSet};

use guest_tools::freeze::mounts::{Device, parse, without_device};
use guest_tools::freeze::plan::plan;

/// A target: its input goes in, and it panics where something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also its file's in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[("mounts", mounts)];

/// A table of mounts, as bytes and as made of them, and what is planned with devices upon devices at random.
pub fn mounts(data: &[u8]) {
    let kinds = without_device(data);
    check(data, data, &kinds);
    let mut table = Vec::new();
    for (at, bytes) in data.chunks_exact(3).enumerate() {
        let kind = ["ext4", "xfs", "proc", "fuse.x", "btrfs", "nfs4"][usize::from(bytes[0] % 6)];
        let (minor, root) = (bytes[1] % 16, if bytes[2] & 1 == 0 { "/" } else { "/part" });
        let option = if bytes[2] & 6 == 6 { "ro" } else { "rw" };
        let line = format!("{at} 0 7:{minor} {root} /m\\040{at} rw shared:{at} - {kind} source {option}\n");
        table.extend_from_slice(line.as_bytes());
    }
    assert_eq!(parse(&table).len(), data.len() / 3);
    check(&table, data, &HashSet::from([b"proc".to_vec()]));
}

fn check(table: &[u8], upon: &[u8], kinds: &HashSet<Vec<u8>>) {
    let mounts = parse(table);
    let beneath = |device: Device| {
        let at = device.minor as usize % upon.len().max(1);
        let some = upon.get(at).map(|byte| Device { major: 7, minor: u32::from(byte % 16) });
        some.into_iter().collect()
    };
    let plan = plan(&mounts, kinds, beneath);
    let frozen: BTreeSet<Device> = plan.freeze.iter().map(|one| one.device).collect();
    assert_eq!(frozen.len(), plan.freeze.len(), "each once");
    let devices: BTreeSet<Device> = mounts.iter().map(|mount| mount.device).collect();
    assert_eq!(frozen.len() + plan.left_out.len(), devices.len(), "none is forgotten");
    for one in &plan.freeze {
        assert!(!one.places.is_empty());
        let of = |id| mounts.iter().any(|mount| mount.id == id && mount.device == one.device);
        assert!(one.places.iter().all(|place| of(place.id)), "each place is the device's own");
    }
}
