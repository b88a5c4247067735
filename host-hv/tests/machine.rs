//! Virtio devices in their places in a machine: driven by `virtio-drivers`, and by hand where that asks for too little.
#![expect(unsafe_code, reason = "a driver that others wrote names its buffers by pointer")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use host_hv::hypervisor::Edge;
use host_hv::machine::bus::MmioDevice;
use host_hv::machine::network::{self, Network};
use host_hv::machine::slot::{Make, Slot, alone};
use host_hv::machine::streams::{self, Streams};
use host_hv::testing::queue::{DriverQueue, Piece};
use host_hv::virtio::Memory;
use host_hv::virtio::blk::{self, Blk, Disk};
use host_hv::virtio::net::{self, Address, Link};
use host_hv::virtio::rng::{self, Rng};
use host_hv::virtio::vsock;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::socket::{
    VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const GUEST_MEMORY: usize = 32 << 20;

struct Pulses(Mutex<Sender<()>>);

impl Edge for Pulses {
    fn pulse(&self) {
        let _ = self.0.lock().unwrap().send(());
    }
}

fn slot(kind: u32, make: Make) -> (Arc<Slot>, Memory, Receiver<()>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), GUEST_MEMORY)]).unwrap();
    let memory = Arc::new(memory);
    let (sender, pulses) = mpsc::channel();
    let edge = Box::new(Pulses(Mutex::new(sender)));
    (Arc::new(Slot::new("device", kind, make, Arc::clone(&memory), edge).unwrap()), memory, pulses)
}

fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().prefix("image-").rand_bytes(4).tempfile().unwrap();
    std::fs::write(&file, bytes).unwrap();
    file
}

fn disk(path: &Path, read_only: bool) -> (Arc<Slot>, Memory, Receiver<()>) {
    let disk = Arc::new(Disk::open(path, read_only).unwrap());
    slot(blk::DEVICE_ID, alone(|| Ok(Blk::new(disk))))
}

/// A driver spins until the device has answered: what never does must not hang the tests.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || sender.send(body()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the device has not answered"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err());
        }
    }
}

// What follows lets virtio-drivers see a slot as a device, and this process as a guest.

thread_local! {
    /// This thread's guest: its memory, and how much of it is in use. Nothing is given back.
    static GUEST: RefCell<Option<(Memory, usize)>> = const { RefCell::new(None) };
}

struct Guest;

struct Nudger {
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Nudger {
    fn drop(&mut self) {
        self.stop = None;
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

impl Guest {
    /// Until what is returned is dropped, the device is notified more often than the driver thinks it must be, as it
    /// may be: virtio-drivers looks whether a notification is wanted with no barrier between that and its own store,
    /// which the specification asks for (2.7.13.4.1), and so leaves one out now and then.
    fn begin(memory: Memory, slot: &Arc<Slot>) -> Nudger {
        // A driver takes address 0 for none.
        GUEST.with_borrow_mut(|guest| *guest = Some((memory, PAGE_SIZE)));
        let (stop, stopped) = mpsc::channel::<()>();
        let slot = Arc::clone(slot);
        let nudge = move || {
            while stopped.recv_timeout(Duration::from_millis(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
                slot.bells().iter().for_each(host_hv::io::Bell::ring);
            }
        };
        Nudger { stop: Some(stop), thread: Some(thread::spawn(nudge)) }
    }

    fn memory() -> Memory {
        GUEST.with_borrow(|guest| Arc::clone(&guest.as_ref().unwrap().0))
    }

    fn take(bytes: usize) -> PhysAddr {
        GUEST.with_borrow_mut(|guest| {
            let used = &mut guest.as_mut().unwrap().1;
            let address = *used;
            *used += bytes.next_multiple_of(PAGE_SIZE);
            assert!(*used <= GUEST_MEMORY);
            address as PhysAddr
        })
    }
}

// SAFETY: pages come from a mapping that is zero, aligned to pages and kept by `GUEST`, each once; buffers are copied.
unsafe impl Hal for Guest {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let address = Self::take(pages * PAGE_SIZE);
        let host = Self::memory().get_host_address(GuestAddress(address)).unwrap();
        (address, NonNull::new(host).unwrap())
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("that is for PCI")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let address = Self::take(buffer.len());
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller says that the buffer is valid and that nobody else has it.
            let bytes = unsafe { buffer.as_ref() };
            Self::memory().write_slice(bytes, GuestAddress(address)).unwrap();
        }
        address
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller says that the buffer is valid and that nobody else has it.
            let bytes = unsafe { buffer.as_mut() };
            Self::memory().read_slice(bytes, GuestAddress(address)).unwrap();
        }
    }
}

/// The driver's side of the registers, from the specification (virtio 1.3, 4.2.2 and 4.2.3).
struct Mmio(Arc<Slot>);

impl Mmio {
    fn read(&self, offset: u64) -> u32 {
        u32::try_from(self.0.read(offset, 4)).unwrap()
    }

