//! Hospes on the host: the agent, its client library and the hospes command.
//!
//! ```text
//!  hospes exec dev -- make          hospes agent
//!       |   1 a ticket for dev?  ---->  |  keeps a control session to each VM
//!       |   <------------------- ticket |
//!       |   2 dial the endpoint         |
//!       |   3 TICKET, EXEC              |
//!       v                               v
//!  ---------------- the VM's endpoint ----------------
//! ```
//! The agent is never in the path: without it, a command does the whole handshake itself. Commands are blocking code
//! over poll(2), because a process that lives for a few milliseconds should not build a runtime first; the agent is a
//! single-threaded event loop.
//!
//! * [`registry`] and [`vm`]: which VMs there are, one file each.
//! * [`endpoint`]: how a VM's vsock is reached from here.
//! * [`identity`], [`pins`]: who we are, and who each guest is.
//! * [`client`]: opens one connection for one operation; [`connection`] carries its frames.
//! * [`copy`]: files and trees, either way, and tar archives.
//! * [`control`]: questions to a guest, such as what it is.
//! * [`exec`]: drives a command with our own terminal or pipes.
//! * [`clipboard`]: a guest's clipboard, for scripts; the agent shares this machine's own.
//! * [`mod@file`], [`forward`]: file verbs, and carried connections.
//! * [`time`]: what the host says when a guest asks for the time.
//! * [`agent`]: the long-running part, and how commands ask it.
//! * [`cli`]: the `hospes` command, one file for each verb.

pub mod agent;
pub mod cli;
pub mod client;
pub mod clipboard;
pub mod command_error;
pub mod connection;
pub mod control;
pub mod copy;
pub mod dirs;
pub mod endpoint;
pub mod exec;
pub mod file;
pub mod forward;
pub mod hv;
pub mod identity;
pub mod pins;
pub mod printable;
pub mod registry;
pub mod request;
pub mod signal;
pub mod stdio;
pub mod sys;
pub mod terminal;
pub mod time;
pub mod ui;
pub mod vm;
