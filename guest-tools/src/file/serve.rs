//! Serves one file verb on its connection.
//!
//! What may wait for a disk runs on a thread of tokio's blocking pool and is handed to it and back, so that a file
//! system that hangs holds up its own request and no other. Bytes to read go from the file into the connection's own
//! buffer; bytes to write are gathered from what arrived together.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, Unknown, WireError};
use hospes_protocol::file::{FileReply, FileRequest, READ, Verb, WRITTEN};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::stream::{Receiver, Sender, StreamError};
use tokio::task;

use super::{
    FileError, Home, Listing, Reader, WriteOptions, Writer, make_directory, make_temporary, remove, rename,
    stat,
};
use crate::connection::{Connection, ConnectionError};
use crate::handoff::Handoff;
use crate::session::Worker;

/// Serves a [`FileRequest`].
pub(crate) async fn serve(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    let verb = match codec::decode::<FileRequest>(&handoff.request) {
        Ok(FileRequest { verb, .. }) if verb.paths_are_sane() => verb,
        Ok(_) => return connection.refuse(&WireError::protocol("A path of the request is none")).await,
        Err(error) => return connection.refuse(&WireError::protocol(error)).await,
    };
    let home = Home::new(worker.account.home.clone());
    let answered = tokio::select! {
        answered = answer(&mut connection, home, verb) => answered,
        () = worker.stopping() => Err(Failure::ends()),
    };
    match answered {
        Ok(reply) => {
            frame::put(FrameId::FILE_REPLY, &reply, connection.out());
            connection.finish().await;
        }
        Err(Failure::Told(error)) => connection.refuse(&error).await,
        Err(Failure::Lost) => (),
    }
}

/// Why a request has no reply.
enum Failure {
    /// The host is told.
    Told(WireError),
    /// The host is gone.
    Lost,
}

impl Failure {
    fn ends() -> Self {
        Self::Told(WireError::new(ErrorKind::CANCELLED, "The user's session in the guest ends"))
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Told(WireError::from(&error))
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Lost => Self::Lost,
            ConnectionError::Frame(error) => Self::Told(WireError::protocol(error)),
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Told(WireError::protocol(error))
    }
}

async fn answer(connection: &mut Connection, home: Home, verb: Verb) -> Result<FileReply, Failure> {
    // The host sends what is to be written once it knows that it is served.
    connection.flush().await?;
    match verb {
        Verb::List { path } => list(connection, home, path).await,
        Verb::Read { path, offset, len } => {
            read(connection, move || Reader::open(&home, &path, offset, len)).await
        }
        Verb::Write { path, append, replace, mode } => {
            let options = WriteOptions { append, replace, mode };
            write(connection, move || Writer::create(&home, &path, options)).await
        }
        verb => {
            let cancelled = Arc::new(AtomicBool::new(false));
            let _cancel = Cancel(Arc::clone(&cancelled));
            tokio::select! {
                reply = blocking(move || act(&home, verb, &cancelled)) => reply,
                failure = gone(connection) => Err(failure),
            }
        }
    }
}

/// Stops what still runs for a host that is gone.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn act(home: &Home, verb: Verb, cancelled: &AtomicBool) -> Result<FileReply, FileError> {
    match verb {
        Verb::Stat { path, follow } => stat(home, &path, follow).map(FileReply::Stat),
        Verb::Mkdir { path, parents, mode } => {
            make_directory(home, &path, parents, mode).map(|()| FileReply::Done)
        }
        Verb::Remove { path, recursive, force } => {
            remove(home, &path, recursive, force, cancelled).map(|()| FileReply::Done)
        }
        Verb::Rename { from, to, replace } => rename(home, &from, &to, replace).map(|()| FileReply::Done),
        Verb::Temp { directory, prefix, suffix, make_directory } => {
            make_temporary(home, directory.as_deref(), &prefix, &suffix, make_directory).map(FileReply::Path)
        }
        // They have bytes or parts to carry and are served above.
        Verb::List { .. } | Verb::Read { .. } | Verb::Write { .. } => Ok(FileReply::Done),
    }
}

