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
//! A guest is resumed from a saved one unless it asks for a boot ([`GuestSpec::cold`]). Measured on two cores of an
//! x86-64 machine (QEMU 7.2, TCG), from start to an answering shell at multi-user with its devices there:
//!
//! | | quiet machine | 20 busy processes beside it |
//! |---|---|---|
//! | booted, ext4 on virtio-blk, a 2 MB initramfs | 11 to 13 s | 50 to 60 s |
//! | resumed, hospes-tools installed, devices plugged in | 3 to 4 s | 5 s |
//! | power off | 2 s | 4 s |
//! | the image, once | 4 minutes | 17 minutes |
//!
//! A Cortex-A76, a Neoverse N1 and `max` boot alike; a Cortex-A57 or A72 is a tenth slower. A root on virtio-fs would
//! save the initramfs and cost a tree for every guest to write to, so there is none.

mod beside;
mod deadline;
pub mod desktop;
mod frozen;
mod guest;
mod host;
mod lab;
mod machine;
mod nested;
mod process;
mod qmp;
pub mod screens;
mod shell;
pub mod spice;
mod tools;
mod trio;
mod vnc;

pub use beside::Beside;
pub use deadline::Deadline;
pub use guest::{Guest, GuestSpec, SharedGuest, Using};
pub use host::{Host, Ran};
pub use lab::Lab;
pub use nested::{kernel_module, run_on_kvm};
pub use process::{Process, spawn};
pub use qmp::Qmp;
pub use shell::{Output, Shell};
pub use tools::{tools_started, with_tools};
pub use trio::{FolderServer, Trio};
pub use vnc::Vnc;
