//! The program as a VMM and its host see it: a real process, real sockets, and a driver over vhost-user.
#![cfg(target_os = "linux")]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use host_hv::testing::driver::{Layout, Shape};
use host_hv::testing::vmm::Vmm;
use host_hv::virtio::vsock::packet::Header;
use host_hv::virtio::vsock::spec::{HOST_CID, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};

/// How long anything may take before a test gives up on it.
const DEADLINE: Duration = Duration::from_secs(60);

const CID: u64 = 77;
const ECHO: u32 = 7;
const DISCARD: u32 = 9;

/// The program under test.
struct Program {
    child: Child,
    directory: tempfile::TempDir,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_host-hv"))
            .args(["vsock", "--cid", &CID.to_string()])
            .arg("--socket")
            .arg(at("vhost"))
            .arg("--uds")
            .arg(at("vsock"))
            .arg("--port-uds")
            .arg(format!("{ECHO}={}", at("echo").display()))
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("DIR", &directory.path().display().to_string())),
            )
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .expect("start host-hv");
        let program = Self { child, directory };
        let start = Instant::now();
        while !program.at("vhost").exists() {
            assert!(start.elapsed() < DEADLINE, "host-hv does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        program
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn guest(&self, layout: Layout) -> EchoGuest {
        EchoGuest::start(Vmm::connect(&self.at("vhost"), layout).expect("connect as a VMM"))
    }

    /// Connects to a port of the guest; the answer to the line is not read.
    fn dial(&self, port: u32, more: &[u8]) -> UnixStream {
        let mut stream = plain(self.at("vsock"));
        let mut line = format!("CONNECT {port}\n").into_bytes();
        line.extend_from_slice(more);
        stream.write_all(&line).expect("write the line");
        stream
    }

    fn wait_for_exit(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(start.elapsed() < DEADLINE, "host-hv does not exit");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn plain(path: PathBuf) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).expect("read the answer") == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read to the end");
    bytes
}

/// A connection of the guest's.
#[derive(Default)]
struct Flow {
    peer_cid: u64,
    guest_port: u32,
    host_port: u32,
    echo: VecDeque<u8>,
    received: u32,
    forwarded: u32,
    told: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    host_ended: bool,
    said_end: bool,
}

enum Wish {
    Reboot(Layout),
    Pause,
    Connect(u32),
    Stop,
}

/// A guest in a thread: echoes on port [`ECHO`], reads nothing on [`DISCARD`], refuses the rest.
struct EchoGuest {
    wishes: mpsc::Sender<Wish>,
    done: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    gone: Arc<AtomicBool>,
}

impl EchoGuest {
    fn start(mut vmm: Vmm) -> Self {
        let (wishes, inbox) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        let gone = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn(move || {
            let mut flows = HashMap::new();
            let mut answers = VecDeque::new();
            loop {
                match inbox.try_recv() {
                    Ok(Wish::Reboot(layout)) => {
                        flows.clear();
                        answers.clear();
                        vmm.reboot(layout).expect("reboot");
                    }
                    Ok(Wish::Pause) => {
                        let bases = vmm.stop().expect("stop");
                        vmm.start(bases).expect("start again");
                    }
                    Ok(Wish::Connect(port)) => {
                        let request = vmm.driver.header(40_000, port, Op::Request);
                        let flow = Flow {
                            peer_cid: HOST_CID,
                            guest_port: 40_000,
                            host_port: port,
                            ..Flow::default()
                        };
                        flows.insert((port, 40_000), flow);
                        assert!(vmm.driver.send(&request, &[]));
                    }
                    Ok(Wish::Stop) | Err(mpsc::TryRecvError::Disconnected) => return,
                    Err(mpsc::TryRecvError::Empty) => {
                        turn(&mut vmm, &mut flows, &mut answers);
                        continue;
                    }
                }
                vmm.kick();
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Self { wishes, done, thread: Some(thread), gone }
    }

    fn wish(&self, wish: Wish) {
        self.wishes.send(wish).expect("the guest lives");
        self.done.recv_timeout(DEADLINE).expect("the guest does as told");
    }

    /// Powers off: the VMM is gone.
    fn stop(&mut self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            drop(self.wishes.send(Wish::Stop));
            if let Some(thread) = self.thread.take() {
                let result = thread.join();
                assert!(result.is_ok() || thread::panicking(), "the guest failed");
            }
        }
    }
}

impl Drop for EchoGuest {
    fn drop(&mut self) {
        self.stop();
    }
}

fn turn(vmm: &mut Vmm, flows: &mut HashMap<(u32, u32), Flow>, answers: &mut VecDeque<Header>) {
    while let Some((header, payload)) = vmm.driver.receive() {
        let key = (header.src_port, header.dst_port);
        if header.op == Op::Request {
            let known = [ECHO, DISCARD].contains(&header.dst_port);
            let answer = if known { Op::Response } else { Op::Reset };
            let answer = vmm.driver.header(header.dst_port, header.src_port, answer);
            answers.push_back(Header { dst_cid: header.src_cid, ..answer });
            if known {
                let flow = Flow {
                    peer_cid: header.src_cid,
                    guest_port: header.dst_port,
                    host_port: header.src_port,
                    ..Flow::default()
                };
                flows.insert(key, flow);
            }
        }
        let Some(flow) = flows.get_mut(&key) else { continue };
        (flow.peer_alloc, flow.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            Op::ReadWrite => {
                flow.received = flow.received.wrapping_add(header.len);
                assert!(flow.received.wrapping_sub(flow.told) <= 256 * 1024, "the device overran our credit");
                flow.echo.extend(payload);
            }
            Op::Reset => {
                flows.remove(&key);
            }
            Op::Shutdown => {
                flow.host_ended |= header.flags & SHUTDOWN_SEND != 0;
                if header.flags == SHUTDOWN_BOTH {
                    let reset = vmm.driver.header(flow.guest_port, flow.host_port, Op::Reset);
                    answers.push_back(Header { dst_cid: flow.peer_cid, ..reset });
                    flows.remove(&key);
                }
            }
            _ => {}
        }
    }
    vmm.driver.offer_buffers();
    while let Some(answer) = answers.front() {
        if !vmm.driver.send(answer, &[]) {
            break;
        }
        answers.pop_front();
    }
    let mut idle = true;
    for flow in flows.values_mut() {
        if flow.guest_port == DISCARD {
            continue;
        }
        let header = vmm.driver.header(flow.guest_port, flow.host_port, Op::ReadWrite);
        let header = Header { dst_cid: flow.peer_cid, ..header };
        let credit = flow.peer_alloc.saturating_sub(flow.sent.wrapping_sub(flow.peer_forwarded));
        let len = flow.echo.len().min(credit as usize).min(30_000);
        if len > 0 {
            let payload: Vec<u8> = flow.echo.iter().take(len).copied().collect();
            let len = u32::try_from(len).expect("small");
            let fwd_cnt = flow.forwarded.wrapping_add(len);
            if vmm.driver.send(&Header { len, fwd_cnt, ..header }, &payload) {
                flow.echo.drain(..payload.len());
                (flow.forwarded, flow.told) = (fwd_cnt, fwd_cnt);
                flow.sent = flow.sent.wrapping_add(len);
                idle = false;
            }
        } else if flow.host_ended && flow.echo.is_empty() && !flow.said_end {
            let end = Header { op: Op::Shutdown, flags: SHUTDOWN_SEND, fwd_cnt: flow.forwarded, ..header };
            flow.said_end = vmm.driver.send(&end, &[]);
        }
    }
    vmm.kick();
    if idle {
        vmm.wait(Duration::from_millis(5)).expect("wait");
    }
}

/// Bytes that depend on the seed and on every offset.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Sends, ends writing, and checks that all comes back, then the end.
fn echo(mut stream: UnixStream, bytes: &[u8]) {
    let mut reader = stream.try_clone().expect("clone");
    thread::scope(|scope| {
        let back = scope.spawn(move || rest(&mut reader));
        stream.write_all(bytes).expect("write");
        stream.shutdown(Shutdown::Write).expect("end writing");
        let back = back.join().expect("read");
        assert_eq!(back.len(), bytes.len());
        assert!(back == bytes, "other bytes came back");
    });
}

#[test]
fn bytes_come_back_and_half_close_works_both_ways() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout::default());
    for size in [0, 1, 4095, 65_536, 1 << 20, 5_000_001] {
        let mut stream = program.dial(ECHO, b"");
        assert!(line(&mut stream).starts_with("OK "));
        echo(stream, &noise(size as u64, size));
    }
}

#[test]
fn bytes_in_the_same_write_as_the_line_are_not_lost() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout::default());
    let mut stream = program.dial(ECHO, b"right behind");
    assert!(line(&mut stream).starts_with("OK "));
    stream.shutdown(Shutdown::Write).expect("end writing");
    assert_eq!(rest(&mut stream), b"right behind");
}

