//! The socket on which the guest's root sets variables and takes secrets: `/run/hospes/variables.sock`, mode 0600.
//!
//! One frame each way, [`Request`] and [`Reply`] as on a control session. The kernel says who calls (`SO_PEERCRED`):
//! root, and nobody else, whatever became of the file's mode.

use std::io::{self, Read, Write};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hospes_protocol::control::{Answer, Ask, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, Frame, FrameBuffer, FrameId};
use hospes_protocol::variable::Owner;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time;

use super::Variables;

/// How long a caller may take.
const CALL: Duration = Duration::from_secs(10);

/// The socket's place.
#[must_use]
pub fn socket(run: &Path) -> PathBuf {
    run.join("variables.sock")
}

/// Answers callers, one after the other, for ever: each is root, and quick or cut off.
pub async fn serve(listener: UnixListener, variables: impl Fn(Ask) -> Result<Answer, WireError>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(Err(error)) = time::timeout(CALL, answer(stream, &variables)).await {
                    tracing::debug!("A caller of the variables' socket went away: {error}");
                }
            }
            Err(error) => {
                tracing::error!("The variables' socket takes no connection: {error}");
                time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, variables: impl Fn(Ask) -> Result<Answer, WireError>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let mut out = Vec::new();
    let reply = if uid == 0 || uid == geteuid().as_raw() {
        let request = read_request(&stream).await?;
        Reply { number: request.number, answer: variables(request.ask) }
    } else {
        Reply { number: 0, answer: Err(WireError::new(ErrorKind::FORBIDDEN, "Only root may do this")) }
    };
    frame::put(FrameId::REPLY, &reply, &mut out);
    write_all(&stream, &out).await
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read_request(stream: &UnixStream) -> io::Result<Request> {
    let mut buffer = FrameBuffer::new();
    loop {
        if let Some(frame) = buffer.take().map_err(io::Error::other)? {
            return decode(frame, FrameId::REQUEST);
        }
        stream.readable().await?;
        match stream.try_read(buffer.space()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer.filled(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(frame: Frame<'_>, expected: FrameId) -> io::Result<T> {
    if frame.id != expected {
        return Err(io::Error::other(format!("{} where {expected} had to come", frame.id)));
    }
    frame.decode().map_err(io::Error::other)
}

/// What the guest's root may ask.
///
/// # Errors
/// The store's, and `UNSUPPORTED`.
pub fn dispatch(variables: &mut Variables, ask: Ask) -> Result<Answer, WireError> {
    match ask {
        Ask::VariableList => Ok(Answer::Variables(variables.list())),
        Ask::VariableGet { name } => variables.get(&name, Owner::Guest).map(Answer::Variable),
        Ask::VariableSet(variable) => variables.set(variable, Owner::Guest).map(|()| Answer::Done),
        Ask::VariableRemove { name } => variables.remove(&name, Owner::Guest).map(|()| Answer::Done),
        _ => Err(WireError::new(ErrorKind::UNSUPPORTED, "This socket is for variables")),
    }
}

/// Why a call was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon cannot be reached.
    #[error("hospes-toolsd cannot be asked at {}: {source}", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{0}")]
    Refused(WireError),
}

/// Asks the daemon, from another program of root's.
///
/// # Errors
/// [`CallError`].
pub fn call(run: &Path, ask: Ask) -> Result<Answer, CallError> {
    let path = socket(run);
    match exchange(&path, ask) {
        Ok(reply) => reply.answer.map_err(CallError::Refused),
        Err(source) => Err(CallError::Unreachable { path, source }),
    }
}

fn exchange(path: &Path, ask: Ask) -> io::Result<Reply> {
    let mut stream = net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(CALL))?;
    let mut out = Vec::new();
    frame::put(FrameId::REQUEST, &Request { number: 1, ask }, &mut out);
    stream.write_all(&out)?;
    let mut buffer = FrameBuffer::new();
    loop {
        if let Some(frame) = buffer.take().map_err(io::Error::other)? {
            return decode(frame, FrameId::REPLY);
        }
        match stream.read(buffer.space())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => buffer.filled(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::variable::Variable;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Arc, Mutex};

    use crate::local_socket::{Callers, bind};

    #[tokio::test]
    async fn root_sets_and_takes_over_the_socket_which_nobody_else_may_open() {
        let run = tempfile::tempdir().unwrap();
        let variables = Arc::new(Mutex::new(Variables::load(run.path())));
        let secret = Variable { name: "token".into(), value: b"x".to_vec(), secret: true };
        variables.lock().unwrap().set(secret.clone(), Owner::Host).unwrap();
        let listener = bind(&socket(run.path()), Callers::Root).unwrap();
        let mode = std::fs::metadata(socket(run.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let store = Arc::clone(&variables);
        let server = tokio::spawn(serve(listener, move |ask| dispatch(&mut store.lock().unwrap(), ask)));
        let directory = run.path().to_owned();
        let ask = move |ask| {
            let directory = directory.clone();
            tokio::task::spawn_blocking(move || call(&directory, ask))
        };
        let set = |name: &str| Ask::VariableSet(Variable { name: name.into(), value: vec![], secret: false });
        assert_eq!(ask(set("guest.ready")).await.unwrap().unwrap(), Answer::Done);
        assert!(matches!(ask(set("host.name")).await.unwrap(), Err(CallError::Refused(_))));
        let taken = ask(Ask::VariableGet { name: "token".into() }).await.unwrap().unwrap();
        assert_eq!(taken, Answer::Variable(secret));
        assert_eq!(variables.lock().unwrap().list().len(), 1);
        server.abort();
    }
}
