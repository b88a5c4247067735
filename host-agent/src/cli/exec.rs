//! `hospes exec`

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hospes_protocol::exec::{self as wire, Stdin, Terminal};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::LARGE_MESSAGE_LEN;

use crate::cli::target::{Reach, command_words, duration};
use crate::cli::{Verb, VmPlace};
use crate::client::Client;
use crate::command_error::{CommandError, TIMED_OUT};
use crate::exec::{Outcome, Stdio, run};
use crate::pins::Verdict;
use crate::signal::linux_number;
use crate::stdio::{Kind, kind, same};
use crate::terminal::own_size;
use crate::ui;
use crate::vm::VmName;

/// Run a command in a VM
///
/// The command gets its words as they are, no shell reads them. Its output, error output and exit code become those
/// of hospes; signals sent to hospes reach it. Where stdout and stderr are the same file here, they are one there too,
/// and their order is kept.
///
/// Stdin is forwarded where it is a file, a pipe or a socket, and not where it is a terminal: -i forwards that too. In
/// a shell's loop, -n leaves the loop's own stdin alone, as with ssh:
///
///   while read -r host; do hospes exec -n dev ping -c1 "$host"; done < hosts
///
/// Exit codes: the command's own; 128 and n where signal n ended it; 124 where --timeout did; 125 where Hospes failed;
/// 126 where the command cannot be executed; 127 where it is not there.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Exec {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Start the command, print its number, and leave it running (see hospes attach)
    #[arg(short, long, conflicts_with_all = ["tty", "interactive"])]
    detach: bool,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reach: Reach,
}

/// How a command runs.
#[derive(Debug, clap::Args)]
pub struct How {
    /// The guest user it runs as [default: the VM's, or the guest's only human user]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The directory it runs in [default: the user's home]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Set an environment variable; without a value, to what it is here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Set environment variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Forward stdin even where it is a terminal
    #[arg(short, long)]
    pub interactive: bool,
    /// Do not forward stdin
    #[arg(short, long, conflicts_with = "interactive")]
    pub no_stdin: bool,
    /// Run it as a login shell would, with the user's profile
    #[arg(long)]
    pub login: bool,
    /// End it after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Keys that leave the command running and detach, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS", value_parser = keys)]
    pub detach_keys: Option<Keys>,
}

/// Keys as bytes.
#[derive(Debug, Clone, Default)]
pub struct Keys(pub Vec<u8>);

impl Verb for Exec {
    const NAME: &'static str = "exec";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let argv = command_words(self.command);
        if argv.is_empty() {
            return Err(CommandError::usage("No command was named").hint(format_args!(
                "hospes exec {} -- COMMAND runs one, hospes shell {0} opens a shell",
                self.vm
            )));
        }
        self.how.perform(&client, argv, self.tty, self.detach)
    }
}

impl How {
    /// Runs `argv` (the login shell where it is empty) to its exit code.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn perform(
        self,
        client: &Client,
        argv: Vec<OsString>,
        tty: bool,
        detach: bool,
    ) -> Result<u8, CommandError> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let forwarded = !self.no_stdin
            && match kind(stdin.as_fd()) {
                Kind::Null => false,
                Kind::Terminal => self.interactive || tty,
                Kind::Pipe | Kind::Socket | Kind::File => !detach,
            };
        let exec = wire::Exec {
            env: self.environment()?,
            user: client.user(self.user),
            argv: argv.into_iter().map(OsString::into_vec).collect(),
            cwd: self.workdir.map(OsString::into_vec),
            login: self.login,
            stdin: if forwarded { Stdin::STREAM } else { Stdin::NULL },
            merge_outputs: !tty && !detach && same(stdout.as_fd(), stderr.as_fd()),
            terminal: tty.then(terminal),
            timeout_ms: self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            detach,
            keep_output: None,
        };
        let operation = request(FrameId::EXEC, &exec)?;
        let (connection, greeting) = client.open_told(&operation)?;
        if let Some(greeting) = greeting.filter(|greeting| greeting.verdict == Verdict::FirstUse) {
            let key = greeting.session.peer;
            ui::note(format_args!("{} is known by its key {key} from now on", client.vm().name));
        }
        let stdio = Stdio {
            stdin: forwarded.then(|| stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            terminal: tty,
            detach_keys: self.detach_keys.unwrap_or_default().0,
        };
        finish(run(connection, &stdio, detach)?, client)
    }

    fn environment(&self) -> Result<Vec<Variable>, CommandError> {
        let mut entries = Vec::new();
        for path in &self.env_file {
            let text = fs::read(path)
                .map_err(|error| CommandError::io(format_args!("Cannot read {}", path.display()), &error))?;
            for line in text.split(|byte| *byte == b'\n') {
                let line = line.trim_ascii();
                if !line.is_empty() && line[0] != b'#' {
                    entries.extend(entry(line)?);
                }
            }
        }
        for given in &self.env {
            entries.extend(entry(given.as_bytes())?);
        }
        Ok(entries)
    }
}

