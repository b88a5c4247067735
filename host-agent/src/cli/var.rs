//! `hospes var`

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

use clap::{Parser, Subcommand};
use hospes_protocol::control::{Answer, Ask};
use hospes_protocol::error::ErrorKind;
use hospes_protocol::hex;
use hospes_protocol::limits::VARIABLE_VALUE;
use hospes_protocol::variable::{Owner, Variable, check_name, check_value};
use serde::Serialize;

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::client::{Client, ClientError};
use crate::command_error::CommandError;
use crate::printable;
use crate::request::{mismatch, request};
use crate::ui::{self, Table};
use crate::vm::VmName;

/// Read and set guest variables
///
/// Small named values that this machine leaves for a guest, and a guest for this machine: a build's number, a token for
/// the first boot, "ready". Names that begin with "guest." are the guest's to set (hospes-tools var set), every other one
/// is the host's; both read all. A secret is the exception: the guest's root reads it, once, and it is gone. Variables
/// end with the guest's boot.
///
/// A name is 1 to 128 of A-Z a-z 0-9 . _ -, a value up to 64 KiB of any bytes; a guest keeps 1024 and 1 MiB in all.
///
/// Exit codes: 1 where get and unset find no such variable, 125 where Hospes or the guest failed.
#[derive(Debug, Parser)]
pub struct Var {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    #[command(subcommand)]
    act: Act,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// List the variables
    ///
    /// With --json: {"variables": [{"name", "owner", "secret", "value", "value_hex"}]}. "owner" is host or guest; "value"
    /// is null where it is no UTF-8 text and then stands in hexadecimal in "value_hex"; of a secret both are null.
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a variable's value: its exact bytes, where stdout is no terminal
    Get {
        /// Its name
        name: String,
        /// Print JSON, an entry as list has it
        #[arg(long)]
        json: bool,
    },
    /// Set a variable
    Set {
        /// Its name
        name: String,
        /// Its value, or - to read it from stdin, which is the way for secrets: others here see command lines
        value: OsString,
        /// For the guest's root to read once
        #[arg(long)]
        secret: bool,
    },
    /// Remove a variable
    Unset {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Told<'v> {
    name: &'v str,
    owner: &'static str,
    secret: bool,
    value: Option<&'v str>,
    value_hex: Option<String>,
}

#[derive(Serialize)]
struct Listing<'v> {
    variables: Vec<Told<'v>>,
}

impl Verb for Var {
    const NAME: &'static str = "var";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        match self.act {
            Act::List { json } => list(&client, json),
            Act::Get { name, json } => get(&client, name, json),
            Act::Set { name, value, secret } => {
                let value = if value == "-" { read_value()? } else { value.into_vec() };
                // Refused here for the same reasons as there, before anything is sent.
                check_name(&name, Owner::Host).map_err(CommandError::usage)?;
                check_value(&value).map_err(CommandError::usage)?;
                ask(&client, Ask::VariableSet(Variable { name, value, secret })).map(|_| 0)
            }
            Act::Unset { name } => ask(&client, Ask::VariableRemove { name }).map(|_| 0),
        }
    }
}

fn ask(client: &Client, ask: Ask) -> Result<Answer, CommandError> {
    let deadline = Instant::now() + client.patience();
    match request(client, ask, Some(deadline)) {
        Ok((answer, _)) => Ok(answer),
        Err(ClientError::Refused(error)) if error.kind == ErrorKind::NOT_FOUND => {
            Err(CommandError { code: 1, ..CommandError::refused(&error) })
        }
        Err(error) => Err(error.into()),
    }
}

fn list(client: &Client, json: bool) -> Result<u8, CommandError> {
    let Answer::Variables(variables) = ask(client, Ask::VariableList)? else { return Err(mismatch().into()) };
    if json {
        ui::json(&Listing { variables: variables.iter().map(told).collect() })?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "OWNER", "VALUE"]);
    for variable in &variables {
        let told = told(variable);
        let value = match told.value {
            _ if variable.secret => "(secret)".to_owned(),
            Some(text) => short(&printable::line(text)),
            None => format!("({} bytes)", variable.value.len()),
        };
        table.row([printable::line(told.name).into_owned(), told.owner.to_owned(), value]);
    }
    table.print()?;
    Ok(0)
}

fn get(client: &Client, name: String, json: bool) -> Result<u8, CommandError> {
    let Answer::Variable(variable) = ask(client, Ask::VariableGet { name })? else {
        return Err(mismatch().into());
    };
    if json {
        ui::json(&told(&variable))?;
        return Ok(0);
    }
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        drop(stdout);
        ui::line(printable::bytes(&variable.value))?;
        return Ok(0);
    }
    match stdout.write_all(&variable.value).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CommandError::io("Cannot write the value", &error))
        }
        _ => Ok(0),
    }
}

fn told(variable: &Variable) -> Told<'_> {
    let text = std::str::from_utf8(&variable.value).ok().filter(|_| !variable.secret);
    let binary = text.is_none() && !variable.secret;
    Told {
        name: &variable.name,
        owner: if Owner::of(&variable.name) == Owner::Guest { "guest" } else { "host" },
        secret: variable.secret,
        value: text,
        value_hex: binary.then(|| hex::encode(&variable.value)),
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(59).chain(['…']).collect() }
}

fn read_value() -> Result<Vec<u8>, CommandError> {
    let mut value = Vec::new();
    let read = io::stdin().lock().take(VARIABLE_VALUE as u64 + 1).read_to_end(&mut value);
    read.map_err(|error| CommandError::io("Cannot read the value from stdin", &error))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_text_or_hexadecimal_and_a_secrets_neither() {
        let json = |value: &[u8], secret| {
            ui::to_json(&told(&Variable { name: "guest.x".into(), value: value.to_vec(), secret }))
        };
        let head = r#"{"name":"guest.x","owner":"guest","secret":"#;
        assert_eq!(json(b"a b", false), format!(r#"{head}false,"value":"a b","value_hex":null}}"#));
        assert_eq!(json(b"\x00\xff", false), format!(r#"{head}false,"value":null,"value_hex":"00ff"}}"#));
        assert_eq!(json(b"", true), format!(r#"{head}true,"value":null,"value_hex":null}}"#));
    }

    #[test]
    fn the_words_of_the_command_are_these() {
        let parse = |line: &str| Var::try_parse_from(line.split(' '));
        assert!(matches!(parse("var dev set a -").unwrap().act, Act::Set { secret: false, .. }));
        assert!(matches!(parse("var dev set a - --secret").unwrap().act, Act::Set { secret: true, .. }));
        assert!(matches!(parse("var dev list --json").unwrap().act, Act::List { json: true }));
        assert!(parse("var dev").is_err() && parse("var dev set a").is_err());
    }
}
