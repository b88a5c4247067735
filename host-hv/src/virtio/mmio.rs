//! The registers by which a driver finds and sets up a device, as a state machine (virtio 1.3, section 4.2).
//!
//! Nothing that a driver writes here is more than remembered: what has to happen is an [`Event`], for whoever owns the
//! device. A driver that breaks the order of things (queues before features, addresses under a live queue) is not
//! heard; one that sets up a queue that cannot be is told to begin anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState};

use super::Device;

/// Where a queue's number is written when it has new buffers.
pub const QUEUE_NOTIFY: u64 = 0x050;

// The other registers, by offset (4.2.2).
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const SHARED_MEMORY_LEN: u64 = 0x0b0;
const SHARED_MEMORY_BASE: u64 = 0x0b8;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VERSION_VALUE: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"HSPS");

/// Bytes of configuration space that a device may have here.
const CONFIG_MAX: usize = 0x100;

// Device status (2.1).
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
/// What a driver may set: `ACKNOWLEDGE` and `DRIVER` too.
const DRIVERS_BITS: u32 = 1 | 2 | DRIVER_OK | FEATURES_OK | FAILED;

/// Buffers were used (4.2.2, `InterruptStatus`).
pub const USED_BUFFERS: u32 = 1;

/// What a driver's write means for the device.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The device begins, with what was agreed on and the queues that there are.
    Start {
        /// The feature bits that the driver took.
        features: u64,
        /// Queues and their numbers.
        queues: Vec<(usize, Queue)>,
    },
    /// A queue has new buffers.
    Notify(usize),
    /// The device leaves a queue alone from now on. The driver may reuse its memory as soon as its write is done.
    Stop(usize),
    /// The device forgets everything; as for the memory, the same.
    Reset,
}

/// A device's registers.
#[derive(Debug)]
pub struct Registers {
    device_id: u32,
    offered: u64,
    config: Vec<u8>,
    queues: Vec<Setup>,
    interrupts: Arc<AtomicU32>,
    offered_half: u32,
    accepted_half: u32,
    accepted: u64,
    selected: u32,
    status: u32,
}

/// A queue, as far as the driver has set it up.
#[derive(Debug)]
struct Setup {
    state: QueueState,
    max: u16,
    queue: Option<Queue>,
}

impl Setup {
    fn new(max: u16) -> Self {
        Self { state: QueueState { max_size: max, size: max, ..QueueState::default() }, max, queue: None }
    }
}

impl Registers {
    /// Those of `device`, which is what `device_id` says (section 5). It is asked for its configuration this once.
    pub fn new(device_id: u32, device: &dyn Device) -> Self {
        let mut config = vec![0; CONFIG_MAX];
        device.read_config(0, &mut config);
        Self {
            device_id,
            offered: device.features(),
            config,
            queues: device.ring_sizes().iter().map(|&max| Setup::new(max)).collect(),
            interrupts: Arc::default(),
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            selected: 0,
            status: 0,
        }
    }

