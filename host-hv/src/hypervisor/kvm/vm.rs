//! The virtual machine: its memory, its interrupt controller, its vCPUs.
#![expect(unsafe_code, reason = "KVM is told addresses of this process's memory, and owns descriptors")]

use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region,
};
use kvm_ioctls::{DeviceFd, IoEventAddress, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::{Bind, Edge, Gic, HypervisorError, Line, Vm};
use super::call;
use super::vcpu::Binder;
use crate::io::Bell;
use crate::virtio::Memory;

/// Interrupts that are private to a vCPU come first in the GIC's numbering (Arm IHI 0069, 2.2.1).
const FIRST_SPI: u32 = 32;

pub(super) struct KvmVm {
    vm: Arc<VmFd>,
    gic: OnceLock<DeviceFd>,
    /// What the guest has, kept for as long as the guest may touch it.
    memory: Mutex<Option<Memory>>,
}

impl KvmVm {
    pub(super) fn new(vm: VmFd) -> Self {
        Self { vm: Arc::new(vm), gic: OnceLock::new(), memory: Mutex::new(None) }
    }
}

impl Vm for KvmVm {
    fn map(&self, memory: &Memory) -> Result<(), HypervisorError> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let host = region.get_host_address(MemoryRegionAddress(0)).map_err(|error| {
                HypervisorError::Call { act: "find the guest's memory", source: std::io::Error::other(error) }
            })?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is mapped, and stays so until this struct is dropped, which keeps a share of it
            // beside the machine's own descriptor; vCPUs keep that descriptor's other shares and none of the memory,
            // but no thread runs them when the machine is dropped (`Machine::run` joins them all).
            unsafe { self.vm.set_user_memory_region(region) }.map_err(call("give the guest its memory"))?;
        }
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(memory));
        Ok(())
    }

    fn create_gic(&self, gic: &Gic) -> Result<(), HypervisorError> {
        let mut create =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let device = self.vm.create_device(&mut create).map_err(call("make a GICv3"))?;
        let interrupts = FIRST_SPI + gic.spis;
        set(&device, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)?;
        set(&device, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &gic.distributor)?;
        set(&device, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &gic.redistributors)?;
        // A second controller was refused by KVM above.
        let _ = self.gic.set(device);
        Ok(())
    }

    fn vcpu(&self, index: u32) -> Box<dyn Bind> {
        Box::new(Binder { vm: Arc::clone(&self.vm), index })
    }

    fn start(&self) -> Result<(), HypervisorError> {
        let Some(gic) = self.gic.get() else {
            return Err(HypervisorError::Lacks { what: "interrupt controller yet" });
        };
        set(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0_u64)
    }

    fn line(&self, spi: u32) -> Box<dyn Line> {
        Box::new(KvmLine::new(&self.vm, spi))
    }

    fn edge(&self, spi: u32) -> Box<dyn Edge> {
        Box::new(KvmLine::new(&self.vm, spi))
    }

    fn doorbell(&self, address: u64, value: u32, bell: &Bell) -> Result<(), HypervisorError> {
        let act = "let a device be notified without an exit";
        let bell =
            bell.as_fd().try_clone_to_owned().map_err(|source| HypervisorError::Call { act, source })?;
        // SAFETY: the descriptor is an eventfd, as every bell is where KVM is, and nobody else's: a duplicate, which is
        // closed below, while KVM keeps what it stands for.
        let bell = unsafe { EventFd::from_raw_fd(bell.into_raw_fd()) };
        self.vm.register_ioevent(&bell, &IoEventAddress::Mmio(address), value).map_err(call(act))
    }
}

/// Sets an attribute of the GIC. The group says how wide its value is: `u32` for `NR_IRQS`, `u64` for ADDR, none for CTRL.
fn set<T>(device: &DeviceFd, group: u32, attribute: u32, value: &T) -> Result<(), HypervisorError> {
    let attribute = kvm_device_attr {
        group,
        attr: u64::from(attribute),
        addr: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    device.set_device_attr(&attribute).map_err(call("set up the GICv3"))
}

struct KvmLine {
    vm: Arc<VmFd>,
    interrupt: u32,
}

impl KvmLine {
    fn new(vm: &Arc<VmFd>, spi: u32) -> Self {
        let interrupt = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + spi);
        Self { vm: Arc::clone(vm), interrupt }
    }
}

impl Edge for KvmLine {
    /// One call: where edges count, KVM takes each "high" for one, and a "low" for nothing (`vgic_validate_injection`).
    /// An irqfd would take one as well, and all that comes of it is a descriptor more.
    fn pulse(&self) {
        self.set(true);
    }
}

impl Line for KvmLine {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.set_irq_line(self.interrupt, high) {
            tracing::error!("Interrupt {:#x} of the guest cannot be set: {error}", self.interrupt);
        }
    }
}
