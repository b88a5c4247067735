//! Forward: the guest's end of carried connections, with the user's own rights.
//!
//! `connect` calls somebody in the guest, `listen` waits for callers, whom the host takes with `accept` on a
//! connection each. A carried connection's bytes are `pump`ed between its two sockets; its rules are
//! [`hospes_protocol::forward`]'s.

mod calls;
mod dial;
mod listener;
mod pump;
mod socket;

use std::future::Future;
use std::rc::Rc;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{Accept, Connect, Open};

pub(crate) use calls::Calls;
pub(crate) use listener::serve as listen;

use crate::connection::{Connection, ConnectionError};
use crate::handoff::Handoff;
use crate::session::Worker;

/// Bytes that the host may send before its call is answered; more wait in the kernel.
const EARLY: usize = 64 * 1024;

/// Serves a [`Connect`].
pub(crate) async fn connect(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    let to = match codec::decode::<Connect>(&handoff.request) {
        Ok(Connect { to, .. }) if to.is_sane() => to,
        Ok(Connect { to, .. }) => {
            return connection.refuse(&WireError::protocol(format!("{to} is no address"))).await;
        }
        Err(error) => return connection.refuse(&WireError::protocol(error)).await,
    };
    // The host learns that it is served before the call is answered, which may take minutes.
    if connection.flush().await.is_err() {
        return;
    }
    let dialled = tokio::select! {
        dialled = dial::dial(&to, &worker.account.home) => dialled,
        // The host gave up.
        _ = early(&mut connection) => return,
        () = worker.stopping() => Err(session_ends()),
    };
    match dialled {
        Ok((socket, peer)) => pump::pump(&worker, connection, socket, Open { peer }).await,
        Err(error) => connection.refuse(&error).await,
    }
}

/// Serves an [`Accept`].
pub(crate) async fn accept(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    match codec::decode::<Accept>(&handoff.request) {
        Ok(Accept { call, .. }) => match worker.calls.take(&call) {
            Some((socket, from)) => pump::pump(&worker, connection, socket, Open { peer: from }).await,
            None => {
                let error = WireError::new(ErrorKind::NOT_FOUND, "The caller is not there any more");
                connection.refuse(&error).await;
            }
        },
        Err(error) => connection.refuse(&WireError::protocol(error)).await,
    }
}

/// Takes in what the host sends early, up to a limit, and ends when the host is gone.
async fn early(connection: &mut Connection) -> ConnectionError {
    let mut reads = 0;
    while reads < EARLY {
        match connection.readable().await.and_then(|()| connection.try_fill()) {
            // Bytes are counted in reads of at least one: what matters is that there is an end.
            Ok(filled) => reads += usize::from(filled) * 1024,
            Err(error) => return error,
        }
    }
    std::future::pending().await
}

fn session_ends() -> WireError {
    WireError::new(ErrorKind::CANCELLED, "The user's session in the guest ends")
}

/// Ends with the worker.
async fn unless_stopping<T>(worker: &Worker, act: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = act => Some(done),
        () = worker.stopping() => None,
    }
}
