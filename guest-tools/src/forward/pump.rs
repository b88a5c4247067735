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
    let mut pump = Pump { relay: Relay::guest(&open, connection.out()), socket, deaf: false };
    let ended = match unless_stopping(worker, pump.run(&mut connection)).await {
        Some(ended) => ended,
        None => {
            pump.relay.broke(session_ends(), connection.out());
            Ok(())
        }
    };
    match ended {
        Ok(()) if pump.relay.failure().is_some() => {
            pump.socket.reset();
            connection.finish().await;
        }
        Ok(()) if pump.relay.is_over() => {
            drop(pump);
            connection.finish().await;
        }
        Ok(()) => {
            drop(connection);
            if unless_stopping(worker, pump.write_rest()).await != Some(Ok(())) {
                pump.socket.reset();
            }
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
    /// The host takes no more frames. What it sent before still comes.
    deaf: bool,
}

impl Pump {
    /// Runs until both directions ended, or one end broke, or the host has all and only our socket has not.
    async fn run(&mut self, connection: &mut Connection) -> Result<(), End> {
        loop {
            self.take_frames(connection)?;
            self.drain(connection.out());
            self.read_socket(connection);
            self.shut();
            if self.relay.is_over() || self.relay.is_dismissed() || self.relay.failure().is_some() {
                return Ok(());
            }
            let flushed = self.deaf || connection.try_flush().unwrap_or_else(|_| self.now_deaf());
            let reads = !self.deaf && self.relay.room() > 0 && connection.is_clear();
            let writes = !self.relay.to_socket().is_empty();
            tokio::select! {
                readable = connection.readable() => {
                    if readable.and_then(|()| connection.try_fill()).is_err() {
                        // Frames that came before the end still count.
                        self.take_frames(connection)?;
                        return self.relay.closed().map_err(|_| End::Lost);
                    }
                }
                _ = connection.writable(), if !flushed => {}
                // An error of the socket's is found by the call that it becomes.
                _ = self.socket.readable(), if reads => {}
                _ = self.socket.writable(), if writes => {}
            }
        }
    }

    /// Writes what our socket has not taken yet, the connection being over.
    async fn write_rest(&mut self) -> Result<(), ()> {
        let mut nobody = Vec::new();
        loop {
            self.drain(&mut nobody);
            self.shut();
            if self.relay.failure().is_some() {
                return Err(());
            }
            if self.relay.is_over() {
                return Ok(());
            }
            self.socket.writable().await.map_err(drop)?;
        }
    }

    fn now_deaf(&mut self) -> bool {
        self.deaf = true;
        true
    }

    fn shut(&mut self) {
        if self.relay.take_shut() {
            self.socket.shut(Shutdown::Write);
        }
        if self.relay.take_unwanted() {
            self.socket.shut(Shutdown::Read);
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
                self.write_failed(&error, connection.out());
            }
        }
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) {
        while !self.relay.to_socket().is_empty() && self.relay.failure().is_none() {
            let mut broken = None;
            let len = send(&self.socket, self.relay.to_socket(), &mut broken);
            if let Some(error) = broken {
                return self.write_failed(&error, out);
            }
            if len == 0 {
                return;
            }
            self.relay.written(len, out);
        }
    }

    fn read_socket(&mut self, connection: &mut Connection) {
        let room = self.relay.room();
        if room == 0 || self.deaf || !connection.is_clear() {
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

    fn write_failed(&mut self, error: &io::Error, out: &mut Vec<u8>) {
        if self.socket.only_unread(error) {
            self.relay.refuse(out);
        } else {
            self.relay.broke(broke(error), out);
        }
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