#[test]
fn a_socket_for_one_port_needs_no_words() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout::default());
    echo(plain(program.at("echo")), b"no words");
}

#[test]
fn a_port_nobody_listens_on_is_an_error_line_and_an_end() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout::default());
    let mut stream = program.dial(12345, b"");
    assert_eq!(line(&mut stream), "ERR refused by the guest");
    assert_eq!(rest(&mut stream), b"");
}

#[test]
fn nonsense_instead_of_the_line_is_an_error_line_and_an_end() {
    let program = Program::start(&[]);
    let mut stream = plain(program.at("vsock"));
    stream.write_all(b"GET / HTTP/1.1\n").expect("write");
    assert!(line(&mut stream).starts_with("ERR "));
}

#[test]
fn clients_that_come_before_the_guest_are_told_so() {
    let program = Program::start(&["--max-connections", "1"]);
    let mut first = program.dial(ECHO, b"");
    let mut second = program.dial(ECHO, b"");
    assert_eq!(line(&mut second), "ERR the guest has too many connections");
    assert_eq!(line(&mut first), "ERR the guest is not up");
}

#[test]
fn a_thousand_connections_at_once_keep_apart() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout { tx_buffers: 128, ring: 512, ..Layout::default() });
    let streams: Vec<_> = (0..1000).map(|_| program.dial(ECHO, b"")).collect();
    let threads: Vec<_> = (0u64..)
        .zip(streams)
        .map(|(seed, mut stream)| {
            let size = usize::try_from(seed * 7919 % 20_000).expect("small");
            thread::Builder::new()
                .stack_size(256 * 1024)
                .spawn(move || {
                    let answer = line(&mut stream);
                    assert!(answer.starts_with("OK "), "{answer}");
                    echo(stream, &noise(seed, size));
                })
                .expect("a thread")
        })
        .collect();
    for thread in threads {
        thread.join().expect("every connection echoes");
    }
}

