//! The `hospes` command: one file for each verb.
//!
//! A verb is a clap `Parser` whose doc comment is its help, and an implementation of [`Verb`]; [`VERBS`] lists it.
//! Only the verb that is called is built, so that a command in a loop does not pay for the others.
#![expect(
    clippy::doc_markdown,
    reason = "a verb's doc comments are its help, shown on a terminal as they are"
)]

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{ArgMatches, Command, Parser};
use clap_complete::CompleteEnv;

use crate::command_error::{CommandError, OURS};
use crate::ui;

pub mod add;
pub mod agent;
pub mod attach;
pub mod clipboard;
pub mod complete;
pub mod completions;
pub mod connect;
pub mod cp;
pub mod display;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod file;
pub mod forget;
pub mod forward;
pub mod freeze;
pub mod info;
pub mod ip;
pub mod key;
pub mod kill;
pub mod list;
pub mod logs;
pub mod man;
pub mod power;
pub mod ps;
pub mod remove;
pub mod share;
pub mod shell;
pub mod ssh_config;
pub mod target;
pub mod time;
pub mod var;
pub mod wait;

/// A verb of the command.
pub trait Verb: Parser {
    /// Its word.
    const NAME: &'static str;
    /// Where a VM stands among its words.
    const VM: VmPlace;

    /// Does it. Returns the exit code.
    ///
    /// # Errors
    /// [`CommandError`], which the caller tells.
    fn run(self) -> Result<u8, CommandError>;
}

/// Where a verb takes a VM. One that is not named is `--vm`'s or `HOSPES_VM`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmPlace {
    /// Nowhere.
    None,
    /// It is the verb's only word.
    Only,
    /// It is the first of several. With a default, a first word that names no VM is not taken for one.
    First,
}

/// A verb's place in the table.
#[derive(Clone, Copy)]
pub struct Entry {
    name: &'static str,
    vm: VmPlace,
    build: fn() -> Command,
    run: fn(&mut ArgMatches) -> Result<u8, CommandError>,
}

const fn entry<V: Verb>() -> Entry {
    Entry { name: V::NAME, vm: V::VM, build: build::<V>, run: run::<V> }
}

/// Every verb, in the order of the help.
pub const VERBS: &[Entry] = &[
    entry::<add::Add>(),
    entry::<remove::Remove>(),
    entry::<list::List>(),
    entry::<info::Info>(),
    entry::<ip::Ip>(),
    entry::<wait::Wait>(),
    entry::<exec::Exec>(),
    entry::<shell::Shell>(),
    entry::<attach::Attach>(),
    entry::<cp::Cp>(),
    entry::<share::Share>(),
    entry::<ps::Ps>(),
    entry::<kill::Kill>(),
    entry::<var::Var>(),
    entry::<clipboard::Clipboard>(),
    entry::<display::Display>(),
    entry::<power::Stop>(),
    entry::<power::Reboot>(),
    entry::<power::Suspend>(),
    entry::<freeze::Freeze>(),
    entry::<freeze::Thaw>(),
    entry::<freeze::Trim>(),
    entry::<time::Time>(),
    entry::<file::File>(),
    entry::<forward::Forward>(),
    entry::<connect::Connect>(),
    entry::<ssh_config::SshConfig>(),
    entry::<events::Events>(),
    entry::<logs::Logs>(),
    entry::<forget::Forget>(),
    entry::<key::Key>(),
    entry::<doctor::Doctor>(),
    entry::<agent::Agent>(),
    entry::<completions::Completions>(),
    entry::<man::Man>(),
];

/// The whole command's help, above the verbs.
#[derive(Parser)]
#[command(name = "hospes", version, about = "Make a Linux VM and this machine behave as one")]
#[command(
    after_help = "VMs are added with hospes add NAME ENDPOINT. HOSPES_VM names the VM that is meant where none is \
                        named.\n\nExit codes: a guest command's own (128 and n where signal n ended it), 124 where \
                        --timeout did, 125 where Hospes failed, 126 and 127 where a guest command cannot be executed or \
                        is not there."
)]
struct Top {}

/// The command as a whole, for help, completions and manual pages.
#[must_use]
pub fn whole() -> Command {
    let top = <Top as clap::CommandFactory>::command();
    top.subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(VERBS.iter().map(|entry| (entry.build)()))
}

/// Runs the command line `argv` to its exit code.
#[must_use]
pub fn main(argv: Vec<OsString>) -> ExitCode {
    if std::env::var_os("COMPLETE").is_some() {
        // Does nothing, and goes on, where the variable is somebody else's.
        CompleteEnv::with_factory(whole).complete();
    }
    // Behind exec and shell, the word is the guest command's.
    let guests = argv.get(1).is_some_and(|verb| verb == "exec" || verb == "shell");
    let json = !guests && argv.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    match dispatch(argv) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui::tell(&error, json);
            ExitCode::from(error.code)
        }
    }
}

fn dispatch(argv: Vec<OsString>) -> Result<u8, CommandError> {
    let mut words = argv.into_iter();
    let program = words.next().unwrap_or_else(|| "hospes".into());
    let words: Vec<OsString> = words.collect();
    let verb = words.first().and_then(|word| VERBS.iter().find(|entry| word == OsStr::new(entry.name)));
    let Some(entry) = verb else {
        return match whole().try_get_matches_from(std::iter::once(program).chain(words)) {
            Ok(_) => Err(CommandError::usage("No command was named")),
            Err(error) => usage(&error),
        };
    };
    let mut command = (entry.build)();
    let words = target::arrange(&command, entry.vm, words[1..].to_vec())?;
    command = command.bin_name(format!("hospes {}", entry.name));
    match command.try_get_matches_from(std::iter::once(OsString::from(entry.name)).chain(words)) {
        Ok(mut matches) => (entry.run)(&mut matches),
        Err(error) => usage(&error),
    }
}

/// Help and version are answers; anything else is a wrong command line.
fn usage(error: &clap::Error) -> Result<u8, CommandError> {
    let _ = error.print();
    Ok(if error.use_stderr() { OURS } else { 0 })
}

fn build<V: Verb>() -> Command {
    let command = V::command().name(V::NAME);
    if V::VM == VmPlace::None { command } else { command.arg(target::vm_option()) }
}

fn run<V: Verb>(matches: &mut ArgMatches) -> Result<u8, CommandError> {
    match V::from_arg_matches_mut(matches) {
        Ok(verb) => verb.run(),
        Err(error) => usage(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_well_formed_and_says_what_it_does() {
        whole().debug_assert();
        for entry in VERBS {
            let about = (entry.build)().get_about().expect(entry.name).to_string();
            assert!(
                about.starts_with(char::is_uppercase) && !about.ends_with('.'),
                "{}: {about}",
                entry.name
            );
        }
    }
}
