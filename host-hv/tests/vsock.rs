//! The vsock device as a guest's driver sees it, in one thread and with no real time.

use std::net::Shutdown;

use host_hv::io::{Endpoint, PipeEnd};
use host_hv::testing::driver::{Layout, Shape};
use host_hv::testing::guest::{CID, Guest, read_all};
use host_hv::testing::queue::Piece;
use host_hv::virtio::Device;
use host_hv::virtio::vsock::packet::Header;
use host_hv::virtio::vsock::spec::{
    HEADER_SIZE, HOST_CID, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use host_hv::virtio::vsock::{CLOSE_TIMEOUT, Greeting, HANDSHAKE_TIMEOUT, Limits, Readiness};
use std::io::{IoSlice, Write};
use vm_memory::{Bytes, GuestAddress};

const PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;

/// A guest that has connected to the host, and the host's end.
fn connected(layout: Layout) -> (Guest, PipeEnd) {
    let mut guest = Guest::new(layout);
    guest.listen(PORT);
    let request = guest.driver.header(GUEST_PORT, PORT, Op::Request);
    guest.send(&request, &[]);
    let (response, _) = guest.expect(Op::Response);
    assert_eq!((response.src_cid, response.src_port), (HOST_CID, PORT));
    assert_eq!((response.dst_cid, response.dst_port), (CID, GUEST_PORT));
    assert!(response.buf_alloc >= 64 * 1024);
    let pipe = guest.accept(PORT).expect("connected");
    (guest, pipe)
}

fn packet(guest: &Guest, op: Op) -> Header {
    guest.driver.header(GUEST_PORT, PORT, op)
}

fn send_data(guest: &mut Guest, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("a packet");
    let header = Header { len, ..packet(guest, Op::ReadWrite) };
    guest.send(&header, bytes);
}

fn shutdown(guest: &mut Guest, flags: u32) {
    let header = Header { flags, ..packet(guest, Op::Shutdown) };
    guest.send(&header, &[]);
}

fn write(pipe: &mut PipeEnd, bytes: &[u8]) {
    pipe.write_bytes(&[IoSlice::new(bytes)]);
}

/// All bytes up to the end, which must come.
fn read_to_end(guest: &mut Guest, pipe: &mut PipeEnd) -> Vec<u8> {
    let mut bytes = Vec::new();
    for round in 0.. {
        let (some, end) = read_all(pipe);
        bytes.extend(some);
        if end {
            break;
        }
        assert!(round < 1000, "no end after {} bytes", bytes.len());
        guest.work();
    }
    bytes
}

/// Bytes that no two offsets share by accident.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape::Linear,
        Shape::Split,
        Shape::Pieces(vec![1, 43, 7, 1, 4096]),
        Shape::Pieces(vec![50, 200]),
        Shape::Pieces(vec![0, 20, 0, 24, 0, 4000]),
        Shape::Indirect(vec![44, 4096]),
        Shape::Indirect(vec![1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233]),
    ]
}

#[test]
fn a_stream_survives_any_split_of_header_and_payload() {
    for rx_shape in shapes() {
        for tx_shape in shapes() {
            for event_idx in [false, true] {
                let layout = Layout {
                    ring: 1024,
                    rx_shape: rx_shape.clone(),
                    tx_shape: tx_shape.clone(),
                    event_idx,
                    tx_bytes: 20_000,
                    ..Layout::default()
                };
                let (mut guest, mut pipe) = connected(layout);
                let bytes = pattern(17_321);
                send_data(&mut guest, &bytes);
                assert!(read_all(&mut pipe).0 == bytes, "to host: {tx_shape:?}");
                write(&mut pipe, &bytes);
                guest.settle();
                let got: Vec<u8> = guest.inbox.drain(..).flat_map(|(_, payload)| payload).collect();
                assert!(got == bytes, "to guest: {rx_shape:?}");
            }
        }
    }
}

