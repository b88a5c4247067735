//! A guest's desktop and a host's, and all that is between them, but for a VM.

use anyhow::{Result, ensure};

use super::{Compositor, PATIENCE, helper, helper_of};
use crate::{Beside, Deadline, Host, Process};

/// A guest's desktop and a host's, with all that is between them.
#[derive(Debug)]
pub struct Rig {
    /// The guest's.
    pub there: Compositor,
    /// The host's.
    pub here: Compositor,
    /// The host, with its agent.
    pub host: Host,
    /// The guest's daemon.
    pub guest: Beside,
    /// The helper on the guest's desktop.
    pub helper: Process,
}

impl Rig {
    /// Two sways, under this policy of the guest's, and the clipboard shared between them or not yet.
    pub fn start(policy: &str, share: bool) -> Result<Self> {
        Self::between(Compositor::sway()?, Compositor::sway()?, policy, share)
    }

    /// These two desktops, the guest's and the host's.
    pub fn between(there: Compositor, here: Compositor, policy: &str, share: bool) -> Result<Self> {
        let guest = Beside::start(policy)?;
        let helper = helper(&guest, &there)?;
        Self::join(there, here, guest, helper, share)
    }

    /// These two, shared, with what shows files in the guest. The helper is the desktop's user.
    pub fn with_files(there: Compositor, here: Compositor) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "The mounts of this test are made by root: run it as root");
        let mut guest = Beside::start("[users]\nallow = [\"*\"]\n")?;
        guest.start_mount()?;
        let helper = helper_of(&guest, &there)?;
        Self::join(there, here, guest, helper, true)
    }

    fn join(
        there: Compositor,
        here: Compositor,
        guest: Beside,
        helper: Process,
        share: bool,
    ) -> Result<Self> {
        let mut host = guest.host()?;
        for (name, value) in here.environment() {
            // The agent's own runtime directory is the host's.
            if name != "XDG_RUNTIME_DIR" {
                host.set(name, &value);
            }
        }
        host.start_agent()?;
        host.wait_connected("vm")?;
        let rig = Self { there, here, host, guest, helper };
        Deadline::after(PATIENCE).poll("the guest's desktop", || {
            let listed = rig.host.run(&["clipboard", "vm", "paste", "--list"])?;
            let absent = ["No desktop", "desktop is gone"].iter().any(|words| listed.stderr.contains(words));
            Ok((!absent).then_some(()))
        })?;
        if share {
            rig.host.run(&["clipboard", "vm", "--share", "on"])?.text()?;
        }
        Ok(rig)
    }

    /// Of either side, which copies and which pastes.
    pub fn ways(&self) -> [(&Compositor, &Compositor); 2] {
        [(&self.there, &self.here), (&self.here, &self.there)]
    }

    /// All that the programs between the desktops have said.
    fn words(&self) -> String {
        let agent = std::fs::read_to_string(self.host.home().join("agent.log")).unwrap_or_default();
        let guest = self.guest.log().unwrap_or_default();
        format!("--- helper\n{}--- daemon\n{guest}--- agent\n{agent}", self.helper.output())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("CLIPBOARD_LOG").is_some() {
            eprintln!("{}", self.words());
        }
    }
}
