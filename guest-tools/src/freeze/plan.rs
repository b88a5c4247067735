//! Which file systems are frozen, and in which order. Pure: tables in, a plan out.
//!
//! * One of each file system: a second freeze of the same is an error, however it is mounted again.
//! * The last mounted first: what is mounted inside another goes before it.
//! * What lies in a file of another (a loop device, also under LVM or encryption) before that one, however they were
//!   mounted since: its last writes go into that file.
//! * Left out, and told: what the kernel, another machine, the host or a program keeps, and what takes no writes.

use std::collections::{HashMap, HashSet};

use hospes_protocol::freeze::FsState;

use super::mounts::{Device, Mount};

/// A file system and its mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its device.
    pub device: Device,
    /// Its kind.
    pub kind: Vec<u8>,
    /// Where it is mounted, the best place to open it first: a whole one before a part, and then the first.
    pub places: Vec<Place>,
}

/// One place of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The mount's id: something else may lie over it.
    pub id: u32,
    /// Where.
    pub point: Vec<u8>,
}

/// A file system that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it is mounted first.
    pub point: Vec<u8>,
    /// Its kind.
    pub kind: Vec<u8>,
    /// Why.
    pub why: FsState,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// To be frozen, in this order, and thawed in the other.
    pub freeze: Vec<Candidate>,
    /// Left out, in the order of the mounts.
    pub left_out: Vec<LeftOut>,
}

/// Makes the plan. `without_device` has the kinds that need no device; `beneath` gives the devices of the file systems
/// in whose files a device lies.
#[must_use]
pub fn plan<S: std::hash::BuildHasher>(
    mounts: &[Mount],
    without_device: &HashSet<Vec<u8>, S>,
    beneath: impl Fn(Device) -> Vec<Device>,
) -> Plan {
    let mut plan = Plan::default();
    let mut seen = HashMap::new();
    let mut first_mounted: Vec<Candidate> = Vec::new();
    for mount in mounts {
        let place = Place { id: mount.id, point: mount.point.clone() };
        match seen.get(&mount.device) {
            Some(Some(at)) => {
                let candidate: &mut Candidate = &mut first_mounted[*at];
                candidate.places.push(place);
            }
            Some(None) => {}
            None => {
                let why = left_out(mount, without_device);
                seen.insert(mount.device, if why.is_none() { Some(first_mounted.len()) } else { None });
                let (point, kind) = (mount.point.clone(), mount.kind.clone());
                match why {
                    Some(why) => plan.left_out.push(LeftOut { point, kind, why }),
                    None => first_mounted.push(Candidate { device: mount.device, kind, places: vec![place] }),
                }
            }
        }
    }
    let whole: HashSet<u32> =
        mounts.iter().filter(|mount| mount.root == b"/").map(|mount| mount.id).collect();
    for candidate in &mut first_mounted {
        candidate.places.sort_by_key(|place| !whole.contains(&place.id));
    }
    plan.freeze = order(first_mounted, beneath);
    plan
}

/// The last mounted first, but none before those that lie in its files.
fn order(first_mounted: Vec<Candidate>, beneath: impl Fn(Device) -> Vec<Device>) -> Vec<Candidate> {
    let places: HashMap<Device, usize> =
        first_mounted.iter().enumerate().map(|(at, candidate)| (candidate.device, at)).collect();
    // Who lies upon each one.
    let mut upon = vec![Vec::new(); first_mounted.len()];
    for (at, candidate) in first_mounted.iter().enumerate() {
        for device in beneath(candidate.device) {
            if let Some(&below) = places.get(&device).filter(|below| **below != at) {
                upon[below].push(at);
            }
        }
    }
    let mut order = Vec::with_capacity(first_mounted.len());
    let mut placed = vec![false; first_mounted.len()];
    for last in (0..first_mounted.len()).rev() {
        // Those upon it first, and those upon them. A ring, which no kernel makes, is cut where it was entered.
        let mut stack = vec![(last, 0)];
        let mut entered = HashSet::from([last]);
        while let Some((at, next)) = stack.pop() {
            if placed[at] {
                continue;
            }
            match upon[at].get(next) {
                Some(&above) => {
                    stack.push((at, next + 1));
                    if !placed[above] && entered.insert(above) {
                        stack.push((above, 0));
                    }
                }
                None => {
                    placed[at] = true;
                    order.push(at);
                }
            }
        }
    }
    let mut candidates: Vec<Option<Candidate>> = first_mounted.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| candidates[at].take()).collect()
}