#[test]
fn one_byte_descriptors_are_descriptors() {
    let layout = Layout {
        ring: 1024,
        rx_buffers: 10,
        rx_bytes: 100,
        tx_bytes: 100,
        rx_shape: Shape::Pieces(vec![1]),
        tx_shape: Shape::Pieces(vec![1]),
        ..Layout::default()
    };
    let (mut guest, mut pipe) = connected(layout);
    send_data(&mut guest, &pattern(77));
    assert_eq!(read_all(&mut pipe).0, pattern(77));
    write(&mut pipe, &pattern(99));
    guest.settle();
    let got: Vec<u8> = guest.inbox.drain(..).flat_map(|(_, payload)| payload).collect();
    assert_eq!(got, pattern(99));
}

#[test]
fn nobody_listening_is_a_reset() {
    let mut guest = Guest::new(Layout::default());
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.expect(Op::Reset);
    guest.expect_silence();
}

#[test]
fn packets_without_a_connection_are_reset_and_resets_are_not() {
    let mut guest = Guest::new(Layout::default());
    for op in
        [Op::Response, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest, Op::Unknown(99)]
    {
        let header = packet(&guest, op);
        guest.send(&header, &[]);
        guest.expect(Op::Reset);
    }
    let reset = packet(&guest, Op::Reset);
    guest.send(&reset, &[]);
    guest.expect_silence();
}

#[test]
fn a_socket_type_we_do_not_have_is_reset() {
    let mut guest = Guest::new(Layout::default());
    guest.listen(PORT);
    let request = Header { kind: 2, ..packet(&guest, Op::Request) };
    guest.send(&request, &[]);
    guest.expect(Op::Reset);
}

#[test]
fn a_packet_in_anothers_name_is_dropped() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let forged = Header { src_cid: CID + 1, len: 3, ..packet(&guest, Op::ReadWrite) };
    guest.send(&forged, b"abc");
    guest.expect_silence();
    assert_eq!(read_all(&mut pipe), (vec![], false));
}

#[test]
fn the_host_connects_and_hears_of_it_only_after_the_answer() {
    let mut guest = Guest::new(Layout::default());
    let pipe = guest.connect(GUEST_PORT).unwrap();
    let (request, _) = guest.expect(Op::Request);
    assert_eq!((request.src_cid, request.dst_port), (HOST_CID, GUEST_PORT));
    assert!(!pipe.is_accepted());
    let response = guest.driver.header(GUEST_PORT, request.src_port, Op::Response);
    guest.send(&response, &[]);
    assert!(pipe.is_accepted());
}

#[test]
fn a_guest_that_refuses_closes_the_hosts_stream() {
    let mut guest = Guest::new(Layout::default());
    let mut pipe = guest.connect(GUEST_PORT).unwrap();
    let (request, _) = guest.expect(Op::Request);
    let reset = guest.driver.header(GUEST_PORT, request.src_port, Op::Reset);
    guest.send(&reset, &[]);
    assert!(!pipe.is_accepted());
    assert_eq!(read_all(&mut pipe), (vec![], true));
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut guest = Guest::new(Layout::default());
    let mut pipe = guest.connect(GUEST_PORT).unwrap();
    guest.expect(Op::Request);
    guest.pass(HANDSHAKE_TIMEOUT / 2);
    guest.work();
    assert_eq!(read_all(&mut pipe), (vec![], false));
    guest.pass(HANDSHAKE_TIMEOUT / 2);
    guest.work();
    assert_eq!(read_all(&mut pipe), (vec![], true));
    // It may answer yet, and must not keep half a connection.
    guest.expect(Op::Reset);
    assert!(guest.device.deadline().is_none(), "nothing ticks");
}

#[test]
fn a_busy_listener_is_tried_again() {
    let mut guest = Guest::new(Layout::default());
    guest.listen(PORT);
    guest.set_busy(true);
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.send(&request, &[]);
    guest.expect_silence();
    guest.pass(HANDSHAKE_TIMEOUT / 2);
    guest.expect_silence();
    guest.set_busy(false);
    guest.pass(HANDSHAKE_TIMEOUT / 4);
    guest.expect(Op::Response);
    guest.expect_silence();
    assert!(guest.accept(PORT).is_some() && guest.accept(PORT).is_none());
    assert!(guest.device.deadline().is_none(), "nothing ticks");
}

