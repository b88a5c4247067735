//! Hospes in the guest: the root daemon, the per-user worker and the in-guest command.

mod async_fd;
mod copy;
mod exec;
mod process;
mod sys;

pub mod atomic_file;
pub mod audit;
pub mod config;
pub mod connection;
pub mod daemon;
pub mod file;
pub mod forward;
pub mod freeze;
pub mod handoff;
pub mod identity;
pub mod info;
pub mod local_socket;
pub mod logging;
pub mod mount;
pub mod paths;
pub mod power;
pub mod qga;
pub mod session;
pub mod time;
pub mod tools;
pub mod trust;
pub mod variable;
pub mod verb;
pub mod watch;
