//! logind: who asks to wait, what the machine can do, and the asking itself (org.freedesktop.login1(5)).
//!
//! The connection is made for one request and dropped after it.

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::power::{Inhibitor, PowerAction};
use zbus::{Connection, Message, MessageStream, OwnedFd, connection};

use super::{Manner, in_time};
use crate::daemon::systemd::next;

const DESTINATION: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// We are not to be stopped by our own lock.
const WE: &str = "Hospes";
/// `SD_LOGIND_SKIP_INHIBITORS`, since systemd 257; before it, root passes every inhibitor.
const SKIP_INHIBITORS: u64 = 1 << 4;

/// A connection to logind.
#[derive(Debug)]
pub(super) struct Logind {
    connection: Connection,
}

/// Why logind does not do it.
#[derive(Debug)]
pub(super) enum GoError {
    /// It is not there, or not in a state to do anything: somebody else may.
    Absent(zbus::Error),
    /// It says no, for the host to hear.
    Declined(WireError),
}

impl Logind {
    pub(super) async fn connect(manner: &Manner) -> zbus::Result<Self> {
        let connection = match manner {
            Manner::Bus(address) => {
                in_time(async { connection::Builder::address(address.as_str()).build().await }).await?
            }
            _ => in_time(Connection::system()).await?,
        };
        Ok(Self { connection })
    }

    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        in_time(self.connection.call_method(Some(DESTINATION), PATH, Some(MANAGER), method, body)).await
    }

    /// Whether logind knows that this machine cannot do it at all.
    pub(super) async fn cannot(&self, action: PowerAction) -> bool {
        let method = match action {
            PowerAction::POWEROFF => "CanPowerOff",
            PowerAction::REBOOT => "CanReboot",
            PowerAction::HALT => "CanHalt",
            _ => "CanSuspend",
        };
        match self.call(method, &()).await {
            Ok(reply) => reply.body().deserialize::<String>().is_ok_and(|word| word == "na"),
            Err(_) => false,
        }
    }

    /// Who asked that this wait.
    pub(super) async fn inhibitors(&self, action: PowerAction) -> Vec<Inhibitor> {
        type Listed = Vec<(String, String, String, String, u32, u32)>;
        let reply = self.call("ListInhibitors", &()).await;
        let listed = reply.and_then(|reply| reply.body().deserialize::<Listed>()).unwrap_or_default();
        listed
            .into_iter()
            .filter(|(what, who, _, mode, ..)| {
                what.split(':').any(|lock| lock == lock_of(action)) && mode.starts_with("block") && who != WE
            })
            .map(|(_, who, why, ..)| Inhibitor { who: cut(who), why: cut(why) })
            .take(32)
            .collect()
    }

    /// A lock that holds the action back, for five seconds at most, until it is dropped.
    pub(super) async fn delay(&self, action: PowerAction) -> Option<OwnedFd> {
        let body = (lock_of(action), WE, "The host is told", "delay");
        let reply = self.call("Inhibit", &body).await;
        reply.and_then(|reply| reply.body().deserialize()).ok()
    }

    /// News of the sleep that is about to begin.
    pub(super) async fn sleep(&self) -> Option<Sleep> {
        let messages = MessageStream::from(&self.connection);
        let rule = format!("type='signal',interface='{MANAGER}',member='PrepareForSleep',path='{PATH}'");
        let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        let rule = rule.as_str();
        in_time(self.connection.call_method(Some(bus), path, Some(bus), "AddMatch", &rule)).await.ok()?;
        Some(Sleep { _connection: self.connection.clone(), messages })
    }

    /// Asks for it.
    pub(super) async fn go(&self, action: PowerAction, forced: bool) -> Result<(), GoError> {
        let method = match action {
            PowerAction::POWEROFF => "PowerOff",
            PowerAction::REBOOT => "Reboot",
            PowerAction::HALT => "Halt",
            _ => "Suspend",
        };
        if forced {
            // An older logind knows neither the method nor the flag, and needs it not.
            match self.call(&format!("{method}WithFlags"), &SKIP_INHIBITORS).await {
                Ok(_) => return Ok(()),
                Err(error) => tracing::debug!("logind does not take {method}WithFlags: {error}"),
            }
        }
        self.call(method, &false).await.map(drop).map_err(|error| judge(action, forced, error))
    }
}

fn judge(action: PowerAction, forced: bool, error: zbus::Error) -> GoError {
    if !forced
        && let zbus::Error::FDO(denied) = &error
        && let zbus::fdo::Error::AccessDenied(words)
        | zbus::fdo::Error::InteractiveAuthorizationRequired(words) = &**denied
    {
        // A lock that came since we looked: nobody else is asked to pass it.
        let message = format!("logind does not {} now: {words}", super::verb(action));
        return GoError::Declined(WireError::new(ErrorKind::INHIBITED, message).hint(super::AGAIN_HINT));
    }
    let zbus::Error::MethodError(name, words, _) = &error else { return GoError::Absent(error) };
    let words = words.clone().unwrap_or_default();
    let kind = match name.as_str() {
        "org.freedesktop.login1.BlockedByInhibitorLock" => ErrorKind::INHIBITED,
        "org.freedesktop.login1.OperationInProgress" => ErrorKind::BUSY,
        "org.freedesktop.login1.SleepVerbNotSupported" | "org.freedesktop.login1.SleepVerbNotConfigured" => {
            ErrorKind::UNSUPPORTED
        }
        _ => return GoError::Absent(error),
    };
    GoError::Declined(WireError::new(kind, format!("logind does not {}: {words}", super::verb(action))))
}

/// A sleep to come, or going on.
#[derive(Debug)]
pub(super) struct Sleep {
    _connection: Connection,
    messages: MessageStream,
}

impl Sleep {
    /// Returns when the machine is awake again; false where the bus went away before.
    pub(super) async fn over(mut self) -> bool {
        while let Some(message) = next(&mut self.messages).await {
            let header = message.header();
            let ours = header.member().is_some_and(|member| member == "PrepareForSleep")
                && header.interface().is_some_and(|interface| interface == MANAGER);
            if ours && message.body().deserialize::<bool>().is_ok_and(|begins| !begins) {
                return true;
            }
        }
        false
    }
}

fn lock_of(action: PowerAction) -> &'static str {
    if action == PowerAction::SUSPEND { "sleep" } else { "shutdown" }
}

/// A program's name for itself, and its reason, as much as a line can hold.
fn cut(text: String) -> String {
    if text.chars().count() <= 120 { text } else { text.chars().take(119).chain(['…']).collect() }
}
