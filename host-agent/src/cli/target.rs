//! Which VM a command is about, and the options that every such command has.

use std::env;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap::{Arg, Args, Command};

use crate::cli::VmPlace;
use crate::client::{CONNECT_TIMEOUT, Client};
use crate::command_error::CommandError;
use crate::registry::Registry;
use crate::vm::{Vm, VmName};

/// Names the VM that is meant where none is named.
pub const VARIABLE: &str = "HOSPES_VM";

/// How a VM is reached.
#[derive(Debug, Clone, Args)]
pub struct Reach {
    /// How long the guest may take to prove itself, such as 5s or 500ms
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Connection")]
    pub connect_timeout: Option<Duration>,
}

impl Reach {
    /// A client of the VM of this name.
    ///
    /// # Errors
    /// As [`Registry::load`].
    pub fn client(&self, name: &VmName) -> Result<Client, CommandError> {
        Ok(self.client_of(Registry::open()?.load(name)?))
    }

    /// A client of a VM.
    #[must_use]
    pub fn client_of(&self, vm: Vm) -> Client {
        Client::new(vm).timeout(self.connect_timeout.unwrap_or(CONNECT_TIMEOUT))
    }
}

/// `--vm`, as the help shows it; [`arrange`] obeys it.
#[must_use]
pub fn vm_option() -> Arg {
    Arg::new("vm-option")
        .long("vm")
        .value_name("VM")
        .help("The VM, in place of the first word [env: HOSPES_VM]")
        .help_heading("Connection")
}

/// Puts the VM in its place: `--vm`'s, or where none is named `HOSPES_VM`'s, becomes the first word.
///
/// ```text
/// hospes exec dev make          HOSPES_VM=dev hospes exec make
/// hospes exec dev -- make       HOSPES_VM=dev hospes exec -- make
/// hospes exec --vm dev make
/// ```
///
/// # Errors
/// Where no VM is named in any way.
pub fn arrange(
    command: &Command,
    place: VmPlace,
    mut words: Vec<OsString>,
) -> Result<Vec<OsString>, CommandError> {
    if place == VmPlace::None {
        return Ok(words);
    }
    let (first, named) = look(command, &words);
    if asks_for_help(&words[..first.unwrap_or(words.len())]) {
        return Ok(words);
    }
    if let Some((at, length, name)) = named {
        words.drain(at..at + length);
        let first = look(command, &words).0;
        words.insert(first.unwrap_or_else(|| end_of_options(&words)), name);
        return Ok(words);
    }
    let default = env::var_os(VARIABLE).filter(|name| !name.is_empty());
    match (first, default) {
        (None, None) => Err(CommandError::usage("No VM was named").hint(format_args!(
            "Name one, as in hospes {} VM, or set {VARIABLE}; hospes list shows which there are",
            command.get_name()
        ))),
        (None, Some(name)) => {
            words.insert(end_of_options(&words), name);
            Ok(words)
        }
        (Some(at), Some(name)) if place == VmPlace::First && !is_vm(&words, at) => {
            words.insert(at, name);
            Ok(words)
        }
        (Some(_), _) => Ok(words),
    }
}

/// Whether the first word means a VM: one that was added, or any word with `--` right behind.
fn is_vm(words: &[OsString], at: usize) -> bool {
    if words.get(at + 1).is_some_and(|next| next == "--") {
        return true;
    }
    let name = words[at].to_str().and_then(|word| word.parse::<VmName>().ok());
    name.is_some_and(|name| Registry::open().is_ok_and(|registry| registry.has(&name)))
}

fn end_of_options(words: &[OsString]) -> usize {
    words.iter().position(|word| word == "--").unwrap_or(words.len())
}

fn asks_for_help(options: &[OsString]) -> bool {
    options.iter().any(|word| word == "--help" || word == "-h")
}

/// `--vm` as it was found: where, how many words, and its value.
type Named = (usize, usize, OsString);

/// The place of the first word that is no option nor an option's value, and `--vm` where it stands before that.
fn look(command: &Command, words: &[OsString]) -> (Option<usize>, Option<Named>) {
    let takes_value = |found: Option<&Arg>| found.is_some_and(|arg| arg.get_action().takes_values());
    let long = |name: &str| takes_value(command.get_arguments().find(|arg| arg.get_long() == Some(name)));
    let short = |c: char| takes_value(command.get_arguments().find(|arg| arg.get_short() == Some(c)));
    let mut named = None;
    let mut at = 0;
    while at < words.len() {
        let bytes = words[at].as_encoded_bytes();
        if bytes == b"--" {
            return (None, named);
        }
        if let Some(option) = bytes.strip_prefix(b"--") {
            if option == b"vm" {
                named = words.get(at + 1).map(|name| (at, 2, name.clone()));
                at += 1;
            } else if let Some(name) = words[at].to_str().and_then(|word| word.strip_prefix("--vm=")) {
                named = Some((at, 1, name.into()));
            } else if std::str::from_utf8(option).is_ok_and(long) {
                at += 1;
            }
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            let cluster: Vec<char> = String::from_utf8_lossy(&bytes[1..]).chars().collect();
            if cluster.iter().position(|c| short(*c)) == Some(cluster.len() - 1) {
                at += 1;
            }
        } else {
            return (Some(at), named);
        }
        at += 1;
    }
    (None, named)
}

/// The words behind the VM as a command: a `--` that only divides is dropped, one inside the command is the command's.
#[must_use]
pub fn command_words(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.first().is_some_and(|word| word == OsStr::new("--")) {
        words.remove(0);
    }
    words
}

/// Reads a time such as `1.5s`, `500ms`, `2m`, `1h`; a bare number is seconds.
///
/// # Errors
/// What is wrong with it, as clap tells it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("a time is a number and ms, s, m or h".to_owned()),
    };
    let seconds: f64 = number.parse().map_err(|_| "a time is a number and ms, s, m or h".to_owned())?;
    Duration::try_from_secs_f64(seconds * scale).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Verb;
    use crate::cli::exec::Exec;
    use clap::CommandFactory;

    fn found(line: &str) -> (Option<usize>, Option<String>) {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (first, named) = look(&Exec::command(), &words);
        (first, named.map(|(_, _, name)| name.into_string().unwrap()))
    }

    #[test]
    fn the_first_word_is_found_behind_options_and_their_values() {
        assert_eq!(Exec::VM, VmPlace::First);
        assert_eq!(found("dev make -j4"), (Some(0), None));
        assert_eq!(found("-u root -tn dev make"), (Some(3), None));
        assert_eq!(found("-uroot --user=x -tu root --workdir /x dev"), (Some(6), None));
        assert_eq!(found("-t -- make"), (None, None));
        assert_eq!(found("--vm dev -u root make"), (Some(4), Some("dev".to_owned())));
        assert_eq!(found("--vm=dev make --vm other"), (Some(1), Some("dev".to_owned())));
    }

    #[test]
    fn vm_option_becomes_the_first_word() {
        let arranged = |line: &str| {
            let words = line.split_whitespace().map(OsString::from).collect();
            let words = arrange(&Exec::command(), VmPlace::First, words).unwrap();
            words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(arranged("--vm dev make -j4"), "dev make -j4");
        assert_eq!(arranged("-u root --vm=dev -t -- make"), "-u root -t dev -- make");
        assert_eq!(arranged("--vm dev"), "dev");
        assert_eq!(arranged("tset -- make"), "tset -- make");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "5 s", "-1", "1e9h", "1x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
