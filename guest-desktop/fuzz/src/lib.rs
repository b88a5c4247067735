//! What the fuzz targets do with an input: a display's bytes, the kernel's, and what a hostile display, compositor and
//! host make of the decisions between them. `tests/smoke.rs` runs the same with a seeded generator in every `cargo test`.

mod edid;
mod follow;

pub use edid::{edid, uevent};
pub use follow::follow;

/// A target: its input goes in, and it panics where something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also its file's in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[("edid", edid), ("follow", follow), ("uevent", uevent)];