    /// The interrupts' causes, of which the device sets [`USED_BUFFERS`] before it interrupts.
    pub fn interrupts(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.interrupts)
    }

    /// What a driver reads; `size` is 1, 2, 4 or 8.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        if offset >= CONFIG {
            return self.read_config(offset - CONFIG, size);
        }
        // The others are read as a whole or not at all (4.2.2.2).
        if size != 4 {
            return 0;
        }
        u64::from(match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.device_id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered, self.offered_half),
            QUEUE_SIZE_MAX => self.queue().map_or(0, |setup| u32::from(setup.max)),
            QUEUE_READY => self.queue().map_or(0, |setup| u32::from(setup.queue.is_some())),
            INTERRUPT_STATUS => self.interrupts.load(Ordering::Acquire),
            STATUS => self.status,
            // There is no shared memory, which its length says (4.2.2).
            _ if offset & !4 == SHARED_MEMORY_LEN || offset & !4 == SHARED_MEMORY_BASE => u32::MAX,
            // The configuration's generation too: it never changes.
            _ => 0,
        })
    }

    /// What a driver writes; `size` is 1, 2, 4 or 8.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Option<Event> {
        // No device here has a configuration that its driver writes.
        if size != 4 || offset >= CONFIG {
            return None;
        }
        let value = half(value, 0);
        match offset {
            DEVICE_FEATURES_SEL => self.offered_half = value,
            DRIVER_FEATURES_SEL => self.accepted_half = value,
            DRIVER_FEATURES if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.accepted_half, value);
            }
            QUEUE_SEL => self.selected = value,
            QUEUE_NOTIFY => return self.notified(value),
            QUEUE_READY => return self.set_ready(value),
            INTERRUPT_ACK => {
                self.interrupts.fetch_and(!value, Ordering::AcqRel);
            }
            STATUS => return self.set_status(value),
            _ => self.set_up(offset, value),
        }
        None
    }

    /// The device does not do what was asked: the driver has to begin anew (2.1.2).
    pub fn needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    fn running(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    fn queue(&self) -> Option<&Setup> {
        self.queues.get(usize::try_from(self.selected).ok()?)
    }

    fn read_config(&self, offset: u64, size: u8) -> u64 {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.config.get(start..).unwrap_or_default();
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(bytes.iter().take(size.into())) {
            *to = *from;
        }
        u64::from_le_bytes(value)
    }

    fn notified(&self, index: u32) -> Option<Event> {
        let index = usize::try_from(index).ok()?;
        let live = self.running() && self.queues.get(index)?.queue.is_some();
        live.then_some(Event::Notify(index))
    }

    fn set_ready(&mut self, value: u32) -> Option<Event> {
        let (running, agreed) = (self.running(), self.status & FEATURES_OK != 0);
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let index = usize::try_from(self.selected).ok()?;
        let setup = self.queues.get_mut(index)?;
        if value == 0 {
            return (setup.queue.take().is_some() && running).then_some(Event::Stop(index));
        }
        if running || !agreed || setup.queue.is_some() {
            return None;
        }
        let state = QueueState { event_idx_enabled: event_idx, ready: true, ..setup.state };
        match Queue::try_from(state) {
            Ok(queue) => setup.queue = Some(queue),
            Err(error) => {
                tracing::warn!(%error, queue = index, "The guest's queue cannot be");
                self.needs_reset();
            }
        }
        None
    }

    /// Size and addresses of a queue that is not ready.
    fn set_up(&mut self, offset: u64, value: u32) {
        let Some(setup) = usize::try_from(self.selected).ok().and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        if setup.queue.is_some() {
            return;
        }
        let upper = u32::from(offset & 4 != 0);
        match offset & !4 {
            // What is no size at all is refused with the rest, when the queue is to be ready.
            QUEUE_SIZE if upper == 0 => setup.state.size = u16::try_from(value).unwrap_or(0),
            QUEUE_DESCRIPTORS => set_half(&mut setup.state.desc_table, upper, value),
            QUEUE_DRIVER => set_half(&mut setup.state.avail_ring, upper, value),
            QUEUE_DEVICE => set_half(&mut setup.state.used_ring, upper, value),
            _ => (),
        }
    }

    fn set_status(&mut self, value: u32) -> Option<Event> {
        if value == 0 {
            self.reset();
            return Some(Event::Reset);
        }
        // A driver takes no bit back but by a reset (2.1.1).
        let mut new = value & DRIVERS_BITS & !self.status;
        if new & FEATURES_OK != 0 && (self.accepted & !self.offered != 0 || !self.modern()) {
            new &= !FEATURES_OK;
        }
        if (self.status | new) & FEATURES_OK == 0 || self.status & NEEDS_RESET != 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        (new & DRIVER_OK != 0).then(|| Event::Start {
            features: self.accepted,
            queues: (0..)
                .zip(&self.queues)
                .filter_map(|(index, setup)| Some((index, copy(setup)?)))
                .collect(),
        })
    }

    fn modern(&self) -> bool {
        self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn reset(&mut self) {
        for setup in &mut self.queues {
            *setup = Setup::new(setup.max);
        }
        (self.offered_half, self.accepted_half, self.accepted) = (0, 0, 0);
        (self.selected, self.status) = (0, 0);
        self.interrupts.store(0, Ordering::Release);
    }
}

/// The queue, at its beginning: the driver cannot start a device twice.
fn copy(setup: &Setup) -> Option<Queue> {
    use virtio_queue::QueueT;
    Queue::try_from(setup.queue.as_ref()?.state()).ok().filter(QueueT::ready)
}

/// Half 0 or 1 of 64 bits; there is nothing in the others.
fn half(bits: u64, half: u32) -> u32 {
    let bytes = bits.to_le_bytes();
    match half {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_half(bits: &mut u64, half: u32, value: u32) {
    match half {
        0 => *bits = *bits & !u64::from(u32::MAX) | u64::from(value),
        1 => *bits = *bits & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueT;

    use super::*;
    use crate::virtio::{Memory, Ring};

    const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1;

    struct Plain;

    impl Device for Plain {
        fn features(&self) -> u64 {
            OFFERED
        }
        fn ack_features(&mut self, _: u64) {}
        fn ring_sizes(&self) -> &[u16] {
            &[256, 16]
        }
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            let config = [1, 2, 3, 4, 5, 6, 7, 8];
            data.iter_mut().zip(&config[offset..]).for_each(|(to, from)| *to = *from);
        }
        fn set_memory(&mut self, _: Memory) {}
        fn start_ring(&mut self, _: usize, _: Ring) {}
        fn stop_ring(&mut self, _: usize) -> Option<Queue> {
            None
        }
        fn kick(&mut self, _: usize) {}
        fn run(&mut self) -> bool {
            false
        }
        fn reset(&mut self) {}
    }

    fn new() -> Registers {
        Registers::new(4, &Plain)
    }

    /// Writes; no event is to come of it.
    fn set(registers: &mut Registers, writes: &[(u64, u32)]) {
        for &(offset, value) in writes {
            assert_eq!(registers.write(offset, 4, u64::from(value)), None, "{offset:#x}");
        }
    }

    fn agree(registers: &mut Registers) {
        set(registers, &[(STATUS, 1), (STATUS, 3), (DRIVER_FEATURES_SEL, 1), (DRIVER_FEATURES, 1)]);
        set(registers, &[(DRIVER_FEATURES_SEL, 0), (DRIVER_FEATURES, 1 << 29), (STATUS, 11)]);
        assert_eq!(registers.read(STATUS, 4), 11);
    }

    const QUEUE_1: [(u64, u32); 9] = [
        (QUEUE_SEL, 1),
        (QUEUE_SIZE, 8),
        (QUEUE_DESCRIPTORS, 0x1000),
        (QUEUE_DESCRIPTORS + 4, 1),
        (QUEUE_DRIVER, 0x2000),
        (QUEUE_DRIVER + 4, 2),
        (QUEUE_DEVICE, 0x3000),
        (QUEUE_DEVICE + 4, 3),
        (QUEUE_READY, 1),
    ];

    #[test]
    fn it_says_what_it_is() {
        let mut registers = new();
        for (offset, size, value) in [
            (MAGIC, 4, 0x7472_6976),
            (VERSION, 4, 2),
            (DEVICE_ID, 4, 4),
            (VENDOR_ID, 4, u64::from(VENDOR)),
            (MAGIC, 1, 0),
            (MAGIC, 8, 0),
            (2, 4, 0),
            (SHARED_MEMORY_LEN, 4, 0xffff_ffff),
            (SHARED_MEMORY_BASE + 4, 4, 0xffff_ffff),
            (0x0fc, 4, 0),
            (CONFIG, 1, 1),
            (CONFIG + 2, 2, 0x0403),
            (CONFIG + 4, 4, 0x0807_0605),
            (CONFIG, 8, 0x0807_0605_0403_0201),
            (CONFIG + 7, 4, 8),
            (CONFIG + 0xff, 8, 0),
            (u64::MAX, 8, 0),
        ] {
            assert_eq!(registers.read(offset, size), value, "{size} bytes at {offset:#x}");
        }
        for (half, value) in [(0, 0x2000_0001), (1, 1), (2, 0), (u32::MAX, 0)] {
            set(&mut registers, &[(DEVICE_FEATURES_SEL, half)]);
            assert_eq!(registers.read(DEVICE_FEATURES, 4), value);
        }
        for (queue, max) in [(0, 256), (1, 16), (2, 0), (u32::MAX, 0)] {
            set(&mut registers, &[(QUEUE_SEL, queue)]);
            assert_eq!(registers.read(QUEUE_SIZE_MAX, 4), max);
        }
    }

    #[test]
    fn a_driver_that_keeps_the_order_gets_the_device_it_set_up() {
        let mut registers = new();
        agree(&mut registers);
        set(&mut registers, &QUEUE_1);
        assert_eq!(registers.read(QUEUE_READY, 4), 1);
        // Live already: none of these counts.
        set(&mut registers, &[(QUEUE_SIZE, 4), (QUEUE_DEVICE, 0), (QUEUE_NOTIFY, 1), (DRIVER_FEATURES, 0)]);
        let Some(Event::Start { features, queues }) = registers.write(STATUS, 4, 15) else { panic!() };
        assert_eq!(features, 1 << 32 | 1 << 29);
        let [(1, queue)] = &queues[..] else { panic!("{queues:?}") };
        assert!(queue.ready() && queue.event_idx_enabled());
        assert_eq!((queue.size(), queue.desc_table()), (8, 0x1_0000_1000));
        assert_eq!((queue.avail_ring(), queue.used_ring()), (0x2_0000_2000, 0x3_0000_3000));
        // Started once, notified of live queues alone.
        assert_eq!(registers.write(STATUS, 4, 15), None);
        assert_eq!(registers.write(QUEUE_NOTIFY, 4, 1), Some(Event::Notify(1)));
        assert_eq!(registers.write(QUEUE_NOTIFY, 2, 1), None);
        set(&mut registers, &[(QUEUE_NOTIFY, 0), (QUEUE_NOTIFY, 2), (QUEUE_NOTIFY, u32::MAX)]);
        assert_eq!(registers.write(QUEUE_READY, 4, 0), Some(Event::Stop(1)));
        set(&mut registers, &[(QUEUE_NOTIFY, 1), (QUEUE_READY, 0), (QUEUE_READY, 1)]);
        assert_eq!(registers.read(QUEUE_READY, 4), 0);
    }

    #[test]
    fn a_reset_leaves_nothing() {
        let mut registers = new();
        agree(&mut registers);
        set(&mut registers, &QUEUE_1);
        assert!(registers.write(STATUS, 4, 15).is_some());
        registers.interrupts().fetch_or(USED_BUFFERS, Ordering::Release);
        assert_eq!(registers.write(STATUS, 4, 0), Some(Event::Reset));
        assert_eq!([registers.read(STATUS, 4), registers.read(INTERRUPT_STATUS, 4)], [0, 0]);
        agree(&mut registers);
        let Some(Event::Start { queues, .. }) = registers.write(STATUS, 4, 15) else { panic!() };
        assert_eq!(queues, []);
    }

    #[test]
    fn an_interrupts_cause_is_there_until_it_is_acknowledged() {
        let mut registers = new();
        registers.interrupts().fetch_or(USED_BUFFERS, Ordering::Release);
        set(&mut registers, &[(INTERRUPT_ACK, 2)]);
        assert_eq!(registers.read(INTERRUPT_STATUS, 4), 1);
        set(&mut registers, &[(INTERRUPT_ACK, 1)]);
        assert_eq!(registers.read(INTERRUPT_STATUS, 4), 0);
    }

    #[test]
    fn features_that_were_not_offered_and_legacy_drivers_are_refused() {
        for (lower, upper, status) in [(0, 1, 11), (1 << 29 | 1, 1, 11), (0, 0, 3), (2, 1, 3), (0, 3, 3)] {
            let mut registers = new();
            set(&mut registers, &[(STATUS, 3), (DRIVER_FEATURES, lower), (DRIVER_FEATURES_SEL, 1)]);
            set(&mut registers, &[(DRIVER_FEATURES, upper), (STATUS, 11)]);
            assert_eq!(registers.read(STATUS, 4), status);
            // Without what was agreed on there is no device, and no queue of it.
            set(&mut registers, &QUEUE_1);
            assert_eq!(registers.read(QUEUE_READY, 4), u64::from(status == 11));
            assert_eq!(registers.write(STATUS, 4, 15).is_some(), status == 11);
        }
    }

    #[test]
    fn a_queue_that_cannot_be_needs_a_reset() {
        for (offset, value) in [
            (QUEUE_SIZE, 0),
            (QUEUE_SIZE, 12),
            (QUEUE_SIZE, 32),
            (QUEUE_SIZE, 0x1_0008),
            (QUEUE_DESCRIPTORS, 0x1008),
            (QUEUE_DRIVER, 0x2001),
            (QUEUE_DEVICE, 0x3002),
        ] {
            let mut registers = new();
            agree(&mut registers);
            set(&mut registers, &QUEUE_1[..8]);
            set(&mut registers, &[(offset, value), (QUEUE_READY, 1)]);
            assert_eq!([registers.read(QUEUE_READY, 4), registers.read(STATUS, 4)], [0, 11 | 64]);
            set(&mut registers, &[(STATUS, 15)]);
            assert_eq!(registers.write(STATUS, 4, 0), Some(Event::Reset));
            assert_eq!(registers.read(STATUS, 4), 0);
        }
    }

    proptest! {
        #[test]
        fn no_writes_panic_and_only_ready_queues_are_handed_out(
            writes in prop::collection::vec(
                (0u64..0x44, prop::sample::select(vec![1u8, 2, 4, 4, 4, 8]),
                 prop_oneof![0u64..17, any::<u64>(), Just(1 << 32), Just(0x2000_0000)]), 0..200),
        ) {
            let mut registers = new();
            let mut started = 0;
            for (register, size, value) in writes {
                match registers.write(register * 4, size, value) {
                    Some(Event::Start { features, queues }) => {
                        started += 1;
                        prop_assert_eq!(features & !OFFERED, 0);
                        prop_assert!(queues.iter().all(|(index, queue)| *index < 2 && queue.ready()));
                    }
                    Some(Event::Notify(index) | Event::Stop(index)) => {
                        prop_assert!(started == 1 && index < 2);
                    }
                    Some(Event::Reset) => started = 0,
                    None => (),
                }
                prop_assert!(started <= 1);
                registers.read(register * 4, size);
            }
        }
    }
}
