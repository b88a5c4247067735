//! `hospes logs`

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::thread;

use clap::Parser;
use hospes_protocol::exec::Exec;
use hospes_protocol::frame::{self, FrameId};

use crate::agent::ask::{Answer, Ask, LogLine, Question};
use crate::cli::exec::finish;
use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::client::Client;
use crate::command_error::CommandError;
use crate::exec::{Stdio, run};
use crate::printable;
use crate::ui;
use crate::vm::VmName;

/// Show what the agent and the guest tools say of a VM
///
/// The agent's lines begin with "host", the lines of the guest tools' units in the guest's journal with "guest".
/// Reading that journal takes root or the group systemd-journal in the guest: -u names another user than root.
#[derive(Debug, Parser)]
pub struct Logs {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// Lines of each to begin with
    #[arg(short = 'n', long, default_value_t = 100, value_name = "LINES")]
    lines: usize,
    /// The guest user who reads the journal
    #[arg(short, long, default_value = "root")]
    user: String,
    /// The agent's lines alone
    #[arg(long)]
    host: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Verb for Logs {
    const NAME: &'static str = "logs";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let question = Question::Log { vm: Some(self.vm.clone()), follow: self.follow };
        let mut ask = Ask::send(&question).ok();
        if let Some(Answer::Log(lines)) = ask.as_mut().and_then(|ask| ask.next(None).ok().flatten()) {
            let skipped = lines.len().saturating_sub(self.lines);
            lines[skipped..].iter().try_for_each(say)?;
        } else {
            ui::note("The agent does not run: it has no lines");
        }
        let follow = move |mut ask: Ask| -> Result<(), CommandError> {
            while let Ok(Some(Answer::Log(lines))) = ask.next(None) {
                lines.iter().try_for_each(say)?;
            }
            Ok(())
        };
        if self.host {
            return ask.filter(|_| self.follow).map_or(Ok(()), follow).map(|()| 0);
        }
        if let Some(ask) = ask.filter(|_| self.follow) {
            // Ends with the process.
            thread::spawn(move || follow(ask));
        }
        journal(&client, &self.user, self.lines, self.follow)
    }
}

fn say(line: &LogLine) -> Result<(), CommandError> {
    let at = line.at_ms / 1000;
    ui::line(format_args!("host  {at} {}", printable::line(&line.text)))
}

/// The guest tools' part of the guest's journal, each line made safe.
fn journal(client: &Client, user: &str, lines: usize, follow: bool) -> Result<u8, CommandError> {
    let lines = lines.to_string();
    let mut argv =
        vec!["journalctl", "--quiet", "--no-pager", "--no-hostname", "--output=short-unix", "-n", &lines];
    argv.extend(["-u", "hospes-toolsd.service", "-u", "hospes-session@*.service"]);
    if follow {
        argv.push("--follow");
    }
    let argv = argv.into_iter().map(|word| OsString::from(word).into_encoded_bytes()).collect();
    let exec = Exec { user: user.to_owned(), argv, merge_outputs: true, ..Exec::default() };
    let mut operation = Vec::new();
    frame::put(FrameId::EXEC, &exec, &mut operation);
    let connection = client.open(&operation)?;
    let (reader, writer) = io::pipe().map_err(|error| CommandError::io("Cannot make a pipe", &error))?;
    let printer = thread::spawn(move || print(reader));
    let stdio = Stdio {
        stdin: None,
        stdout: writer.as_fd(),
        stderr: writer.as_fd(),
        terminal: false,
        detach_keys: Vec::new(),
    };
    let outcome = run(connection, &stdio, false);
    drop(writer);
    let printed = printer.join().unwrap_or(Ok(()));
    let code = finish(outcome?, client)?;
    printed.map(|()| code)
}

/// Bytes of one line of the journal that are shown.
const LINE_LEN: u64 = 8192;

fn print(reader: io::PipeReader) -> Result<(), CommandError> {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_LEN).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                let text = printable::bytes(line.trim_ascii_end());
                if !ui::line_read(format_args!("guest {text}"))? {
                    return Ok(());
                }
            }
            Err(error) => return Err(CommandError::io("Cannot read the guest's journal", &error)),
        }
    }
}
