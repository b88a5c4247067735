//! `hospes forward`

mod carry;

use std::ffi::OsString;

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use nix::libc::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::carry::{Carrier, Tell};
use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::forward::spec::Forward as Spec;
use crate::sys::signals::is_ignored;
use crate::vm::VmName;

/// Carry connections between ports or sockets here and in a VM, until interrupted
///
/// -L listens here and leads callers to the guest, -R listens in the guest and leads callers here. Each may be given
/// several times:
///
///   -L 8080:localhost:80    port 8080 here is the guest's port 80
///   -L 8080                 the same port on both sides
///   -L 0:db.internal:5432   any free port here (it is printed), a host that the guest knows
///   -L /tmp/d.sock:unix:/run/docker.sock    Unix sockets; a relative path in the guest starts at the user's home
///   -R 3000:localhost:3000  the guest's port 3000 is ours
///
/// Without an address to bind in front of the port, only the machine that listens can call; *: in front opens it to
/// others. A Unix socket is made for its user alone and removed at the end.
///
/// What listens is printed, one line each, once it does. A call that fails is told on stderr and ends nothing else.
/// When the VM goes away, listeners here stay and their callers are refused; those in the guest are opened again once
/// it is back. Interrupting (Ctrl-C) is the ordinary end, with exit code 0.
///
/// With --json, lines on stdout: {"event": "listening", "direction": "to_guest" or "to_host", "listen", "port", "to"},
/// {"event": "failed", "direction", "from", "to", "message", "hint"} and {"event": "lost", "listen", "message"}.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Forward {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Listen here, call there
    #[arg(short = 'L', long = "local", value_name = "[BIND:]PORT:HOST:PORT", value_parser = specs())]
    local: Vec<Spec>,
    /// Listen there, call here
    #[arg(short = 'R', long = "remote", value_name = "[BIND:]PORT:HOST:PORT", value_parser = specs())]
    remote: Vec<Spec>,
    /// The guest user who listens and calls [default: the VM's, or the guest's only human user]
    #[arg(short, long)]
    user: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

fn specs() -> impl TypedValueParser<Value = Spec> {
    OsStringValueParser::new().try_map(|text: OsString| Spec::parse(&text))
}

impl Verb for Forward {
    const NAME: &'static str = "forward";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        if self.local.is_empty() && self.remote.is_empty() {
            return Err(CommandError::usage("Nothing to forward").hint(format_args!(
                "hospes forward {} -L 8080:localhost:80 leads port 8080 here to the guest's port 80",
                self.vm
            )));
        }
        let mut wanted = vec![SIGINT, SIGTERM, SIGHUP];
        wanted.retain(|signal| !is_ignored(*signal));
        let mut signals =
            Signals::new(&wanted).map_err(|error| CommandError::io("Cannot take signals", &error))?;
        let client = self.reach.client(&self.vm)?;
        let user = client.user(self.user);
        let carrier = Carrier::new(client, user, Tell { json: self.json });
        // A VM that is not there, or is not the one we know, is told now and not to the first caller.
        carrier.check()?;
        let mut listeners = Vec::new();
        for spec in &self.local {
            listeners.extend(carrier.listen_here(spec)?);
        }
        for spec in self.remote {
            carrier.listen_there(spec)?;
        }
        signals.forever().next();
        // Their threads end with the process.
        for listener in &listeners {
            listener.withdraw();
        }
        Ok(0)
    }
}
