//! The last resort: reboot(2), after sync(2), with nobody asked to end first.

use std::io;

use hospes_protocol::power::PowerAction;
use nix::sys::reboot::{RebootMode, reboot};

/// Whether the kernel would do it for us: `CAP_SYS_BOOT`, and no sleep, which is not reboot(2)'s.
pub(super) fn can(action: PowerAction) -> io::Result<()> {
    mode(action)?;
    // The request that changes nothing but Ctrl-Alt-Del's meaning, to the one that systemd sets itself.
    Ok(nix::sys::reboot::set_cad_enabled(false)?)
}

/// Writes all to disk and goes. It returns only where the kernel refuses.
pub(super) fn go(action: PowerAction) -> io::Result<()> {
    let mode = mode(action)?;
    nix::unistd::sync();
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => Err(error.into()),
    }
}

fn mode(action: PowerAction) -> io::Result<RebootMode> {
    match action {
        PowerAction::POWEROFF => Ok(RebootMode::RB_POWER_OFF),
        PowerAction::REBOOT => Ok(RebootMode::RB_AUTOBOOT),
        PowerAction::HALT => Ok(RebootMode::RB_HALT_SYSTEM),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
