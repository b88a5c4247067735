//! The VM's device on this machine, where the VM has one of ours: its control socket, one JSON object a line each way.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long a device may take to answer: it opens a folder, which may lie on another machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most bytes of an answer.
const ANSWER_LEN: u64 = 1024 * 1024;

/// Why a device does not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// Nobody listens at its control socket.
    #[error("No device of the VM answers at {}", path.display())]
    Unreachable {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It hung up, or said what is no answer.
    #[error("The VM's device at {} did not answer", path.display())]
    Lost {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It refused.
    #[error("{message}")]
    Refused {
        /// One word.
        kind: String,
        /// Its words.
        message: String,
    },
}

impl HvError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("The socket is another user's: act as the user who runs the VM")
            }
            Self::Unreachable { .. } => Some("Start the VM with a device: host-hv fs --control PATH …"),
            Self::Lost { .. } => Some("The device's own log says more"),
            Self::Refused { .. } => None,
        }
    }
}

/// What is asked.
#[derive(Debug, Serialize)]
#[serde(tag = "do")]
pub enum Ask<'a> {
    /// Share a folder.
    #[serde(rename = "share.add")]
    AddShare {
        /// Its name in the guest.
        name: &'a str,
        /// The folder.
        path: &'a Path,
        /// The guest may change nothing.
        read_only: bool,
        /// Who owns what.
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<&'a str>,
    },
    /// Share it no more.
    #[serde(rename = "share.remove")]
    RemoveShare {
        /// Its name in the guest.
        name: &'a str,
    },
    /// Change what the guest may do.
    #[serde(rename = "share.set")]
    SetShare {
        /// Its name in the guest.
        name: &'a str,
        /// The guest may change nothing.
        read_only: bool,
    },
    /// What is shared.
    #[serde(rename = "share.list")]
    ListShares,
}

/// A folder that is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its name in the guest.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// The guest may change nothing.
    pub read_only: bool,
    /// Who owns what.
    pub owner: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Ok(T),
    Error { kind: String, message: String },
}

/// Asks the device whose control socket is `path`.
///
/// # Errors
/// [`HvError`].
pub fn ask<T: DeserializeOwned>(path: &Path, ask: &Ask<'_>) -> Result<T, HvError> {
    let stream =
        UnixStream::connect(path).map_err(|source| HvError::Unreachable { path: path.to_owned(), source })?;
    match exchange(stream, ask) {
        Ok(Answer::Ok(answer)) => Ok(answer),
        Ok(Answer::Error { kind, message }) => Err(HvError::Refused { kind, message }),
        Err(source) => Err(HvError::Lost { path: path.to_owned(), source }),
    }
}

/// A stream of changes in shared folders, as the guest's helper reads it.
///
/// # Errors
/// [`HvError::Unreachable`] and [`HvError::Lost`]; a refusal comes as the stream's first line.
pub fn stream(path: &Path) -> Result<UnixStream, HvError> {
    let mut stream =
        UnixStream::connect(path).map_err(|source| HvError::Unreachable { path: path.to_owned(), source })?;
    stream
        .write_all(b"{\"do\":\"share.watch\"}\n")
        .map_err(|source| HvError::Lost { path: path.to_owned(), source })?;
    Ok(stream)
}

fn exchange<T: DeserializeOwned>(mut stream: UnixStream, ask: &Ask<'_>) -> io::Result<Answer<T>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(ANSWER_LEN).read_until(b'\n', &mut answer)?;
    if !answer.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}
