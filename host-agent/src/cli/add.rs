//! `hospes add`

use std::path::{PathBuf, absolute};

use clap::Parser;

use crate::agent::ask::{Ask, Question};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::endpoint::{Endpoint, EndpointError};
use crate::pins::Pins;
use crate::registry::Registry;
use crate::vm::{Vm, VmName, VmSpec};

/// Add a VM under a name
///
/// ENDPOINT is one of:
///   vsock:CID      the guest's context id, on Linux hosts (QEMU, libvirt, crosvm)
///   unix:PATH      a socket that takes CONNECT (Firecracker, cloud-hypervisor, Hospes' own VMM)
///   socket:PATH    a socket that leads to the guest's port 650 (vfkit, libkrun)
///
/// The VM need not run: it is reached, and its key pinned, by the first command.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Add {
    /// The VM's name from now on
    name: String,
    /// Where it is reached
    endpoint: String,
    /// The guest user for whom commands run where none is named
    #[arg(short, long)]
    user: Option<String>,
    /// The control socket of the VM's device on this machine (host-hv fs --control): folders are shared through it
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    hv: Option<PathBuf>,
    /// QEMU's own monitor socket for programs (-qmp unix:PATH,server=on,wait=off)
    ///
    /// The agent is then told when the machine is paused, goes on or ends, and the guest's clock is right at once after
    /// a pause. QEMU serves one program at such a socket at a time: give Hospes one of its own.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    qmp: Option<PathBuf>,
    /// Change a VM that was added before
    #[arg(long)]
    replace: bool,
}

impl Verb for Add {
    const NAME: &'static str = "add";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let name: VmName = self.name.parse()?;
        let endpoint = endpoint(&self.endpoint)?;
        let hv = self.hv.map(absolute).transpose();
        let hv =
            hv.map_err(|error| CommandError::io("Cannot resolve the path of the control socket", &error))?;
        let qmp = self.qmp.map(absolute).transpose();
        let qmp =
            qmp.map_err(|error| CommandError::io("Cannot resolve the path of QEMU's monitor", &error))?;
        let registry = Registry::open()?;
        let old = registry.load(&name).ok();
        let moved = old.as_ref().is_some_and(|old| old.spec.endpoint != endpoint);
        // Another guest under the same name is not shown what is copied here until somebody says so.
        let clipboard = old.is_some_and(|old| old.spec.clipboard) && !moved;
        let spec = VmSpec { endpoint, user: self.user, hv, qmp, clipboard };
        registry.save(&Vm { name: name.clone(), spec }, self.replace)?;
        if moved {
            // Another endpoint is another guest until it shows the contrary.
            Pins::open()?.forget(&name)?;
        }
        Ask::tell(&Question::Reload);
        Ok(0)
    }
}

/// An endpoint as people type it: a relative path starts where they stand.
fn endpoint(text: &str) -> Result<Endpoint, CommandError> {
    match text.parse() {
        Err(EndpointError::Relative { .. }) => {
            let (kind, path) = text.split_once(':').unwrap_or_default();
            let path = absolute(path).map_err(|error| CommandError::io("Cannot resolve the path", &error))?;
            Ok(format!("{kind}:{}", path.display()).parse()?)
        }
        result => Ok(result?),
    }
}
