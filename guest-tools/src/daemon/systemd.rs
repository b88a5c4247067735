//! Starting units: asked of systemd over the system bus, or over its private socket where there is no bus. The connection
//! is made for the request and dropped after it.

use serde::{Deserialize, Serialize};
use zbus::message::Flags;
use zbus::wire::{DynamicType, Type};
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant, connection};

const PRIVATE: &str = "/run/systemd/private";
const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long a command that is run to its end may take, in microseconds.
const RUN_US: u64 = 20_000_000;

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

/// How far a start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// The unit's job is done.
    Done,
    /// systemd was asked, and its answer is not to be had: look for what the unit makes.
    Asked,
}

/// Starts a unit and waits, where that can be done, until its job is done.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn start_unit(unit: &str) -> Result<Started, UnitError> {
    let manager = match Manager::connect().await {
        Ok(manager) => manager,
        Err(error) => {
            tracing::debug!("There is no system bus: {error}");
            ask_privately(unit).await.map_err(UnitError::Unreachable)?;
            return Ok(Started::Asked);
        }
    };
    let mut jobs = manager.jobs().await.map_err(UnitError::Unreachable)?;
    let declined = |source| UnitError::Declined { unit: unit.into(), source };
    let reply = manager.call("StartUnit", &(unit, "replace")).await.map_err(declined)?;
    let job: OwnedObjectPath = reply.body().deserialize().map_err(declined)?;
    let result = jobs.result(&job).await.ok_or_else(|| UnitError::Left { unit: unit.into() })?;
    match result.as_str() {
        "done" | "skipped" => Ok(Started::Done),
        _ => Err(UnitError::Job { unit: unit.into(), result }),
    }
}

/// Asks over systemd's private socket, as systemctl does for root. systemd signs its messages there with a name that
/// D-Bus keeps for services, which zbus takes for a fault of the message: so no answer is asked for.
pub(crate) async fn ask_privately(unit: &str) -> zbus::Result<()> {
    let address = format!("unix:path={PRIVATE}");
    let connection = connection::Builder::address(address.as_str()).p2p().build().await?;
    let call = Message::method_call(PATH, "StartUnit")
        .interface(MANAGER)
        .with_flags(Flags::NO_REPLY_EXPECTED)
        .build(&(unit, "replace"))?;
    connection.send(&call).await
}

/// Runs a command as a unit of its own, which has nothing of the daemon's restrictions, and waits for its end.
///
/// # Errors
/// What went wrong, in words for the journal.
pub(crate) async fn run_to_its_end(unit: &str, description: &str, argv: &[&str]) -> Result<(), String> {
    let attempt = async {
        let manager = Manager::connect().await.map_err(UnitError::Unreachable)?;
        let mut jobs = manager.jobs().await.map_err(UnitError::Unreachable)?;
        let declined = |source| UnitError::Declined { unit: unit.into(), source };
        let command = vec![(argv.first().copied().unwrap_or_default(), argv.to_vec(), false)];
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", Variant::from(description)),
            ("Type", Variant::from("oneshot")),
            ("ExecStart", Variant::from(command)),
            ("TimeoutStartUSec", Variant::from(RUN_US)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (unit, "replace", properties, auxiliary);
        let reply = manager.call("StartTransientUnit", &body).await.map_err(declined)?;
        let job: OwnedObjectPath = reply.body().deserialize().map_err(declined)?;
        let result = jobs.result(&job).await.ok_or_else(|| UnitError::Left { unit: unit.into() })?;
        if result == "done" { Ok(()) } else { Err(UnitError::Job { unit: unit.into(), result }) }
    };
    attempt.await.map_err(|error| error.to_string())
}

/// A connection to systemd.
#[derive(Debug)]
pub(crate) struct Manager {
    connection: Connection,
}

impl Manager {
    pub(crate) async fn connect() -> zbus::Result<Self> {
        Ok(Self { connection: Connection::system().await? })
    }

    /// Calls a method of the manager.
    pub(crate) async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: Serialize + DynamicType,
    {
        self.connection.call_method(Some(DESTINATION), PATH, Some(MANAGER), method, body).await
    }

    /// A property of a unit.
    pub(crate) async fn property(
        &self,
        unit: &OwnedObjectPath,
        interface: &str,
        name: &str,
    ) -> zbus::Result<OwnedVariant> {
        let properties = Some("org.freedesktop.DBus.Properties");
        let body = (interface, name);
        self.connection
            .call_method(Some(DESTINATION), unit, properties, "Get", &body)
            .await?
            .body()
            .deserialize()
    }

    /// The ends of jobs from now on: to be had before a job is made, so that its end cannot be missed.
    pub(crate) async fn jobs(&self) -> zbus::Result<Jobs> {
        let messages = MessageStream::from(&self.connection);
        let rule = format!("type='signal',sender='{DESTINATION}',interface='{MANAGER}',member='JobRemoved'");
        let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.connection.call_method(Some(bus), path, Some(bus), "AddMatch", &rule.as_str()).await?;
        self.call("Subscribe", &()).await?;
        Ok(Jobs { messages })
    }
}

/// The ends of jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    messages: MessageStream,
}

impl Jobs {
    /// How a job ended; none where systemd left before.
    pub(crate) async fn result(&mut self, job: &OwnedObjectPath) -> Option<String> {
        loop {
            let message = next(&mut self.messages).await?;
            if message.header().member().is_none_or(|member| member != "JobRemoved") {
                continue;
            }
            match message.body().deserialize::<JobRemoved>() {
                Ok(removed) if removed.job == *job => return Some(removed.result),
                _ => {}
            }
        }
    }
}

/// The next message that could be read at all.
pub(crate) async fn next(messages: &mut MessageStream) -> Option<Message> {
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}
