//! The control socket: what may be asked of a running device, by whoever may open the socket (its owner).
//!
//! Requests and answers are JSON objects, one a line, answered in their order:
//!
//! ```text
//! {"do": "share.add", "name": "src", "path": "/home/jo/src", "read_only": false, "owner": "map:1000:1000"}
//! {"ok": {"name": "src", "path": "/home/jo/src", "read_only": false, "owner": "map:1000:1000"}}
//! {"do": "share.remove", "name": "nothing"}
//! {"error": {"kind": "no-such-share", "message": "There is no share \"nothing\". There are \"src\""}}
//! {"do": "share.set", "name": "src", "read_only": true}
//! {"do": "share.list"}
//! {"ok": [{"name": "src", …}]}
//! ```
//!
//! `{"do": "share.watch"}` turns the connection into a stream of what others change on the host in folders that the guest
//! knows, for the helper in the guest that replays it (`fuse/replay.rs`). It ends when the client hangs up, or when
//! another client asks for the same:
//!
//! ```text
//! {"ok": {"secret": "5c0e…"}}
//! {"number": 1, "act": "make", "path": "src/new.c", "kind": 32768}
//! ```

//! Two halves, since a sandboxed device cannot open what clients name: [`front()`] has the socket and the host's files in
//! view, opens a folder that is to be shared, and passes each request on with what goes with it; [`desk()`] is in the
//! device, acts and answers. A stream joins them, with one request on it at a time.

mod desk;
mod front;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fuse::{ShareError, ShareSpec};

pub use desk::serve as desk;
pub use front::serve as front;

/// The most bytes of a line.
const LINE_MAX: u64 = 64 * 1024;

/// The most bytes of an answer: that of a list of all shares there may be, with the longest of paths.
const ANSWER_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(tag = "do")]
enum Request {
    #[serde(rename = "share.add")]
    Add {
        name: String,
        path: PathBuf,
        #[serde(default)]
        read_only: bool,
        owner: Option<String>,
    },
    #[serde(rename = "share.remove")]
    Remove { name: String },
    #[serde(rename = "share.set")]
    Set { name: String, read_only: bool },
    #[serde(rename = "share.list")]
    List,
    #[serde(rename = "share.watch")]
    Watch,
}

#[derive(Serialize)]
struct Shared {
    name: String,
    path: PathBuf,
    read_only: bool,
    owner: String,
}

impl From<ShareSpec> for Shared {
    fn from(spec: ShareSpec) -> Self {
        let ShareSpec { name, path, read_only, owner } = spec;
        Self { name, path, read_only, owner: owner.to_string() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(serde_json::Value),
    Error { kind: &'static str, message: String },
}

impl From<ShareError> for Answer {
    fn from(error: ShareError) -> Self {
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message.push_str(": ");
            message.push_str(&source.to_string());
        }
        Self::Error { kind: error.kind(), message }
    }
}

/// The two ends that join the halves.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

fn say(mut stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn ok(value: &impl Serialize) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::Ok(value),
        // A path that is no text.
        Err(error) => Answer::Error { kind: "not-text", message: format!("Cannot be told as text: {error}") },
    }
}
