//! Desktops without a screen: the real compositors and X servers of Debian 13, each with a runtime directory and a session
//! bus of its own. They run in a tree that `tests/lab/desktops.sh` makes, as a user without rights.

mod dialog;
mod programs;
mod rig;
mod services;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use self::dialog::Toolkit;
pub use self::programs::{Copied, helper, helper_of, noise};
pub use self::rig::Rig;
pub use self::services::{Logind, Manager, Sitting};
use crate::lab::workspace;
use crate::{Deadline, Process, spawn};

/// How long one program of a desktop's may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whose desktop it is where the tests run as root, as which compositors do not start.
const NOBODY: u32 = 65_534;
/// Without services that it could start: what a desktop would is not part of the tests.
const BUS: &str =
    "<busconfig><type>session</type><auth>EXTERNAL</auth><listen>unix:path=@RUNTIME@/bus</listen>
<policy context=\"mandatory\"><allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>
<allow receive_sender=\"*\"/></policy></busconfig>";
/// Binds what every program needs into the tree, and becomes the program there. The mounts are its own.
const ENTER: &str = "tree=$1; shift; mount --rbind /proc $tree/proc; mount --rbind /dev $tree/dev; \
                     mount --rbind /tmp $tree/tmp; exec chroot $tree \"$@\"";

/// What a desktop is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// sway, on wlroots.
    Sway,
    /// labwc, on wlroots.
    Labwc,
    /// Mutter, which GNOME's shell is made of.
    Mutter,
    /// KDE's.
    KWin,
    /// An X server and a window manager.
    X11,
}

impl Kind {
    /// All that there are.
    pub const ALL: [Self; 5] = [Self::Sway, Self::Labwc, Self::Mutter, Self::KWin, Self::X11];

    /// The compositor's words, or the X server's.
    fn command(self, runtime: &str) -> Vec<String> {
        let words: Vec<&str> = match self {
            Self::Sway => vec!["sway", "-c", "@/config"],
            Self::Labwc => vec!["labwc"],
            Self::Mutter => {
                vec![
                    "mutter",
                    "--headless",
                    "--wayland-display",
                    "wayland-0",
                    "--virtual-monitor",
                    "1280x800",
                ]
            }
            Self::KWin => vec![
                "kwin_wayland",
                "--virtual",
                "--width",
                "1280",
                "--height",
                "800",
                "--no-lockscreen",
                "--no-global-shortcuts",
                "--socket",
                "wayland-0",
            ],
            Self::X11 => {
                vec!["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-ac"]
            }
        };
        words.into_iter().map(|word| word.replace('@', runtime)).collect()
    }
}

/// A desktop of one user's.
#[derive(Debug)]
pub struct Compositor {
    kind: Kind,
    /// Whose it is.
    user: u32,
    // Ended in this order, before the directory goes.
    window_manager: Option<Process>,
    process: Option<Process>,
    bus: Option<Process>,
    /// The X server's display number, where it is one.
    display: Option<u32>,
    /// How X programs reach a compositor's Xwayland.
    x_environment: Vec<(&'static str, String)>,
    /// The manager that knows the display of a session of X: nobody else tells the helper, which was there before.
    manager: Option<Manager>,
    directory: TempDir,
    tree: PathBuf,
}

impl Compositor {
    /// sway, which has wlr-data-control.
    pub fn sway() -> Result<Self> {
        Self::start(Kind::Sway)
    }

    /// Starts one, and waits until programs can connect to it.
    pub fn start(kind: Kind) -> Result<Self> {
        let root = nix::unistd::geteuid().is_root();
        Self::start_as(kind, if root { NOBODY } else { nix::unistd::geteuid().as_raw() })
    }

