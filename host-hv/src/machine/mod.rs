//! A machine: memory, vCPUs and devices, from the first instruction to the power switch.
//!
//! ```text
//!   kernel ─► placement ─► tree ─┐
//!                                ▼
//!   vCPU threads: run ─► Exit ─► bus ─► devices ─► lines ─► the hypervisor's GIC
//!                                  └──► slots ─► threads of virtio devices ─► edges
//! ```
//!
//! Each vCPU has a thread that runs the guest and nothing else: what takes long (a terminal, a disk) has threads of its
//! own. Where the guest's devices lie is in [`layout`].

pub mod bus;
pub mod clock;
mod devices;
pub mod kernel;
pub mod layout;
pub mod network;
pub mod pl011;
pub mod placement;
pub mod plan;
pub mod serial;
pub mod slot;
pub mod streams;
pub mod tree;
mod vcpus;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use self::bus::Bus;
use self::clock::Clock;
use self::devices::{Planned, devices};
pub use self::layout::ADDRESS_BITS;
use self::layout::{
    CLOCK, CLOCK_LEN, GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, GIC_SPIS, MEMORY, MEMORY_MAX, SERIAL, SERIAL_LEN,
    SERIAL_SPI, VCPUS_MAX, VIRTIO, VIRTIO_LEN, VIRTIO_MAX, VIRTIO_SPI,
};
use self::placement::{Placement, TooSmall};
#[cfg(target_os = "linux")]
pub use self::plan::Folders;
pub use self::plan::Plan;
use self::serial::Serial;
use self::slot::Slot;
use self::vcpus::Start;
use crate::hypervisor::{Gic, Hypervisor, HypervisorError, Vm};
use crate::virtio::{Memory, mmio};