    fn write(&self, offset: u64, value: u32) {
        self.0.write(offset, 4, value.into());
    }

    fn write_long(&self, offset: u64, value: u64) {
        self.write(offset, u32::try_from(value & 0xffff_ffff).unwrap());
        self.write(offset + 4, u32::try_from(value >> 32).unwrap());
    }
}

impl Transport for Mmio {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.read(0x008)).unwrap()
    }
    fn read_device_features(&mut self) -> u64 {
        self.write(0x014, 0);
        let lower = self.read(0x010);
        self.write(0x014, 1);
        u64::from(lower) | u64::from(self.read(0x010)) << 32
    }
    fn write_driver_features(&mut self, features: u64) {
        for (half, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(0x024, half);
            self.write(0x020, u32::try_from(bits).unwrap());
        }
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(0x030, queue.into());
        self.read(0x034)
    }
    fn notify(&mut self, queue: u16) {
        self.write(0x050, queue.into());
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(0x070))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.write(0x070, status.bits());
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, table: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.write(0x030, queue.into());
        self.write(0x038, size);
        self.write_long(0x080, table);
        self.write_long(0x090, driver);
        self.write_long(0x0a0, device);
        self.write(0x044, 1);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.write(0x030, queue.into());
        self.write(0x044, 0);
        assert_eq!(self.read(0x044), 0, "the device has not let go of the queue");
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(0x030, queue.into());
        self.read(0x044) != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        let causes = self.read(0x060);
        self.write(0x064, causes);
        InterruptStatus::from_bits_retain(causes)
    }
    fn read_config_generation(&self) -> u32 {
        self.read(0x0fc)
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        for (at, byte) in (0x100 + offset as u64..).zip(value.as_mut_bytes()) {
            *byte = u8::try_from(self.0.read(at, 1)).unwrap();
        }
        Ok(value)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}

#[test]
fn another_ones_driver_gets_random_bytes() {
    in_time(|| {
        let (slot, memory, _) = slot(rng::DEVICE_ID, alone(|| Ok(Rng::default())));
        let _nudger = Guest::begin(memory, &slot);
        let mut driver = VirtIORng::<Guest, _>::new(Mmio(slot)).unwrap();
        let mut seen = std::collections::HashSet::new();
        for len in [32, 4000] {
            for _ in 0..50 {
                let mut bytes = vec![0; len];
                assert_eq!(driver.request_entropy(&mut bytes).unwrap(), len);
                assert!(seen.insert(bytes[len - 32..].to_vec()), "the same bytes again");
            }
        }
    });
}