#[test]
fn a_listener_that_stays_busy_is_given_up() {
    let mut guest = Guest::new(Layout::default());
    guest.set_busy(true);
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.expect_silence();
    guest.pass(HANDSHAKE_TIMEOUT);
    guest.expect(Op::Reset);
    assert!(guest.device.deadline().is_none(), "nothing ticks");
}

#[test]
fn bytes_written_before_the_answer_follow_it() {
    let mut guest = Guest::new(Layout::default());
    let mut pipe = guest.connect(GUEST_PORT).unwrap();
    write(&mut pipe, b"early");
    let (request, _) = guest.expect(Op::Request);
    guest.expect_silence();
    let response = guest.driver.header(GUEST_PORT, request.src_port, Op::Response);
    guest.send(&response, &[]);
    assert_eq!(guest.expect(Op::ReadWrite).1, b"early");
}

#[test]
fn the_guests_end_of_writing_reaches_the_host_after_its_last_byte() {
    let (mut guest, mut pipe) = connected(Layout::default());
    send_data(&mut guest, b"last words");
    shutdown(&mut guest, SHUTDOWN_SEND);
    assert_eq!(read_all(&mut pipe), (b"last words".to_vec(), true));
    write(&mut pipe, b"still listening");
    assert_eq!(guest.expect(Op::ReadWrite).1, b"still listening");
}

#[test]
fn the_hosts_end_of_writing_reaches_the_guest_after_its_last_byte() {
    let (mut guest, mut pipe) = connected(Layout::default());
    write(&mut pipe, &pattern(100_000));
    pipe.shutdown(Shutdown::Write);
    guest.settle();
    let (last, _) = guest.inbox.pop_back().unwrap();
    assert_eq!((last.op, last.flags), (Op::Shutdown, SHUTDOWN_SEND));
    let got: Vec<u8> = guest.inbox.drain(..).flat_map(|(_, payload)| payload).collect();
    assert!(got == pattern(100_000));
    send_data(&mut guest, b"answer");
    assert_eq!(read_all(&mut pipe).0, b"answer");
}

#[test]
fn an_end_that_is_announced_with_the_last_bytes_is_seen() {
    let mut guest = Guest::new(Layout::default());
    let (near, mut far) = mio::net::UnixStream::pair().unwrap();
    let id =
        guest.device.connect(Endpoint::Unix(near), GUEST_PORT, (HOST_CID, None), Greeting::None).unwrap();
    let (request, _) = guest.expect(Op::Request);
    let response = guest.driver.header(GUEST_PORT, request.src_port, Op::Response);
    guest.send(&response, &[]);
    guest.expect_silence();
    far.write_all(b"last").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    // The one and only event for both.
    guest.device.stream_ready(id, Readiness { readable: true, ended: true, ..Readiness::default() });
    assert_eq!(guest.expect(Op::ReadWrite).1, b"last");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
}