/// An environment variable's name and value.
type Variable = (Vec<u8>, Vec<u8>);

/// `NAME=VALUE`, or `NAME` with the value it has here; nothing where it has none.
fn entry(text: &[u8]) -> Result<Option<Variable>, CommandError> {
    let split = text.iter().position(|byte| *byte == b'=');
    let name = &text[..split.unwrap_or(text.len())];
    if name.is_empty() {
        let shown = crate::printable::bytes(text);
        return Err(CommandError::usage(format_args!("Not an environment variable: {shown}"))
            .hint("It is written NAME=VALUE, or NAME for the value it has here"));
    }
    let value = match split {
        Some(at) => Some(text[at + 1..].to_vec()),
        None => std::env::var_os(OsString::from_vec(name.to_vec())).map(OsString::into_vec),
    };
    Ok(value.map(|value| (name.to_vec(), value)))
}

fn terminal() -> Terminal {
    // A name that is no UTF-8 is no terminal that the guest knows.
    let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    Terminal { term, size: own_size() }
}

/// The request as a frame, held against its limits before anything is dialled.
fn request(id: FrameId, exec: &wire::Exec) -> Result<Vec<u8>, CommandError> {
    exec.check().map_err(CommandError::usage)?;
    let bytes = |list: &[Vec<u8>]| list.iter().map(|word| word.len() + 16).sum::<usize>();
    let env: usize = exec.env.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
    let size = bytes(&exec.argv) + env + 4096;
    if size > LARGE_MESSAGE_LEN as usize {
        let mib = LARGE_MESSAGE_LEN >> 20;
        return Err(CommandError::usage(format_args!("Arguments and environment are over {mib} MiB"))
            .hint("Send large input through stdin or hospes cp"));
    }
    let mut out = Vec::with_capacity(size);
    frame::put(id, exec, &mut out);
    Ok(out)
}

/// The exit code of what an exec or attach came to.
///
/// # Errors
/// Where the number of a detached command cannot be printed.
pub fn finish(outcome: Outcome, client: &Client) -> Result<u8, CommandError> {
    match outcome {
        Outcome::Exited(exited) if exited.timed_out => {
            ui::warn("The command took longer than --timeout and was ended");
            Ok(TIMED_OUT)
        }
        Outcome::Exited(exited) => Ok(exited.status.shell_code()),
        Outcome::Detached(started) => {
            ui::line(started.id.0)?;
            ui::note(format_args!("hospes attach {} {} comes back to it", client.vm().name, started.id.0));
            Ok(0)
        }
        Outcome::Left(signal) => Ok(128 + linux_number(signal).unwrap_or(0)),
    }
}

/// Reads keys as docker writes them: letters and `ctrl-` combinations, with commas between.
fn keys(text: &str) -> Result<Keys, String> {
    let key = |word: &str| {
        let control = word.strip_prefix("ctrl-").map(str::as_bytes);
        match (control, word.as_bytes()) {
            (Some([c @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Ok(c & 0x1f),
            (None, [c]) if c.is_ascii_graphic() => Ok(*c),
            _ => Err(format!("{word:?} is no key: a key is a character, or ctrl- and a letter")),
        }
    };
    text.split(',').filter(|word| !word.is_empty()).map(key).collect::<Result<_, _>>().map(Keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_written_as_dockers() {
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap().0, [16, 17]);
        assert_eq!(keys("ctrl-],d").unwrap().0, [0x1d, b'd']);
        assert!(keys("").unwrap().0.is_empty());
        assert!(keys("ctrl-1").is_err() && keys("ab").is_err());
    }

    #[test]
    fn environment_entries_have_names() {
        assert_eq!(entry(b"A=b=c").unwrap(), Some((b"A".to_vec(), b"b=c".to_vec())));
        assert_eq!(entry(b"HOSPES_NO_SUCH_VARIABLE").unwrap(), None);
        assert!(entry(b"=x").is_err());
    }
}
