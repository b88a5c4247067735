//! Starting units: asked of systemd itself over its private socket, as systemctl does, or over the system bus where that
//! socket is not ours to open. The connection is made for the request and dropped after it.

use std::path::Path;

use serde::Deserialize;
use zbus::zvariant::Type;
use zbus::{Connection, MessageStream, OwnedObjectPath, connection};

const PRIVATE: &str = "/run/systemd/private";
const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Why a unit was not started.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// systemd cannot be asked.
    #[error("systemd cannot be reached: {0}")]
    Unreachable(zbus::Error),
    /// systemd declined.
    #[error("systemd does not start {unit}: {source}")]
    Declined {
        /// The unit.
        unit: String,
        /// Its words.
        source: zbus::Error,
    },
    /// The unit's job ended badly.
    #[error("Starting {unit} ended as \"{result}\"")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word: `failed`, `dependency`, `timeout` …
        result: String,
    },
    /// systemd left before the job was done.
    #[error("systemd closed the connection while it started {unit}")]
    Left {
        /// The unit.
        unit: String,
    },
}

/// `JobRemoved` of org.freedesktop.systemd1(5).
#[derive(Debug, Deserialize, Type)]
struct JobRemoved {
    _id: u32,
    job: OwnedObjectPath,
    _unit: String,
    result: String,
}

/// Starts a unit and waits until its job is done.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn start_unit(unit: &str) -> Result<(), UnitError> {
    let (connection, destination) = connect().await.map_err(UnitError::Unreachable)?;
    // Before the request, so that its job's end cannot be missed.
    let mut messages = MessageStream::from(&connection);
    let declined = |source| UnitError::Declined { unit: unit.into(), source };
    if destination.is_some() {
        subscribe(&connection).await.map_err(UnitError::Unreachable)?;
    }
    let reply = connection
        .call_method(destination, PATH, Some(MANAGER), "StartUnit", &(unit, "replace"))
        .await
        .map_err(declined)?;
    let job: OwnedObjectPath = reply.body().deserialize().map_err(declined)?;
    loop {
        let message = next(&mut messages).await.ok_or_else(|| UnitError::Left { unit: unit.into() })?;
        if message.header().member().is_none_or(|member| member != "JobRemoved") {
            continue;
        }
        let Ok(removed) = message.body().deserialize::<JobRemoved>() else { continue };
        if removed.job == job {
            return match removed.result.as_str() {
                "done" | "skipped" => Ok(()),
                _ => Err(UnitError::Job { unit: unit.into(), result: removed.result }),
            };
        }
    }
}

async fn connect() -> zbus::Result<(Connection, Option<&'static str>)> {
    if Path::new(PRIVATE).exists() {
        let direct =
            connection::Builder::address(format!("unix:path={PRIVATE}").as_str()).p2p().build().await;
        if let Ok(direct) = direct {
            return Ok((direct, None));
        }
    }
    Ok((Connection::system().await?, Some(DESTINATION)))
}

async fn subscribe(connection: &Connection) -> zbus::Result<()> {
    let rule = format!("type='signal',sender='{DESTINATION}',interface='{MANAGER}',member='JobRemoved'");
    connection
        .call_method(
            Some("org.freedesktop.DBus"),
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "AddMatch",
            &rule.as_str(),
        )
        .await?;
    connection.call_method(Some(DESTINATION), PATH, Some(MANAGER), "Subscribe", &()).await?;
    Ok(())
}

/// The next message that could be read at all.
async fn next(messages: &mut MessageStream) -> Option<zbus::Message> {
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}
