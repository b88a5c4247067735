//! What a worker serves: a request's id and the function that serves its connection to the end.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::FrameId;

use super::Worker;
use crate::connection::Connection;
use crate::handoff::Handoff;
use crate::{copy, exec, file, forward, process};

type Serving = Pin<Box<dyn Future<Output = ()>>>;
type Serve = fn(Rc<Worker>, Connection, Handoff) -> Serving;

/// One row of the table.
macro_rules! row {
    ($id:ident => $serve:path) => {
        (FrameId::$id, |worker, connection, handoff| Box::pin($serve(worker, connection, handoff)))
    };
}

/// A new operation is a row here.
const TABLE: &[(FrameId, Serve)] = &[
    row!(EXEC => exec::run::serve),
    row!(EXEC_ATTACH => exec::run::attach),
    row!(COPY_PUSH => copy::push),
    row!(COPY_PULL => copy::pull),
    row!(COPY_RESUME => copy::resume),
    row!(PS => process::list::serve),
    row!(KILL => process::signal::serve),
    row!(FILE => file::serve),
    row!(FORWARD_CONNECT => forward::connect),
    row!(FORWARD_LISTEN => forward::listen),
    row!(FORWARD_ACCEPT => forward::accept),
];

/// Serves one connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    let id = FrameId(handoff.request_id);
    match TABLE.iter().find(|(known, _)| *known == id) {
        Some((_, serve)) => serve(worker, connection, handoff).await,
        None => {
            let error = WireError::new(ErrorKind::UNSUPPORTED, format!("This guest does not know {id}"))
                .hint("Its tools are older than the host's: upgrade the package hospes-tools in the guest");
            connection.refuse(&error).await;
        }
    }
}
