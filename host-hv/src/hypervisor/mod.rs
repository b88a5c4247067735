//! What a machine asks of a hypervisor, and nothing that only one of them has.
//!
//! The order of calls: [`Vm::map`], [`Vm::create_gic`], then [`Bind::bind`] for every vCPU, each on the thread that will
//! run it (Hypervisor.framework ties a vCPU to its thread), [`Vm::start`] when all are bound, and [`Vcpu::run`] for ever.
//! What back ends can and cannot do they say by [`Capabilities`], so that nothing above this module asks which one it has.

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
pub mod kvm;

use std::io;

use thiserror::Error;

use crate::io::Bell;
use crate::virtio::Memory;

/// Why a hypervisor did not do what was asked.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// This machine has no hypervisor that runs arm64 guests.
    #[error(
        "No hypervisor here runs arm64 guests: that takes an arm64 Linux with KVM. On other machines, QEMU does \
         (`host-hv vsock --help` and `host-hv fs --help` say how it is given our devices)"
    )]
    NoneHere,
    /// The hypervisor's device cannot be opened.
    #[error("Could not open {path}: {source}. {remedy}")]
    Open {
        /// The device.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do next.
        remedy: &'static str,
    },
    /// The hypervisor is there and lacks something without which no machine runs.
    #[error("This machine's hypervisor has no {what}, which a guest needs")]
    Lacks {
        /// What it has not.
        what: &'static str,
    },
    /// A call failed.
    #[error("The hypervisor could not {act}: {source}")]
    Call {
        /// What was asked.
        act: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest left to the machine for a reason that nobody knows.
    #[error("vCPU {vcpu} stopped for a reason that this program does not know: {reason}")]
    UnknownExit {
        /// Which one.
        vcpu: u32,
        /// The hypervisor's words.
        reason: String,
    },
}

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether power calls of the guest (PSCI) are served by the back end; otherwise they are exits.
    pub psci: bool,
    /// The most vCPUs a machine may have.
    pub max_vcpus: u32,
    /// How many bits a guest's physical address may have.
    pub address_bits: u32,
    /// Whether it has [`Vm::doorbell`].
    pub doorbells: bool,
}

/// A hypervisor, opened.
pub trait Hypervisor {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes an empty virtual machine.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn create_vm(&self) -> Result<Box<dyn Vm>, HypervisorError>;
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// Gives the guest its memory, for as long as the machine lives.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn map(&self, memory: &Memory) -> Result<(), HypervisorError>;

    /// Makes the interrupt controller, before any vCPU.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn create_gic(&self, gic: &Gic) -> Result<(), HypervisorError>;

    /// What makes vCPU `index`, on its own thread. The first one runs at once, the others wait for the guest's `CPU_ON`.
    fn vcpu(&self, index: u32) -> Box<dyn Bind>;

    /// Every vCPU is bound: nothing is missing any more.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn start(&self) -> Result<(), HypervisorError>;

    /// The interrupt line of shared peripheral interrupt `spi`, counted from 0.
    fn line(&self, spi: u32) -> Box<dyn Line>;

    /// The same where the device tree says that its edges count and not its level.
    fn edge(&self, spi: u32) -> Box<dyn Edge>;

    /// From now on a guest's write of these four bytes at `address` rings the bell and is no exit. Whoever wants it asks
    /// [`Capabilities::doorbells`] first, and answers to the exit where there are none.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn doorbell(&self, address: u64, value: u32, bell: &Bell) -> Result<(), HypervisorError>;
}

/// Where the `GICv3`'s registers lie in the guest, and how much it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gic {
    /// The distributor's first byte.
    pub distributor: u64,
    /// The first redistributor's first byte; one of 128 KiB for each vCPU, without gaps.
    pub redistributors: u64,
    /// How many vCPUs.
    pub vcpus: u32,
    /// How many shared peripheral interrupts, a multiple of 32.
    pub spis: u32,
}

/// Makes a vCPU on the thread that calls.
pub trait Bind: Send {
    /// Makes it.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError>;
}

/// A vCPU. It stays on the thread that bound it.
pub trait Vcpu {
    /// Where it begins: EL1, no MMU, interrupts masked, `argument` in x0.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn begin_at(&mut self, entry: u64, argument: u64) -> Result<(), HypervisorError>;

    /// Runs the guest until it needs something.
    ///
    /// # Errors
    /// What the hypervisor says; the vCPU cannot go on then.
    fn run(&mut self) -> Result<Exit, HypervisorError>;

    /// What was read, after an [`Exit::Read`] and before the next [`run`](Self::run).
    fn answer(&mut self, value: u64);

    /// What makes [`run`](Self::run) return from another thread.
    fn kicker(&self) -> Box<dyn Kick>;
}

/// Why a vCPU came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads `size` bytes (1, 2, 4 or 8) where there is no memory: [`Vcpu::answer`] says what it got.
    Read {
        /// Where.
        address: u64,
        /// How many bytes.
        size: u8,
    },
    /// The guest writes `size` bytes (1, 2, 4 or 8) where there is no memory.
    Write {
        /// Where.
        address: u64,
        /// How many bytes.
        size: u8,
        /// What, in the low bytes.
        value: u64,
    },
    /// The guest has switched itself off.
    PoweredOff,
    /// The guest wants to begin anew.
    Reset,
    /// [`Kick::kick`] was called, or nothing at all happened.
    Kicked,
}

/// Makes a vCPU come back, from any thread.
pub trait Kick: Send + Sync {
    /// The vCPU returns from the run that it is in, or from the next one.
    fn kick(&self);
}

/// An interrupt line.
pub trait Line: Send + Sync {
    /// Raises or lowers it.
    fn set(&self, high: bool);
}

/// An interrupt that is an event and not a state.
pub trait Edge: Send + Sync {
    /// Interrupts once; several before the guest has taken the first are one.
    fn pulse(&self);
}

/// The vCPU's affinity fields, as its `MPIDR_EL1` and the device tree have them: sixteen to a cluster, since one
/// interrupt between vCPUs reaches as many (`GICv3`'s `ICC_SGI1R_EL1`, Arm IHI 0069, 12.1.10).
#[must_use]
pub fn affinity(index: u32) -> u64 {
    u64::from(index & 0xf) | u64::from(index >> 4 & 0xff) << 8 | u64::from(index >> 12 & 0xff) << 16
}

/// This machine's hypervisor.
///
/// # Errors
/// There is none, or this user may not use it.
pub fn open() -> Result<Box<dyn Hypervisor>, HypervisorError> {
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    return Ok(Box::new(kvm::Kvm::open()?));
    #[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
    return Err(HypervisorError::NoneHere);
}

#[cfg(test)]
mod tests {
    use super::affinity;

    #[test]
    fn sixteen_vcpus_are_a_cluster() {
        assert_eq!([0, 1, 15, 16, 31, 255].map(affinity), [0, 1, 15, 0x100, 0x10f, 0xf0f]);
    }
}
