//! The desktop's screens follow the VM's display, and what the host asks for.
//!
//! ```text
//!   kernel: uevents, EDIDs ---> [source] ----+
//!   host: DISPLAY -----------> [serve] -- [follow] decides: pure
//!                                 |          ^
//!                       apply     v          |  what it shows now
//!                            [back_end] -----+
//!                                 |
//!                       compositor or X server
//! ```

pub mod back_end;
pub mod edid;
pub mod follow;
pub mod layout;
pub mod serve;
pub mod source;
