//! The commands: what each is called, which group it is in, and what it asks for.

use serde_json::{Map, Value, json};

use super::Group;
use super::reply::{Class, Refusal};

/// Every command that is served, its group, and whether it answers where it succeeds.
const COMMANDS: [(&str, Group, bool); 13] = [
    ("guest-sync", Group::Read, true),
    ("guest-sync-delimited", Group::Read, true),
    ("guest-ping", Group::Read, true),
    ("guest-info", Group::Read, true),
    ("guest-get-time", Group::Read, true),
    ("guest-get-host-name", Group::Read, true),
    ("guest-get-osinfo", Group::Read, true),
    ("guest-get-users", Group::Read, true),
    ("guest-get-fsinfo", Group::Read, true),
    ("guest-network-get-interfaces", Group::Read, true),
    ("guest-set-time", Group::Time, true),
    ("guest-shutdown", Group::Power, false),
    ("guest-suspend-ram", Group::Power, false),
];

/// How a guest is to go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// And off.
    Powerdown,
    /// And stay on.
    Halt,
    /// And up again.
    Reboot,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Answer with this value; after the delimiter, where it says so.
    Answer {
        /// The value.
        value: Value,
        /// A byte 0xff goes before the reply.
        delimited: bool,
    },
    /// The host's name of this machine.
    HostName,
    /// What system it is.
    OsInfo,
    /// Who has a session.
    Users,
    /// What is mounted.
    FsInfo,
    /// The network.
    Interfaces,
    /// What time it is.
    GetTime,
    /// Set the clock to so many nanoseconds since 1970; without, to the machine's battery clock.
    SetTime(Option<i64>),
    /// Go down.
    Shutdown(Mode),
    /// Suspend to memory.
    Suspend,
}

/// A command, or why it is none, with the id that its reply repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What it asks.
    pub ask: Result<Ask, Refusal>,
    /// Its id.
    pub id: Option<Value>,
    /// Its name, where it has one.
    pub name: String,
}

/// Reads one object, at a door that lets these groups through.
#[must_use]
pub fn read(object: &[u8], allowed: &[Group]) -> Command {
    let mut members = match serde_json::from_slice::<Value>(object) {
        Ok(Value::Object(members)) => members,
        Ok(_) => return nameless("QMP input must be a JSON object"),
        Err(error) => return nameless(&format!("Invalid JSON syntax: {error}")),
    };
    let id = members.remove("id");
    let Some(Value::String(name)) = members.remove("execute") else {
        return Command { id, ..nameless("QMP input lacks member 'execute'") };
    };
    let arguments = match members.remove("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Command { id, name, ..nameless("QMP input member 'arguments' must be an object") },
    };
    if let Some(other) = members.keys().next() {
        let desc = format!("QMP input member '{}' is unexpected", crate::audit::printable(other.as_bytes()));
        return Command { id, name, ..nameless(&desc) };
    }
    let ask = ask(&name, &Arguments(arguments), allowed);
    Command { ask, id, name }
}

fn nameless(desc: &str) -> Command {
    Command { ask: Err(Refusal::new(desc)), id: None, name: String::new() }
}