    /// Starts one for a user of this number, whom only root can be.
    pub fn start_as(kind: Kind, user: u32) -> Result<Self> {
        let tree = find_tree()?;
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir_in("/tmp")?;
        let runtime = directory.path().display().to_string();
        fs::write(directory.path().join("config"), "xwayland disable\n")?;
        fs::write(directory.path().join("bus.conf"), BUS.replace("@RUNTIME@", &runtime))?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(user))?;
        }
        make_x_directory()?;
        let mut compositor = Self {
            kind,
            user,
            window_manager: None,
            process: None,
            bus: None,
            display: None,
            x_environment: Vec::new(),
            manager: None,
            directory,
            tree,
        };
        let mut bus =
            compositor.spawn("bus", &["dbus-daemon", "--nofork", "--config-file"], &["@/bus.conf"])?;
        let socket = compositor.runtime().join("bus");
        answers("the session bus", &mut bus, &socket)?;
        compositor.bus = Some(bus);
        if kind == Kind::X11 {
            compositor.manager = Some(Manager::start(&format!("unix:path={}", socket.display()))?);
        }
        compositor.restart()?;
        Ok(compositor)
    }

    /// Kills the compositor, if it runs, and starts another in the same place.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let words = self.kind.command(&self.runtime().display().to_string());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut process = self.spawn("compositor", &words, &[])?;
        if self.kind == Kind::X11 {
            let display = Deadline::after(PATIENCE).poll("the X server's number", || {
                process.expect_alive()?;
                Ok(process.output().lines().find_map(|line| line.trim().parse().ok()))
            })?;
            self.display = Some(display);
            self.window_manager = Some(self.spawn("openbox", &["openbox", "--sm-disable"], &[])?);
        } else {
            let socket = self.socket();
            answers("the compositor's socket", &mut process, &socket)?;
        }
        self.process = Some(process);
        if let (Some(manager), Some(display)) = (&self.manager, self.display) {
            manager.set(&[("DISPLAY", format!(":{display}"))])?;
        }
        if self.kind == Kind::Mutter {
            self.x_environment =
                Deadline::after(PATIENCE).poll("Mutter's Xwayland", || Ok(self.xwayland().ok()))?;
        }
        Ok(())
    }

    /// Kills the compositor, as a crash does.
    pub fn kill(&mut self) {
        self.window_manager = None;
        self.process = None;
        self.display = None;
        let entries = fs::read_dir(self.runtime()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // Its sockets and its Xwayland's cookies, which a crash leaves behind.
            if name.starts_with(b"wayland-") || name.starts_with(b".mutter-Xwayland") {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose it is.
    pub fn user(&self) -> u32 {
        self.user
    }

    /// Its runtime directory. The session's bus is in it, as `bus`.
    pub fn runtime(&self) -> &Path {
        self.directory.path()
    }

    /// Its Wayland socket, where it has one.
    pub fn socket(&self) -> PathBuf {
        self.runtime().join(self.socket_name())
    }

    /// What the programs of its session have in their environment, so that they find it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let runtime = self.runtime().display().to_string();
        let bus = format!("unix:path={runtime}/bus");
        let mut environment = vec![("XDG_RUNTIME_DIR", runtime), ("DBUS_SESSION_BUS_ADDRESS", bus)];
        match self.display {
            Some(display) => environment.push(("DISPLAY", format!(":{display}"))),
            None => environment.push(("WAYLAND_DISPLAY", self.socket().display().to_string())),
        }
        environment
    }

    /// Whether programs without a window can copy and paste by Wayland there. Elsewhere they do it by X.
    fn has_data_control(&self) -> bool {
        !matches!(self.kind, Kind::Mutter | Kind::X11)
    }

    /// Whether it shares the primary selection with programs like ours.
    pub fn has_primary(&self) -> bool {
        self.kind != Kind::Mutter
    }

    /// How Mutter's Xwayland is reached: its display and cookie.
    fn xwayland(&self) -> Result<Vec<(&'static str, String)>> {
        let said = self.output();
        let display = said.lines().find_map(|line| {
            let (_, rest) = line.split_once("Using public X11 display ")?;
            rest.split(',').next().map(str::to_owned)
        });
        let cookie =
            fs::read_dir(self.runtime())?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| {
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".mutter-Xwayland"))
            });
        let (Some(display), Some(cookie)) = (display, cookie) else {
            bail!("Mutter has no Xwayland:\n{said}");
        };
        Ok(vec![("DISPLAY", display), ("XAUTHORITY", cookie.display().to_string())])
    }

    /// All that the compositor has said.
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// A program of the tree's as the desktop's user runs it, ended after a deadline.
    pub fn command(&self, program: &str) -> Command {
        let patience = PATIENCE.as_secs().to_string();
        let words = self.enter(&["timeout", "--kill-after=5", &patience, program]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    fn socket_name(&self) -> &'static str {
        if self.kind == Kind::Sway { "wayland-1" } else { "wayland-0" }
    }

    /// Starts a program of the tree's, which ends with the test. `@` is the runtime directory.
    fn spawn(&self, log: &str, words: &[&str], more: &[&str]) -> Result<Process> {
        let more: Vec<String> =
            more.iter().map(|word| word.replace('@', &self.runtime().display().to_string())).collect();
        let words: Vec<&str> = words.iter().copied().chain(more.iter().map(String::as_str)).collect();
        let words = self.enter(&words);
        spawn(&words[0], &words[1..], Path::new("/"), &self.runtime().join(format!("{log}.log")))
    }

    /// The words that run these words in the tree.
    fn enter(&self, words: &[&str]) -> Vec<String> {
        let root = nix::unistd::geteuid().is_root();
        let mut all: Vec<String> = vec!["unshare".into(), "--mount".into()];
        if !root {
            all.extend(["--user".into(), "--map-root-user".into()]);
        }
        all.extend(["sh", "-euc", ENTER, "sh"].map(str::to_owned));
        all.push(self.tree.display().to_string());
        if root {
            let user = format!("--reuid={}", self.user);
            let group = format!("--regid={}", self.user);
            all.extend(["setpriv".into(), user, group]);
            all.extend(["--clear-groups", "--pdeathsig=KILL"].map(str::to_owned));
        } else {
            // Back to the user's own id, and without the rights that the mounts took.
            let user = nix::unistd::geteuid().to_string();
            let group = nix::unistd::getegid().to_string();
            all.extend(["unshare", "--user", "--map-user"].map(str::to_owned));
            all.extend([user, "--map-group".into(), group]);
            all.extend(["setpriv", "--pdeathsig=KILL"].map(str::to_owned));
        }
        all.extend(
            [
                "env",
                "-i",
                "PATH=/usr/bin:/bin",
                "LANG=C.UTF-8",
                "GSETTINGS_BACKEND=memory",
                "GSK_RENDERER=cairo",
            ]
            .map(str::to_owned),
        );
        all.extend(
            ["WLR_BACKENDS=headless", "WLR_RENDERER=pixman", "WLR_LIBINPUT_NO_DEVICES=1"].map(str::to_owned),
        );
        all.push(format!("HOME={}", self.runtime().display()));
        let environment = self.environment().into_iter().chain(self.x_environment.clone());
        all.extend(environment.map(|(name, value)| format!("{name}={value}")));
        if words.first().is_some_and(|program| ["sway", "labwc"].contains(program)) {
            // They would run in the compositor that this names.
            all.retain(|word| !word.starts_with("WAYLAND_DISPLAY="));
        }
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }
}

