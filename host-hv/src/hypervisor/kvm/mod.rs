//! KVM of an arm64 Linux.
//!
//! Source: `Documentation/virt/kvm/api.rst` and `devices/arm-vgic-v3.rst` of Linux 6.12.

mod kick;
mod vcpu;
mod vm;

use std::io;

use kvm_ioctls::Cap;

use super::{Capabilities, Hypervisor, HypervisorError, Vm};

const DEVICE: &str = "/dev/kvm";

/// This machine's KVM.
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    address_bits: u32,
}

impl Kvm {
    /// Opens it and looks whether it has what a machine needs.
    ///
    /// # Errors
    /// There is none, this user may not use it, or it lacks something.
    pub fn open() -> Result<Self, HypervisorError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| HypervisorError::Open {
            path: DEVICE,
            source: error.into(),
            remedy: match error.errno() {
                libc::ENOENT => {
                    "Load the module kvm; inside a virtual machine, its hypervisor has to offer nesting"
                }
                libc::EACCES | libc::EPERM => {
                    "Become a member of its group: usermod -aG kvm USER, then log in again"
                }
                _ => "dmesg | grep -i kvm says why the kernel cannot",
            },
        })?;
        for (capability, what) in [
            (Cap::ArmPsci02, "PSCI 0.2 (KVM_CAP_ARM_PSCI_0_2)"),
            (Cap::DeviceCtrl, "GICv3 (KVM_CAP_DEVICE_CTRL)"),
            (Cap::OneReg, "access to registers (KVM_CAP_ONE_REG)"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(HypervisorError::Lacks { what });
            }
        }
        // 0 where it has no choice: 40 bits then.
        let address_bits =
            u32::try_from(kvm.get_host_ipa_limit()).ok().filter(|bits| *bits > 0).unwrap_or(40);
        Ok(Self { kvm, address_bits })
    }
}

impl Hypervisor for Kvm {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            psci: true,
            max_vcpus: u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            address_bits: self.address_bits,
            doorbells: self.kvm.check_extension(Cap::Ioeventfd),
        }
    }

    fn create_vm(&self) -> Result<Box<dyn Vm>, HypervisorError> {
        // 36 bits need a level of translation less than 40, and every machine has them.
        let vm = self.kvm.create_vm_with_ipa_size(self.address_bits.min(super::super::machine::ADDRESS_BITS));
        Ok(Box::new(vm::KvmVm::new(vm.map_err(call("make a virtual machine"))?)))
    }
}

/// What an ioctl's error becomes.
fn call(act: &'static str) -> impl Fn(kvm_ioctls::Error) -> HypervisorError {
    move |error| HypervisorError::Call { act, source: io::Error::from(error) }
}
