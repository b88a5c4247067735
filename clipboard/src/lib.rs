//! A Linux desktop's clipboard joined with others'.
//!
//! ```text
//!   compositor or X server
//!        ^  |  selections, pipes
//!        |  v
//!   [back_end] ---- events ---> [clipboard] <--- frames --- [peer]   a connection of each machine it is shared with
//!        ^                          |
//!        +------ what to show ------+   [hub] decides: pure, and where the manners are
//! ```
//! The helper in a guest and the agent on a host use the same: to a helper the peers are hosts, to an agent guests.
//! Between a desktop and a peer bytes go through pipes, [`pump`] takes them from and to the wire in bounded memory.

pub mod back_end;
pub mod clipboard;
pub mod desktop;
pub mod files;
pub mod hub;
pub mod kept;
pub mod peer;
pub mod picture;
pub mod pump;
pub mod types;

pub mod readiness;
pub mod watch;

mod bus;
mod pipe;
