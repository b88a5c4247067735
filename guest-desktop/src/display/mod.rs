//! The desktop's screens follow the VM's display, and what the host asks for.
pub mod edid;
pub mod follow;
pub mod layout;
