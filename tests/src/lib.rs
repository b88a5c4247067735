//! Tests across crates, and the lab that boots real guests.
//!
//! `make lab` builds what a guest boots from (`tests/lab/image.sh`): Debian 13 for arm64 on an ext4 disk, and
//! `make test` runs the tests in `tests/tests/`, one file a feature. A file's tests share one guest:
//!
//! ```no_run
//! use integration_tests::{GuestSpec, SharedGuest};
//!
//! static GUEST: SharedGuest = SharedGuest::new(|| Ok(GuestSpec::new("power")));
//!
//! # fn main() -> anyhow::Result<()> {
//! let guest = GUEST.get()?;
//! assert_eq!(guest.check("uname -m")?, "aarch64\n");
//! # Ok(())
//! # }
//! ```
//!
//! [`Guest::sh`] is the ground truth: a root shell on a virtio-serial port that has no part of Hospes in it.
//! Everything has a deadline, every failure shows the guest's console, and the guest's processes end with the
//! test's own, however that ends.
//!
//! Measured on two cores of an x86-64 machine (QEMU 7.2, TCG), from start to an answering shell at multi-user: 11 to
//! 13 s for a boot (50 s with a load of 10 beside it), 3 s for a guest that is resumed from a saved one with its
//! devices plugged in (4 s), 2 s to power off. A Cortex-A76, a Neoverse N1 and `max` take the same. The image takes 4
//! minutes to make, once.

mod deadline;
mod frozen;
mod guest;
mod host;
mod lab;
mod machine;
mod process;
mod qmp;
mod shell;
mod tools;

pub use deadline::Deadline;
pub use guest::{Guest, GuestSpec, SharedGuest, Using};
pub use host::{Host, Ran};
pub use lab::Lab;
pub use process::{Process, spawn};
pub use qmp::Qmp;
pub use shell::{Output, Shell};
pub use tools::{tools_started, with_tools};
