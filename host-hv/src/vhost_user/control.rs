//! The VMM's requests about one device: memory, rings, features, configuration.
//!
//! Source: QEMU's "Vhost-user Protocol". A ring runs while it has addresses, a kick descriptor and is enabled, in
//! whatever order these came. A VMM stops and starts all rings for a pause of the machine as well as for its reset;
//! a ring that starts again elsewhere than it stopped tells the two apart.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::virtio::{Device, Interrupt, Memory, Ring};

/// Where a mapping of the VMM's lies in the guest.
struct Mapping {
    vmm_address: u64,
    size: u64,
    guest_address: u64,
}

/// The call descriptor of a ring; it may come late, and change while the ring runs, and a device may have threads.
#[derive(Default)]
struct Call(Mutex<CallState>);

#[derive(Default)]
struct CallState {
    file: Option<File>,
    missed: bool,
}

impl Call {
    fn set(&self, file: Option<File>) {
        let missed = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.file = file;
            std::mem::take(&mut state.missed)
        };
        if missed {
            drop(self.trigger());
        }
    }

    fn trigger(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.file {
            Some(file) => file.write_all(&1u64.to_ne_bytes()),
            None => {
                state.missed = true;
                Ok(())
            }
        }
    }
}

impl Interrupt for Arc<Call> {
    fn trigger(&self) -> io::Result<()> {
        Call::trigger(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
}

#[derive(Default)]
struct RingState {
    size: u16,
    addresses: Option<Addresses>,
    /// Where the device goes on reading the available ring.
    base: u16,
    kick: Option<File>,
    call: Arc<Call>,
    enabled: bool,
    running: bool,
    /// Kicks are ours to wait for, and not the device's own.
    watched: bool,
    /// Where the ring was when the VMM stopped it.
    stopped_at: Option<(u16, Addresses)>,
}

/// Handles the VMM's requests for the device `D`.
pub struct Control<D> {
    device: Rc<RefCell<D>>,
    registry: Registry,
    kick_token: Box<dyn Fn(usize) -> Token>,
    features: u64,
    memory: Option<Memory>,
    mappings: Vec<Mapping>,
    rings: Vec<RingState>,
}

impl<D: Device> Control<D> {
    /// Kicks are reported to `registry` under the tokens that `kick_token` makes of the rings' numbers.
    pub fn new(device: Rc<RefCell<D>>, registry: Registry, kick_token: Box<dyn Fn(usize) -> Token>) -> Self {
        let sizes = device.borrow().ring_sizes().to_vec();
        let rings = sizes.into_iter().map(|size| RingState { size, ..RingState::default() }).collect();
        Self { device, registry, kick_token, features: 0, memory: None, mappings: Vec::new(), rings }
    }

    fn ring(&mut self, index: usize) -> Result<&mut RingState> {
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, vmm_address: u64) -> Result<u64> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = vmm_address.checked_sub(mapping.vmm_address)?;
                (offset < mapping.size).then(|| mapping.guest_address + offset)
            })
            .ok_or(Error::InvalidParam)
    }

    /// Starts the ring if all it needs is there.
    fn start(&mut self, index: usize) -> Result<()> {
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let ring = self.rings.get(index).ok_or(Error::InvalidParam)?;
        let (Some(addresses), Some(kick), Some(memory)) = (ring.addresses, &ring.kick, &self.memory) else {
            return Ok(());
        };
        if ring.running || !ring.enabled {
            return Ok(());
        }
        let moved = ring.stopped_at.is_some_and(|stopped| stopped != (ring.base, addresses));
        let fd = kick.as_raw_fd();
        let used: u16 =
            memory.read_obj(GuestAddress(addresses.used.wrapping_add(2))).map_err(|_| Error::InvalidParam)?;
        let max_size = self.device.borrow().ring_sizes()[index];
        let mut queue = queue(max_size, ring.size, addresses).ok_or(Error::InvalidParam)?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(ring.base);
        queue.set_next_used(u16::from_le(used));
        queue.set_ready(true);
        let call = ring.call.clone();

        if moved {
            tracing::info!(ring = index, "The guest was reset");
            self.reset_keeping_rings();
        }
        let own =
            self.device.borrow_mut().watch_kicks(index, self.rings[index].kick.as_ref().map(File::as_fd));
        if !own {
            self.registry
                .register(&mut SourceFd(&fd), (self.kick_token)(index), Interest::READABLE)
                .map_err(Error::ReqHandlerError)?;
        }
        let ring = self.ring(index)?;
        ring.running = true;
        ring.watched = !own;
        ring.stopped_at = None;
        self.device.borrow_mut().start_ring(index, Ring::new(queue, Box::new(call)));
        Ok(())
    }

    /// Takes the ring back from the device, if it runs.
    fn stop(&mut self, index: usize) {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.running) else { return };
        ring.running = false;
        if ring.watched
            && let Some(kick) = &ring.kick
        {
            drop(self.registry.deregister(&mut SourceFd(&kick.as_raw_fd())));
        }
        if let Some(queue) = self.device.borrow_mut().stop_ring(index) {
            ring.base = queue.next_avail();
        }
    }

    /// The driver began anew: connections end, rings that were started for the new driver go on.
    fn reset_keeping_rings(&mut self) {
        let mut device = self.device.borrow_mut();
        let queues: Vec<_> = (0..self.rings.len()).map(|index| device.stop_ring(index)).collect();
        device.reset();
        for (index, queue) in queues.into_iter().enumerate() {
            if let Some(queue) = queue {
                if !self.rings[index].watched {
                    device.watch_kicks(index, self.rings[index].kick.as_ref().map(File::as_fd));
                }
                device.start_ring(index, Ring::new(queue, Box::new(self.rings[index].call.clone())));
            }
        }
        for ring in &mut self.rings {
            ring.stopped_at = None;
        }
    }

    /// The VMM is gone.
    pub fn disconnect(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
        self.device.borrow_mut().reset();
    }
}