#[test]
fn another_ones_driver_reads_and_writes_a_disk_and_the_next_one_finds_it_so() {
    let file = image(&[7; 64 * 512]);
    let path = file.path().to_owned();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    in_time(move || {
        let (slot, memory, _) = disk(&path, false);
        let _nudger = Guest::begin(memory, &slot);
        for round in 0..3 {
            let mut driver = VirtIOBlk::<Guest, _>::new(Mmio(Arc::clone(&slot))).unwrap();
            assert_eq!((driver.capacity(), driver.readonly()), (64, false));
            let mut id = [0; 20];
            let len = driver.device_id(&mut id).unwrap();
            assert_eq!(&id[..len], name.as_bytes());
            let mut bytes = [0; 1024];
            driver.read_blocks(62, &mut bytes).unwrap();
            assert_eq!(bytes, [if round == 0 { 7 } else { round }; 1024]);
            driver.write_blocks(62, &[round + 1; 1024]).unwrap();
            driver.flush().unwrap();
            // Past the end, of which nothing may be written.
            assert!(
                driver.write_blocks(63, &[9; 1024]).is_err()
                    && driver.read_blocks(64, &mut [0; 512]).is_err()
            );
        }
    });
    let bytes = std::fs::read(file.path()).unwrap();
    assert!(bytes.len() == 64 * 512 && bytes[..62 * 512] == [7; 62 * 512] && bytes[62 * 512..] == [3; 1024]);
}

#[test]
fn a_disk_that_is_read_only_says_so_and_is() {
    let file = image(&[7; 512]);
    let path = file.path().to_owned();
    in_time(move || {
        let (slot, memory, _) = disk(&path, true);
        let _nudger = Guest::begin(memory, &slot);
        let mut driver = VirtIOBlk::<Guest, _>::new(Mmio(slot)).unwrap();
        assert!(driver.readonly() && driver.write_blocks(0, &[9; 512]).is_err());
        let mut bytes = [0; 512];
        driver.read_blocks(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 512]);
    });
    assert_eq!(std::fs::read(file.path()).unwrap(), [7; 512]);
}

/// A guest of virtio-drivers' making, and the directory of the sockets that lead to it.
type Talker = VsockConnectionManager<Guest, Mmio>;

fn talker(streams: &Arc<Streams>) -> (Talker, Arc<Slot>, Nudger) {
    let (slot, memory, _) = slot(vsock::spec::DEVICE_ID, streams::make(Arc::clone(streams)));
    let nudger = Guest::begin(memory, &slot);
    (VsockConnectionManager::new(VirtIOSocket::new(Mmio(Arc::clone(&slot))).unwrap()), slot, nudger)
}

/// Waits for what a connection was told next; returns the host's port of it.
fn told(guest: &mut Talker, what: &VsockEventType) -> u32 {
    loop {
        if let Some(event) = guest.poll().unwrap() {
            assert_eq!((&event.event_type, event.source.cid), (what, VMADDR_CID_HOST));
            return event.source.port;
        }
        thread::yield_now();
    }
}

/// All that comes on a connection, up to so many bytes.
fn hear(guest: &mut Talker, host: VsockAddr, port: u32, bytes: usize) -> Vec<u8> {
    let mut heard = vec![0; bytes];
    let mut len = 0;
    while len < bytes {
        if let Some(event) = guest.poll().unwrap() {
            assert!(matches!(event.event_type, VsockEventType::Received { .. }), "{event:?}");
            len += guest.recv(host, port, &mut heard[len..]).unwrap();
            guest.update_credit(host, port).unwrap();
        }
    }
    heard
}

