//! A vCPU.

use std::sync::Arc;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::super::{Bind, Exit, HypervisorError, Kick, Vcpu};
use super::call;
use super::kick::Kicker;

/// EL1 with its own stack pointer; debug, `SError`, IRQ and FIQ masked (Arm ARM, C5.2.19).
const EL1H_ALL_MASKED: u64 = 0x3c5;

pub(super) struct Binder {
    pub(super) vm: Arc<VmFd>,
    pub(super) index: u32,
}

impl Bind for Binder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let vcpu = self.vm.create_vcpu(u64::from(self.index)).map_err(call("make a vCPU"))?;
        let mut init = kvm_vcpu_init::default();
        self.vm.get_preferred_target(&mut init).map_err(call("say what its vCPUs are"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if self.index > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        vcpu.vcpu_init(&init).map_err(call("set up a vCPU"))?;
        let kicker = Kicker::of_this_thread(&vcpu)
            .map_err(|source| HypervisorError::Call { act: "let a vCPU be interrupted", source })?;
        Ok(Box::new(KvmVcpu { vcpu, index: self.index, kicker }))
    }
}

struct KvmVcpu {
    vcpu: VcpuFd,
    index: u32,
    kicker: Kicker,
}

impl Vcpu for KvmVcpu {
    fn begin_at(&mut self, entry: u64, argument: u64) -> Result<(), HypervisorError> {
        for (offset, value) in [
            (std::mem::offset_of!(user_pt_regs, regs), argument),
            (std::mem::offset_of!(user_pt_regs, pc), entry),
            (std::mem::offset_of!(user_pt_regs, pstate), EL1H_ALL_MASKED),
        ] {
            // Core registers are named by their place in `kvm_regs`, whose first field this struct is, in 32-bit words.
            let register =
                KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | (offset / 4) as u64;
            self.vcpu.set_one_reg(register, &value.to_le_bytes()).map_err(call("set a vCPU's registers"))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, HypervisorError> {
        let unknown = |reason| Err(HypervisorError::UnknownExit { vcpu: self.index, reason });
        match self.vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::Read { address, size: width(data) }),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                Ok(Exit::Write { address, size: width(data), value: u64::from_le_bytes(bytes) })
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Ok(Exit::PoweredOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Ok(Exit::Reset),
            Ok(VcpuExit::Intr) => {
                self.kicker.heard();
                Ok(Exit::Kicked)
            }
            Ok(other) => unknown(format!("{other:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                self.kicker.heard();
                Ok(Exit::Kicked)
            }
            Err(error) if error.errno() == libc::EAGAIN => Ok(Exit::Kicked),
            // The guest used an instruction on a device that says not where its value goes (KVM_CAP_ARM_NISV_TO_USER).
            Err(error) if error.errno() == libc::ENOSYS => unknown(
                "an access to a device by an instruction that the processor does not describe".to_owned(),
            ),
            Err(error) => Err(call("run a vCPU")(error)),
        }
    }

    fn answer(&mut self, value: u64) {
        // What KVM reads when it runs next, since the last exit was a read of a device.
        self.vcpu.get_kvm_run().__bindgen_anon_1.mmio.data = value.to_le_bytes();
    }

    fn kicker(&self) -> Box<dyn Kick> {
        Box::new(self.kicker)
    }
}

/// How wide an access was; KVM hands out eight bytes at most.
fn width(data: &[u8]) -> u8 {
    u8::try_from(data.len()).unwrap_or(8)
}