fn answers(what: &str, process: &mut Process, socket: &Path) -> Result<()> {
    Deadline::after(PATIENCE).poll(what, || {
        process.expect_alive()?;
        Ok(UnixStream::connect(socket).is_ok().then_some(()))
    })
}

/// Where X servers have their sockets: on a machine without one it is not there, and who runs as nobody cannot make it.
fn make_x_directory() -> Result<()> {
    let path = Path::new("/tmp/.X11-unix");
    if !path.exists() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    }
    Ok(())
}

/// The tree, as `make desktops` makes it.
fn find_tree() -> Result<PathBuf> {
    let script = workspace().join("tests/lab/desktops.sh");
    let suite = std::env::var("DESKTOPS_SUITE").unwrap_or_else(|_| "trixie".to_owned());
    let output = Command::new("sh").arg(&script).args(["--path", &suite]).output().context("sh runs")?;
    let tree = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !output.status.success() || !tree.exists() {
        bail!("The desktops are not built: {} is missing. Run `make desktops`.", tree.display());
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn every_desktop_starts_and_starts_again() -> Result<()> {
        for kind in Kind::ALL {
            let mut desktop = Compositor::start(kind)?;
            desktop.restart()?;
            ensure!(desktop.command("true").status()?.success());
        }
        Ok(())
    }
}