/// Kinds of which other machines keep the files.
const NETWORK: [&[u8]; 17] = [
    b"nfs",
    b"nfs4",
    b"cifs",
    b"smb3",
    b"smbfs",
    b"ceph",
    b"afs",
    b"coda",
    b"ncpfs",
    b"ncp",
    b"gfs",
    b"gfs2",
    b"ocfs2",
    b"lustre",
    b"orangefs",
    b"glusterfs",
    b"vboxsf",
];
/// Kinds of which the host keeps the files.
const SHARED: [&[u8]; 3] = [b"virtiofs", b"9p", b"vmhgfs"];
/// Kinds that show other file systems' files.
const STACKED: [&[u8]; 5] = [b"overlay", b"aufs", b"ecryptfs", b"unionfs", b"shiftfs"];

fn left_out<S: std::hash::BuildHasher>(
    mount: &Mount,
    without_device: &HashSet<Vec<u8>, S>,
) -> Option<FsState> {
    let kind = mount.kind.as_slice();
    let of = |kinds: &[&[u8]]| kinds.contains(&kind);
    // A cluster's file systems have a device, and are not one machine's to hold still.
    if of(&NETWORK) {
        return Some(FsState::NETWORK);
    }
    if of(&SHARED) {
        return Some(FsState::SHARED);
    }
    if kind == b"fuse" || kind == b"fuseblk" || kind.starts_with(b"fuse.") || kind.starts_with(b"fuseblk.") {
        return Some(FsState::FUSE);
    }
    if of(&STACKED) {
        return Some(FsState::STACKED);
    }
    // A subtype stands behind a dot.
    let base = kind.split(|byte| *byte == b'.').next().unwrap_or(kind);
    // ZFS needs no device of the kernel's, and has no freeze.
    if without_device.contains(base) && kind != b"zfs" {
        return Some(FsState::PSEUDO);
    }
    mount.read_only.then_some(FsState::READ_ONLY)
}

#[cfg(test)]
mod tests {
    use super::super::mounts::{parse, without_device};
    use super::*;

    const KINDS: &[u8] = b"nodev\tsysfs\nnodev\tproc\nnodev\ttmpfs\nnodev\tfuse\nnodev\toverlay\nnodev\tnfs4\n\
        nodev\tvirtiofs\nnodev\tzfs\nnodev\tdevtmpfs\n\text4\n\txfs\n\tbtrfs\n\tvfat\n\tsquashfs\n\tfuseblk\n";

    /// A device's number.
    type Number = (u32, u32);

    fn planned(table: &str, beneath: &[(Number, Number)]) -> Plan {
        let device = |(major, minor)| Device { major, minor };
        plan(&parse(table.as_bytes()), &without_device(KINDS), |of| {
            let lies = |(upper, lower): &(Number, Number)| (device(*upper) == of).then_some(device(*lower));
            beneath.iter().filter_map(lies).collect()
        })
    }

    fn points(plan: &Plan) -> Vec<String> {
        let text = |candidate: &Candidate| String::from_utf8(candidate.places[0].point.clone()).unwrap();
        plan.freeze.iter().map(text).collect()
    }

    #[test]
    fn the_last_mounted_goes_first_and_the_root_last() {
        let table = "21 1 8:2 / / rw - ext4 /dev/sda2 rw\n22 21 0:20 / /proc rw - proc proc rw\n\
            30 21 8:3 / /srv rw - xfs /dev/sda3 rw\n31 30 8:4 / /srv/data rw - ext4 /dev/sda4 rw\n";
        let plan = planned(table, &[]);
        assert_eq!(points(&plan), ["/srv/data", "/srv", "/"]);
        assert_eq!(plan.left_out[0].why, FsState::PSEUDO);
    }