fn ask(name: &str, arguments: &Arguments, allowed: &[Group]) -> Result<Ask, Refusal> {
    let not_found = |desc| Refusal { class: Class::CommandNotFound, desc };
    let Some((_, group, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        let name = crate::audit::printable(name.as_bytes());
        return Err(not_found(format!("The command {name} has not been found")));
    };
    if !allowed.contains(group) {
        return Err(not_found(format!(
            "Command {name} has been disabled: the guest's policy does not allow it"
        )));
    }
    let takes: &[&str] = match name {
        "guest-sync" | "guest-sync-delimited" => &["id"],
        "guest-set-time" => &["time"],
        "guest-shutdown" => &["mode"],
        _ => &[],
    };
    arguments.only(takes)?;
    let answer = |value| Ask::Answer { value, delimited: name == "guest-sync-delimited" };
    Ok(match name {
        "guest-sync" | "guest-sync-delimited" => {
            answer(json!(arguments.integer("id")?.ok_or_else(|| missing("id"))?))
        }
        "guest-ping" => answer(json!({})),
        "guest-info" => answer(info(allowed)),
        "guest-get-time" => Ask::GetTime,
        "guest-get-host-name" => Ask::HostName,
        "guest-get-osinfo" => Ask::OsInfo,
        "guest-get-users" => Ask::Users,
        "guest-get-fsinfo" => Ask::FsInfo,
        "guest-network-get-interfaces" => Ask::Interfaces,
        "guest-set-time" => Ask::SetTime(arguments.integer("time")?),
        "guest-suspend-ram" => Ask::Suspend,
        "guest-shutdown" => Ask::Shutdown(match arguments.string("mode")? {
            None | Some("powerdown") => Mode::Powerdown,
            Some("halt") => Mode::Halt,
            Some("reboot") => Mode::Reboot,
            Some(_) => return Err(Refusal::new("mode is invalid (valid values are: halt|powerdown|reboot")),
        }),
        _ => return Err(not_found(format!("The command {name} has not been found"))),
    })
}

/// `guest-info`: the release, and every command with whether this door lets it through.
fn info(allowed: &[Group]) -> Value {
    let commands: Vec<Value> = COMMANDS
        .iter()
        .map(|(name, group, answers)| {
            json!({ "name": name, "enabled": allowed.contains(group), "success-response": answers })
        })
        .collect();
    json!({ "version": env!("CARGO_PKG_VERSION"), "supported_commands": commands })
}

fn missing(name: &str) -> Refusal {
    Refusal::new(format!("Parameter '{name}' is missing"))
}

struct Arguments(Map<String, Value>);

impl Arguments {
    fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                let name = crate::audit::printable(name.as_bytes());
                Err(Refusal::new(format!("Parameter '{name}' is unexpected")))
            }
            None => Ok(()),
        }
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, Refusal> {
        let wrong = || Refusal::new(format!("Invalid parameter type for '{name}', expected: integer"));
        self.0.get(name).map(|value| value.as_i64().ok_or_else(wrong)).transpose()
    }

    fn string(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let wrong = || Refusal::new(format!("Invalid parameter type for '{name}', expected: string"));
        self.0.get(name).map(|value| value.as_str().ok_or_else(wrong)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Group; 3] = [Group::Read, Group::Time, Group::Power];

    fn asked(text: &str) -> Result<Ask, Refusal> {
        read(text.as_bytes(), &ALL).ask
    }

    #[test]
    fn every_command_of_the_table_is_served() {
        for (name, ..) in COMMANDS {
            let arguments = if name.starts_with("guest-sync") { "{\"id\": 7}" } else { "{}" };
            let asked = asked(&format!("{{\"execute\": \"{name}\", \"arguments\": {arguments}}}"));
            assert!(asked.is_ok(), "{name}: {asked:?}");
        }
    }

    #[test]
    fn numbers_keep_all_of_their_digits() {
        let ask = asked("{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":9223372036854775807}}");
        assert_eq!(ask, Ok(Ask::Answer { value: json!(i64::MAX), delimited: true }));
        let ask = asked("{\"execute\": \"guest-set-time\", \"arguments\":{\"time\": 1789000000123456789}}");
        assert_eq!(ask, Ok(Ask::SetTime(Some(1_789_000_000_123_456_789))));
    }

    #[test]
    fn what_a_door_does_not_let_through_is_told_as_qemu_tells_it() {
        let command = read(b"{\"execute\": \"guest-shutdown\", \"id\": [1]}", &[Group::Read]);
        assert_eq!(command.id, Some(json!([1])));
        assert_eq!(command.ask.unwrap_err().class, Class::CommandNotFound);
        assert_eq!(asked("{\"execute\": \"guest-exec\"}").unwrap_err().class, Class::CommandNotFound);
        let Ok(Ask::Answer { value, .. }) = read(b"{\"execute\": \"guest-info\"}", &[Group::Read]).ask else {
            panic!("no answer");
        };
        let commands = value["supported_commands"].as_array().unwrap();
        let shutdown = commands.iter().find(|command| command["name"] == "guest-shutdown").unwrap();
        assert_eq!((&shutdown["enabled"], &shutdown["success-response"]), (&json!(false), &json!(false)));
    }

    #[test]
    fn mistakes_are_general_errors() {
        for text in [
            "{}",
            "{\"execute\": 7}",
            "{\"execute\": \"guest-ping\", \"arguments\": []}",
            "{\"execute\": \"guest-ping\", \"arguments\": {\"x\": 1}}",
            "{\"execute\": \"guest-ping\", \"x\": 1}",
            "{\"execute\": \"guest-sync\"}",
            "{\"execute\": \"guest-sync\", \"arguments\": {\"id\": 1.5}}",
            "{\"execute\": \"guest-shutdown\", \"arguments\": {\"mode\": \"up\"}}",
            "{\"execute\": \"guest-ping\"",
        ] {
            assert_eq!(asked(text).unwrap_err().class, Class::GenericError, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_object_is_too_strange(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(text.as_bytes(), &ALL);
            let _ = read(&bytes, &ALL);
            let _ = read(format!("{{\"execute\": {text:?}}}").as_bytes(), &ALL);
        }
    }
}
