//! A message bus of our own, and a logind on it that does nothing and remembers what it was asked.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream};

const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// What the fake is to be.
#[derive(Default, Clone)]
pub(crate) struct Spec {
    /// Locks: what, who, why, mode.
    pub(crate) inhibitors: Vec<(&'static str, &'static str, &'static str, &'static str)>,
    /// It knows no `…WithFlags`, as before systemd 257.
    pub(crate) old: bool,
    /// It lets nobody pass a lock that came since it was asked for them.
    pub(crate) denies: bool,
    /// What it says to `CanSuspend`.
    pub(crate) cannot_suspend: bool,
}

/// A bus with a logind; both end with this.
pub(crate) struct Logind {
    bus: Child,
    pub(crate) address: String,
    calls: Arc<Mutex<Vec<String>>>,
    wake: mpsc::UnboundedSender<bool>,
    /// The far ends of the locks that were given out.
    locks: Arc<Mutex<Vec<OwnedFd>>>,
    server: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Logind {
    pub(crate) fn start(spec: Spec) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let config = directory.path().join("bus.conf");
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
               "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
            <busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
            <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>"#,
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--print-address=1")
            .arg(format!("--config-file={}", config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is there: apt install dbus-daemon");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let (calls, locks) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<OwnedFd>>>::default());
        let (wake, woken) = mpsc::unbounded_channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let fake = Fake { spec, calls: Arc::clone(&calls), locks: Arc::clone(&locks) };
        let at = address.trim().to_owned();
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(fake.serve(&at, woken, &ready));
        });
        is_ready.recv().expect("the fake logind has its name");
        Self {
            bus,
            address: address.trim().to_owned(),
            calls,
            wake,
            locks,
            server: Some(server),
            _directory: directory,
        }
    }

    /// What it was asked that changes something, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// The machine wakes up.
    pub(crate) fn wake(&self) {
        self.wake.send(true).unwrap();
    }

    /// Returns when the daemon has let go of its locks; there must have been one.
    pub(crate) fn locks_are_dropped(&self) {
        let locks: Vec<OwnedFd> = std::mem::take(&mut self.locks.lock().unwrap());
        assert!(!locks.is_empty(), "the daemon took no lock");
        for lock in locks {
            let mut rest = Vec::new();
            std::fs::File::from(lock).read_to_end(&mut rest).unwrap();
        }
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        let _ = self.wake.send(false);
        let _ = self.bus.kill();
        let _ = self.bus.wait();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

struct Fake {
    spec: Spec,
    calls: Arc<Mutex<Vec<String>>>,
    locks: Arc<Mutex<Vec<OwnedFd>>>,
}

impl Fake {
    async fn serve(
        self,
        address: &str,
        mut woken: mpsc::UnboundedReceiver<bool>,
        ready: &std::sync::mpsc::Sender<()>,
    ) {
        let connection = zbus::connection::Builder::address(address).build().await.unwrap();
        let mut messages = MessageStream::from(&connection);
        connection.request_name("org.freedesktop.login1").await.unwrap();
        ready.send(()).unwrap();
        loop {
            tokio::select! {
                message = next(&mut messages) => match message {
                    Some(message) if message.message_type() == Type::MethodCall => {
                        self.answer(&connection, &message).await;
                    }
                    Some(_) => (),
                    None => return,
                },
                wakes = woken.recv() => {
                    if wakes != Some(true) {
                        return;
                    }
                    emit(&connection, false).await;
                }
            }
        }
    }

    async fn answer(&self, connection: &Connection, call: &Message) {
        let header = call.header();
        let method = header.member().map(ToString::to_string).unwrap_or_default();
        let reply = |words: String| self.calls.lock().unwrap().push(words);
        match method.as_str() {
            "CanSuspend" if self.spec.cannot_suspend => connection.reply(&header, &"na").await.unwrap(),
            can if can.starts_with("Can") => connection.reply(&header, &"yes").await.unwrap(),
            "ListInhibitors" => {
                let listed: Vec<(&str, &str, &str, &str, u32, u32)> = self
                    .spec
                    .inhibitors
                    .iter()
                    .map(|(what, who, why, mode)| (*what, *who, *why, *mode, 0, 1))
                    .collect();
                connection.reply(&header, &listed).await.unwrap();
            }
            "Inhibit" => {
                let (what, _, _, mode): (String, String, String, String) = call.body().deserialize().unwrap();
                reply(format!("Inhibit {what} {mode}"));
                let (far, near) = nix::unistd::pipe().unwrap();
                self.locks.lock().unwrap().push(far);
                connection.reply(&header, &zbus::OwnedFd::from(near)).await.unwrap();
            }
            flagged if flagged.ends_with("WithFlags") && self.spec.old => {
                let name = "org.freedesktop.DBus.Error.UnknownMethod";
                connection.reply_error(&header, name, &"No such method").await.unwrap();
            }
            flagged if flagged.ends_with("WithFlags") => {
                let flags: u64 = call.body().deserialize().unwrap();
                reply(format!("{flagged} {flags}"));
                connection.reply(&header, &()).await.unwrap();
            }
            _ if self.spec.denies => {
                let name = "org.freedesktop.DBus.Error.AccessDenied";
                connection.reply_error(&header, name, &"There is a lock").await.unwrap();
            }
            plain => {
                let interactive: bool = call.body().deserialize().unwrap();
                reply(format!("{plain} {interactive}"));
                connection.reply(&header, &()).await.unwrap();
                if plain == "Suspend" {
                    emit(connection, true).await;
                }
            }
        }
    }
}

async fn emit(connection: &Connection, begins: bool) {
    let none: Option<&str> = None;
    connection.emit_signal(none, PATH, MANAGER, "PrepareForSleep", &begins).await.unwrap();
}

async fn next(messages: &mut MessageStream) -> Option<Message> {
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}
