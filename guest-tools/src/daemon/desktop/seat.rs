//! Who sits at the screen, as logind tells it (org.freedesktop.login1(5)): the active session of seat0, where it is a
//! user's own and not locked.

use zbus::{Connection, Message, MessageStream, OwnedVariant, Variant, connection};

use crate::daemon::systemd::next;

const DESTINATION: &str = "org.freedesktop.login1";
const SEAT: &str = "/org/freedesktop/login1/seat/seat0";
const SEAT_INTERFACE: &str = "org.freedesktop.login1.Seat";
const SESSION_INTERFACE: &str = "org.freedesktop.login1.Session";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Tells `seated` the user at the screen now, and again at each change, until logind cannot be asked any more: why.
pub(super) async fn follow(address: Option<&str>, seated: impl Fn(Option<u32>)) -> zbus::Error {
    match try_follow(address, seated).await {
        Err(error) => error,
        Ok(()) => zbus::Error::Failure("the message bus went away".to_owned()),
    }
}

async fn try_follow(address: Option<&str>, seated: impl Fn(Option<u32>)) -> zbus::Result<()> {
    let connection = match address {
        Some(address) => connection::Builder::address(address).build().await?,
        None => Connection::system().await?,
    };
    let mut messages = MessageStream::from(&connection);
    let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
    for interface in [SEAT_INTERFACE, SESSION_INTERFACE] {
        let rule = format!(
            "type='signal',sender='{DESTINATION}',interface='{PROPERTIES}',member='PropertiesChanged',\
             arg0='{interface}'"
        );
        connection.call_method(Some(bus), path, Some(bus), "AddMatch", &rule.as_str()).await?;
    }
    let told =
        |message: &Message| message.header().member().is_some_and(|member| member == "PropertiesChanged");
    loop {
        // What arrives meanwhile is taken from the connection: its queue is short, and a full one would keep back the
        // answers too. It may be news of what was read already.
        let mut overtaken = false;
        let active = {
            let mut reading = std::pin::pin!(at_screen(&connection));
            loop {
                tokio::select! {
                    active = &mut reading => break active,
                    message = next(&mut messages) => match message {
                        Some(message) => overtaken |= told(&message),
                        None => return Ok(()),
                    },
                }
            }
        };
        seated(active);
        while !overtaken {
            let Some(message) = next(&mut messages).await else { return Ok(()) };
            overtaken = told(&message);
        }
    }
}

/// The user, or none where there is no seat, no session, a greeter, or a lock.
async fn at_screen(connection: &Connection) -> Option<u32> {
    let active = property(connection, SEAT, SEAT_INTERFACE, "ActiveSession").await.ok()?;
    let (name, session): (String, String) = pair(&active)?;
    if name.is_empty() {
        return None;
    }
    let get = |word: &'static str| property(connection, &session, SESSION_INTERFACE, word);
    let class = String::try_from(get("Class").await.ok()?).ok()?;
    let locked = bool::try_from(get("LockedHint").await.ok()?).ok()?;
    let (uid, _): (u32, String) = pair(&get("User").await.ok()?)?;
    (class == "user" && !locked).then_some(uid)
}

async fn property(
    connection: &Connection,
    path: &str,
    interface: &str,
    name: &str,
) -> zbus::Result<OwnedVariant> {
    let body = (interface, name);
    let reply = connection.call_method(Some(DESTINATION), path, Some(PROPERTIES), "Get", &body).await?;
    reply.body().deserialize()
}

/// The two fields of a structure whose second is an object's path.
fn pair<T: for<'v> TryFrom<&'v Variant<'v>>>(value: &OwnedVariant) -> Option<(T, String)> {
    let Variant::Structure(structure) = &**value else { return None };
    let [first, Variant::ObjectPath(path)] = structure.fields() else { return None };
    Some((T::try_from(first).ok()?, path.to_string()))
}
