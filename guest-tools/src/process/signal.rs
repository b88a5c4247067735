//! `kill`: one process, or a command with all it started.

use std::rc::Rc;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::process::{Kill, Killed, Target};
use nix::errno::Errno;

use crate::connection::Connection;
use crate::exec::end;
use crate::handoff::Handoff;
use crate::session::Worker;

/// The highest signal number there is (`SIGRTMAX`).
const SIGNAL_MAX: u8 = 64;

/// Serves a [`Kill`].
pub(crate) async fn serve(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    match kill(&worker, &handoff.request).await {
        Ok(killed) => {
            frame::put(FrameId::KILLED, &killed, connection.out());
            connection.finish().await;
        }
        Err(error) => connection.refuse(&error).await,
    }
}

async fn kill(worker: &Worker, request: &[u8]) -> Result<Killed, WireError> {
    let Kill { target, signal, .. } = codec::decode(request).map_err(WireError::protocol)?;
    if signal > SIGNAL_MAX {
        return Err(WireError::protocol(format!("There is no signal {signal}")));
    }
    match target {
        Target::Pid(pid) => one(pid, signal),
        Target::Exec(id) => {
            let gone = || WireError::new(ErrorKind::NOT_FOUND, format!("Command {} is not running", id.0));
            let entry = worker.commands.get(id).ok_or_else(gone)?;
            match end::signal_all(worker, &entry.child, signal).await {
                0 => Err(gone()),
                count => Ok(Killed { count }),
            }
        }
    }
}

fn one(pid: u32, signal: u8) -> Result<Killed, WireError> {
    let missing = || WireError::new(ErrorKind::NOT_FOUND, format!("No process {pid} in the guest"));
    let number = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(missing)?;
    let sent = end::open_process(number).and_then(|process| end::signal_process(&process, signal));
    match sent {
        Ok(()) => Ok(Killed { count: 1 }),
        Err(Errno::ESRCH | Errno::EINVAL) => Err(missing()),
        Err(Errno::EPERM) => {
            Err(WireError::new(ErrorKind::PERMISSION, format!("Process {pid} is another user's"))
                .hint("Ask as that user, or as root, with --user"))
        }
        Err(error) => Err(WireError::new(
            ErrorKind::OS,
            format!("Process {pid} could not be signalled: {}", error.desc()),
        )),
    }
}
