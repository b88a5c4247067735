//! Constants and layouts of virtio 1.3, section 5.10, and nothing else.

/// The kind's number (5.10.1).
pub const DEVICE_ID: u32 = 19;

/// Receive queue: from the device to the driver (5.10.2).
pub const RX_QUEUE: usize = 0;
/// Transmit queue: from the driver to the device (5.10.2).
pub const TX_QUEUE: usize = 1;
/// Event queue: transport events to the driver (5.10.2).
pub const EVENT_QUEUE: usize = 2;

/// Feature bit: stream sockets (5.10.3).
pub const VIRTIO_VSOCK_F_STREAM: u64 = 0;

/// Bytes of the configuration space: the guest's cid as a little-endian u64, its upper half 0 (5.10.4).
pub const CONFIG_SIZE: usize = 8;

/// The cid of the host (5.10.4).
pub const HOST_CID: u64 = 2;
/// The lowest cid a guest may have; 0, 1 and 2 are reserved (5.10.4).
pub const MIN_GUEST_CID: u64 = 3;
/// The first cid that no guest may have; `0xffffffff` and beyond are reserved (5.10.4).
pub const GUEST_CID_END: u64 = 0xffff_ffff;

/// Bytes of a packet's header (5.10.6).
pub const HEADER_SIZE: usize = 44;

/// `hdr.type` of a stream (5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// `hdr.flags` of a shutdown: the sender will receive no more (5.10.6.6).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `hdr.flags` of a shutdown: the sender will send no more (5.10.6.6).
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions: the sender is done with the connection.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Bytes of an event (5.10.6.7).
pub const EVENT_SIZE: usize = 4;
/// Event: all connections are gone and the cid may have changed (5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// `hdr.op` (5.10.6). Open: a guest may send any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the specification")]
pub enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    ReadWrite,
    CreditUpdate,
    CreditRequest,
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(raw: u16) -> Self {
        match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::ReadWrite => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(raw) => raw,
        }
    }
}
