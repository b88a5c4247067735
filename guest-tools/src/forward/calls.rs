//! Callers that wait for the host to take them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

use super::socket::Socket;

/// A call's number: random, whoever knows it may take the call.
pub(super) type Number = [u8; 16];

/// Every waiting call of a worker's listeners.
#[derive(Debug, Default)]
pub(crate) struct Calls(RefCell<HashMap<Number, Call>>);

#[derive(Debug)]
struct Call {
    socket: Socket,
    from: String,
    /// The listener's, which may now take another.
    taken: Rc<Notify>,
}

impl Calls {
    pub(super) fn add(&self, number: Number, socket: Socket, from: String, taken: &Rc<Notify>) {
        let call = Call { socket, from, taken: Rc::clone(taken) };
        self.0.borrow_mut().insert(number, call);
    }

    /// Takes a call, once.
    pub(super) fn take(&self, number: &Number) -> Option<(Socket, String)> {
        let call = self.0.borrow_mut().remove(number)?;
        call.taken.notify_one();
        Some((call.socket, call.from))
    }

    pub(super) fn waits(&self, number: &Number) -> bool {
        self.0.borrow().contains_key(number)
    }

    /// Hangs up on a caller who was not taken.
    pub(super) fn refuse(&self, number: &Number) {
        if let Some(call) = self.0.borrow_mut().remove(number) {
            call.socket.reset();
        }
    }
}