fn queue(max_size: u16, size: u16, addresses: Addresses) -> Option<Queue> {
    let mut queue = Queue::new(max_size).ok()?;
    queue.try_set_size(size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(addresses.descriptors)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(addresses.available)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(addresses.used)).ok()?;
    Some(queue)
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this device"))
}

impl<D: Device> VhostUserBackendReqHandlerMut for Control<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.rings.len() {
            self.stop(index);
            self.rings[index].enabled = false;
            self.rings[index].stopped_at = None;
        }
        self.features = 0;
        self.device.borrow_mut().reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.borrow().features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        self.device.borrow_mut().ack_features(features);
        // Without that feature there is no request to enable a ring.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for index in 0..self.rings.len() {
                self.rings[index].enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            let mapping = region.mmap_region(file)?;
            let guest_region = GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr));
            mapped.push(guest_region.ok_or(Error::InvalidParam)?);
        }
        mapped.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let memory = GuestMemoryMmap::from_regions(mapped)
            .map_err(|error| Error::ReqHandlerError(io::Error::other(error)))?;
        let memory = Arc::new(memory);
        self.mappings = regions
            .iter()
            .map(|region| Mapping {
                vmm_address: region.user_addr,
                size: region.memory_size,
                guest_address: region.guest_phys_addr,
            })
            .collect();
        self.memory = Some(memory.clone());
        self.device.borrow_mut().set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index as usize)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Addresses {
            descriptors: self.guest_address(descriptor)?,
            available: self.guest_address(available)?,
            used: self.guest_address(used)?,
        };
        let index = index as usize;
        // A running ring may be moved: the new addresses hold from now on.
        let running = self.ring(index)?.running;
        if running {
            self.stop(index);
        }
        self.ring(index)?.addresses = Some(addresses);
        if running { self.start(index) } else { Ok(()) }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index as usize)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(index as usize);
        let ring = self.ring(index as usize)?;
        ring.kick = None;
        ring.call.set(None);
        ring.stopped_at = ring.addresses.map(|addresses| (ring.base, addresses));
        Ok(VhostUserVringState::new(index, u32::from(ring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let index = usize::from(index);
        self.stop(index);
        self.ring(index)?.kick = file;
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(usize::from(index))?.call.set(file);
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = index as usize;
        self.ring(index)?.enabled = enable;
        if enable {
            self.start(index)
        } else {
            self.stop(index);
            Ok(())
        }
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut config = vec![0; size as usize];
        self.device.borrow().read_config(offset as usize, &mut config);
        Ok(config)
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported()
    }
}
