//! `hospes connect`

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use clap::Parser;
use hospes_protocol::forward::Address;

use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::forward::local::Stdio;
use crate::forward::pump::{PumpError, pump};
use crate::forward::{call, spec};
use crate::vm::VmName;

/// Connect stdin and stdout to a port or socket in a VM
///
/// ADDRESS is tcp:PORT, tcp:HOST:PORT (a host as the guest knows it) or unix:PATH. It does as ssh's ProxyCommand, so
/// that ssh, rsync, git, Ansible and editors reach a VM that has no network (see hospes ssh-config):
///
///   ssh -o ProxyCommand='hospes connect %n tcp:22' dev
///
/// The end of stdin is passed on and the answer still read to its end.
///
/// Exit codes: 0 where both directions ended, 125 otherwise.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Connect {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// What to connect to
    #[arg(value_name = "ADDRESS")]
    to: OsString,
    /// The guest user who connects [default: the VM's, or the guest's only human user]
    #[arg(short, long)]
    user: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl Verb for Connect {
    const NAME: &'static str = "connect";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let to = Address::parse(self.to.as_bytes()).map_err(CommandError::usage)?;
        if spec::port(&to) == Some(0) {
            return Err(CommandError::usage("Nobody listens on port 0"));
        }
        let client = self.reach.client(&self.vm)?;
        let connection = call(&client, &client.user(self.user), &to)?;
        let (stdin, stdout) = (io::stdin(), io::stdout());
        pump(connection, &mut Stdio::new(stdin.as_fd(), stdout.as_fd()))?;
        Ok(0)
    }
}

impl From<PumpError> for CommandError {
    fn from(error: PumpError) -> Self {
        match error {
            PumpError::Guest(error) => Self::refused(&error),
            PumpError::Connection(error) => error.into(),
            PumpError::Forward(hospes_protocol::forward::ForwardError::Cut { .. }) => {
                Self::new("lost", error)
            }
            PumpError::Forward(_) => Self::new("protocol", error),
            PumpError::Local(source) => Self::io("The connection broke on this machine", &source),
        }
    }
}
