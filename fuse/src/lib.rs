//! What a kernel asks of a file system in user space: constants of the FUSE protocol, and a decoder of its requests. No
//! I/O. Shared folders serve a guest's kernel by it, the clipboard's files this machine's own.

pub mod abi;
pub mod request;