/// Why there is no machine, or none any more.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The hypervisor's fault.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// More or less than a machine can have.
    #[error("A machine here has 1 to {max} vCPUs, and {asked} were asked for")]
    Vcpus {
        /// What was asked for.
        asked: u32,
        /// What there can be.
        max: u32,
    },
    /// More than there is room for.
    #[error("A machine here has room for {max} devices, and {asked} were asked for. Give it fewer disks")]
    Devices {
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        max: u32,
    },
    /// A device cannot be made.
    #[error("The guest's device \"{name}\" could not be set up: {source}")]
    Device {
        /// Its name.
        name: String,
        /// What it takes and is not there.
        source: std::io::Error,
    },
    /// As much memory is not to be had.
    #[error("A machine cannot have {mib} MiB of memory: {why}")]
    Memory {
        /// What was asked for.
        mib: u64,
        /// Why not.
        why: String,
    },
    /// The kernel does not fit.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// What the kernel is to be told cannot be written down.
    #[error("The kernel's command line cannot be passed on: {0}")]
    Tree(#[from] vm_fdt::Error),
    /// Something that is laid into the guest's memory does not fit there.
    #[error("The guest's memory could not be filled: {0}")]
    Fill(#[from] vm_memory::GuestMemoryError),
    /// No thread, or no random bytes.
    #[error("This machine's kernel gave no {what}: {source}")]
    Host {
        /// What.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest wants to begin anew.
    Reset,
    /// Somebody here pulled the plug.
    Stopped,
}

/// A machine that is ready to run.
pub struct Machine {
    vm: Box<dyn Vm>,
    vcpus: u32,
    start: Start,
    bus: Arc<Bus>,
    serial: Arc<Serial>,
    ended: (Sender<End>, Receiver<End>),
}

type End = Result<Outcome, HypervisorError>;

/// Pulls a machine's plug, from any thread.
#[derive(Debug, Clone)]
pub struct Plug(Sender<End>);

impl Plug {
    /// The machine ends as if its power were cut.
    pub fn pull(&self) {
        // One that has ended has no plug any more.
        let _ = self.0.send(Ok(Outcome::Stopped));
    }
}

impl Machine {
    /// Makes one, with everything in its place.
    ///
    /// # Errors
    /// The plan asks for what cannot be, or the hypervisor fails.
    pub fn new(plan: &Plan, hypervisor: &dyn Hypervisor) -> Result<Self, MachineError> {
        let max = hypervisor.capabilities().max_vcpus.min(VCPUS_MAX);
        if plan.vcpus == 0 || plan.vcpus > max {
            return Err(MachineError::Vcpus { asked: plan.vcpus, max });
        }
        let devices = devices(plan);
        let virtio = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        if virtio > VIRTIO_MAX {
            return Err(MachineError::Devices { asked: devices.len(), max: VIRTIO_MAX });
        }
        let initramfs_len = plan.initramfs.as_ref().map(|bytes| bytes.len() as u64);
        let placement = Placement::find(plan.memory, &plan.kernel, initramfs_len)?;
        let memory = allocate(plan.memory)?;
        fill(&memory, plan, &placement, virtio)?;

        let vm = hypervisor.create_vm()?;
        vm.map(&memory)?;
        vm.create_gic(&Gic {
            distributor: GIC_DISTRIBUTOR,
            redistributors: GIC_REDISTRIBUTORS,
            vcpus: plan.vcpus,
            spis: GIC_SPIS,
        })?;
        let serial = Arc::new(Serial::new(vm.line(SERIAL_SPI)));
        let mut bus = Bus::default();
        // Everything has its own place.
        let _ = bus.add(SERIAL..SERIAL + SERIAL_LEN, Arc::clone(&serial) as _);
        let _ = bus.add(CLOCK..CLOCK + CLOCK_LEN, Arc::new(Clock::default()));
        let doorbells = hypervisor.capabilities().doorbells;
        for (index, Planned { name, kind, make }) in (0..).zip(devices) {
            let slot = Slot::new(&name, kind, make, Arc::clone(&memory), vm.edge(VIRTIO_SPI + index))
                .map_err(|source| MachineError::Device { name, source })?;
            let registers = VIRTIO + VIRTIO_LEN * u64::from(index);
            if doorbells {
                for (queue, bell) in (0..).zip(slot.bells()) {
                    vm.doorbell(registers + mmio::QUEUE_NOTIFY, queue, bell)?;
                }
            }
            let _ = bus.add(registers..registers + VIRTIO_LEN, Arc::new(slot));
        }
        Ok(Self {
            vm,
            vcpus: plan.vcpus,
            start: Start { entry: placement.kernel, tree: placement.tree },
            bus: Arc::new(bus),
            serial,
            ended: mpsc::channel(),
        })
    }

    /// Its serial port.
    #[must_use]
    pub fn serial(&self) -> Arc<Serial> {
        Arc::clone(&self.serial)
    }

    /// What ends it.
    #[must_use]
    pub fn plug(&self) -> Plug {
        Plug(self.ended.0.clone())
    }

    /// Runs it to its end. The serial port is closed then.
    ///
    /// # Errors
    /// The hypervisor failed.
    pub fn run(self) -> Result<Outcome, MachineError> {
        let (sender, receiver) = self.ended;
        let result = vcpus::run(self.vm.as_ref(), self.vcpus, &self.start, &self.bus, &sender, &receiver);
        self.serial.close();
        result
    }
}

/// The guest's memory. Pages that the guest never touches are never there.
fn allocate(bytes: u64) -> Result<Memory, MachineError> {
    let mib = bytes >> 20;
    if bytes > MEMORY_MAX || !bytes.is_multiple_of(1 << 20) {
        let why = format!("whole MiB up to {} can be had", MEMORY_MAX >> 20);
        return Err(MachineError::Memory { mib, why });
    }
    let refused = |why: String| MachineError::Memory { mib, why };
    let len = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY), len)]);
    Ok(Arc::new(memory.map_err(|error| refused(error.to_string()))?))
}

fn fill(memory: &Memory, plan: &Plan, placement: &Placement, virtio: u32) -> Result<(), MachineError> {
    let mut seed = [0; 64];
    getrandom::fill(&mut seed)
        .map_err(|error| MachineError::Host { what: "random bytes", source: std::io::Error::from(error) })?;
    let told = tree::Told {
        vcpus: plan.vcpus,
        memory: plan.memory,
        placement,
        virtio,
        arguments: &plan.arguments,
        seed,
    };
    memory.write_slice(&tree::write(&told)?, GuestAddress(placement.tree))?;
    memory.write_slice(&plan.kernel.image, GuestAddress(placement.kernel))?;
    if let (Some(bytes), Some(place)) = (&plan.initramfs, &placement.initramfs) {
        memory.write_slice(bytes, GuestAddress(place.start))?;
    }
    Ok(())
}