#[test]
fn another_ones_driver_and_the_host_call_each_other_before_and_after_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let server = UnixListener::bind(directory.path().join("guest_70")).unwrap();
    let bound = Streams::bind(42, &path, &[], vsock::Limits::default()).unwrap();
    let streams = Arc::new(bound);
    in_time(move || {
        for round in 0..2 {
            let (mut guest, slot, _nudger) = talker(&streams);
            assert_eq!(guest.guest_cid(), 42);
            guest.listen(80);
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"CONNECT 80\nquestion").unwrap();
            let port = told(&mut guest, &VsockEventType::ConnectionRequest);
            let host = VsockAddr { cid: VMADDR_CID_HOST, port };
            assert_eq!(hear(&mut guest, host, 80, 8), b"question");
            guest.send(host, 80, b"answer").unwrap();
            let expected = format!("OK {port}\nanswer");
            let mut heard = vec![0; expected.len()];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, expected.as_bytes());

            let host = VsockAddr { cid: VMADDR_CID_HOST, port: 70 };
            guest.connect(host, 1000 + round).unwrap();
            let (mut service, _) = server.accept().unwrap();
            told(&mut guest, &VsockEventType::Connected);
            let sent: Vec<u8> = (0..=255).cycle().take(20_000).collect();
            let bytes = sent.clone();
            let writer = thread::spawn(move || service.write_all(&bytes).map(|()| service));
            assert_eq!(hear(&mut guest, host, 1000 + round, sent.len()), sent);
            let mut service = writer.join().unwrap().unwrap();
            guest.send(host, 1000 + round, b"thanks").unwrap();
            let mut heard = [0; 6];
            service.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"thanks");

            // The guest is gone, and so are its connections.
            slot.write(0x070, 4, 0);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            assert_eq!(service.read(&mut [0]).unwrap(), 0);
        }
        drop(streams);
        assert!(!path.exists(), "the socket's path is still there");
    });
}

#[test]
fn a_port_that_nobody_serves_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let streams = Arc::new(Streams::bind(3, &path, &[], vsock::Limits::default()).unwrap());
    in_time(move || {
        let (mut guest, _slot, _nudger) = talker(&streams);
        guest.connect(VsockAddr { cid: VMADDR_CID_HOST, port: 70 }, 1000).unwrap();
        let refused =
            VsockEventType::Disconnected { reason: virtio_drivers::device::socket::DisconnectReason::Reset };
        told(&mut guest, &refused);
        // One that is not the host, and is nobody.
        guest.connect(VsockAddr { cid: 4, port: 70 }, 1000).unwrap();
        while guest.poll().unwrap().is_none_or(|event| event.event_type != refused) {
            thread::yield_now();
        }
    });
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&Link::prefix(frame.len()), frame].concat()
}

#[test]
fn another_ones_driver_and_a_network_exchange_frames_before_and_after_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("network");
    let listener = UnixListener::bind(&socket).unwrap();
    let address: Address = "02:00:00:00:00:07".parse().unwrap();
    in_time(move || {
        let (slot, memory, _) = slot(net::DEVICE_ID, network::make(Network { socket, address, mtu: 1400 }));
        let (mut network, _) = listener.accept().unwrap();
        assert_eq!(slot.read(0x10a, 2), 1400);
        let _nudger = Guest::begin(memory, &slot);
        for round in 0..2 {
            let mut driver = VirtIONetRaw::<Guest, _, 16>::new(Mmio(Arc::clone(&slot))).unwrap();
            assert_eq!(driver.mac_address(), address.0);
            for len in [14, 60, 1514] {
                let frame = vec![round; len];
                // What is no frame reaches nobody, in either direction.
                driver.send(&[9; 13]).unwrap();
                driver.send(&frame).unwrap();
                let mut seen = vec![0; 4 + len];
                network.read_exact(&mut seen).unwrap();
                assert_eq!(seen, framed(&frame));
                network.write_all(&[framed(&[9; 1600]), framed(&frame)].concat()).unwrap();
                let mut buffer = [0; 12 + 1514];
                let (header, received) = driver.receive_wait(&mut buffer).unwrap();
                assert_eq!((header, &buffer[..12]), (12, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..]));
                assert_eq!(buffer[12..12 + received], frame);
            }
        }
    });
}

#[test]
fn a_network_that_is_not_there_is_told_with_what_to_do() {
    let socket = Path::new("/nonexistent/network").to_owned();
    let make = network::make(Network { socket, address: Address::of(b""), mtu: 1500 });
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
    let edge = Box::new(Pulses(Mutex::new(mpsc::channel().0)));
    let error = Slot::new("device", net::DEVICE_ID, make, memory, edge).err().unwrap().to_string();
    assert!(
        error.contains("nobody answers at /nonexistent/network") && error.contains("passt --socket"),
        "{error}"
    );
}

