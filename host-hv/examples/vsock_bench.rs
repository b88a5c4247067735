//! Measures vhost-user vsock devices with a fake guest: bytes per second of the device's CPU time, and round trips.
//!
//! ```text
//! cargo run --profile lab --example vsock_bench -- target/lab/host-hv [path/to/vhost-device-vsock]
//! ```
//!
//! A program whose name starts with `vhost-device-vsock` is started as that one is, any other as `host-hv`. Each row
//! is one line of JSON. The guest is a driver that behaves like Linux': 128 receive buffers of a page less
//! bookkeeping, packets of at most 64 KiB, 256 KiB of credit, interrupts suppressed while it is busy.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host_hv::testing::driver::Layout;
use host_hv::testing::vmm::Vmm;
use host_hv::virtio::vsock::packet::Header;
use host_hv::virtio::vsock::spec::{Op, SHUTDOWN_BOTH};

const CID: u64 = 42;
const PORT: u32 = 1000;
const SIZES: [usize; 6] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const CONNECTIONS: [usize; 2] = [1, 100];
const WINDOW: u32 = 256 * 1024;
/// How long a throughput row runs.
const DURATION: Duration = Duration::from_secs(1);
/// A device that moves nothing for as long has stalled.
const STALL: Duration = Duration::from_secs(4);
const ROUND_TRIPS: usize = 20_000;

