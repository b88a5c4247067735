//! Where things lie in the guest: QEMU's `virt` machine's map, which firmware and kernels know.

/// What it all fits into: 64 GiB, which needs a level of translation less than more would.
pub const ADDRESS_BITS: u32 = 36;

/// The GIC's distributor.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// The distributor's length.
pub const GIC_DISTRIBUTOR_LEN: u64 = 0x1_0000;
/// The first vCPU's redistributor; the others' follow.
pub const GIC_REDISTRIBUTORS: u64 = 0x080a_0000;
/// A redistributor's length: two frames of 64 KiB.
pub const GIC_REDISTRIBUTOR_LEN: u64 = 0x2_0000;
/// How many shared interrupts there are.
pub const GIC_SPIS: u32 = 96;

/// The serial console (PL011).
pub const SERIAL: u64 = 0x0900_0000;
/// Its length.
pub const SERIAL_LEN: u64 = 0x1000;
/// Its shared interrupt.
pub const SERIAL_SPI: u32 = 1;

/// The clock (PL031).
pub const CLOCK: u64 = 0x0901_0000;
/// Its length.
pub const CLOCK_LEN: u64 = 0x1000;

/// The first virtio device's registers; the others' follow.
pub const VIRTIO: u64 = 0x0a00_0000;
/// A virtio device's registers' length.
pub const VIRTIO_LEN: u64 = 0x200;
/// The first virtio device's shared interrupt; the others' follow.
pub const VIRTIO_SPI: u32 = 16;
/// The most virtio devices.
pub const VIRTIO_MAX: u32 = 32;

/// The guest's memory.
pub const MEMORY: u64 = 0x4000_0000;
/// The most there can be, in bytes.
pub const MEMORY_MAX: u64 = (1 << ADDRESS_BITS) - MEMORY;
/// The most vCPUs.
pub const VCPUS_MAX: u32 = 32;

const _: () =
    assert!(GIC_REDISTRIBUTORS + GIC_REDISTRIBUTOR_LEN * VCPUS_MAX as u64 <= SERIAL, "one over the other");
const _: () = assert!(SERIAL + SERIAL_LEN <= CLOCK && CLOCK + CLOCK_LEN <= VIRTIO);
const _: () = assert!(VIRTIO + VIRTIO_LEN * VIRTIO_MAX as u64 <= MEMORY);
const _: () = assert!(SERIAL_SPI < VIRTIO_SPI && VIRTIO_SPI + VIRTIO_MAX <= GIC_SPIS);
