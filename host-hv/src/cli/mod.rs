//! The commands that have more to say than their options.

pub(crate) mod run;
#[cfg(target_os = "linux")]
pub(crate) mod share;
mod terminal;
