//! The session's message bus: when it is worth to look for a desktop again, and what the session's environment is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::{Connection, Message, MessageStream, OwnedVariant, connection};

use crate::back_end::mutter;

const BUS: &str = "org.freedesktop.DBus";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const SCREEN: &str = "org.gnome.ScreenSaver";
/// How long the bus and the user's manager may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the session's bus that is told of desktops.
pub(crate) struct Bus {
    connection: Connection,
    messages: MessageStream,
}

/// What the session's programs find in their environment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// The X display.
    pub(crate) display: Option<String>,
    /// The file with its cookie.
    pub(crate) authority: Option<PathBuf>,
}

impl Bus {
    /// Connects, and is told from then on.
    pub(crate) async fn connect(address: &str) -> zbus::Result<Self> {
        let connection = connection::Builder::address(address).method_timeout(PATIENCE).build().await?;
        let messages = MessageStream::from(&connection);
        let mutter = mutter::DESTINATION;
        let came = format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{mutter}'");
        watch_signals(&connection, &came).await?;
        // While GNOME's screen is locked, Mutter gives nobody a session.
        watch_signals(&connection, &format!("type='signal',interface='{SCREEN}',member='ActiveChanged'"))
            .await?;
        Ok(Self { connection, messages })
    }

    /// Returns once a desktop may have come. Never, where the bus is gone.
    pub(crate) async fn changed(&mut self) {
        while let Some(message) = next(&mut self.messages).await {
            let header = message.header();
            if header.member().is_some_and(|member| member == "NameOwnerChanged" || member == "ActiveChanged")
            {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// What the user's manager has in its environment: sessions of X put their display there (systemd.environment(7)).
    pub(crate) async fn environment(&self) -> Environment {
        let body = ("org.freedesktop.systemd1.Manager", "Environment");
        let path = "/org/freedesktop/systemd1";
        let reply = self.connection.call_method(Some(SYSTEMD), path, Some(PROPERTIES), "Get", &body).await;
        let variables = reply.and_then(|reply| reply.body().deserialize::<OwnedVariant>());
        match variables.map(Vec::<String>::try_from) {
            Ok(Ok(variables)) => Environment::from_words(&variables),
            _ => Environment::default(),
        }
    }
}

impl Environment {
    fn from_words(words: &[String]) -> Self {
        let get = |name: &str| {
            let value = words.iter().find_map(|word| word.split_once('=').filter(|(key, _)| *key == name))?.1;
            Some(value.to_owned()).filter(|value| !value.is_empty())
        };
        Self { display: get("DISPLAY"), authority: get("XAUTHORITY").map(PathBuf::from) }
    }
}

/// Where the session's bus is, where nobody says otherwise.
pub(crate) fn usual_address(runtime: &Path) -> Option<String> {
    let socket = runtime.join("bus");
    socket.exists().then(|| format!("unix:path={}", socket.display()))
}

/// Asks the bus for signals of this kind.
pub(crate) async fn watch_signals(connection: &Connection, rule: &str) -> zbus::Result<()> {
    connection.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "AddMatch", &rule).await.map(drop)
}

/// The next message, where the bus is still there.
pub(crate) async fn next(messages: &mut MessageStream) -> Option<Message> {
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_display_is_found_among_the_sessions_variables() {
        let words = ["DISPLAYS=no", "DISPLAY=:1", "XAUTHORITY=/run/x=y", "LANG="].map(str::to_owned);
        let found = Environment::from_words(&words);
        assert_eq!(found, Environment { display: Some(":1".into()), authority: Some("/run/x=y".into()) });
        assert_eq!(Environment::from_words(&["DISPLAY=".to_owned()]), Environment::default());
    }
}
