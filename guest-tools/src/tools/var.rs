//! `hospes-tools var`.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, bail};
use clap::Subcommand;
use hospes_protocol::control::{Answer, Ask};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::VARIABLE_VALUE;
use hospes_protocol::variable::{Owner, Variable};
use nix::unistd::geteuid;
use serde::Serialize;

use super::{UNHEALTHY, json};
use crate::audit::printable;
use crate::paths::Paths;
use crate::variable::local::{self, CallError};
use crate::variable::read_public;
use hospes_protocol::hex;

/// Small named values that the host leaves for this guest, and this guest for its host
///
/// Names that begin with "guest." are this guest's to set, by root; every other one is the host's. All may be read by
/// everybody here, but for secrets: root alone reads those, once, and they are gone. Variables end with the boot.
#[derive(Debug, Subcommand)]
pub(super) enum Var {
    /// Print every variable; root sees the names of secrets too
    List {
        /// As JSON: `[{"name", "owner", "secret", "value", "value_hex"}]`, the value in hexadecimal where it is no text
        #[arg(long)]
        json: bool,
    },
    /// Print a variable's value, its exact bytes; exit with 1 where there is none
    Get {
        /// Its name
        name: String,
    },
    /// Set a variable
    Set {
        /// Its name, beginning with "guest."
        name: String,
        /// Its value, or - to read it from the standard input
        value: std::ffi::OsString,
    },
    /// Remove a variable
    Unset {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Listed<'v> {
    name: &'v str,
    owner: &'static str,
    secret: bool,
    value: Option<&'v str>,
    value_hex: Option<String>,
}

impl<'v> Listed<'v> {
    fn of(variable: &'v Variable) -> Self {
        let text = std::str::from_utf8(&variable.value).ok().filter(|_| !variable.secret);
        let binary = text.is_none() && !variable.secret;
        Self {
            name: &variable.name,
            owner: if Owner::of(&variable.name) == Owner::Guest { "guest" } else { "host" },
            secret: variable.secret,
            value: text,
            value_hex: binary.then(|| hex::encode(&variable.value)),
        }
    }
}

impl Var {
    pub(super) fn run(self, paths: &Paths, out: &mut impl Write) -> anyhow::Result<u8> {
        match self {
            Self::List { json: as_json } => list(paths, as_json, out),
            Self::Get { name } => get(paths, name, out),
            Self::Set { name, value } => {
                let value = if value == "-" { read_value()? } else { value.into_encoded_bytes() };
                ask(paths, Ask::VariableSet(Variable { name, value, secret: false }))
            }
            Self::Unset { name } => ask(paths, Ask::VariableRemove { name }),
        }
    }
}

fn list(paths: &Paths, as_json: bool, out: &mut impl Write) -> anyhow::Result<u8> {
    // Root hears of secrets, from the daemon; without it, and for everybody else, the file is what there is.
    let told = if geteuid().is_root() { local::call(&paths.run, Ask::VariableList).ok() } else { None };
    let variables = match told {
        Some(Answer::Variables(variables)) => variables,
        _ => read_public(&paths.run).context("The variables cannot be read")?,
    };
    if as_json {
        let listed: Vec<Listed<'_>> = variables.iter().map(Listed::of).collect();
        json(&listed, out)?;
        return Ok(0);
    }
    for variable in &variables {
        if variable.secret {
            writeln!(out, "{} (secret)", variable.name)?;
        } else {
            writeln!(out, "{}={}", variable.name, printable(&variable.value))?;
        }
    }
    Ok(0)
}

fn get(paths: &Paths, name: String, out: &mut impl Write) -> anyhow::Result<u8> {
    let public = read_public(&paths.run).context("The variables cannot be read")?;
    let value = match public.into_iter().find(|variable| variable.name == name) {
        Some(variable) => variable.value,
        None if !geteuid().is_root() => {
            eprintln!(
                "hospes-tools: No variable is named \"{}\" that you may read",
                printable(name.as_bytes())
            );
            return Ok(UNHEALTHY);
        }
        None => match local::call(&paths.run, Ask::VariableGet { name }) {
            Ok(Answer::Variable(variable)) => variable.value,
            Ok(_) => bail!("hospes-toolsd answered something else"),
            Err(CallError::Refused(error)) if error.kind == ErrorKind::NOT_FOUND => {
                eprintln!("hospes-tools: {error}");
                return Ok(UNHEALTHY);
            }
            Err(error) => return Err(told(error)),
        },
    };
    out.write_all(&value)?;
    // People get a line of it, programs the exact bytes.
    if io::stdout().is_terminal() && !value.ends_with(b"\n") {
        writeln!(out)?;
    }
    Ok(0)
}

fn ask(paths: &Paths, ask: Ask) -> anyhow::Result<u8> {
    match local::call(&paths.run, ask) {
        Ok(_) => Ok(0),
        Err(error) => Err(told(error)),
    }
}

fn told(error: CallError) -> anyhow::Error {
    match error {
        CallError::Refused(WireError { message, hint, .. }) if hint.is_empty() => anyhow::anyhow!(message),
        CallError::Refused(WireError { message, hint, .. }) => anyhow::anyhow!("{message}. {hint}"),
        CallError::Unreachable { ref source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("Only root may set variables and read secrets: try with sudo")
        }
        CallError::Unreachable { .. } => {
            anyhow::Error::new(error).context("Variables are held by the daemon: see hospes-tools status")
        }
    }
}

fn read_value() -> anyhow::Result<Vec<u8>> {
    let mut value = Vec::new();
    io::stdin()
        .take(VARIABLE_VALUE as u64 + 1)
        .read_to_end(&mut value)
        .context("The value cannot be read")?;
    Ok(value)
}
