//! `hospes attach`

use std::io;
use std::os::fd::AsFd;

use clap::Parser;
use hospes_protocol::exec::{self as wire, ExecId};
use hospes_protocol::frame::{self, FrameId};

use crate::cli::exec::{Keys, finish};
use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::exec::{Stdio, run};
use crate::stdio::{Kind, kind};
use crate::vm::VmName;

/// Come back to a command that hospes exec --detach left running
///
/// Shows the output that was kept and what follows, and ends with the command's exit code. ctrl-p,ctrl-q leaves it
/// running once more.
#[derive(Debug, Parser)]
pub struct Attach {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// The command's number, as hospes exec --detach and hospes ps show it
    id: u64,
    /// The guest user it runs as
    #[arg(short, long)]
    user: Option<String>,
    /// Do not forward stdin
    #[arg(short, long)]
    no_stdin: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Verb for Attach {
    const NAME: &'static str = "attach";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let user = client.user(self.user);
        let mut operation = Vec::new();
        frame::put(FrameId::EXEC_ATTACH, &wire::Attach { user, id: ExecId(self.id) }, &mut operation);
        let connection = client.open(&operation)?;
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let stdin_kind = kind(stdin.as_fd());
        let stdio = Stdio {
            stdin: (!self.no_stdin && stdin_kind != Kind::Null).then(|| stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            // Whether the command has a terminal the guest does not say; raw keys are what it would want if it has.
            terminal: !self.no_stdin && stdin_kind == Kind::Terminal,
            detach_keys: Keys(vec![0x10, 0x11]).0,
        };
        finish(run(connection, &stdio, false)?, &client)
    }
}
