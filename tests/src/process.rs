//! Processes that end when the test's own process does, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::Deadline;

/// A running program, with all its output in a file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Starts `program` in `directory`, its output in `log`.
///
/// The kernel kills it when this process is gone: a shared guest lives in a static, which is never dropped.
pub fn spawn(
    program: impl AsRef<OsStr>,
    arguments: &[String],
    directory: &Path,
    log: &Path,
) -> Result<Process> {
    let program = program.as_ref();
    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let output = File::create(log).with_context(|| format!("Could not create {}", log.display()))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let child =
        spawn_on_keeper(command).with_context(|| format!("Could not start {name} through setpriv"))?;
    Ok(Process { name, child, log: log.to_owned() })
}

impl Process {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error with its output where it has ended: for loops that wait for something that it does.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early ({status}). Its output:\n{}", self.name, self.output()),
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: &Deadline) -> Result<ExitStatus> {
        let name = self.name.clone();
        deadline.poll(&format!("{name} to end"), || self.exited())
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        // It may have ended by itself: then there is nothing to kill, and nothing to do about that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        read_lossy(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file's text, whatever its bytes; empty where there is none.
pub(crate) fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

type Order = (Command, Sender<io::Result<Child>>);

/// The death signal is bound to the thread that started the child, and a test's thread ends with the test: so
/// one thread that lives as long as the process starts them all.
fn spawn_on_keeper(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<Sender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, queue) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    keeper.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn output_and_status_are_kept() -> Result<()> {
        let log = std::env::temp_dir().join(format!("process-{}.log", std::process::id()));
        let mut process = spawn("sh", &["-c".into(), "echo said; exit 7".into()], Path::new("/"), &log)?;
        let status = process.wait(&Deadline::after(Duration::from_secs(10)))?;
        assert_eq!((status.code(), process.output().as_str()), (Some(7), "said\n"));
        std::fs::remove_file(&log)?;
        Ok(())
    }
}
