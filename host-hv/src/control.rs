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

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::fuse::watch::Watch;
use crate::fuse::{Owner, Server, ShareError, ShareSpec};

/// The most bytes of a line.
const LINE_MAX: u64 = 64 * 1024;

/// Clients at a time; one more is hung up on.
const CLIENTS: usize = 32;

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

/// Answers whoever connects, each on a thread of its own, until the process ends.
pub fn serve(listener: UnixListener, server: Arc<Server>) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    let clients = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let (server, mine) = (server.clone(), clients.clone());
            if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
                tracing::warn!(limit = CLIENTS, "Too many clients of the control socket");
                clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let serve = move || {
                if let Err(error) = client(stream, &server) {
                    tracing::debug!(%error, "A client of the control socket is lost");
                }
                mine.fetch_sub(1, Ordering::Relaxed);
            };
            if let Err(error) = thread::Builder::new().name("control client".into()).spawn(serve) {
                tracing::warn!(%error, "A client of the control socket is turned away");
                clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

fn client(stream: UnixStream, server: &Arc<Server>) -> io::Result<()> {
    let writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        if matches!(serde_json::from_slice(&line), Ok(Request::Watch)) {
            return watch(&writer, server);
        }
        say(&writer, &answer(&line, server))?;
        if !whole {
            // Cut, or longer than a line may be: what follows is no line's beginning.
            return Ok(());
        }
    }
}

/// Tells the client of changes until it hangs up, or another takes over.
fn watch(stream: &UnixStream, server: &Arc<Server>) -> io::Result<()> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let watch = match Watch::begin(server, secret.clone()) {
        Ok(watch) => watch,
        Err(error) => {
            let message = format!("The host's kernel does not let folders be watched (fanotify): {error}");
            return say(stream, &Answer::Error { kind: "cannot-watch", message });
        }
    };
    say(stream, &ok(&serde_json::json!({ "secret": secret })))?;
    tracing::info!("Telling the guest of changes on the host");
    let collector = thread::scope(|scope| {
        let collector = thread::Builder::new().name("watch".into()).spawn_scoped(scope, || {
            let ended = collect(stream, &watch);
            watch.end();
            ended
        })?;
        let mut ready = VecDeque::new();
        while let Some(line) = watch.next(&mut ready) {
            if say(stream, &line).is_err() {
                break;
            }
        }
        // The collector sees this, wherever it waits.
        let _ = stream.shutdown(Shutdown::Both);
        collector.join().map_err(|_| io::Error::other("the thread that watches panicked"))?
    });
    tracing::info!("Telling the guest of changes no more");
    collector
}

/// Takes events in until the client hangs up.
fn collect(stream: &UnixStream, watch: &Watch) -> io::Result<()> {
    loop {
        let mut wait =
            [PollFd::new(watch.as_fd(), PollFlags::POLLIN), PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wait, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        if wait[1].any().unwrap_or(true) {
            // It has nothing more to say: it hung up.
            return Ok(());
        }
        watch.collect()?;
    }
}

fn say(mut stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer(line: &[u8], server: &Server) -> Answer {
    match serde_json::from_slice(line) {
        Ok(request) => act(request, server).unwrap_or_else(Answer::from),
        Err(error) => Answer::Error { kind: "bad-request", message: format!("Not understood: {error}") },
    }
}

fn act(request: Request, server: &Server) -> Result<Answer, ShareError> {
    Ok(match request {
        Request::Add { name, path, read_only, owner } => {
            let owner = match owner.as_deref().map_or(Ok(Owner::default()), str::parse) {
                Ok(owner) => owner,
                Err(error) => return Ok(Answer::Error { kind: "bad-owner", message: error.to_string() }),
            };
            let spec = ShareSpec { name, path, read_only, owner };
            server.add_share(spec.clone())?;
            tracing::info!(share = spec.name, path = %spec.path.display(), read_only, "Shared");
            ok(&Shared::from(spec))
        }
        Request::Remove { name } => {
            let spec = server.remove_share(&name)?;
            tracing::info!(share = name, "Shared no more");
            ok(&Shared::from(spec))
        }
        Request::Set { name, read_only } => {
            server.set_read_only(&name, read_only)?;
            tracing::info!(share = name, read_only, "Changed a share");
            ok(&())
        }
        // Turned into a stream before it comes here.
        Request::Watch => ok(&()),
        Request::List => ok(&server.shares().into_iter().map(Shared::from).collect::<Vec<_>>()),
    })
}

fn ok(value: &impl Serialize) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => Answer::Ok(value),
        // A path that is no text.
        Err(error) => Answer::Error { kind: "not-text", message: format!("Cannot be told as text: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::Limits;

    #[test]
    fn shares_come_and_go_and_errors_say_why() {
        let server = Server::new(Limits::within(1024));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().display().to_string();
        let ask = |line: String| serde_json::to_string(&answer(line.as_bytes(), &server)).expect("an answer");
        let add =
            |name: &str, path: &str| ask(format!(r#"{{"do":"share.add","name":"{name}","path":"{path}"}}"#));
        assert_eq!(
            add("src", &path),
            format!(r#"{{"ok":{{"name":"src","owner":"map:1000:1000","path":"{path}","read_only":false}}}}"#)
        );
        for (said, kind) in [
            (add("src", &path), "name-taken"),
            (add("..", &path), "bad-name"),
            (add("a/b", &path), "bad-name"),
            (add("other", "/does/not/exist"), "no-such-path"),
            (add("other", "/etc/passwd"), "not-a-directory"),
            (add("other", "etc"), "relative-path"),
            (ask(r#"{"do":"share.remove","name":"x"}"#.into()), "no-such-share"),
            (ask("nonsense".into()), "bad-request"),
        ] {
            assert!(said.contains(&format!(r#"{{"error":{{"kind":"{kind}""#)), "{said}");
        }
        assert_eq!(ask(r#"{"do":"share.set","name":"src","read_only":true}"#.into()), r#"{"ok":null}"#);
        assert!(ask(r#"{"do":"share.list"}"#.into()).contains(r#""read_only":true"#));
        assert!(ask(r#"{"do":"share.remove","name":"src"}"#.into()).starts_with(r#"{"ok""#));
        assert_eq!(ask(r#"{"do":"share.list"}"#.into()), r#"{"ok":[]}"#);
    }
}
