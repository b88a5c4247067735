//! What a Hospes host and guest say to each other: frames, messages and pure state machines.
//!
//! This page is the specification. The crate does no I/O, has no clock and no `unsafe`: bytes and the time are
//! arguments, and what to do next is a return value.
//!
//! # Connections
//!
//! The host dials, the guest listens, on one vsock port ([`limits::GUEST_PORT`]). The guest accepts peer CID 2 and no
//! other. Each operation has a connection of its own; its first frame says what it is.
//!
//! ```text
//!  first frame        then                      the connection is
//!  ----------------   -----------------------   -------------------------------------------------
//!  CLIENT_HELLO …     CONTROL                   a control session; its secret makes tickets
//!  CLIENT_HELLO …     EXEC, FILE, COPY_PUSH …   one operation, without an agent (two round trips)
//!  TICKET             EXEC, FILE, COPY_PUSH …   one operation, with an agent's ticket (one round trip)
//! ```
//!
//! ```mermaid
//! sequenceDiagram
//!     participant C as hospes (command)
//!     participant A as agent
//!     participant D as hospes-toolsd
//!     participant W as hospes-session (user)
//!     A->>D: CLIENT_HELLO
//!     D->>A: SERVER_HELLO (guest's proof)
//!     A->>D: CLIENT_AUTH (host's proof), CONTROL
//!     D->>A: READY
//!     C->>A: a ticket, please
//!     A->>C: ticket
//!     C->>D: TICKET, EXEC, DATA 0 …
//!     D->>W: the connection itself, by descriptor
//!     W->>C: OPENED, EXEC_STARTED, DATA 1 …
//!     W->>C: END 1, END 2, EXEC_EXITED
//!     C->>W: BYE
//! ```
//!
//! The agent is not in the path of an operation and neither is the daemon: either may be killed or upgraded, and what
//! runs goes on.
//!
//! # Frames
//!
//! [`frame`] has the layout and the table of ids; [`codec`] how a payload becomes bytes. A frame over its id's cap ends
//! the connection. An id that the receiver does not know is skipped and answered with [`UNKNOWN`](frame::FrameId::UNKNOWN).
//!
//! # Trust
//!
//! [`handshake`] proves both keys and agrees on a secret; [`ticket`] opens further connections with it; [`keys`] are
//! what people compare.
//!
//! # Bytes
//!
//! [`stream`] is the one rule for bytes inside a connection: credit, counts, and an end that is said. It serves
//! [`exec`], copies, [`forward`], [`clipboard`] and [`mod@file`] alike. **An end is never inferred from a close**: each operation has a last
//! frame, and a connection that closes before it was cut.
//!
//! # Operations
//!
//! | word | module | runs in |
//! |---|---|---|
//! | exec, shell, attach | [`exec`] | the user's worker |
//! | ps, kill | [`process`] | the user's worker |
//! | stat, ls, mkdir, rm, mv, mktemp, read, write | [`mod@file`] | the user's worker |
//! | forward, connect | [`forward`] | the user's worker |
//! | clipboard | [`clipboard`] | the active desktop's helper |
//! | display | [`display`] | the active desktop's helper |
//! | info, events | [`control`], [`info`] | the daemon |
//! | var | [`control`], [`variable`] | the daemon |
//! | stop, reboot, suspend | [`control`], [`power`] | the daemon |
//! | freeze, thaw, trim | [`control`], [`freeze`] | the daemon, and a helper of its |
//! | time | [`time`] | the daemon |
//!
//! # Errors
//!
//! [`error::WireError`]: a kind for programs, a message for people, a hint what to do next. `FAILED` is the last frame
//! of what it ends.
//!
//! # Limits
//!
//! [`limits`] has every cap with its unit; the most used:
//!
//! | what | limit |
//! |---|---|
//! | frame header | 8 bytes |
//! | payload before anybody has proved anything | 2 KiB |
//! | ordinary message | 64 KiB |
//! | exec request, listing, variables | 4 MiB |
//! | data frame, with its header | 256 KiB |
//! | full data frames under way on a stream: at its start, at most | 4, 16 |
//! | control sessions, unproved connections, in a guest | 64 each |
//! | from connect to the end of the handshake | 10 s |
//!
//! # Compatibility
//!
//! A released message's bytes never change: a change is a new frame id. Variants are added at an enum's end, and a
//! request that an older guest cannot decode is answered `UNSUPPORTED`. Optional features are
//! [capabilities](version::Capabilities); a [version](version::Version) changes only when the rules between frames do.
//! A host and a guest two releases apart work together. `vectors/` holds each message's bytes as released: valid ones
//! that must decode and encode to the same bytes, hostile ones that must be refused, and whole conversations of each
//! release, which a test replays.
#![forbid(unsafe_code)]

mod open_enum;

pub mod clipboard;
pub mod codec;
pub mod control;
pub mod copy;
pub mod display;
pub mod error;
pub mod exec;
pub mod file;
pub mod forward;
pub mod frame;
pub mod freeze;
pub mod handshake;
pub mod hex;
pub mod info;
pub mod keys;
pub mod limits;
pub mod power;
pub mod process;
pub mod qga;
pub mod stream;
pub mod ticket;
pub mod time;
pub mod variable;
pub mod version;