fn main() -> Result<()> {
    let programs: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if programs.is_empty() {
        bail!("Name the devices' programs: vsock_bench PATH...");
    }
    for size in SIZES {
        for connections in CONNECTIONS {
            for direction in [Direction::ToHost, Direction::ToGuest] {
                for program in &programs {
                    throughput(program, direction, size, connections)?;
                }
            }
        }
    }
    for program in &programs {
        round_trips(program)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToHost,
    ToGuest,
}

/// A device in a process of its own.
struct Device {
    child: Child,
    name: String,
    directory: tempfile::TempDir,
}

impl Device {
    fn start(program: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (socket, uds) = (directory.path().join("vhost"), directory.path().join("vsock"));
        let name = program.file_name().context("a program")?.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        if name.starts_with("vhost-device-vsock") {
            command.arg(format!("--guest-cid={CID}"));
            command.arg(format!("--socket={}", socket.display()));
            command.arg(format!("--uds-path={}", uds.display()));
        } else {
            command.args(["vsock", "--cid", &CID.to_string()]);
            command.arg("--socket").arg(&socket).arg("--uds").arg(&uds);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let device = Self { child, name, directory };
        let start = Instant::now();
        while !socket.exists() {
            if start.elapsed() > STALL {
                bail!("{} does not listen", device.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(device)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("vhost")
    }

    fn connect(&self) -> Result<UnixStream> {
        // Some devices hang up on the first clients after a VMM has connected.
        let mut tries = 0;
        loop {
            let mut stream = UnixStream::connect(self.directory.path().join("vsock"))?;
            match writeln!(stream, "CONNECT {PORT}") {
                Ok(()) => return Ok(stream),
                Err(error) if tries == 50 => return Err(error.into()),
                Err(_) => tries += 1,
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// CPU time of all its threads so far.
    fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
            total += stat.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One connection as the guest sees it.
#[derive(Default)]
struct Flow {
    guest_port: u32,
    host_port: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    received: u32,
    told: u32,
}

/// The guest: answers requests, sends or receives, echoes.
struct Guest {
    vmm: Vmm,
    flows: HashMap<u32, Flow>,
    bytes: Arc<AtomicU64>,
    kicks: usize,
    interrupts: usize,
}

impl Guest {
    fn new(device: &Device, bytes: Arc<AtomicU64>) -> Result<Self> {
        let vmm = Vmm::connect(&device.socket(), Layout { tx_buffers: 64, ..Layout::default() })?;
        Ok(Self { vmm, flows: HashMap::new(), bytes, kicks: 0, interrupts: 0 })
    }

    fn header(&self, flow: &Flow, op: Op) -> Header {
        let header = self.vmm.driver.header(flow.guest_port, flow.host_port, op);
        Header { buf_alloc: WINDOW, fwd_cnt: flow.received, ..header }
    }

    /// Takes all packets; returns how many. With `echo`, sends data back.
    fn receive(&mut self, echo: bool) -> Result<usize> {
        let mut count = 0;
        while let Some((header, payload)) = self.vmm.driver.receive() {
            count += 1;
            let key = header.src_port;
            let mut flow = self.flows.remove(&key).unwrap_or_default();
            (flow.peer_alloc, flow.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
            let mut answer = None;
            match header.op {
                Op::Request => {
                    (flow.guest_port, flow.host_port) = (header.dst_port, header.src_port);
                    answer = Some(Op::Response);
                }
                Op::ReadWrite => {
                    flow.received = flow.received.wrapping_add(header.len);
                    self.bytes.fetch_add(u64::from(header.len), Ordering::Relaxed);
                    if echo {
                        let back = Header { len: header.len, ..self.header(&flow, Op::ReadWrite) };
                        if !self.vmm.driver.send(&back, &payload) {
                            bail!("no room for an echo");
                        }
                        flow.told = flow.received;
                    } else if flow.received.wrapping_sub(flow.told) >= WINDOW - 65536 {
                        answer = Some(Op::CreditUpdate);
                    }
                }
                Op::CreditRequest => answer = Some(Op::CreditUpdate),
                Op::Shutdown => answer = Some(Op::Reset),
                Op::Reset => continue,
                _ => {}
            }
            if let Some(op) = answer {
                let packet = self.header(&flow, op);
                while !self.vmm.driver.send(&packet, &[]) {
                    self.vmm.kick();
                    self.vmm.wait(Duration::from_millis(10))?;
                }
                flow.told = flow.received;
            }
            self.flows.insert(key, flow);
        }
        if count > 0 {
            self.vmm.driver.offer_buffers();
        }
        Ok(count)
    }

    /// Sends one message of `size` bytes or what credit and buffers allow on each flow; returns the bytes.
    fn send(&mut self, size: usize, payload: &[u8]) -> u64 {
        let mut total = 0;
        let keys: Vec<u32> = self.flows.keys().copied().collect();
        for key in keys {
            let mut left = size;
            while left > 0 {
                let Some(flow) = self.flows.get(&key) else { break };
                let credit =
                    flow.peer_alloc.min(WINDOW).saturating_sub(flow.sent.wrapping_sub(flow.peer_forwarded));
                let len = left.min(credit as usize).min(65536);
                if len == 0 {
                    break;
                }
                let len_u32 = u32::try_from(len).unwrap_or(0);
                let header = Header { len: len_u32, ..self.header(flow, Op::ReadWrite) };
                if !self.vmm.driver.send(&header, &payload[..len]) {
                    return total;
                }
                if let Some(flow) = self.flows.get_mut(&key) {
                    flow.sent = flow.sent.wrapping_add(len_u32);
                    flow.told = flow.received;
                }
                left -= len;
                total += len as u64;
            }
        }
        total
    }

    fn rest(&mut self, limit: Duration) -> Result<bool> {
        self.kicks += self.vmm.kick();
        let woken = self.vmm.wait(limit)?;
        self.interrupts += usize::from(woken);
        self.vmm.driver.reap();
        Ok(woken)
    }
}

fn throughput(program: &Path, direction: Direction, size: usize, connections: usize) -> Result<()> {
    let device = Device::start(program)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let mut guest = Guest::new(&device, bytes.clone())?;
    let start = Arc::new(Barrier::new(connections + 1));
    let mut threads = Vec::new();
    let mut closers = Vec::new();
    for _ in 0..connections {
        let stream = device.connect()?;
        closers.push(stream.try_clone()?);
        let (bytes, start) = (bytes.clone(), start.clone());
        threads.push(thread::spawn(move || host_side(stream, direction, size, &bytes, &start)));
    }
    let opened = Instant::now();
    while guest.flows.len() < connections {
        guest.receive(false)?;
        guest.rest(Duration::from_millis(100))?;
        if opened.elapsed() > STALL {
            bail!("{} opens no {connections} connections", device.name);
        }
    }
    // The answers must be out before everyone starts.
    guest.rest(Duration::from_millis(20))?;
    start.wait();

    let payload = vec![0x5a; 65536];
    let (before, began) = (device.cpu()?, Instant::now());
    (guest.kicks, guest.interrupts) = (0, 0);
    let (mut last, mut progress, mut stalled) = (0, Instant::now(), false);
    while began.elapsed() < DURATION {
        let received = guest.receive(false)?;
        let sent = if direction == Direction::ToHost { guest.send(size, &payload) } else { 0 };
        if received == 0 && sent == 0 {
            guest.rest(Duration::from_millis(100))?;
        } else {
            guest.kicks += guest.vmm.kick();
        }
        let now = bytes.load(Ordering::Relaxed);
        if now != last {
            (last, progress) = (now, Instant::now());
        } else if progress.elapsed() > STALL / 2 {
            stalled = true;
        }
        if stalled {
            break;
        }
    }
    let (cpu, took) = (device.cpu()? - before, began.elapsed());
    let moved = bytes.load(Ordering::Relaxed);
    // Stalled too, if the last bytes came long before the end.
    let stalled = stalled || progress.elapsed() > DURATION / 2;
    let mib = (moved as f64 / f64::from(1 << 20)).max(1e-9);
    println!(
        "{{\"metric\":\"vsock_{}\",\"device\":\"{}\",\"size\":{size},\"connections\":{connections},\
         \"bytes_per_cpu_second\":{:.0},\"bytes_per_second\":{:.0},\"kicks_per_mib\":{:.2},\
         \"wakeups_per_mib\":{:.2},\"stalled\":{stalled}}}",
        if direction == Direction::ToHost { "to_host" } else { "to_guest" },
        device.name,
        moved as f64 / cpu.as_secs_f64().max(1e-9),
        moved as f64 / took.as_secs_f64(),
        guest.kicks as f64 / mib,
        guest.interrupts as f64 / mib,
    );
    for stream in closers {
        drop(stream.shutdown(std::net::Shutdown::Both));
    }
    for thread in threads {
        drop(thread.join());
    }
    for flow in guest.flows.values() {
        let bye = Header { flags: SHUTDOWN_BOTH, ..guest.header(flow, Op::Shutdown) };
        guest.vmm.driver.send(&bye, &[]);
    }
    Ok(())
}

fn host_side(mut stream: UnixStream, direction: Direction, size: usize, bytes: &AtomicU64, start: &Barrier) {
    let mut greeting = [0];
    while stream.read(&mut greeting).is_ok_and(|count| count == 1) && greeting != *b"\n" {}
    start.wait();
    let mut buffer = vec![0x5a; size.max(65536)];
    match direction {
        Direction::ToHost => {
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                bytes.fetch_add(count as u64, Ordering::Relaxed);
            }
        }
        Direction::ToGuest => while stream.write_all(&buffer[..size]).is_ok() {},
    }
}

fn round_trips(program: &Path) -> Result<()> {
    let device = Device::start(program)?;
    let mut guest = Guest::new(&device, Arc::default())?;
    let stream = device.connect()?;
    let host = thread::spawn(move || ping(stream));
    let began = Instant::now();
    let before = device.cpu()?;
    while !host.is_finished() && began.elapsed() < Duration::from_secs(30) {
        guest.receive(true)?;
        guest.rest(Duration::from_millis(50))?;
    }
    let cpu = device.cpu()? - before;
    let name = &device.name;
    let mut times = host.join().map_err(|_| anyhow::anyhow!("the host's side panicked"))?;
    if times.len() < ROUND_TRIPS {
        println!("{{\"metric\":\"vsock_round_trip\",\"device\":\"{name}\",\"stalled\":true}}");
        return Ok(());
    }
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100].as_nanos() as f64 / 1000.0;
    println!(
        "{{\"metric\":\"vsock_round_trip\",\"device\":\"{name}\",\"size\":16,\"connections\":1,\"p50_us\":{:.1},\
         \"p99_us\":{:.1},\"cpu_us\":{:.2},\"stalled\":false}}",
        at(50),
        at(99),
        cpu.as_secs_f64() * 1e6 / times.len() as f64,
    );
    Ok(())
}

fn ping(mut stream: UnixStream) -> Vec<Duration> {
    drop(stream.set_read_timeout(Some(STALL)));
    let mut greeting = [0];
    while stream.read(&mut greeting).is_ok_and(|count| count == 1) && greeting != *b"\n" {}
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    let mut bytes = [7; 16];
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        if stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut bytes)).is_err() {
            break;
        }
        times.push(began.elapsed());
    }
    times
}
