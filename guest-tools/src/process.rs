//! Processes: `ps` and `kill`, with the user's own eyes and rights.

pub(crate) mod census;
pub(crate) mod list;
pub(crate) mod signal;
pub(crate) mod stat;
