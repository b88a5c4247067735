//! The device tree: what the kernel is told of its machine.
//!
//! Source: Devicetree Specification 0.4, and `Documentation/devicetree/bindings` of Linux 6.12.

use vm_fdt::{Error, FdtWriter, FdtWriterResult};

use super::layout::{
    CLOCK, CLOCK_LEN, GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_LEN, GIC_REDISTRIBUTOR_LEN, GIC_REDISTRIBUTORS,
    MEMORY, SERIAL, SERIAL_LEN, SERIAL_SPI, VIRTIO, VIRTIO_LEN, VIRTIO_SPI,
};
use super::placement::Placement;
use crate::hypervisor::affinity;

const GIC: u32 = 1;
const PERIPHERAL_CLOCK: u32 = 2;

// Cells of an interrupt (arm,gic-v3.yaml).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// The timers' private interrupts: secure, not secure, virtual, hypervisor (Arm BSA, 3.6).
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// What a tree tells.
#[derive(Debug)]
pub struct Told<'a> {
    /// How many vCPUs.
    pub vcpus: u32,
    /// How much memory, in bytes.
    pub memory: u64,
    /// Where things lie in it.
    pub placement: &'a Placement,
    /// How many virtio devices.
    pub virtio: u32,
    /// The kernel's command line.
    pub arguments: &'a str,
    /// Random bytes, never the same twice: the kernel's first.
    pub seed: [u8; 64],
}

/// Writes the tree.
///
/// # Errors
/// The command line has a zero byte in it.
pub fn write(told: &Told<'_>) -> FdtWriterResult<Vec<u8>> {
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    tree.property_string("compatible", "linux,dummy-virt")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_u32("interrupt-parent", GIC)?;
    chosen(&mut tree, told)?;

    let memory = tree.begin_node(&format!("memory@{MEMORY:x}"))?;
    tree.property_string("device_type", "memory")?;
    tree.property_array_u64("reg", &[MEMORY, told.memory])?;
    tree.end_node(memory)?;

    cpus(&mut tree, told.vcpus)?;
    interrupts_and_time(&mut tree, told.vcpus)?;
    serial(&mut tree)?;
    clock(&mut tree)?;
    (0..told.virtio).try_for_each(|index| virtio(&mut tree, index))?;
    tree.end_node(root)?;
    tree.finish()
}

fn chosen(tree: &mut FdtWriter, told: &Told<'_>) -> Result<(), Error> {
    let chosen = tree.begin_node("chosen")?;
    tree.property_string("bootargs", told.arguments)?;
    tree.property_string("stdout-path", &format!("/serial@{SERIAL:x}"))?;
    if let Some(initramfs) = &told.placement.initramfs {
        tree.property_u64("linux,initrd-start", initramfs.start)?;
        tree.property_u64("linux,initrd-end", initramfs.end)?;
    }
    let (kaslr, rng) = told.seed.split_at(8);
    tree.property("kaslr-seed", kaslr)?;
    tree.property("rng-seed", rng)?;
    tree.end_node(chosen)
}

fn cpus(tree: &mut FdtWriter, vcpus: u32) -> Result<(), Error> {
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 0)?;
    for affinity in (0..vcpus).map(affinity) {
        let cpu = tree.begin_node(&format!("cpu@{affinity:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_string("enable-method", "psci")?;
        tree.property_u64("reg", affinity)?;
        tree.end_node(cpu)?;
    }
    tree.end_node(cpus)?;

    let psci = tree.begin_node("psci")?;
    tree.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    tree.property_string("method", "hvc")?;
    tree.end_node(psci)
}

fn interrupts_and_time(tree: &mut FdtWriter, vcpus: u32) -> Result<(), Error> {
    let gic = tree.begin_node(&format!("intc@{GIC_DISTRIBUTOR:x}"))?;
    tree.property_string("compatible", "arm,gic-v3")?;
    tree.property_null("interrupt-controller")?;
    tree.property_u32("#interrupt-cells", 3)?;
    let redistributors = GIC_REDISTRIBUTOR_LEN * u64::from(vcpus);
    tree.property_array_u64(
        "reg",
        &[GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_LEN, GIC_REDISTRIBUTORS, redistributors],
    )?;
    tree.property_phandle(GIC)?;
    tree.end_node(gic)?;

    let timer = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    tree.property_array_u32("interrupts", &TIMER_PPIS.map(|ppi| [PRIVATE, ppi, LEVEL_HIGH]).concat())?;
    tree.property_null("always-on")?;
    tree.end_node(timer)?;

    // What the serial port's driver divides to get a baud rate, which means nothing here.
    let clock = tree.begin_node("apb-pclk")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", 24_000_000)?;
    tree.property_string("clock-output-names", "clk24mhz")?;
    tree.property_phandle(PERIPHERAL_CLOCK)?;
    tree.end_node(clock)
}

fn serial(tree: &mut FdtWriter) -> Result<(), Error> {
    let serial = tree.begin_node(&format!("serial@{SERIAL:x}"))?;
    tree.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    tree.property_array_u64("reg", &[SERIAL, SERIAL_LEN])?;
    tree.property_array_u32("interrupts", &[SHARED, SERIAL_SPI, LEVEL_HIGH])?;
    tree.property_array_u32("clocks", &[PERIPHERAL_CLOCK, PERIPHERAL_CLOCK])?;
    tree.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    tree.end_node(serial)
}

/// Without an interrupt it has no alarm, and the kernel says so.
fn clock(tree: &mut FdtWriter) -> Result<(), Error> {
    let clock = tree.begin_node(&format!("rtc@{CLOCK:x}"))?;
    tree.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
    tree.property_array_u64("reg", &[CLOCK, CLOCK_LEN])?;
    tree.property_u32("clocks", PERIPHERAL_CLOCK)?;
    tree.property_string("clock-names", "apb_pclk")?;
    tree.end_node(clock)
}

fn virtio(tree: &mut FdtWriter, index: u32) -> Result<(), Error> {
    let registers = VIRTIO + VIRTIO_LEN * u64::from(index);
    let virtio = tree.begin_node(&format!("virtio_mmio@{registers:x}"))?;
    tree.property_string("compatible", "virtio,mmio")?;
    tree.property_array_u64("reg", &[registers, VIRTIO_LEN])?;
    tree.property_array_u32("interrupts", &[SHARED, VIRTIO_SPI + index, EDGE_RISING])?;
    tree.property_null("dma-coherent")?;
    tree.end_node(virtio)
}
