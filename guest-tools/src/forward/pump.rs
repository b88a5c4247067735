//! Carries bytes between a connection and a socket until both directions have ended.

use std::io;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{ForwardError, Open, Relay};
use nix::sys::socket::Shutdown;

use super::dial::reason;
use super::socket::Socket;
use super::{session_ends, unless_stopping};
use crate::connection::{Connection, ConnectionError};
use crate::session::Worker;
use crate::sys::descriptor::Moved;

/// Carries a connection to its end.
pub(super) async fn pump(worker: &Worker, mut connection: Connection, socket: Socket, open: Open) {
    let mut pump = Pump { relay: Relay::guest(&open, connection.out()), socket, gone: false };
    let ended = match unless_stopping(worker, pump.run(&mut connection)).await {
        Some(ended) => ended,
        None => {
            pump.relay.broke(session_ends(), connection.out());
            Ok(())
        }
    };
    let failed = pump.relay.failure().is_some();
    match ended {
        Ok(()) if failed => {
            pump.socket.reset();
            connection.finish().await;
        }
        Ok(()) => {
            drop(pump);
            connection.finish().await;
        }
        Err(End::Lost) => pump.socket.reset(),
        Err(End::Broken(error)) => {
            pump.socket.reset();
            connection.refuse(&WireError::from(&error)).await;
        }
    }
}

/// Why a carried connection ends before its time.
enum End {
    /// The host is gone.
    Lost,
    /// The host broke the rules.
    Broken(ForwardError),
}

impl From<ForwardError> for End {
    fn from(error: ForwardError) -> Self {
        Self::Broken(error)
    }
}

impl From<ConnectionError> for End {
    fn from(_: ConnectionError) -> Self {
        Self::Lost
    }
}

struct Pump {
    relay: Relay,
    socket: Socket,
    /// The host closed the connection, both directions having ended: what it sent may still be written.
    gone: bool,
}

impl Pump {
    /// Runs until both directions ended, or one end broke.
    async fn run(&mut self, connection: &mut Connection) -> Result<(), End> {
        loop {
            self.take_frames(connection)?;
            self.drain(connection);
            self.read_socket(connection);
            if self.relay.take_shut() {
                self.socket.shut(Shutdown::Write);
            }
            if self.relay.take_unwanted() {
                self.socket.shut(Shutdown::Read);
            }
            if self.relay.is_over() || self.relay.failure().is_some() {
                return Ok(());
            }
            let flushed = self.gone || connection.try_flush()?;
            let reads = !self.gone && self.relay.room() > 0 && connection.is_clear();
            let writes = !self.relay.to_socket().is_empty();
            tokio::select! {
                readable = connection.readable(), if !self.gone => {
                    if readable.and_then(|()| connection.try_fill()).is_err() {
                        self.lost(connection)?;
                    }
                }
                writable = connection.writable(), if !flushed => writable?,
                // An error of the socket's is found by the call that it becomes.
                _ = self.socket.readable(), if reads => {}
                _ = self.socket.writable(), if writes => {}
            }
        }
    }

    fn take_frames(&mut self, connection: &mut Connection) -> Result<(), End> {
        let mut broken = None;
        loop {
            let (frame, out) = connection.take_with_out().map_err(ConnectionError::from)?;
            let Some(frame) = frame else { break };
            let socket = &self.socket;
            self.relay.receive(frame, out, |bytes| send(socket, bytes, &mut broken))?;
            if let Some(error) = broken.take() {
                self.write_failed(&error, connection);
            }
        }
        Ok(())
    }

    fn drain(&mut self, connection: &mut Connection) {
        while !self.relay.to_socket().is_empty() && self.relay.failure().is_none() {
            let mut broken = None;
            let len = send(&self.socket, self.relay.to_socket(), &mut broken);
            if let Some(error) = broken {
                return self.write_failed(&error, connection);
            }
            if len == 0 {
                return;
            }
            self.relay.written(len, connection.out());
        }
    }

    fn read_socket(&mut self, connection: &mut Connection) {
        let room = self.relay.room();
        if room == 0 || self.gone || !connection.is_clear() {
            return;
        }
        match self.socket.receive(connection.bulk(room)) {
            Ok(Moved::NotReady) => (),
            Ok(Moved::Bytes(len)) => {
                if let Some(header) = self.relay.read(len, connection.out()) {
                    connection.send_bulk(header);
                }
            }
            Err(error) => self.relay.broke(broke(&error), connection.out()),
        }
    }

    fn write_failed(&mut self, error: &io::Error, connection: &mut Connection) {
        if self.socket.only_unread(error) {
            self.relay.refuse(connection.out());
        } else {
            self.relay.broke(broke(error), connection.out());
        }
    }

    /// The connection closed. Frames that came before the end still count.
    fn lost(&mut self, connection: &mut Connection) -> Result<(), End> {
        self.take_frames(connection)?;
        self.gone = true;
        self.relay.closed().map_err(|_| End::Lost)
    }
}

fn send(socket: &Socket, bytes: &[u8], broken: &mut Option<io::Error>) -> usize {
    socket.send(bytes).unwrap_or_else(|error| {
        *broken = Some(error);
        0
    })
}

fn broke(error: &io::Error) -> WireError {
    let kind = if error.kind() == io::ErrorKind::TimedOut { ErrorKind::TIMED_OUT } else { ErrorKind::OS };
    WireError::new(kind, format!("The connection broke in the guest: {}", reason(error)))
}