/// A driver by hand, which sends what virtio-drivers would not.
struct ByHand {
    mmio: Mmio,
    memory: Memory,
    /// Which queue it uses.
    index: u16,
    queue: DriverQueue,
    pulses: Receiver<()>,
}

/// Where requests lie, behind the queue.
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;

impl ByHand {
    fn new((slot, memory, pulses): (Arc<Slot>, Memory, Receiver<()>), index: u16, features: u64) -> Self {
        let mut mmio = Mmio(slot);
        let queue = DriverQueue::new(Arc::clone(&memory), 0x1000, 16, false);
        mmio.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        mmio.write_driver_features(features);
        mmio.write(0x070, 11);
        mmio.queue_set(index, 16, queue.descriptors(), queue.available(), queue.used());
        mmio.write(0x070, 15);
        Self { mmio, memory, index, queue, pulses }
    }

    /// Another driver of a device that was reset.
    fn again(self) -> Self {
        let Self { mmio, memory, index, pulses, .. } = self;
        memory.write_slice(&[0; 0x1000], GuestAddress(0x1000)).unwrap();
        Self::new((mmio.0, memory, pulses), index, VERSION_1)
    }

    /// Sends pieces and waits for the interrupt; returns how many bytes the device says that it wrote.
    fn send(&mut self, pieces: &[Piece]) -> u32 {
        let head = self.queue.add(pieces).unwrap();
        self.mmio.notify(self.index);
        self.pulses.recv_timeout(PATIENCE).expect("an interrupt");
        assert!(self.mmio.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
        let (used, written) = self.queue.pop_used().expect("an answer");
        assert_eq!(used, head);
        written
    }

    /// A disk's request, its status.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> u8 {
        let mut request = kind.to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        request.extend(data);
        self.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(ANSWER + u64::from(room))).unwrap();
        // Cut where nobody would.
        let (len, cut) = (u32::try_from(request.len()).unwrap(), 3);
        self.send(&[
            Piece { address: REQUEST, length: cut, write: false },
            Piece { address: REQUEST + u64::from(cut), length: len - cut, write: false },
            Piece { address: ANSWER, length: room + 1, write: true },
        ]);
        self.memory.read_obj(GuestAddress(ANSWER + u64::from(room))).unwrap()
    }
}

const VERSION_1: u64 = 1 << 32;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn ranges_are_discarded_and_made_zero_all_or_none() {
    let file = image(&[7; 64 * 512]);
    let features = VERSION_1 | FLUSH | DISCARD | WRITE_ZEROES;
    let mut driver = ByHand::new(disk(file.path(), false), 0, features);
    assert_eq!(driver.ask(13, 0, &[range(1, 1, 0), range(8, 16, 1), range(30, 0, 0)].concat(), 0), 0);
    assert_eq!(driver.ask(11, 0, &range(48, 8, 0), 0), 0);
    // One that is past the end, and none of the others is touched either.
    assert_eq!(driver.ask(13, 0, &[range(40, 1, 0), range(63, 2, 0)].concat(), 0), 1);
    assert_eq!(driver.ask(11, 0, &range(40, 1, 1), 0), 2);
    assert_eq!(driver.ask(99, 0, &[], 0), 2);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 64 * 512);
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let zero = sector == 1 || (8..24).contains(&sector) || (48..56).contains(&sector);
        assert!(bytes.iter().all(|byte| (*byte == 0) == zero), "sector {sector}");
    }
}

