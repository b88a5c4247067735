//! Every cap in the protocol, with its unit. A peer that passes one is at fault and the connection ends.

/// The guest's vsock port. Below 1024, so that binding it in the guest takes `CAP_NET_BIND_SERVICE`: a floor that
/// keeps an ordinary guest user from posing as the daemon, not an identity (that is the handshake's work).
pub const GUEST_PORT: u32 = 650;

/// The host's vsock port on which a guest may announce itself.
pub const ANNOUNCE_PORT: u32 = 651;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 8;

/// Bytes in a handshake frame's payload. Small: it is read before anybody has proved anything.
pub const HANDSHAKE_LEN: u32 = 2 * 1024;

/// Bytes in an ordinary message's payload.
pub const MESSAGE_LEN: u32 = 64 * 1024;

/// Bytes in a message that carries user-sized lists (arguments, environments, directory listings, variables).
/// Linux allows 2 MiB of arguments and environment under the default 8 MiB stack.
pub const LARGE_MESSAGE_LEN: u32 = 4 * 1024 * 1024;

/// Bytes in one data frame's payload. With its header a full frame is 256 KiB: four whole packets of Linux's vsock
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`), and just what its sockets hold.
pub const DATA_LEN: u32 = 256 * 1024 - 8;

const _: () = assert!(DATA_LEN as usize + HEADER_LEN == 256 * 1024, "a full frame is four whole packets");

/// Bytes a stream's sender may send before the first [`CREDIT`](crate::frame::FrameId::CREDIT) arrives: four full
/// frames. This is what an end buffers at most for a reader that has not begun.
pub const INITIAL_CREDIT: u32 = 4 * DATA_LEN;

/// Bytes under way on a stream at most, and buffered at most for a reader that was quick and then stands still.
pub const MAX_CREDIT: u32 = 16 * DATA_LEN;

/// Protocol versions in one hello.
pub const VERSIONS: usize = 16;

/// Characters in an error's message and in its hint, each.
pub const ERROR_TEXT: usize = 4 * 1024;

/// Bytes in a user name.
pub const USER_NAME: usize = 256;

/// Arguments of one command.
pub const ARGV: usize = 65_536;

/// Environment entries of one command.
pub const ENV: usize = 16_384;

/// Bytes in a path. Linux's `PATH_MAX`, its terminating NUL not counted.
pub const PATH: usize = 4095;

/// Tickets a session may issue ahead of the lowest that the guest has not yet seen. An older one is refused.
pub const TICKET_WINDOW: u64 = 4096;

/// Control sessions that a guest serves at once. More are refused, the oldest idle one is not taken away.
pub const SESSIONS: usize = 64;

/// Connections that have not yet said who they are, in the guest, at once.
pub const HANDSHAKES: usize = 64;

/// Milliseconds from connect to the end of the handshake, or to a ticket with its operation.
pub const HANDSHAKE_MS: u64 = 10_000;

/// Milliseconds between the hang-up that a command gets when its connection is lost and the kill that follows.
pub const HANGUP_GRACE_MS: u64 = 10_000;

/// Bytes of output kept for a detached command, per stream, unless the request says less.
pub const KEPT_OUTPUT: u64 = 1024 * 1024;

/// Milliseconds in which the host must take a call that a forward's listener announced.
pub const FORWARD_ACCEPT_MS: u64 = 10_000;

/// Calls of one listener that wait for the host at once. More wait in the kernel's backlog.
pub const FORWARD_PENDING: usize = 32;

/// Types of one clipboard offer.
pub const CLIPBOARD_TYPES: usize = 128;

/// Bytes in the name of a clipboard's type.
pub const CLIPBOARD_TYPE: usize = 255;

/// Bytes that a guest's desktop keeps for [`CLIPBOARD_SET`](crate::frame::FrameId::CLIPBOARD_SET), per selection.
pub const CLIPBOARD_KEPT: u64 = 64 * 1024 * 1024;

/// Pastes under way at once, per desktop and connected host, each way.
pub const CLIPBOARD_PASTES: usize = 64;

/// Files and folders of one copy.
pub const CLIPBOARD_ROOTS: usize = 16_384;

/// Bytes of the list that a desktop's program has of them.
pub const CLIPBOARD_LIST: u64 = LARGE_MESSAGE_LEN as u64;

/// Bytes of a link among them that leads to no file.
pub const CLIPBOARD_URI: usize = 4 * 1024;

/// Bytes of a lent file's name: what Linux has room for.
pub const CLIPBOARD_NAME: usize = 255;

/// Entries of a lent directory that are told at once.
pub const CLIPBOARD_ENTRIES: usize = 256;

/// Questions to a lender that have no answer yet.
pub const CLIPBOARD_ASKS: usize = 1024;

/// Files and directories that a lender has open for one borrower.
pub const CLIPBOARD_HANDLES: usize = 256;

/// Copies whose files are lent to one peer at once, and borrowed of all; one more ends the oldest.
pub const CLIPBOARD_LENDINGS: usize = 4;

/// Screens of one display request.
pub const OUTPUTS: usize = 16;

/// Bytes in a screen's name.
pub const OUTPUT_NAME: usize = 64;

/// Guest variables, in all.
pub const VARIABLES: usize = 1024;

/// Bytes in a variable's name.
pub const VARIABLE_NAME: usize = 128;

/// Bytes in a variable's value.
pub const VARIABLE_VALUE: usize = 64 * 1024;

/// Bytes in all variables' names and values.
pub const VARIABLES_TOTAL: usize = 1024 * 1024;

/// Bytes of a power script's output that are kept, its last ones.
pub const SCRIPT_OUTPUT: usize = 4 * 1024;

/// File systems of one freeze or trim; a guest with more is refused, for a snapshot of some of them is none.
pub const FREEZE_FILE_SYSTEMS: usize = 512;

/// Milliseconds for which file systems may be frozen at most, whatever a policy says.
pub const FREEZE_MS: u64 = 600_000;

/// Bytes in one name of a copy's archive. Linux allows 255; macOS 255 UTF-16 units, which is up to 765.
pub const COPY_NAME: usize = 1024;

/// Directories inside each other in a copy.
pub const COPY_DEPTH: usize = 4096;

/// Bytes of one entry's extended attributes in a copy, names and values together. They stay within a data frame.
pub const COPY_XATTRS: usize = 128 * 1024;

/// Files with several names in a copy: the receiver remembers where each one is.
pub const COPY_LINKS: u64 = 1 << 20;

/// Sources of one pull.
pub const COPY_SOURCES: usize = 1024;

/// Patterns of one pull.
pub const COPY_PATTERNS: usize = 1024;

/// Problems that a copy names; more are counted.
pub const COPY_PROBLEMS: usize = 1000;

/// Milliseconds for which a copy whose connection was cut waits to be taken up again.
pub const COPY_PARKED_MS: u64 = 60_000;
