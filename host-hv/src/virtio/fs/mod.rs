//! The file system device: FUSE requests on virtqueues (virtio 1.3, section 5.11).
//!
//! A request is one chain: header, arguments and data to read, then room for the answer. Queue 0 is for requests that
//! must not wait behind others (the guest's kernel forgets files there); the rest are for all else.
//!
//! A request may wait for a disk, so it is served by a small pool of threads, and not by the loop that serves the VMM.
//! All threads sleep in one place, on the rings' own kick descriptors; a kick wakes one of them, which takes requests
//! until the ring is empty and serves each where it took it: as long as the guest sends one request at a time, no
//! thread ever hands anything to another. One that is about to do something slow asks for kicks first, and wakes a
//! sleeping thread if more requests wait already.

mod device;
mod pool;

pub use device::{Fs, FsError};

/// The kind's number (5.11.1).
pub const DEVICE_ID: u32 = 26;

/// The queue of requests that wait for nothing (5.11.2).
pub const HIGH_PRIORITY_QUEUE: usize = 0;

/// Bytes of the configuration space: a tag of 36 bytes and the number of request queues (5.11.4).
pub const CONFIG_SIZE: usize = 40;

/// The most bytes of a tag (5.11.4).
pub const TAG_MAX: usize = 36;
