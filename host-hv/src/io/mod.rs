//! Byte streams and the memory they move: the only module that makes system calls for the devices.
//!
//! Everything here builds on Linux and macOS; readiness comes from `mio` (epoll or kqueue), edge-triggered, so a
//! stream is registered once and nothing is re-armed.

mod bell;
mod buffer;
mod endpoint;
mod file;
mod iobuf;
mod pipe;

pub use bell::Bell;
pub use buffer::ByteRing;
pub use endpoint::{Endpoint, StreamEnd};
pub use file::{read_exact_at, write_all_at};
pub use iobuf::{IoBuf, discard, peek};
pub use pipe::{PipeEnd, WakeList, pipe};