/// Runs what may wait for a disk.
async fn blocking<T: Send + 'static, E: Into<Failure> + Send + 'static>(
    act: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Failure> {
    match task::spawn_blocking(act).await {
        Ok(done) => done.map_err(Into::into),
        Err(error) => {
            Err(Failure::Told(WireError::new(ErrorKind::OTHER, format!("The request failed: {error}"))))
        }
    }
}

/// Waits until the host is gone, or says so.
async fn gone(connection: &mut Connection) -> Failure {
    loop {
        match connection.next(|frame, out| (frame.id, answer_unknown(frame.id, out))).await {
            Ok((FrameId::BYE, _)) => return Failure::Lost,
            Ok(_) => (),
            Err(error) => return error.into(),
        }
    }
}

fn answer_unknown(id: FrameId, out: &mut Vec<u8>) {
    if id.name().is_none() {
        frame::put(FrameId::UNKNOWN, &Unknown { id: id.0 }, out);
    }
}

async fn list(connection: &mut Connection, home: Home, path: Vec<u8>) -> Result<FileReply, Failure> {
    let mut listing = blocking(move || Listing::open(&home, &path)).await?;
    loop {
        let (part, back) = blocking(move || listing.next_part().map(|part| (part, listing))).await?;
        listing = back;
        match part {
            Some(part) => frame::put(FrameId::FILE_ENTRIES, &part, connection.out()),
            None => return Ok(FileReply::Count(listing.count())),
        }
        connection.flush().await?;
    }
}

async fn read(
    connection: &mut Connection,
    open: impl FnOnce() -> Result<Reader, FileError> + Send + 'static,
) -> Result<FileReply, Failure> {
    let mut reader = blocking(open).await?;
    let mut sender = Sender::new(READ);
    loop {
        while let (Some(frame), out) = connection.take_with_out().map_err(ConnectionError::from)? {
            match frame.id {
                FrameId::CREDIT if frame.channel == READ => {
                    sender.granted(frame.decode().map_err(StreamError::from)?)?;
                }
                FrameId::UNWANTED if frame.channel == READ => sender.refused(),
                FrameId::BYE => return Err(Failure::Lost),
                id => answer_unknown(id, out),
            }
        }
        if sender.is_unwanted() {
            sender.end(connection.out());
            return Ok(FileReply::Count(reader.count()));
        }
        let room = sender.room();
        if room > 0 && connection.is_clear() {
            let (mut bulk, max) = connection.lend_bulk(room);
            let (bulk, back, len) = blocking(move || {
                let len = reader.next(&mut bulk[..max])?;
                Ok::<_, FileError>((bulk, reader, len))
            })
            .await?;
            connection.return_bulk(bulk);
            reader = back;
            if len == 0 {
                sender.end(connection.out());
                return Ok(FileReply::Count(reader.count()));
            }
            connection.send_bulk(sender.data(len));
        }
        if connection.try_flush()? && sender.room() > 0 {
            // What the host says meanwhile is taken in as it comes.
            connection.try_fill()?;
            continue;
        }
        let flushed = connection.is_flushed();
        tokio::select! {
            readable = connection.readable() => {
                readable?;
                connection.try_fill()?;
            }
            writable = connection.writable(), if !flushed => writable?,
        }
    }
}

async fn write(
    connection: &mut Connection,
    create: impl FnOnce() -> Result<Writer, FileError> + Send + 'static,
) -> Result<FileReply, Failure> {
    let mut writer = blocking(create).await?;
    let mut receiver = Receiver::new(WRITTEN);
    let mut chunk = Vec::new();
    loop {
        while let (Some(frame), out) = connection.take_with_out().map_err(ConnectionError::from)? {
            match frame.id {
                FrameId::DATA if frame.channel == WRITTEN => {
                    receiver.data(frame.payload.len())?;
                    chunk.extend_from_slice(frame.payload);
                }
                FrameId::END if frame.channel == WRITTEN => {
                    receiver.end(frame.decode().map_err(StreamError::from)?)?;
                }
                FrameId::DATA | FrameId::END => {
                    return Err(StreamError::NoSuchStream { id: frame.id, channel: frame.channel }.into());
                }
                // Said before the end it gives the write up.
                FrameId::BYE => return Err(Failure::Lost),
                id => answer_unknown(id, out),
            }
        }
        if !chunk.is_empty() {
            let bytes = std::mem::take(&mut chunk);
            (writer, chunk) = blocking(move || {
                writer.write(&bytes)?;
                Ok::<_, FileError>((writer, bytes))
            })
            .await?;
            receiver.taken(chunk.len(), connection.out());
            chunk.clear();
        }
        if receiver.is_ended() {
            return blocking(move || writer.commit()).await.map(FileReply::Count);
        }
        connection.flush().await?;
        connection.readable().await?;
        connection.try_fill()?;
    }
}
