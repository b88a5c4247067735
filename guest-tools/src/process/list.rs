//! `ps`: the worker's commands, or every process that its user may see.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use hospes_protocol::codec;
use hospes_protocol::error::WireError;
use hospes_protocol::exec::ExecId;
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::LARGE_MESSAGE_LEN;
use hospes_protocol::process::{Process, Processes, Ps};
use nix::unistd::{SysconfVar, sysconf};

use super::census::pids;
use super::stat::Stat;
use crate::connection::Connection;
use crate::handoff::Handoff;
use crate::session::Worker;

/// Bytes of one process's arguments that are told.
const ARGUMENTS: usize = 4 * 1024;
/// Bytes of the answer's processes, as [`cost`] counts them. Their decoded form has a limit too.
const ANSWER: usize = LARGE_MESSAGE_LEN as usize / 4;

/// Serves a [`Ps`].
pub(crate) async fn serve(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    match codec::decode::<Ps>(&handoff.request) {
        Ok(ps) => {
            let processes = list(&worker, ps.all);
            frame::put(FrameId::PROCESSES, &processes, connection.out());
            connection.finish().await;
        }
        Err(error) => connection.refuse(&WireError::protocol(error)).await,
    }
}

fn list(worker: &Worker, all: bool) -> Processes {
    let clock = Clock::now();
    let users = Users::read(worker);
    let commands = worker.commands.all();
    let ids: HashMap<i32, ExecId> = commands
        .iter()
        .filter(|entry| entry.child.ended().is_none())
        .map(|entry| (entry.child.pid(), entry.id))
        .collect();
    let running: Vec<i32> = if all { pids().collect() } else { ids.keys().copied().collect() };
    let mut found: Vec<Process> =
        running.into_iter().filter_map(|pid| read(pid, &clock, &users, ids.get(&pid).copied())).collect();
    for entry in commands.iter().filter(|entry| entry.is_kept()) {
        let Some(exited) = entry.exited() else { continue };
        found.push(Process {
            pid: entry.child.pid().unsigned_abs(),
            ppid: std::process::id(),
            uid: worker.account.uid,
            user: worker.account.name.clone(),
            id: Some(entry.id),
            state: b'X',
            started: entry.started,
            cpu_ms: (exited.usage.user_us + exited.usage.system_us) / 1000,
            rss_kib: 0,
            argv: shortened(&entry.argv),
        });
    }
    found.sort_by_key(|process| process.pid);
    let total = found.len();
    let mut budget = ANSWER;
    let list: Vec<Process> = found
        .into_iter()
        .take_while(|process| {
            let fits = cost(process) <= budget;
            budget = budget.saturating_sub(cost(process));
            fits
        })
        .collect();
    Processes { omitted: u32::try_from(total - list.len()).unwrap_or(u32::MAX), list }
}

/// What a process takes of the answer: its words, its numbers, and a word's own length.
fn cost(process: &Process) -> usize {
    64 + process.user.len() + process.argv.iter().map(|word| word.len() + 24).sum::<usize>()
}

fn read(pid: i32, clock: &Clock, users: &Users, id: Option<ExecId>) -> Option<Process> {
    let stat = Stat::read(pid)?;
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let mut line = Vec::new();
    let limit = u64::try_from(ARGUMENTS).unwrap_or(u64::MAX);
    let _ = File::open(format!("/proc/{pid}/cmdline")).ok()?.take(limit).read_to_end(&mut line);
    let argv = if line.is_empty() {
        vec![[b"[", &stat.name[..], b"]"].concat()]
    } else {
        let words = line.strip_suffix(b"\0").unwrap_or(&line);
        words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    };
    Some(Process {
        pid: pid.unsigned_abs(),
        ppid: stat.parent.unsigned_abs(),
        uid,
        user: users.name(uid),
        id,
        state: stat.state,
        started: clock.boot + stat.start / clock.ticks,
        cpu_ms: stat.cpu.saturating_mul(1000) / clock.ticks,
        rss_kib: stat.rss.saturating_mul(clock.page) / 1024,
        argv,
    })
}

fn shortened(argv: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut left = ARGUMENTS;
    let mut words = Vec::new();
    for word in argv {
        if left == 0 {
            break;
        }
        words.push(word[..word.len().min(left)].to_vec());
        left = left.saturating_sub(word.len() + 1);
    }
    words
}

struct Clock {
    /// Seconds since 1970 at boot.
    boot: u64,
    /// Clock ticks per second.
    ticks: u64,
    /// Bytes of a page.
    page: u64,
}

impl Clock {
    fn now() -> Self {
        let number = |variable| {
            let value = sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
            value.filter(|value| *value > 0)
        };
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        Self {
            boot: boot.unwrap_or(0),
            ticks: number(SysconfVar::CLK_TCK).unwrap_or(100),
            page: number(SysconfVar::PAGE_SIZE).unwrap_or(4096),
        }
    }
}

/// Names of local users and of our own. Asking further (LDAP) could wait for a network with everybody's commands.
struct Users(HashMap<u32, String>);

impl Users {
    fn read(worker: &Worker) -> Self {
        let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        let mut names: HashMap<u32, String> = text.lines().rev().filter_map(entry).collect();
        names.insert(worker.account.uid, worker.account.name.clone());
        Self(names)
    }

    fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_default()
    }
}