    #[test]
    fn one_file_system_is_frozen_once_and_a_whole_mount_is_the_way_in() {
        let table = "20 1 8:3 /home/ada/f /etc/f rw - xfs /dev/sda3 rw\n21 1 8:2 / / rw - ext4 /dev/sda2 rw\n\
            22 21 8:2 /var /mnt rw - ext4 /dev/sda2 rw\n23 21 8:3 / /srv rw - xfs /dev/sda3 rw\n\
            24 21 8:3 / /srv2 ro - xfs /dev/sda3 rw\n";
        let plan = planned(table, &[]);
        assert_eq!(points(&plan), ["/", "/srv"]);
        let places: Vec<_> = plan.freeze[1].places.iter().map(|place| place.id).collect();
        assert_eq!(places, [23, 24, 20]);
    }

    #[test]
    fn btrfs_has_no_device_number_and_is_frozen_all_the_same() {
        let table = "21 1 0:27 /root / rw - btrfs /dev/vda3 rw,subvol=/root\n\
            40 21 0:27 /home /home rw - btrfs /dev/vda3 rw,subvol=/home\n";
        let plan = planned(table, &[]);
        assert_eq!((points(&plan), plan.freeze[0].places.len()), (vec!["/".into()], 2));
    }

    #[test]
    fn what_is_left_out_says_why() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /n rw - nfs4 h:/x rw\n3 1 0:2 / /f rw - fuse.sshfs h rw\n\
            4 1 8:5 / /w rw - fuseblk /dev/sda5 rw\n5 1 0:3 / /s rw - virtiofs hospes rw\n\
            6 1 0:4 / /o rw - overlay overlay rw\n7 1 7:0 / /snap ro - squashfs /dev/loop0 ro\n\
            8 1 0:5 / /run rw - tmpfs tmpfs rw\n9 1 8:7 / /c rw - gfs2 /dev/sdc rw\n\
            10 1 8:8 / /r ro - ext4 /dev/sdd ro\n11 1 0:6 / /p rw - fuse.portal portal rw\n";
        let plan = planned(table, &[]);
        let why: Vec<_> = plan.left_out.iter().map(|out| out.why).collect();
        assert_eq!(points(&plan), ["/"]);
        assert_eq!(
            why,
            [
                FsState::NETWORK,
                FsState::FUSE,
                FsState::FUSE,
                FsState::SHARED,
                FsState::STACKED,
                FsState::READ_ONLY,
                FsState::PSEUDO,
                FsState::NETWORK,
                FsState::READ_ONLY,
                FsState::FUSE,
            ]
        );
    }

    #[test]
    fn a_loop_goes_before_what_its_file_lies_on_however_they_were_mounted() {
        // /srv was mounted anew after the image that lies on it.
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 7:0 / /image rw - ext4 /dev/loop0 rw\n\
            3 1 8:2 / /srv rw - xfs b rw\n";
        assert_eq!(points(&planned(table, &[])), ["/srv", "/image", "/"], "by the order of mounts alone");
        assert_eq!(points(&planned(table, &[((7, 0), (8, 2))])), ["/image", "/srv", "/"]);
    }

    #[test]
    fn loops_on_loops_go_innermost_last() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 7:2 / /c rw - ext4 l rw\n3 1 7:1 / /b rw - ext4 l rw\n\
            4 1 7:0 / /a rw - ext4 l rw\n";
        let beneath = [((7, 2), (7, 1)), ((7, 1), (7, 0)), ((7, 0), (8, 1))];
        assert_eq!(points(&planned(table, &beneath)), ["/c", "/b", "/a", "/"]);
        // Upon what is not frozen, and upon itself: no matter.
        assert_eq!(points(&planned(table, &[((7, 2), (9, 9)), ((7, 1), (7, 1))])), ["/a", "/b", "/c", "/"]);
    }

    #[test]
    fn a_ring_ends() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 7:2 / /c rw - ext4 l rw\n3 1 7:1 / /b rw - ext4 l rw\n";
        let plan = planned(table, &[((7, 2), (7, 1)), ((7, 1), (7, 2)), ((7, 1), (8, 1)), ((8, 1), (7, 1))]);
        assert_eq!(plan.freeze.len(), 3);
    }

    #[test]
    fn an_empty_table_plans_nothing() {
        assert_eq!(planned("", &[]), Plan::default());
    }
}
