//! Which virtio devices a machine has, and in which order: the guest finds them in the order of their places.

use std::sync::Arc;

use super::plan::Plan;
use super::slot::{Make, alone};
use super::{network, streams};
use crate::virtio::blk::{self, Blk};
use crate::virtio::net;
use crate::virtio::rng::{self, Rng};
use crate::virtio::vsock::spec;

/// A device that is to be.
pub(super) struct Planned {
    /// Its thread's name.
    pub(super) name: String,
    /// Its kind's number (virtio 1.3, section 5).
    pub(super) kind: u32,
    /// Makes it.
    pub(super) make: Make,
}

impl Planned {
    fn new(name: impl Into<String>, kind: u32, make: Make) -> Self {
        Self { name: name.into(), kind, make }
    }
}

/// All of a plan's.
pub(super) fn devices(plan: &Plan) -> Vec<Planned> {
    let mut devices = vec![Planned::new("rng", rng::DEVICE_ID, alone(|| Ok(Rng::default())))];
    for (index, disk) in plan.disks.iter().enumerate() {
        let disk = Arc::clone(disk);
        devices.push(Planned::new(format!("disk{index}"), blk::DEVICE_ID, alone(|| Ok(Blk::new(disk)))));
    }
    for (index, network) in plan.networks.iter().enumerate() {
        let make = network::make(network.clone());
        devices.push(Planned::new(format!("net{index}"), net::DEVICE_ID, make));
    }
    #[cfg(target_os = "linux")]
    if let Some(super::plan::Folders { tag, server, threads }) = plan.folders.clone() {
        use crate::virtio::fs::{self, Fs};

        let make = alone(move || Fs::new(&tag, server, threads).map_err(std::io::Error::other));
        devices.push(Planned::new("folders", fs::DEVICE_ID, make));
    }
    if let Some(streams) = plan.streams.clone() {
        devices.push(Planned::new("vsock", spec::DEVICE_ID, streams::make(streams)));
    }
    devices
}
