//! The file system device under a driver that kicks only when the device asks for it: no request is forgotten.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_hv::fuse::abi::op;
use host_hv::fuse::{Limits, Owner, Server, ShareSpec};
use host_hv::testing::queue::{DriverQueue, Piece};
use host_hv::virtio::fs::Fs;
use host_hv::virtio::{Device, Interrupt, Memory, Ring};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How long anything may take before a test gives up on it.
const DEADLINE: Duration = Duration::from_secs(60);

const RING: u16 = 64;
/// Room for a request, its answer's header and the rest of the answer.
const STRIDE: u64 = 3 * 8192;
/// The queue that requests go to.
const QUEUE: usize = 1;

struct Line(Arc<EventFd>);

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1).map(drop).map_err(io::Error::from)
    }
}

/// A guest whose kernel sends what it is told to.
struct Guest {
    device: Fs,
    memory: Memory,
    queue: DriverQueue,
    kick: EventFd,
    called: Arc<EventFd>,
    free: Vec<u64>,
    sent: HashMap<u16, (u64, u64)>,
    answers: HashMap<u64, (i32, Vec<u8>)>,
    unique: u64,
}

impl Guest {
    fn start(server: &Arc<Server>, threads: usize) -> Self {
        let queue_bytes = DriverQueue::bytes(RING);
        let bytes = usize::try_from(queue_bytes + u64::from(RING) * STRIDE).expect("small");
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).expect("memory"));
        let eventfd =
            || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let mut guest = Self {
            device: Fs::new("tag", server.clone(), threads).expect("a device"),
            queue: DriverQueue::new(memory.clone(), 0, RING, true),
            free: (0..u64::from(RING)).map(|at| queue_bytes + at * STRIDE).collect(),
            memory,
            kick: eventfd(),
            called: Arc::new(eventfd()),
            sent: HashMap::new(),
            answers: HashMap::new(),
            unique: 0,
        };
        guest.device.set_memory(guest.memory.clone());
        assert!(guest.device.watch_kicks(QUEUE, Some(guest.kick.as_fd())));
        let mut queue = Queue::new(RING).expect("a queue");
        queue.try_set_desc_table_address(GuestAddress(guest.queue.descriptors())).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(guest.queue.available())).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(guest.queue.used())).expect("aligned");
        queue.set_event_idx(true);
        queue.set_ready(true);
        guest.device.start_ring(QUEUE, Ring::new(queue, Box::new(Line(guest.called.clone()))));
        guest
    }

    /// As a VMM does for a pause of the machine.
    fn pause(&mut self) {
        let queue = self.device.stop_ring(QUEUE).expect("the ring");
        assert!(self.device.watch_kicks(QUEUE, Some(self.kick.as_fd())));
        self.device.start_ring(QUEUE, Ring::new(queue, Box::new(Line(self.called.clone()))));
    }

    /// Offers a request and kicks if the device wants to hear of it; returns its number.
    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        while self.queue.room() < 3 {
            self.sleep();
        }
        self.unique += 1;
        let at = self.free.pop().expect("as many as descriptors");
        let length = u32::try_from(40 + body.len()).expect("a request");
        let mut request = Vec::new();
        request.extend_from_slice(&length.to_le_bytes());
        request.extend_from_slice(&opcode.to_le_bytes());
        request.extend_from_slice(&self.unique.to_le_bytes());
        request.extend_from_slice(&node.to_le_bytes());
        request.extend_from_slice(&[0; 16]);
        request.extend_from_slice(body);
        self.memory.write_slice(&request, GuestAddress(at)).expect("in memory");
        let head = self.queue.add(&[
            Piece { address: at, length, write: false },
            Piece { address: at + 8192, length: 16, write: true },
            Piece { address: at + 8208, length: 8000, write: true },
        ]);
        self.sent.insert(head.expect("room"), (self.unique, at));
        if self.queue.kick_wanted() {
            self.kick.write(1).expect("an eventfd");
        }
        self.unique
    }

    fn reap(&mut self) {
        while let Some((head, written)) = self.queue.pop_used() {
            let (unique, at) = self.sent.remove(&head).expect("a request that was sent");
            let mut reply = vec![0; written as usize];
            self.memory.read_slice(&mut reply, GuestAddress(at + 8192)).expect("in memory");
            assert_eq!(reply[8..16], unique.to_le_bytes(), "the answer is another request's");
            let error = -i32::from_le_bytes(*reply[4..].first_chunk().expect("a header"));
            self.answers.insert(unique, (error, reply.split_off(16)));
            self.free.push(at);
        }
    }

    /// Sleeps until the device has answered something, as a driver with nothing else to do.
    fn sleep(&mut self) {
        let start = Instant::now();
        while !self.queue.want_interrupt() {
            assert!(start.elapsed() < DEADLINE, "{} requests are forgotten", self.sent.len());
            let mut wait = [PollFd::new(self.called.as_fd(), PollFlags::POLLIN)];
            poll(&mut wait, PollTimeout::from(1000u16)).expect("poll");
            let _ = self.called.read();
        }
        self.reap();
    }

    fn answer(&mut self, unique: u64) -> (i32, Vec<u8>) {
        loop {
            if let Some(answer) = self.answers.remove(&unique) {
                return answer;
            }
            self.sleep();
        }
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let unique = self.send(opcode, node, body);
        let (error, reply) = self.answer(unique);
        assert_eq!(error, 0, "operation {opcode}");
        reply
    }

    fn mount(&mut self) {
        let mut body = Vec::new();
        for word in [7u32, 41, 1 << 17, 0, 0] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.resize(64, 0);
        self.ask(op::INIT, 0, &body);
    }

    fn lookup(&mut self, parent: u64, name: &str) -> u64 {
        number(&self.ask(op::LOOKUP, parent, format!("{name}\0").as_bytes()), 0)
    }
}

