//! A command of this machine's that runs while a guest is frozen: whatever signal comes, the thaw still has to be asked for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::command_error::{CommandError, NOT_EXECUTABLE, NOT_FOUND};
use crate::sys::signals::is_ignored;

/// Signals that would end us are remembered instead, for as long as this lives. Those that are sent to us alone are passed
/// on to the command; those of a terminal's keys it gets from the terminal.
#[derive(Debug)]
pub(super) struct Interrupts {
    handle: Handle,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The last signal, or zero.
    last: AtomicI32,
    /// The command, while it runs.
    command: Mutex<Option<Pid>>,
}

impl Interrupts {
    /// Takes them.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn take() -> Result<Self, CommandError> {
        let mut wanted = vec![SIGINT, SIGQUIT, SIGTERM, SIGHUP];
        // What nohup or a shell's background job had ignored stays so.
        wanted.retain(|signal| !is_ignored(*signal));
        let mut signals =
            Signals::new(&wanted).map_err(|error| CommandError::io("Cannot take signals", &error))?;
        let shared = Arc::new(Shared::default());
        let (handle, told) = (signals.handle(), Arc::clone(&shared));
        thread::spawn(move || signals.forever().for_each(|signal| told.came(signal)));
        Ok(Self { handle, shared })
    }

    /// The exit code of a signal that came before there was a command.
    pub(super) fn status(&self) -> Option<u8> {
        let last = self.shared.last.load(Ordering::SeqCst);
        (last != 0).then(|| u8::try_from(128 + last).unwrap_or(u8::MAX))
    }

    /// Runs a command to its end. With `aside`, what it prints goes to the standard error.
    ///
    /// # Errors
    /// Where it cannot be started, with a shell's code for it.
    pub(super) fn run(&self, words: &[OsString], aside: bool) -> Result<u8, CommandError> {
        let (program, arguments) = words.split_first().ok_or_else(|| CommandError::usage("No command"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        if aside {
            command.stdout(std::io::stderr());
        }
        let told = |error: std::io::Error| {
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            CommandError { code, ..CommandError::io(format_args!("Running {}", program.display()), &error) }
        };
        let mut child = {
            // A signal that comes now waits for the command's number.
            let mut running = self.shared.command.lock().unwrap_or_else(PoisonError::into_inner);
            let child = command.spawn().map_err(told)?;
            *running = i32::try_from(child.id()).ok().map(Pid::from_raw);
            child
        };
        let status = child.wait();
        *self.shared.command.lock().unwrap_or_else(PoisonError::into_inner) = None;
        status.map(shell_status).map_err(told)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl Shared {
    fn came(&self, signal: i32) {
        self.last.store(signal, Ordering::SeqCst);
        let running = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(command) = *running
            && matches!(signal, SIGTERM | SIGHUP)
        {
            // It may have ended a moment ago.
            let _ = kill(command, Signal::try_from(signal).ok());
        }
    }
}

fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> [OsString; 3] {
        ["sh", "-c", text].map(OsString::from)
    }

    // One test: a signal comes to every one of this process'.
    #[test]
    fn a_commands_end_is_a_shells_and_a_signal_reaches_it_and_not_us() {
        let interrupts = Interrupts::take().unwrap();
        let run = |words: &[OsString]| interrupts.run(words, true);
        assert_eq!(run(&words("exit 3")).unwrap(), 3);
        assert_eq!(run(&words("kill -9 $$")).unwrap(), 137);
        assert_eq!(run(&["/nonexistent/program".into()]).unwrap_err().code, NOT_FOUND);
        assert_eq!(run(&["/".into()]).unwrap_err().code, NOT_EXECUTABLE);
        assert_eq!(interrupts.status(), None);
        assert_eq!(run(&words("kill -TERM $PPID; while :; do sleep 0.1; done")).unwrap(), 128 + 15);
        assert_eq!(interrupts.status(), Some(128 + 15));
    }
}