#[test]
fn a_guest_that_closes_is_answered_by_a_reset_and_its_bytes_arrive() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let bytes = pattern(200_000);
    for chunk in bytes.chunks(50_000) {
        send_data(&mut guest, chunk);
    }
    shutdown(&mut guest, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert!(read_to_end(&mut guest, &mut pipe) == bytes);
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_guest_may_reuse_its_port_while_old_bytes_drain() {
    let (mut guest, mut old) = connected(Layout::default());
    let bytes = pattern(200_000);
    for chunk in bytes.chunks(50_000) {
        send_data(&mut guest, chunk);
    }
    shutdown(&mut guest, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.expect(Op::Response);
    let mut new = guest.accept(PORT).unwrap();
    send_data(&mut guest, b"new");
    assert!(read_to_end(&mut guest, &mut old) == bytes);
    assert_eq!(read_all(&mut new).0, b"new");
}

#[test]
fn a_request_on_a_live_connection_replaces_it() {
    let (mut guest, mut old) = connected(Layout::default());
    let bytes = pattern(200_000);
    for chunk in bytes.chunks(50_000) {
        send_data(&mut guest, chunk);
    }
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.expect(Op::Response);
    guest.expect_silence();
    let got = read_to_end(&mut guest, &mut old);
    assert_eq!(got.len(), bytes.len());
    assert!(got == bytes);
    let mut new = guest.accept(PORT).unwrap();
    send_data(&mut guest, b"new");
    assert_eq!(read_all(&mut new).0, b"new");
}

#[test]
fn a_host_that_closes_is_told_as_a_shutdown_of_both_directions() {
    let (mut guest, mut pipe) = connected(Layout::default());
    write(&mut pipe, b"bye");
    drop(pipe);
    assert_eq!(guest.expect(Op::ReadWrite).1, b"bye");
    let (header, _) = guest.expect(Op::Shutdown);
    assert_eq!(header.flags, SHUTDOWN_BOTH);
    // Bytes under way when the host closed are no offence.
    send_data(&mut guest, b"too late");
    guest.expect_silence();
    let reset = packet(&guest, Op::Reset);
    guest.send(&reset, &[]);
    guest.expect_silence();
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_guest_that_never_finishes_closing_is_reset() {
    let (mut guest, pipe) = connected(Layout::default());
    drop(pipe);
    guest.expect(Op::Shutdown);
    guest.pass(CLOSE_TIMEOUT);
    guest.expect(Op::Reset);
    assert_eq!(guest.device.streams(), 0);
    assert!(guest.device.deadline().is_none(), "nothing ticks");
}

#[test]
fn a_guest_that_reads_no_more_makes_the_hosts_writes_fail() {
    let (mut guest, mut pipe) = connected(Layout::default());
    shutdown(&mut guest, SHUTDOWN_RECEIVE);
    assert_eq!(pipe.write_bytes(&[IoSlice::new(b"x")]), host_hv::io::StreamEnd::Broken);
    send_data(&mut guest, b"but it talks");
    assert_eq!(read_all(&mut pipe).0, b"but it talks");
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let limits = Limits { buffer: 65536, ..Limits::default() };
    let mut guest = Guest::with_limits(Layout::default(), limits);
    guest.listen(PORT);
    let request = packet(&guest, Op::Request);
    guest.send(&request, &[]);
    guest.expect(Op::Response);
    let mut pipe = guest.accept(PORT).unwrap();
    // The host reads nothing: the pipe fills, then our buffer, then it is too much.
    let header = Header { len: 60_000, ..packet(&guest, Op::ReadWrite) };
    for _ in 0..6 {
        guest.send(&header, &pattern(60_000));
    }
    guest.settle();
    assert!(guest.inbox.iter().any(|(header, _)| header.op == Op::Reset));
    while !read_all(&mut pipe).1 {
        guest.work();
    }
}

#[test]
fn the_guests_credit_is_never_exceeded_and_more_is_asked_for() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let update = Header { buf_alloc: 1000, ..packet(&guest, Op::CreditUpdate) };
    guest.send(&update, &[]);
    write(&mut pipe, &pattern(2500));
    guest.settle();
    let first: Vec<_> = guest.inbox.drain(..).collect();
    assert_eq!(first.iter().map(|(header, _)| header.len).sum::<u32>(), 1000);
    assert_eq!(first.last().unwrap().0.op, Op::CreditRequest);
    guest.expect_silence();
    let update = Header { buf_alloc: 1000, fwd_cnt: 1000, ..packet(&guest, Op::CreditUpdate) };
    guest.send(&update, &[]);
    guest.settle();
    let second: u32 = guest.inbox.drain(..).map(|(header, _)| header.len).sum();
    assert_eq!(second, 1000);
}

#[test]
fn a_credit_request_is_answered_at_once() {
    let (mut guest, _pipe) = connected(Layout::default());
    send_data(&mut guest, &pattern(100));
    guest.expect_silence();
    let request = packet(&guest, Op::CreditRequest);
    guest.send(&request, &[]);
    let (update, _) = guest.expect(Op::CreditUpdate);
    assert_eq!(update.fwd_cnt, 100);
}

#[test]
fn a_guest_with_a_small_window_is_never_starved() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let (mut sent, mut forwarded, mut got) = (0u32, 0u32, 0);
    for _ in 0..500 {
        // A driver that caps its window at its own 4 KiB.
        assert!(sent - forwarded < 4096, "starved after {sent} bytes");
        let len = (4096 - (sent - forwarded)).min(1500);
        let header = Header { len, buf_alloc: 4096, ..packet(&guest, Op::ReadWrite) };
        guest.send(&header, &pattern(len as usize));
        sent += len;
        got += read_all(&mut pipe).0.len();
        guest.settle();
        for (header, _) in guest.inbox.drain(..) {
            forwarded = header.fwd_cnt;
        }
    }
    assert_eq!(got, sent as usize);
}

#[test]
fn a_host_that_reads_slowly_gets_every_byte() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let bytes = pattern(3_000_000);
    let (mut sent, mut forwarded, mut window) = (0usize, 0usize, 256 * 1024);
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let room = window - (sent - forwarded);
        let len = room.min(65536).min(bytes.len() - sent);
        if len > 0 {
            send_data(&mut guest, &bytes[sent..sent + len]);
            sent += len;
        } else {
            got.extend(read_all(&mut pipe).0);
        }
        guest.settle();
        for (header, _) in guest.inbox.drain(..) {
            (forwarded, window) = (header.fwd_cnt as usize, header.buf_alloc as usize);
        }
    }
    assert!(got == bytes);
}

