//! A guest without a guest: a driver for tests, fuzzing and benchmarks, written against the specification and sharing
//! nothing with the device but the packet header.
//!
//! [`queue`] drives one virtqueue; [`driver`] makes a vsock driver of three; [`guest`] joins it to a device in the
//! same thread; [`fuzz`] lets bytes decide what that guest does; [`vmm`] to a device in another process, over vhost-user.
//! [`slot_fuzz`] is the guest of a machine of our own.

pub mod driver;
#[cfg(target_os = "linux")]
pub mod fuse;
#[cfg(target_os = "linux")]
pub mod fuse_fuzz;
pub mod fuzz;
pub mod guest;
pub mod queue;
#[cfg(unix)]
pub mod slot_fuzz;
#[cfg(target_os = "linux")]
pub mod vmm;
