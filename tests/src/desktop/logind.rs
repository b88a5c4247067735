//! A logind that says what the test wants it to: who sits at the screen (org.freedesktop.login1(5)).

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};
use zbus::export::futures_core::Stream;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, ObjectPath, OwnedVariant, Variant, connection};

const NAME: &str = "org.freedesktop.login1";
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

/// It, until it is dropped.
#[derive(Debug)]
pub struct Logind {
    orders: mpsc::UnboundedSender<(Sitting, oneshot::Sender<()>)>,
}

impl Logind {
    /// Starts one on the bus at `address`, with nobody at the screen.
    pub fn start(address: &str) -> Result<Self> {
        let (orders, asked) = mpsc::unbounded_channel();
        let (ready, is_ready) = channel();
        let address = address.to_owned();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = runtime.map_err(zbus::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let connection =
                        connection::Builder::address(address.as_str()).name(NAME).build().await?;
                    let _ = ready.send(Ok(()));
                    serve(&connection, asked).await
                })
            });
            let _ = ready.send(served.map_err(|error| error.to_string()));
        });
        is_ready.recv()?.map_err(anyhow::Error::msg).context("The bus takes no logind")?;
        Ok(Self { orders })
    }

    /// From now on, this. It has been told when this returns.
    pub fn seat(&self, sitting: Sitting) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        self.orders.send((sitting, done)).context("The logind is gone")?;
        is_done.blocking_recv().context("The logind is gone")
    }
}

async fn serve(
    connection: &Connection,
    mut orders: mpsc::UnboundedReceiver<(Sitting, oneshot::Sender<()>)>,
) -> zbus::Result<()> {
    let mut messages = MessageStream::from(connection);
    let mut sitting = Sitting::Nobody;
    loop {
        tokio::select! {
            message = next(&mut messages) => match message {
                Some(message) => answer(connection, sitting, &message).await?,
                None => return Ok(()),
            },
            order = orders.recv() => {
                let Some((now, done)) = order else { return Ok(()) };
                sitting = now;
                for (path, interface) in [SEAT, SESSION] {
                    // As logind does: which property it was, and not what it is now.
                    let body = (interface, HashMap::<&str, OwnedVariant>::new(), vec!["ActiveSession", "LockedHint"]);
                    connection.emit_signal(None::<&str>, path, PROPERTIES, "PropertiesChanged", &body).await?;
                }
                let _ = done.send(());
            }
        }
    }
}

async fn answer(connection: &Connection, sitting: Sitting, message: &Message) -> zbus::Result<()> {
    let header = message.header();
    if header.message_type() != Type::MethodCall {
        return Ok(());
    }
    let body = message.body();
    let value = match body.deserialize::<(&str, &str)>() {
        Ok((_, property)) => property_of(sitting, property),
        Err(_) => None,
    };
    match value {
        Some(value) => connection.reply(&header, &value).await,
        None => connection.reply_error(&header, "org.freedesktop.DBus.Error.UnknownProperty", &"").await,
    }
}

fn property_of(sitting: Sitting, property: &str) -> Option<Variant<'static>> {
    let (class, user, locked) = match sitting {
        Sitting::Nobody => ("", 0, false),
        Sitting::Greeter(user) => ("greeter", user, false),
        Sitting::User(user) => ("user", user, false),
        Sitting::Locked(user) => ("user", user, true),
    };
    let session = if sitting == Sitting::Nobody { ("", "/") } else { ("1", SESSION.0) };
    let path = |path: &'static str| ObjectPath::try_from(path).ok();
    Some(match property {
        "ActiveSession" => Variant::from((session.0, path(session.1)?)),
        "Class" => Variant::from(class),
        "LockedHint" => Variant::from(locked),
        "User" => Variant::from((user, path("/org/freedesktop/login1/user/_1")?)),
        _ => return None,
    })
}

async fn next(messages: &mut MessageStream) -> Option<Message> {
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}
