//! Services on a bus that say what a test wants them to: a logind, which tells who sits at the screen
//! (org.freedesktop.login1(5)), and a user's manager, which tells what is in the session's environment
//! (org.freedesktop.systemd1(5)).

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};
use zbus::export::futures_core::Stream;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, ObjectPath, OwnedVariant, Variant, connection};

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const SEAT: (&str, &str) = ("/org/freedesktop/login1/seat/seat0", "org.freedesktop.login1.Seat");
const SESSION: (&str, &str) = ("/org/freedesktop/login1/session/_31", "org.freedesktop.login1.Session");

/// Who sits at the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sitting {
    /// Nobody: no session is active.
    Nobody,
    /// A greeter, which runs as this user.
    Greeter(u32),
    /// A user.
    User(u32),
    /// A user whose screen is locked.
    Locked(u32),
}

/// A logind, until it is dropped.
#[derive(Debug)]
pub struct Logind(Service<Sitting>);

impl Logind {
    /// Starts one on the bus at `address`, with nobody at the screen.
    pub fn start(address: &str) -> Result<Self> {
        Service::start(address, "org.freedesktop.login1", Sitting::Nobody).map(Self)
    }

    /// From now on, this. It has been told when this returns.
    pub fn seat(&self, sitting: Sitting) -> Result<()> {
        self.0.set(sitting)
    }
}

/// A user's manager, until it is dropped.
#[derive(Debug)]
pub struct Manager(Service<Environment>);

/// A session's environment, as words.
type Environment = Vec<String>;

impl Manager {
    /// Starts one on the bus at `address`, with nothing in its environment.
    pub fn start(address: &str) -> Result<Self> {
        Service::start(address, "org.freedesktop.systemd1", Environment::new()).map(Self)
    }

    /// Puts this in its environment, as a session does that has begun. Nobody is told.
    pub fn set(&self, variables: &[(&str, String)]) -> Result<()> {
        self.0.set(variables.iter().map(|(name, value)| format!("{name}={value}")).collect())
    }
}

/// What a service tells.
trait Tells: Send + 'static {
    /// A property.
    fn property(&self, name: &str) -> Option<Variant<'static>>;
    /// The objects and interfaces whose changes it announces, and the properties that change.
    fn announced() -> &'static [(&'static str, &'static str)];
}

impl Tells for Sitting {
    fn property(&self, name: &str) -> Option<Variant<'static>> {
        let (class, user, locked) = match *self {
            Self::Nobody => ("", 0, false),
            Self::Greeter(user) => ("greeter", user, false),
            Self::User(user) => ("user", user, false),
            Self::Locked(user) => ("user", user, true),
        };
        let session = if *self == Self::Nobody { ("", "/") } else { ("1", SESSION.0) };
        let path = |path: &'static str| ObjectPath::try_from(path).ok();
        Some(match name {
            "ActiveSession" => Variant::from((session.0, path(session.1)?)),
            "Class" => Variant::from(class),
            "LockedHint" => Variant::from(locked),
            "User" => Variant::from((user, path("/org/freedesktop/login1/user/_1")?)),
            _ => return None,
        })
    }

    fn announced() -> &'static [(&'static str, &'static str)] {
        &[SEAT, SESSION]
    }
}

impl Tells for Environment {
    fn property(&self, name: &str) -> Option<Variant<'static>> {
        (name == "Environment").then(|| Variant::from(self.clone()))
    }

    fn announced() -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

#[derive(Debug)]
struct Service<T> {
    orders: mpsc::UnboundedSender<(T, oneshot::Sender<()>)>,
}

impl<T: Tells> Service<T> {
    fn start(address: &str, name: &'static str, state: T) -> Result<Self> {
        let (orders, asked) = mpsc::unbounded_channel();
        let (ready, is_ready) = channel();
        let address = address.to_owned();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = runtime.map_err(zbus::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let connection =
                        connection::Builder::address(address.as_str()).name(name).build().await?;
                    let _ = ready.send(Ok(()));
                    serve(&connection, state, asked).await
                })
            });
            let _ = ready.send(served.map_err(|error| error.to_string()));
        });
        is_ready.recv()?.map_err(anyhow::Error::msg).with_context(|| format!("The bus takes no {name}"))?;
        Ok(Self { orders })
    }

    fn set(&self, state: T) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        self.orders.send((state, done)).ok().context("The service is gone")?;
        is_done.blocking_recv().context("The service is gone")
    }
}

async fn serve<T: Tells>(
    connection: &Connection,
    mut state: T,
    mut orders: mpsc::UnboundedReceiver<(T, oneshot::Sender<()>)>,
) -> zbus::Result<()> {
    let mut messages = MessageStream::from(connection);
    loop {
        tokio::select! {
            message = next(&mut messages) => match message {
                Some(message) => answer(connection, &state, &message).await?,
                None => return Ok(()),
            },
            order = orders.recv() => {
                let Some((now, done)) = order else { return Ok(()) };
                state = now;
                for (path, interface) in T::announced() {
                    // As logind does: that something changed, and not what it is now.
                    let changed = vec!["ActiveSession", "LockedHint"];
                    let body = (*interface, HashMap::<&str, OwnedVariant>::new(), changed);
                    connection.emit_signal(None::<&str>, *path, PROPERTIES, "PropertiesChanged", &body).await?;
                }
                let _ = done.send(());
            }
        }
    }
}

async fn answer<T: Tells>(connection: &Connection, state: &T, message: &Message) -> zbus::Result<()> {
    let header = message.header();
    if header.message_type() != Type::MethodCall {
        return Ok(());
    }
    let body = message.body();
    let value = match body.deserialize::<(&str, &str)>() {
        Ok((_, property)) => state.property(property),
        Err(_) => None,
    };
    match value {
        Some(value) => connection.reply(&header, &value).await,
        None => connection.reply_error(&header, "org.freedesktop.DBus.Error.UnknownProperty", &"").await,
    }
}

async fn next(messages: &mut MessageStream) -> Option<Message> {
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}