#[test]
fn fragmented_buffers_carry_streams_too() {
    let program = Program::start(&[]);
    let odd = Shape::Indirect(vec![1, 100, 3, 1000, 40]);
    let layout = Layout { rx_shape: odd.clone(), tx_shape: odd, ring: 1024, ..Layout::default() };
    let _guest = program.guest(layout);
    echo(plain(program.at("echo")), &noise(1, 2_000_000));
}

#[test]
fn the_guest_connects_to_the_hosts_listener() {
    let program = Program::start(&[]);
    let listener = UnixListener::bind(program.at("vsock_500")).expect("listen");
    let guest = program.guest(Layout::default());
    guest.wish(Wish::Connect(500));
    let (stream, _) = listener.accept().expect("accept");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    echo(stream, b"from the host's listener");
}

#[test]
fn a_slow_connection_does_not_hold_up_the_others() {
    let program = Program::start(&[]);
    let _guest = program.guest(Layout::default());
    let mut stuck = program.dial(DISCARD, b"");
    assert!(line(&mut stuck).starts_with("OK "));
    stuck.set_nonblocking(true).expect("non-blocking");
    while stuck.write(&[0; 65_536]).is_ok() {}
    echo(plain(program.at("echo")), &noise(3, 1_000_000));
}

#[test]
fn a_paused_machine_keeps_its_connections_and_a_reset_one_does_not() {
    let program = Program::start(&[]);
    let guest = program.guest(Layout::default());
    let mut stream = program.dial(ECHO, b"before");
    assert!(line(&mut stream).starts_with("OK "));
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).expect("echo");
    guest.wish(Wish::Pause);
    stream.write_all(b"after!").expect("write");
    stream.read_exact(&mut bytes).expect("echo after the pause");
    assert_eq!(&bytes, b"after!");

    guest.wish(Wish::Reboot(Layout::default()));
    assert_eq!(rest(&mut stream), b"", "a clear end");
    echo(plain(program.at("echo")), b"the new guest answers");
}

