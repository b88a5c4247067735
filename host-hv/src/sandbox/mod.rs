//! The sandbox of the devices: what is left to a guest that has taken over the whole process.
//!
//! The server keeps a guest in its shares ([`fuse`](crate::fuse)). This is for the day when a flaw lets the guest run code of
//! its own here. From then on nothing in this process counts, and threads share their memory, so the bolts hold for the
//! process as a whole:
//!
//! | bolt | what it buys | what it costs |
//! |---|---|---|
//! | a mount namespace with an empty root | no path of the host leads anywhere; only descriptors do, and only shares have some | one user namespace for a server that is no root: it sees other users' files as nobody's |
//! | each share a detached copy of its mount | `..` ends at the share, also by raw system calls; no devices, no set-id, no programs | a mount that the host makes in a share later may not show; one that it takes away is in use until the share is removed |
//! | namespaces for network and IPC | no network, no abstract sockets of others | nothing |
//! | capabilities | root keeps what acting as a share's owner takes, and what raw owners take; others keep none | nothing |
//! | `no_new_privs` | no program run from here gains anything | nothing |
//! | Landlock | no TCP, no signals to others, whatever the list below lets through | nothing, as long as no rule of it is about files: then none could be moved to another directory |
//! | seccomp | a list of calls; what is not on it does not exist: no socket, no connection, no program, no tracing, no signal to others, no executable memory | 0.04 µs a call, and up to 0.2 µs for one on a path (measured) |
//!
//! **Shares are added while all that holds.** So there is a second process, the door ([`Door`]), with the host's files in
//! view. It owns the control socket: it opens a folder when a client there asks for one, and passes the descriptor in.
//! The server cannot ask it for anything. When the server ends, however it does, the door removes the sockets' paths
//! and ends too. Landlock's rules could let shares in only before the sandbox closes, and it leaves attributes to be read and
//! changed at any path: that is why namespaces close the file system here, and Landlock the rest.
//!
//! The vsock device has the same, with no files at all and no capability: the door dials for it, and takes a guest's number
//! and a port for it, and no path ([`ask`]). A dial costs one hop more. Landlock closes all files for it.
//!
//! A process-id namespace is not used: it would cost one more process for what the list of calls refuses anyway.
//!
//! **What may be missing.** A kernel or a container may refuse namespaces to a user that is no root. Then a server that is
//! taken over has what its user has, as far as files go, and this is told ([`Report`]). Linux 5.12 is the oldest with all
//! but Landlock's rules that are not about files, which came with 6.7.
//!
//! **macOS.** Not written yet. There, `sandbox_init` with a profile of ours can close files, network and programs, and a
//! descriptor opened before, or passed in by a door like this one, stays usable as long as the profile allows the
//! operation on its path: so shares added later need paths beneath folders that the profile named at the start, or a
//! security-scoped bookmark in an app sandbox. There are no user namespaces, no detached mounts and no filter of calls.

mod bolts;
mod calls;
mod dial;
mod door;
mod world;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use thiserror::Error;

pub use calls::Purpose;
pub use dial::{ask, serve_dials};
pub use door::Door;

/// How much of a sandbox there must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All that the kernel gives.
    Auto,
    /// All there is, or nothing is served.
    Strict,
    /// None.
    Off,
}

/// Why there is no sandbox, or not all of it.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SandboxError {
    #[error(
        "No namespaces for this user, so a device that is taken over could open this user's files. The kernel, a \
         container or AppArmor forbids them: see user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns, or run it as root"
    )]
    Namespaces(#[source] io::Error),
    #[error("The host's file system could not be left behind")]
    Root(#[source] io::Error),
    #[error("Capabilities could not be dropped")]
    Capabilities(#[source] io::Error),
    #[error("New privileges could not be ruled out")]
    Privileges(#[source] io::Error),
    #[error(
        "This kernel has no Landlock: it takes Linux 6.7 or newer, with \"landlock\" in the list that /sys/kernel/security/lsm shows"
    )]
    NoLandlock,
    #[error("Landlock refused the rules")]
    Landlock(#[source] landlock::RulesetError),
    #[error("The kernel took no filter of system calls (seccomp)")]
    Seccomp(#[source] seccompiler::Error),
    #[error("The process that opens folders could not be started")]
    Door(#[source] io::Error),
}

/// Which bolts hold, and why others do not.
#[derive(Debug, Default)]
pub struct Report {
    holds: Vec<&'static str>,
    missing: Vec<SandboxError>,
}

impl Report {
    /// The bolts that hold.
    pub fn holds(&self) -> &[&'static str] {
        &self.holds
    }

    /// Why the others do not.
    pub fn missing(&self) -> &[SandboxError] {
        &self.missing
    }

    fn note(&mut self, what: &'static str, result: Result<(), SandboxError>) {
        match result {
            Ok(()) => self.holds.push(what),
            Err(error) => self.missing.push(error),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.holds.join(", "))
    }
}

/// A sandbox that is being built. All of it happens before the process has threads.
pub struct Sandbox {
    mode: Mode,
    apart: bool,
    report: Report,
}

impl Sandbox {
    /// Takes the process apart from the host's mounts, which stay in view; the door is to be forked next.
    pub fn prepare(mode: Mode) -> Result<Self, SandboxError> {
        let mut report = Report::default();
        let apart = mode != Mode::Off && {
            let result = world::probe().and_then(|()| world::part()).map_err(SandboxError::Namespaces);
            let apart = result.is_ok();
            report.note("namespaces", result);
            apart
        };
        let mut sandbox = Self { mode, apart, report };
        sandbox.check()?;
        Ok(sandbox)
    }

    /// What opens folders for this sandbox.
    pub fn opener(&self) -> Opener {
        Opener { detached: self.apart }
    }

    /// Leaves all behind. Descriptors stay as they are; the calls listed in `calls.rs` are what may be done from now on.
    pub fn close(mut self, purpose: Purpose) -> Result<Report, SandboxError> {
        if self.mode == Mode::Off {
            return Ok(self.report);
        }
        if self.apart {
            // Half outside is nowhere: this one must not fail.
            world::leave().map_err(SandboxError::Root)?;
        }
        let acts_for_others = purpose == Purpose::Folders && crate::fuse::sys::is_privileged();
        self.report.note("capabilities", bolts::drop_capabilities(acts_for_others));
        self.report.note("no new privileges", bolts::no_new_privileges());
        self.report.note("Landlock", bolts::landlock(purpose));
        self.report.note("seccomp", bolts::filter(purpose));
        self.check()?;
        Ok(self.report)
    }

    fn check(&mut self) -> Result<(), SandboxError> {
        if self.mode == Mode::Strict && !self.report.missing.is_empty() {
            return Err(self.report.missing.remove(0));
        }
        Ok(())
    }
}

/// Opens folders of the host, as a sandbox takes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opener {
    detached: bool,
}

impl Opener {
    /// The folder as it may be passed into the sandbox: nothing is above it.
    pub fn enclose(self, folder: OwnedFd) -> io::Result<OwnedFd> {
        if self.detached { world::detach(&folder) } else { Ok(folder) }
    }
}
