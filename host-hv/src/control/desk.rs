//! The half in the device: it acts on requests and answers them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{Answer, LINE_MAX, Request, Shared, ok, say};
use crate::fuse::watch::Watch;
use crate::fuse::{Owner, Server, ShareError, ShareSpec};

/// Answers what the other half asks, on a thread of its own, until that half ends.
pub fn serve(front: UnixStream, server: Arc<Server>) -> io::Result<()> {
    thread::Builder::new().name("desk".into()).spawn(move || {
        let ended = answer_all(&front, &server);
        // At the end of the process this comes as well, and says nothing new.
        tracing::debug!(?ended, "The control socket is served no more");
    })?;
    Ok(())
}

fn answer_all(front: &UnixStream, server: &Arc<Server>) -> io::Result<()> {
    while let Some((line, with)) = receive(front)? {
        say(front, &answer(&line, with, server))?;
    }
    Ok(())
}

/// The next request, and the descriptor that goes with it; nothing at the end.
fn receive(front: &UnixStream) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let (mut line, mut with) = (Vec::new(), None);
    let mut buffer = vec![0; 4096];
    while !line.ends_with(b"\n") {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let pieces = &mut [IoSliceMut::new(&mut buffer)];
        let message = match recvmsg(front, pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if message.bytes == 0 {
            return Ok(None);
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                with = descriptors.last().or(with);
            }
        }
        line.extend_from_slice(&buffer[..message.bytes]);
        if line.len() as u64 > LINE_MAX + 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request without an end"));
        }
    }
    Ok(Some((line, with)))
}

fn answer(line: &[u8], with: Option<OwnedFd>, server: &Arc<Server>) -> Answer {
    match serde_json::from_slice(line) {
        Ok(request) => act(request, with, server).unwrap_or_else(Answer::from),
        Err(error) => Answer::Error { kind: "bad-request", message: format!("Not understood: {error}") },
    }
}

fn act(request: Request, with: Option<OwnedFd>, server: &Arc<Server>) -> Result<Answer, ShareError> {
    let incomplete = || Answer::Error { kind: "bad-request", message: "A descriptor is missing".into() };
    Ok(match request {
        Request::Add { name, path, read_only, owner } => {
            let owner = match owner.as_deref().map_or(Ok(Owner::default()), str::parse) {
                Ok(owner) => owner,
                Err(error) => return Ok(Answer::Error { kind: "bad-owner", message: error.to_string() }),
            };
            let Some(root) = with else { return Ok(incomplete()) };
            let spec = ShareSpec { name, path, read_only, owner };
            server.add_opened(spec.clone(), root)?;
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
        Request::Watch => {
            let Some(stream) = with else { return Ok(incomplete()) };
            let server = server.clone();
            let told = thread::Builder::new().name("watch".into()).spawn(move || {
                if let Err(error) = watch(&stream.into(), &server) {
                    tracing::debug!(%error, "Whoever was told of changes is lost");
                }
            });
            match told {
                Ok(_) => ok(&()),
                Err(error) => Answer::Error { kind: "cannot-watch", message: error.to_string() },
            }
        }
        Request::List => ok(&server.shares().into_iter().map(Shared::from).collect::<Vec<_>>()),
    })
}

/// Tells the client of changes until it hangs up, or another takes over.
fn watch(stream: &UnixStream, server: &Arc<Server>) -> io::Result<()> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;
    use crate::fuse::Limits;
    use crate::sandbox::Opener;

    #[test]
    fn shares_come_and_go_and_errors_say_why() {
        let server = Arc::new(Server::new(Limits::within(1024)));
        let directory = tempfile::tempdir().expect("a directory");
        let (front, desk) = super::super::pair().expect("a pair");
        serve(desk, server.clone()).expect("a thread");
        let socket = directory.path().join("control");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        super::super::front(listener, front, Opener::default()).expect("a thread");
        let client = UnixStream::connect(&socket).expect("connect");
        let mut reader = BufReader::new(client.try_clone().expect("a descriptor"));
        let mut ask = |line: String| {
            (&client).write_all(format!("{line}\n").as_bytes()).expect("asked");
            let mut answer = String::new();
            reader.read_line(&mut answer).expect("an answer");
            answer.trim_end().to_owned()
        };
        let path = directory.path().display().to_string();
        let add = |name: &str, path: &str| format!(r#"{{"do":"share.add","name":"{name}","path":"{path}"}}"#);
        assert_eq!(
            ask(add("src", &path)),
            format!(r#"{{"ok":{{"name":"src","owner":"map:1000:1000","path":"{path}","read_only":false}}}}"#)
        );
        for (request, kind) in [
            (add("src", &path), "name-taken"),
            (add("..", &path), "bad-name"),
            (add("a/b", &path), "bad-name"),
            (add("other", "/does/not/exist"), "no-such-path"),
            (add("other", "/etc/passwd"), "not-a-directory"),
            (add("other", "etc"), "relative-path"),
            (r#"{"do":"share.remove","name":"x"}"#.into(), "no-such-share"),
            ("nonsense".into(), "bad-request"),
        ] {
            let said = ask(request);
            assert!(said.contains(&format!(r#"{{"error":{{"kind":"{kind}""#)), "{said}");
        }
        assert_eq!(ask(r#"{"do":"share.set","name":"src","read_only":true}"#.into()), r#"{"ok":null}"#);
        assert!(ask(r#"{"do":"share.list"}"#.into()).contains(r#""read_only":true"#));
        assert!(ask(r#"{"do":"share.remove","name":"src"}"#.into()).starts_with(r#"{"ok""#));
        assert_eq!(ask(r#"{"do":"share.list"}"#.into()), r#"{"ok":[]}"#);
    }
}
