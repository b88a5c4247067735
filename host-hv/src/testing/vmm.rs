//! A driver whose device is another process, reached over vhost-user as a VMM would.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::driver::{Driver, Layout};
use super::queue::DriverQueue;
use crate::virtio::Memory;

const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Rings that QEMU hands over: it keeps the event queue to itself.
const RINGS: usize = 2;

/// A VMM with a guest that is only a driver.
pub struct Vmm {
    /// The driver.
    pub driver: Driver,
    frontend: Frontend,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    features: u64,
    poll: Poll,
    events: Events,
}

impl Vmm {
    /// Connects to a device and starts its rings, with all receive buffers offered.
    pub fn connect(socket: &Path, mut layout: Layout) -> Result<Self> {
        let mut frontend = Frontend::connect(socket, RINGS as u64).context("connect to the device")?;
        frontend.set_owner().context("set owner")?;
        let offered = frontend.get_features().context("get features")?;
        let wanted = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | u64::from(layout.event_idx) << VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES;
        let features = offered & wanted;
        layout.event_idx &= features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let protocol = frontend.get_protocol_features().context("get protocol features")?;
        let protocol = protocol & (VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK);
        frontend.set_protocol_features(protocol).context("set protocol features")?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let mut cid = [0; 8];
        let (_, config) = frontend
            .get_config(0, 8, VhostUserConfigFlags::empty(), &cid)
            .context("get the configuration")?;
        cid.copy_from_slice(&config);

        let memory = shared_memory(layout.memory())?;
        let driver = Driver::new(layout, memory, u64::from_le_bytes(cid));
        let poll = Poll::new().context("prepare to wait")?;
        let events = Events::with_capacity(RINGS);
        let mut vmm = Self { driver, frontend, kicks: Vec::new(), calls: Vec::new(), features, poll, events };
        vmm.frontend.set_features(features).context("set features")?;
        vmm.share_memory()?;
        vmm.start([0; RINGS])?;
        vmm.driver.offer_buffers();
        vmm.kick();
        Ok(vmm)
    }

    fn share_memory(&mut self) -> Result<()> {
        let regions: Vec<_> = self
            .driver
            .memory()
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<vhost::Result<_>>()
            .context("describe memory")?;
        self.frontend.set_mem_table(&regions).context("share memory")?;
        Ok(())
    }

    /// Starts the rings at the given positions of the available rings.
    pub fn start(&mut self, bases: [u16; RINGS]) -> Result<()> {
        self.kicks.clear();
        self.calls.clear();
        for (index, base) in bases.into_iter().enumerate() {
            let kick = EventFd::new(0)?;
            let call = EventFd::new(EFD_NONBLOCK)?;
            self.poll.registry().register(
                &mut SourceFd(&call.as_raw_fd()),
                Token(index),
                Interest::READABLE,
            )?;
            let config = self.ring_config(&self.driver.queues[index])?;
            self.frontend.set_vring_num(index, config.queue_size)?;
            self.frontend.set_vring_addr(index, &config)?;
            self.frontend.set_vring_base(index, base)?;
            self.frontend.set_vring_call(index, &call)?;
            self.frontend.set_vring_kick(index, &kick)?;
            if self.features & PROTOCOL_FEATURES != 0 {
                self.frontend.set_vring_enable(index, true)?;
            }
            self.kicks.push(kick);
            self.calls.push(call);
        }
        Ok(())
    }

    /// Stops the rings; returns where each was.
    pub fn stop(&mut self) -> Result<[u16; RINGS]> {
        let mut bases = [0; RINGS];
        for (index, base) in bases.iter_mut().enumerate() {
            *base = u16::try_from(self.frontend.get_vring_base(index)?)?;
        }
        Ok(bases)
    }

    /// Resets the guest: rings stop, and start again from the beginning for a new driver.
    pub fn reboot(&mut self, layout: Layout) -> Result<()> {
        self.stop()?;
        let memory = shared_memory(layout.memory())?;
        self.driver = Driver::new(layout, memory, self.driver.cid);
        self.frontend.set_features(self.features)?;
        self.share_memory()?;
        self.start([0; RINGS])?;
        self.driver.offer_buffers();
        self.kick();
        Ok(())
    }

    fn ring_config(&self, queue: &DriverQueue) -> Result<VringConfigData> {
        let host = |address| {
            let address =
                self.driver.memory().get_host_address(GuestAddress(address)).context("in memory")?;
            anyhow::Ok(address as u64)
        };
        Ok(VringConfigData {
            queue_max_size: queue.size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host(queue.descriptors())?,
            used_ring_addr: host(queue.used())?,
            avail_ring_addr: host(queue.available())?,
            log_addr: None,
        })
    }

    /// Kicks the rings whose device wants it; returns how many.
    pub fn kick(&mut self) -> usize {
        let mut kicks = 0;
        for (queue, kick) in self.driver.queues.iter_mut().zip(&self.kicks) {
            if queue.kick_wanted() {
                kick.write(1).expect("an eventfd");
                kicks += 1;
            }
        }
        kicks
    }

    /// Sleeps until the device has used a buffer. False: it did not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        // Both rings must be asked, whatever the first says.
        let pending =
            self.driver.queues[..RINGS].iter_mut().fold(false, |any, queue| any | queue.want_interrupt());
        let limit = if pending { Duration::ZERO } else { limit };
        self.poll.poll(&mut self.events, Some(limit))?;
        for queue in &mut self.driver.queues[..RINGS] {
            queue.suppress_interrupts();
        }
        Ok(pending || !self.events.is_empty())
    }
}

/// Guest memory that another process can map.
fn shared_memory(bytes: u64) -> Result<Memory> {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(bytes)?;
    let range = (GuestAddress(0), usize::try_from(bytes)?, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::from_ranges_with_files([range]).context("map guest memory")?;
    debug_assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), bytes);
    Ok(Arc::new(memory))
}
