//! Processes: list them and signal them. One request on a connection, one answer.

use serde::{Deserialize, Serialize};

use crate::exec::ExecId;

/// Lists processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ps {
    /// Whose worker answers; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// Every process that the user may see, and not only the commands that the worker started.
    pub all: bool,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// The user id it runs as.
    pub uid: u32,
    /// That user's name, or empty.
    pub user: String,
    /// Its kept command's number, where the worker started it.
    pub id: Option<ExecId>,
    /// State letter, as in `proc_pid_stat(5)`.
    pub state: u8,
    /// Started, in seconds since 1970.
    pub started: u64,
    /// CPU time, milliseconds.
    pub cpu_ms: u64,
    /// Resident set, KiB.
    pub rss_kib: u64,
    /// Program and arguments; a kernel thread's name in brackets.
    pub argv: Vec<Vec<u8>>,
}

/// The answer to [`Ps`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Processes {
    /// By process id. Kept commands that have ended are here too, with the state `X`.
    pub list: Vec<Process>,
    /// Processes left out because the answer has a limit.
    pub omitted: u32,
}

/// Signals one process, or a kept command's whole group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Whose worker does it; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// Which.
    pub target: Target,
    /// The signal's Linux number.
    pub signal: u8,
}

/// What [`Kill`] signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A process by its id.
    Pid(u32),
    /// A command, with all it started.
    Exec(ExecId),
}

/// The answer to [`Kill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// How many processes were signalled.
    pub count: u32,
}