#[test]
fn a_request_that_is_none_is_answered_and_the_next_one_served() {
    let file = image(&[7; 512]);
    let mut driver = ByHand::new(disk(file.path(), false), 0, VERSION_1);
    let write = |address, length| Piece { address, length, write: true };
    let read = |address, length| Piece { address, length, write: false };
    // No room for an answer; no whole header; memory that is not there; one byte of room, of which the answer takes all.
    assert_eq!(driver.send(&[read(REQUEST, 16)]), 0);
    assert_eq!(driver.send(&[read(REQUEST, 15), write(ANSWER, 1)]), 1);
    assert_eq!(driver.send(&[read(u64::MAX - 8, 16), write(ANSWER, 1)]), 0);
    assert_eq!(driver.send(&[write(ANSWER, 0), write(ANSWER, 1)]), 1);
    assert_eq!(driver.ask(0, 0, &[], 512), 0);
    let mut bytes = [0; 512];
    driver.memory.read_slice(&mut bytes, GuestAddress(ANSWER)).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn a_device_whose_queue_was_broken_works_after_a_reset() {
    let file = image(&[7; 512]);
    let mut driver = ByHand::new(disk(file.path(), false), 0, VERSION_1);
    assert_eq!(driver.ask(0, 0, &[], 512), 0);
    // More available than the queue has entries.
    driver.memory.write_obj(500_u16, GuestAddress(driver.queue.available() + 2)).unwrap();
    driver.mmio.notify(0);
    driver.mmio.write(0x070, 0);
    assert_eq!(driver.mmio.read(0x070), 0);
    let mut driver = driver.again();
    assert_eq!(driver.ask(0, 0, &[], 512), 0);
}

#[cfg(target_os = "linux")]
mod folders {
    use host_hv::fuse::abi::op;
    use host_hv::fuse::{Limits, Owner, Server, ShareSpec};
    use host_hv::virtio::fs::{self, Fs};

    use super::*;

    const ANSWER_LEN: u32 = 512;

    /// Asks the file server; returns its error number and its answer.
    fn ask(driver: &mut ByHand, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let len = u32::try_from(40 + body.len()).unwrap();
        let mut request = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
        request.extend(7_u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        driver.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        let written = driver.send(&[
            Piece { address: REQUEST, length: len, write: false },
            Piece { address: ANSWER, length: ANSWER_LEN, write: true },
        ]);
        let mut answer = vec![0; written as usize];
        driver.memory.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        (error, answer.split_off(16))
    }

    #[test]
    fn a_folder_is_served_on_a_live_queue_and_after_each_reset() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("word"), "of the host").unwrap();
        let server = Arc::new(Server::new(Limits { nodes: 100, handles: 10, directories: 10 }));
        let path = folder.path().to_owned();
        let spec = ShareSpec { name: "src".into(), path, read_only: false, owner: Owner::default() };
        server.add_share(spec).unwrap();
        let served = Arc::clone(&server);
        let device =
            slot(fs::DEVICE_ID, alone(move || Fs::new("folders", served, 2).map_err(std::io::Error::other)));
        assert_eq!(device.0.read(0x100, 8), u64::from_le_bytes(*b"folders\0"));
        let mut driver = ByHand::new(device, 1, VERSION_1);
        for _ in 0..3 {
            let init: Vec<u8> = [7_u32, 41, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(ask(&mut driver, op::INIT, 0, &init).0, 0);
            let (error, entry) = ask(&mut driver, op::LOOKUP, 1, b"src\0");
            assert_eq!(error, 0);
            let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let (error, entry) = ask(&mut driver, op::LOOKUP, node, b"word\0");
            // Its size, behind the entry's own 40 bytes and the inode's number.
            assert_eq!((error, u64::from_le_bytes(entry[48..56].try_into().unwrap())), (0, 11));
            assert_eq!(ask(&mut driver, op::LOOKUP, node, b"nothing\0").0, -2);
            assert!(server.nodes() > 0);
            driver.mmio.write(0x070, 0);
            assert_eq!(server.nodes(), 0, "the server remembers a guest that is gone");
            driver = driver.again();
        }
    }
}