#[test]
fn control_packets_wait_for_receive_buffers_and_none_is_lost() {
    let layout = Layout { rx_buffers: 4, ..Layout::default() };
    let mut guest = Guest::new(layout);
    guest.listen(PORT);
    for port in 0..100 {
        let op = if port % 2 == 0 { Op::Request } else { Op::ReadWrite };
        let header = guest.driver.header(port, PORT, op);
        guest.send(&header, &[]);
    }
    guest.work();
    let before = guest.inbox.len();
    assert!(before <= 4, "no more packets than buffers");
    guest.settle();
    let mut answered: Vec<u32> = guest
        .inbox
        .iter()
        .map(|(header, _)| {
            assert_eq!(header.op, if header.dst_port % 2 == 0 { Op::Response } else { Op::Reset });
            header.dst_port
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_flood_without_receive_buffers_makes_nothing_grow() {
    let layout = Layout { rx_buffers: 0, ..Layout::default() };
    let limits = Limits { connections: 16, ..Limits::default() };
    let mut guest = Guest::with_limits(layout, limits);
    guest.listen(PORT);
    for port in 0..50_000 {
        let request = guest.driver.header(port, PORT, Op::Request);
        guest.send(&request, &[]);
        if port % 2 == 0 {
            let reset = guest.driver.header(port, PORT, Op::Reset);
            guest.send(&reset, &[]);
        }
        drop(guest.accept(PORT));
    }
    assert!(guest.device.streams() <= 16);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_the_others_live() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let mut guest = Guest::with_limits(Layout::default(), limits);
    guest.listen(PORT);
    for port in 0..3 {
        let request = guest.driver.header(port, PORT, Op::Request);
        guest.send(&request, &[]);
        guest.expect(Op::Response);
    }
    let request = guest.driver.header(3, PORT, Op::Request);
    guest.send(&request, &[]);
    guest.expect(Op::Reset);
    assert!(guest.connect(9).is_err());
    let data = Header { len: 2, ..guest.driver.header(1, PORT, Op::ReadWrite) };
    guest.send(&data, b"hi");
    guest.accept(PORT).unwrap();
    assert_eq!(read_all(&mut guest.accept(PORT).unwrap()).0, b"hi");
}

#[test]
fn a_busy_stream_does_not_keep_the_others_waiting() {
    let layout = Layout { rx_buffers: 8, ..Layout::default() };
    let mut guest = Guest::new(layout);
    guest.listen(PORT);
    let mut pipes: Vec<PipeEnd> = (0..10)
        .map(|port| {
            let request = guest.driver.header(port, PORT, Op::Request);
            guest.send(&request, &[]);
            guest.expect(Op::Response);
            guest.accept(PORT).unwrap()
        })
        .collect();
    // Some are before it in the order of turns and some behind.
    for pipe in &mut pipes[1..5] {
        write(pipe, b"small");
    }
    write(&mut pipes[0], &pattern(100_000));
    for pipe in &mut pipes[5..] {
        write(pipe, b"small");
    }
    let mut seen = std::collections::HashSet::new();
    let mut big = 0;
    guest.work();
    while seen.len() < 9 {
        guest.driver.offer_buffers();
        guest.work();
        for (header, payload) in guest.inbox.drain(..) {
            if header.dst_port == 0 {
                big += payload.len();
            } else {
                seen.insert(header.dst_port);
            }
        }
    }
    assert!(big < 100_000, "the small ones came between the big one's turns");
}

#[test]
fn a_thousand_streams_at_once_keep_apart() {
    let mut guest = Guest::new(Layout::default());
    guest.listen(PORT);
    let mut pipes = Vec::new();
    for port in 0..1000 {
        let request = guest.driver.header(port, PORT, Op::Request);
        guest.send(&request, &[]);
        guest.expect(Op::Response);
        pipes.push(guest.accept(PORT).unwrap());
    }
    for (port, pipe) in pipes.iter_mut().enumerate() {
        write(pipe, format!("to {port}").as_bytes());
        let bytes = format!("from {port}").into_bytes();
        let len = u32::try_from(bytes.len()).unwrap();
        let port = u32::try_from(port).unwrap();
        let header = Header { len, ..guest.driver.header(port, PORT, Op::ReadWrite) };
        guest.send(&header, &bytes);
    }
    guest.settle();
    assert_eq!(guest.inbox.len(), 1000);
    for (header, payload) in guest.inbox.drain(..) {
        assert_eq!(payload, format!("to {}", header.dst_port).into_bytes());
    }
    for (port, pipe) in pipes.iter_mut().enumerate() {
        assert_eq!(read_all(pipe).0, format!("from {port}").into_bytes());
    }
}

#[test]
fn a_reset_of_the_device_ends_every_stream() {
    let (mut guest, mut pipe) = connected(Layout::default());
    guest.device.reset();
    assert_eq!(read_all(&mut pipe), (vec![], true));
    assert_eq!(guest.device.streams(), 0);
}

#[test]
fn a_transport_reset_is_an_event_and_ends_every_stream() {
    let (mut guest, mut pipe) = connected(Layout::default());
    guest.device.transport_reset();
    guest.work();
    assert_eq!(read_all(&mut pipe), (vec![], true));
    let memory = guest.driver.memory().clone();
    let address = guest.driver.queues[1].used() + 64 * 1024;
    let address = address.next_multiple_of(4096);
    memory.write_slice(&[0xff; 4], GuestAddress(address)).unwrap();
    guest.driver.queues[2].add(&[Piece { address, length: 4, write: true }]).unwrap();
    guest.work();
    assert_eq!(guest.driver.queues[2].pop_used().map(|used| used.1), Some(4));
    assert_eq!(memory.read_obj::<u32>(GuestAddress(address)).unwrap(), 0);
}

#[test]
fn interrupts_come_once_per_batch() {
    let (mut guest, mut pipe) = connected(Layout { event_idx: false, ..Layout::default() });
    let before = guest.interrupts();
    write(&mut pipe, &pattern(60_000));
    guest.work();
    assert!(guest.inbox.len() > 10);
    assert_eq!(guest.interrupts() - before, 1);
}

#[test]
fn a_guest_that_wants_no_interrupts_gets_none() {
    let (mut guest, mut pipe) = connected(Layout { event_idx: false, ..Layout::default() });
    guest.driver.queues[0].suppress_interrupts();
    let before = guest.interrupts();
    write(&mut pipe, b"quiet");
    guest.work();
    assert_eq!(guest.interrupts(), before);
}

/// What a guest can write into its transmit ring that is no packet: each is used up, and the device goes on.
#[test]
fn illegal_chains_are_refused_and_the_device_goes_on() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let size = 128;
    type Chain = Vec<(u64, u32, u16, u16)>;
    let good = 0x10000;
    let cases: Vec<(&str, Chain)> = vec![
        ("a loop", vec![(good, 10, NEXT, 1), (good, 10, NEXT, 0)]),
        ("a loop to itself", vec![(good, 10, NEXT, 0)]),
        ("an index beyond the table", vec![(good, 10, NEXT, size)]),
        ("an address beyond memory", vec![(1 << 50, 44, 0, 0)]),
        ("an address that overflows", vec![(u64::MAX - 3, 44, 0, 0)]),
        ("a length beyond memory", vec![(good, u32::MAX, 0, 0)]),
        ("no bytes", vec![(good, 0, 0, 0)]),
        ("less than a header", vec![(good, 43, 0, 0)]),
        ("the wrong direction", vec![(good, 44, WRITE, 0)]),
        ("write, then read", vec![(good, 44, WRITE | NEXT, 1), (good, 44, 0, 0)]),
        ("read, then write", vec![(good, 44, NEXT, 1), (good, 44, WRITE, 0)]),
        ("an empty indirect table", vec![(good, 0, INDIRECT, 0)]),
        ("an odd indirect table", vec![(good, 17, INDIRECT, 0)]),
        ("an indirect table beyond memory", vec![(1 << 50, 32, INDIRECT, 0)]),
        ("a huge indirect table", vec![(good, u32::MAX - 15, INDIRECT, 0)]),
        ("an indirect table that goes on", vec![(good, 32, INDIRECT | NEXT, 1), (good, 44, 0, 0)]),
        ("an indirect table to write", vec![(good, 32, INDIRECT | WRITE, 0)]),
    ];
    for ring in [0usize, 1] {
        for (what, chain) in &cases {
            let layout = Layout { ring: size, rx_buffers: 0, event_idx: false, ..Layout::default() };
            let mut guest = Guest::new(layout);
            let queue = &mut guest.driver.queues[ring];
            for (index, (address, length, flags, next)) in chain.iter().enumerate() {
                let index = u16::try_from(index).unwrap();
                // The receive ring wants what the transmit ring must not have.
                let flags = if ring == 0 && flags & INDIRECT == 0 { flags ^ WRITE } else { *flags };
                queue.write_descriptor(queue.descriptors(), index, *address, *length, flags, *next);
            }
            queue.offer(0);
            // Something to send, so that the receive ring is looked at.
            if ring == 0 {
                drop(guest.connect(1));
            }
            guest.device.kick(ring);
            while guest.device.run() {}
            assert_eq!(guest.driver.queues[ring].pop_used(), Some((0, 0)), "ring {ring}: {what}");
        }
    }
}

#[test]
fn a_nested_indirect_table_is_refused() {
    let mut guest = Guest::new(Layout::default());
    let (outer, inner) = (0x10000, 0x11000);
    let queue = &mut guest.driver.queues[1];
    queue.write_descriptor(outer, 0, inner, 16, 4, 0);
    queue.write_descriptor(inner, 0, 0x12000, 44, 0, 0);
    queue.write_descriptor(queue.descriptors(), 0, outer, 16, 4, 0);
    queue.offer(0);
    guest.device.kick(1);
    while guest.device.run() {}
    assert_eq!(guest.driver.queues[1].pop_used(), Some((0, 0)));
}

#[test]
fn heads_and_indices_out_of_bounds_do_no_harm() {
    let mut guest = Guest::new(Layout::default());
    guest.driver.queues[1].offer(9999);
    guest.device.kick(1);
    while guest.device.run() {}
    // More entries than the ring has: the ring is out of use until a reset.
    for _ in 0..300 {
        guest.driver.queues[1].offer(0);
    }
    guest.device.kick(1);
    while guest.device.run() {}
    let request = guest.driver.header(1, 2, Op::Request);
    guest.driver.send(&request, &[]);
    guest.device.kick(1);
    while guest.device.run() {}
}

#[test]
fn a_payload_shorter_than_announced_is_refused_and_longer_is_cut() {
    let (mut guest, mut pipe) = connected(Layout::default());
    let short = Header { len: 10, ..packet(&guest, Op::ReadWrite) };
    guest.send(&short, b"123");
    guest.expect_silence();
    assert_eq!(read_all(&mut pipe), (vec![], false));
    let long = Header { len: 3, ..packet(&guest, Op::ReadWrite) };
    guest.send(&long, b"1234567");
    assert_eq!(read_all(&mut pipe).0, b"123");
}

#[test]
fn receive_buffers_without_room_are_given_back_empty() {
    let layout = Layout { rx_bytes: u32::try_from(HEADER_SIZE).unwrap() - 1, ..Layout::default() };
    let mut guest = Guest::new(layout);
    drop(guest.connect(1).unwrap());
    guest.work();
    assert_eq!(guest.driver.buffers_offered(), 0);
}