fn number(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*raw[at..].first_chunk().expect("a number"))
}

fn served(path: &Path) -> Arc<Server> {
    let server = Server::new(Limits::within(1024));
    let spec = ShareSpec { name: "src".into(), path: path.into(), read_only: false, owner: Owner::default() };
    server.add_share(spec).expect("a share");
    Arc::new(server)
}

fn read_body(handle: u64, size: u32) -> Vec<u8> {
    let mut body = handle.to_le_bytes().to_vec();
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(&size.to_le_bytes());
    body.resize(40, 0);
    body
}

#[test]
fn every_request_is_answered_whatever_the_order_and_the_pauses() {
    let folder = tempfile::tempdir().expect("a directory");
    fs::write(folder.path().join("f"), [7; 6000]).expect("a file");
    for (threads, seed) in [(1, 1u32), (2, 2), (3, 3), (4, 4)] {
        let server = served(folder.path());
        let mut guest = Guest::start(&server, threads);
        guest.mount();
        let root = guest.lookup(1, "src");
        let node = guest.lookup(root, "f");
        let handle = number(&guest.ask(op::OPEN, node, &[0; 8]), 0);
        let mut state = seed;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..4000 {
            let burst = 1 + random(8);
            for _ in 0..burst {
                match random(6) {
                    0 => guest.send(op::GETATTR, node, &[0; 16]),
                    1 => guest.send(op::LOOKUP, root, b"f\0"),
                    2 => guest.send(op::LOOKUP, root, b"nothing\0"),
                    3 => guest.send(op::FSYNC, node, &[&handle.to_le_bytes()[..], &[0; 8]].concat()),
                    _ => guest.send(op::READ, node, &read_body(handle, 6000)),
                };
            }
            if random(64) == 0 {
                guest.pause();
            }
            // Sometimes until all is answered, which is when a thread goes to sleep as the next request comes.
            while guest.sent.len() > random(16) as usize {
                guest.sleep();
            }
            guest.answers.clear();
        }
    }
}

#[test]
fn a_request_that_takes_long_holds_up_no_other() {
    let folder = tempfile::tempdir().expect("a directory");
    for name in ["slow", "f"] {
        fs::write(folder.path().join(name), "x").expect("a file");
    }
    // Somebody on the host who is asked before a file is opened, as scanners for viruses are.
    let scanner = Fanotify::init(InitFlags::FAN_CLASS_CONTENT, EventFFlags::O_RDONLY).and_then(|scanner| {
        let directory = fs::File::open(folder.path()).expect("the directory");
        scanner.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_PERM, &directory, Some("slow"))?;
        Ok(scanner)
    });
    let Ok(scanner) = scanner else {
        eprintln!("this takes root and a kernel with fanotify's permission events");
        return;
    };
    let server = served(folder.path());
    let mut guest = Guest::start(&server, 2);
    guest.mount();
    let root = guest.lookup(1, "src");
    let (slow, node) = (guest.lookup(root, "slow"), guest.lookup(root, "f"));
    for round in 0..2000 {
        // The other thread has just served something, and is on its way to sleep or not there yet.
        let before = guest.send(op::GETATTR, node, &[0; 16]);
        if round % 3 == 0 {
            guest.answer(before);
        }
        let opened = guest.send(op::OPEN, slow, &[0; 8]);
        let quick: Vec<_> = (0..3).map(|_| guest.send(op::GETATTR, node, &[0; 16])).collect();
        for unique in quick {
            assert_eq!(guest.answer(unique).0, 0);
        }
        assert!(!guest.answers.contains_key(&opened), "nobody has let it be opened yet");
        for event in scanner.read_events().expect("an event") {
            let fd = event.fd().expect("a file");
            scanner.write_response(FanotifyResponse::new(fd, Response::FAN_ALLOW)).expect("allowed");
        }
        let (error, reply) = guest.answer(opened);
        assert_eq!(error, 0);
        let body = [&reply[..8], &[0; 16]].concat();
        guest.ask(op::RELEASE, slow, &body);
        guest.answers.clear();
    }
}