#[test]
fn the_next_vmm_is_served() {
    let program = Program::start(&[]);
    for round in 0..3 {
        let mut guest = program.guest(Layout::default());
        let mut stream = program.dial(ECHO, b"");
        assert!(line(&mut stream).starts_with("OK "));
        echo(plain(program.at("echo")), &noise(round, 10_000));
        guest.stop();
        assert_eq!(rest(&mut stream), b"", "a clear end");
    }
}

#[test]
fn once_means_once_and_leaves_no_sockets() {
    let mut program = Program::start(&["--once"]);
    drop(program.guest(Layout::default()));
    assert_eq!(program.wait_for_exit(), Some(0));
    for name in ["vhost", "vsock", "echo"] {
        assert!(!program.at(name).exists(), "{name} is left behind");
    }
}

#[test]
fn sockets_are_their_owners_alone_and_stale_ones_are_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).expect("bind"));
    let program = Program::start(&["--port-uds", &format!("1={}", stale.display())]);
    for path in [program.at("vhost"), program.at("vsock"), program.at("echo"), stale] {
        let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn a_socket_in_use_is_not_taken() {
    let program = Program::start(&[]);
    let second = Command::new(env!("CARGO_BIN_EXE_host-hv"))
        .args(["vsock", "--cid", "5", "--socket"])
        .arg(program.at("other"))
        .arg("--uds")
        .arg(program.at("vsock"))
        .output()
        .expect("run");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("Another program listens"));
    assert!(program.at("vsock").exists());
}

#[test]
fn guests_of_one_program_reach_each_other() {
    let program = Program::start(&["--sibling", "cid=78,socket=DIR/vhost2,uds=DIR/vsock2"]);
    let _echo = program.guest(Layout::default());
    let mut caller = Vmm::connect(&program.at("vhost2"), Layout::default()).expect("connect as a VMM");
    assert_eq!(caller.driver.cid, 78);
    let header = |caller: &Vmm, op| Header { dst_cid: CID, ..caller.driver.header(1234, ECHO, op) };
    let next = |caller: &mut Vmm| {
        let start = Instant::now();
        loop {
            caller.kick();
            caller.driver.offer_buffers();
            match caller.driver.receive() {
                Some((header, _)) if header.op == Op::CreditUpdate => {}
                Some(packet) => return packet,
                None => assert!(start.elapsed() < DEADLINE, "nothing came"),
            }
            caller.wait(Duration::from_millis(5)).expect("wait");
        }
    };
    let request = header(&caller, Op::Request);
    caller.driver.send(&request, &[]);
    let (response, _) = next(&mut caller);
    assert_eq!((response.op, response.src_cid, response.src_port), (Op::Response, CID, ECHO));
    let bytes = noise(9, 50_000);
    let data = Header { len: 50_000, ..header(&caller, Op::ReadWrite) };
    caller.driver.send(&data, &bytes);
    let end = Header { flags: SHUTDOWN_SEND, ..header(&caller, Op::Shutdown) };
    caller.driver.send(&end, &[]);
    let mut back = Vec::new();
    let last = loop {
        let (header, payload) = next(&mut caller);
        if header.op != Op::ReadWrite {
            break header;
        }
        back.extend(payload);
    };
    assert!(back == bytes);
    assert_eq!(last.op, Op::Shutdown);

    // Nobody there, and a guest that is not served.
    for (cid, port) in [(CID, 4321), (99, ECHO)] {
        let request = Header { dst_cid: cid, dst_port: port, ..header(&caller, Op::Request) };
        caller.driver.send(&request, &[]);
        assert_eq!(next(&mut caller).0.op, Op::Reset);
    }
}
