//! A connected VMM, whatever the device that it uses.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::Control;
use crate::io::peek;
use crate::virtio::Device;

/// How long a VMM may take for the rest of a request it has begun; all guests wait meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A connected VMM.
pub(super) struct Vmm<D: Device> {
    handler: BackendReqHandler<Mutex<Control<D>>>,
    control: Arc<Mutex<Control<D>>>,
    /// The same socket, to see whether more requests wait.
    stream: net::UnixStream,
    registry: Registry,
    name: String,
}

impl<D: Device> Vmm<D> {
    /// Takes a connection over. Its requests are reported under `token`, kicks under what `kick_token` makes of a
    /// ring's number; `name` says in the log whose VMM it is.
    pub(super) fn new(
        stream: net::UnixStream,
        device: Rc<RefCell<D>>,
        registry: &Registry,
        token: Token,
        kick_token: Box<dyn Fn(usize) -> Token>,
        name: String,
    ) -> io::Result<Self> {
        // A request is read whole once it has begun; the VMM is not hostile to us, the guest is.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let control = Control::new(device, registry.try_clone()?, kick_token);
        let control = Arc::new(Mutex::new(control));
        let other = stream.try_clone()?;
        registry.register(&mut SourceFd(&other.as_raw_fd()), token, Interest::READABLE)?;
        tracing::info!(guest = name, "The VMM is connected");
        let handler = BackendReqHandler::from_stream(stream, control.clone());
        Ok(Self { handler, control, stream: other, registry: registry.try_clone()?, name })
    }

    /// Handles all requests that wait. True: the VMM has gone, and the device has forgotten it.
    pub(super) fn serve(&mut self) -> bool {
        loop {
            match peek(&self.stream, &mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(1..) => {}
                _ => break,
            }
            match self.handler.handle_request() {
                Ok(()) => {}
                Err(VhostError::Disconnected | VhostError::PartialMessage) => break,
                Err(error) => {
                    tracing::error!(guest = self.name, %error, "A request of the VMM failed; hanging up");
                    break;
                }
            }
        }
        tracing::info!(guest = self.name, "The VMM has gone");
        drop(self.registry.deregister(&mut SourceFd(&self.stream.as_raw_fd())));
        if let Ok(mut control) = self.control.lock() {
            control.disconnect();
        }
        true
    }
}
