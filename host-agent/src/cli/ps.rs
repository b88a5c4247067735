//! `hospes ps`

use clap::Parser;
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::process::{Process, Processes, Ps as Request};
use serde::Serialize;

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::printable;
use crate::ui::{self, Table};
use crate::vm::VmName;

/// List the commands that Hospes started in a VM, or all processes
///
/// With --json: {"vm", "processes": [{"pid", "ppid", "uid", "user", "id", "state", "started", "cpu_ms", "rss_kib",
/// "argv"}], "omitted"}. "id" is a kept command's number, for hospes attach, or null; "state" a letter as in ps(1),
/// with X for a kept command that has ended; "started" seconds since 1970; bytes of "argv" that are no UTF-8 are
/// replaced.
#[derive(Debug, Parser)]
pub struct Ps {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Every process that the user may see
    #[arg(short, long)]
    all: bool,
    /// The guest user who asks
    #[arg(short, long)]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Serialize)]
struct Told<'p> {
    vm: &'p VmName,
    processes: Vec<ToldProcess<'p>>,
    omitted: u32,
}

#[derive(Serialize)]
struct ToldProcess<'p> {
    pid: u32,
    ppid: u32,
    uid: u32,
    user: &'p str,
    id: Option<u64>,
    state: char,
    started: u64,
    cpu_ms: u64,
    rss_kib: u64,
    argv: Vec<String>,
}

impl<'p> From<&'p Process> for ToldProcess<'p> {
    fn from(process: &'p Process) -> Self {
        Self {
            pid: process.pid,
            ppid: process.ppid,
            uid: process.uid,
            user: &process.user,
            id: process.id.map(|id| id.0),
            state: char::from(process.state),
            started: process.started,
            cpu_ms: process.cpu_ms,
            rss_kib: process.rss_kib,
            argv: process.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
        }
    }
}

impl Verb for Ps {
    const NAME: &'static str = "ps";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let mut operation = Vec::new();
        frame::put(FrameId::PS, &Request { user: client.user(self.user), all: self.all }, &mut operation);
        let mut connection = client.open(&operation)?;
        let processes: Processes = connection.expect(FrameId::PROCESSES)?.decode()?;
        if self.json {
            let list = processes.list.iter().map(ToldProcess::from).collect();
            ui::json(&Told { vm: &self.vm, processes: list, omitted: processes.omitted })?;
            return Ok(0);
        }
        let mut table = Table::new(&["PID", "ID", "USER", "S", "CPU", "RSS", "COMMAND"]);
        for process in &processes.list {
            let user = if process.user.is_empty() { process.uid.to_string() } else { process.user.clone() };
            let words: Vec<String> = process.argv.iter().map(|word| printable::bytes(word)).collect();
            table.row([
                process.pid.to_string(),
                process.id.map_or("-".to_owned(), |id| id.0.to_string()),
                printable::line(&user).into_owned(),
                printable::bytes(&[process.state]),
                cpu(process.cpu_ms),
                super::info::size(process.rss_kib.saturating_mul(1024)),
                words.join(" "),
            ]);
        }
        table.print()?;
        if processes.omitted > 0 {
            ui::note(format_args!("{} more are not shown", processes.omitted));
        }
        Ok(0)
    }
}

fn cpu(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
