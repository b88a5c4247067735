//! The host's side of `tests/lab/guest/usr/local/sbin/lab-shell`, which states the protocol.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Deadline;

/// What a command in the guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; 128 and the number for a signal, 124 when it ran into its limit.
    pub status: i32,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.close();
    }
}

/// A root shell in the guest. Several threads may use it at once.
#[derive(Debug)]
pub struct Shell {
    writer: Mutex<UnixStream>,
    inbox: Arc<Inbox>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The guest's boot id, once it has said that it is there.
    boot: Option<String>,
    closed: bool,
    pending: HashMap<u64, Sender<Output>>,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shell {
    /// Takes over the connection to the port's socket.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let reader = BufReader::new(stream.try_clone()?);
        let theirs = Arc::clone(&inbox);
        thread::spawn(move || {
            // The end of the connection and a garbled one come to the same: nobody will be answered any more.
            let _ = receive(reader, &theirs);
            let mut state = theirs.state();
            state.closed = true;
            state.pending.clear();
            theirs.changed.notify_all();
        });
        Ok(Self { writer: Mutex::new(stream), inbox, next: AtomicU64::new(0) })
    }

    /// The boot that answers, if one does.
    pub fn boot_id(&self) -> Option<String> {
        self.inbox.state().boot.clone()
    }

    /// Waits up to `limit` for a boot other than `last` to answer; nothing if none did so far.
    pub fn wait_ready(&self, last: Option<&str>, limit: Duration) -> Result<Option<String>> {
        let deadline = Deadline::after(limit);
        let mut state = self.inbox.state();
        loop {
            if state.closed {
                bail!("The port of the guest's shell closed");
            }
            if let Some(boot) = state.boot.as_deref().filter(|boot| Some(*boot) != last) {
                return Ok(Some(boot.to_owned()));
            }
            if deadline.left().is_zero() {
                return Ok(None);
            }
            (state, _) = self
                .inbox
                .changed
                .wait_timeout(state, deadline.left())
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs a bash script and waits for it.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        let header = |id| format!("RUN {id} {} {}\n", limit.as_secs().max(1), script.len());
        self.request(header, &[script.as_bytes()], limit + Duration::from_secs(10))
            .with_context(|| format!("The guest's shell did not answer: {script}"))
    }

    /// Writes a file.
    pub fn put(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let header = |id| format!("PUT {id} {mode:o} {} {}\n", path.len(), bytes.len());
        let output = self
            .request(header, &[path.as_bytes(), bytes], Duration::from_secs(120))
            .with_context(|| format!("The guest's shell did not take {path}"))?;
        if output.status != 0 {
            bail!("The guest's shell did not take {path}: {}", output.stderr);
        }
        Ok(())
    }

    /// Hangs up: every answer still owed becomes an error.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the other side has hung up already, it is done.
        let _ = writer.shutdown(Shutdown::Both);
    }

    fn request(&self, header: impl Fn(u64) -> String, parts: &[&[u8]], limit: Duration) -> Result<Output> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = channel();
        {
            let mut state = self.inbox.state();
            if state.closed || state.boot.is_none() {
                bail!("No guest answers on its port");
            }
            state.pending.insert(id, sender);
        }
        {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.set_write_timeout(Some(limit))?;
            writer.write_all(header(id).as_bytes())?;
            for part in parts {
                writer.write_all(part)?;
            }
        }
        match answer.recv_timeout(limit) {
            Ok(output) => Ok(output),
            Err(RecvTimeoutError::Timeout) => {
                self.inbox.state().pending.remove(&id);
                bail!("No answer within {} s", limit.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("The guest restarted or went away meanwhile"),
        }
    }
}

fn receive(mut reader: BufReader<UnixStream>, inbox: &Inbox) -> Result<()> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["READY", boot] => {
                let mut state = inbox.state();
                state.boot = Some((*boot).to_owned());
                state.pending.clear();
                inbox.changed.notify_all();
            }
            ["DONE", id, status, out, err] => {
                let mut stdout = vec![0; out.parse()?];
                let mut stderr = vec![0; err.parse()?];
                reader.read_exact(&mut stdout)?;
                reader.read_exact(&mut stderr)?;
                if let Some(sender) = inbox.state().pending.remove(&id.parse::<u64>()?) {
                    let output = Output {
                        status: status.parse()?,
                        stdout: String::from_utf8_lossy(&stdout).into_owned(),
                        stderr: String::from_utf8_lossy(&stderr).into_owned(),
                    };
                    // Whoever asked may have given up.
                    let _ = sender.send(output);
                }
            }
            _ => bail!("The guest's shell said something that is no answer: {line:?}"),
        }
    }
}
