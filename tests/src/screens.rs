//! Desktops with a screen: the real compositors and X servers of Debian 13 on virtio-gpu, in a booted guest. Windows on
//! the host are VNC's, the host's own desktop is one without a screen, and what is between them is real: vsock, the
//! packages, an agent.

mod programs;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use zbus::connection;

pub use self::programs::{FILES, PICTURE, TEXT};
use crate::desktop::{Compositor, Kind};
use crate::lab::target_dir;
use crate::{Deadline, Guest, GuestSpec, Host, Vnc};

/// How long a desktop may take until its screens and its clipboard are reached.
const START: Duration = Duration::from_secs(180);
/// How long programs may take to draw after a change.
const DRAWN: Duration = Duration::from_millis(700);
/// The screens that the graphics card has.
pub const HEADS: usize = 2;
/// Whoever sits at the guest's screen.
const USER: &str = "dev";
/// Starts a desktop on the first terminal with a session of its own, as a display manager does.
const UNIT: &str = "[Unit]
After=systemd-logind.service dbus.service systemd-user-sessions.service
[Service]
User=dev
PAMName=login
TTYPath=/dev/tty1
StandardInput=tty
StandardOutput=journal
StandardError=journal
UtmpIdentifier=tty1
UtmpMode=user
Environment=XDG_SEAT=seat0 XDG_VTNR=1 LIBSEAT_BACKEND=logind WLR_RENDERER=pixman WLR_NO_HARDWARE_CURSORS=1
Environment=WLR_LIBINPUT_NO_DEVICES=1 KWIN_COMPOSE=Q XDG_SESSION_TYPE=@TYPE@
ExecStart=@COMMAND@
KillMode=mixed
TimeoutStopSec=10
";

/// A booted guest with a screen, and a host with a desktop.
#[derive(Debug)]
pub struct Screens {
    /// The host, with its agent.
    pub host: Host,
    /// The host's own desktop.
    pub here: Compositor,
    /// The guest. Known to the host as `vm`.
    pub guest: Guest,
    kind: Option<Kind>,
    pictures: PathBuf,
}

impl Screens {
    /// Boots the guest with these packages in it, and connects the host's agent. No desktop runs yet.
    pub fn boot(spec: GuestSpec) -> Result<Self> {
        let pictures = target_dir()?.join("screens");
        std::fs::create_dir_all(&pictures)?;
        let here = Compositor::sway()?;
        // Its displays are on the bus of the host's desktop too.
        let bus = format!("dbus,p2p=no,addr={}", bus(&here));
        let guest = Guest::boot(spec.memory_mib(2048).screens(HEADS).qemu(["-display", &bus]))?;
        let mut host = Host::new()?;
        for (name, value) in here.environment() {
            // The agent's own runtime directory is the host's.
            if name != "XDG_RUNTIME_DIR" {
                host.set(name, &value);
            }
        }
        host.add("vm", &guest)?;
        host.start_agent()?;
        Ok(Self { host, here, guest, kind: None, pictures })
    }

    /// Ends the desktop that runs, starts this one, and waits until its screens and its clipboard are reached.
    pub fn start(&mut self, kind: Kind) -> Result<()> {
        self.run_desktop(kind)?;
        self.host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
        self.host.run(&["clipboard", "vm", "--share", "on"])?.text()?;
        let mut last = String::new();
        let there = Deadline::after(START).poll("the guest's screens", || {
            let told = self.host.run(&["display", "vm", "--json"])?;
            last = format!("{}{}", String::from_utf8_lossy(&told.stdout), told.stderr);
            if told.status != 0 {
                return Ok(None);
            }
            let state: Value = serde_json::from_slice(&told.stdout)?;
            Ok((state["back_end"] == back_end(kind) && state["outputs"][0]["size"].is_object()).then_some(()))
        });
        there.with_context(|| format!("{last}\n{}", self.journal()))
    }

    /// As [`start`](Self::start), and waits for nothing of ours.
    pub fn run_desktop(&mut self, kind: Kind) -> Result<()> {
        self.stop()?;
        self.kind = Some(kind);
        let session = if kind == Kind::X11 { "x11" } else { "wayland" };
        let unit = UNIT.replace("@TYPE@", session).replace("@COMMAND@", command(kind));
        self.guest.put("/run/systemd/system/lab-desktop.service", 0o644, unit.as_bytes())?;
        self.guest.check("systemctl daemon-reload && systemctl start lab-desktop")?;
        let there = Deadline::after(START)
            .poll("the desktop", || Ok((self.user(programs::look(kind))?.status == 0).then_some(())));
        there.with_context(|| self.journal())
    }

    /// Ends the desktop that runs, and with it its user's session.
    pub fn stop(&mut self) -> Result<()> {
        if self.kind.take().is_some() {
            self.guest.check("systemctl stop lab-desktop; loginctl terminate-user dev || true")?;
            self.guest.wait_until("! pgrep -u dev", Duration::from_secs(60))?;
            self.guest.check("rm -rf /tmp/.X*-lock /tmp/.X11-unix/* /home/dev/.config /home/dev/.local")?;
        }
        Ok(())
    }

    /// What runs on the guest's screen.
    pub fn kind(&self) -> Result<Kind> {
        self.kind.context("no desktop runs")
    }

    /// The screens as `hospes display` tells them.
    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.host.run(&["display", "vm", "--json"])?.text()?)?)
    }

    /// One of the screens, as `hospes display` tells it.
    pub fn screen(&self, head: usize) -> Result<Value> {
        let name = format!("Virtual-{}", head + 1);
        let state = self.state()?;
        let mut outputs = state["outputs"].as_array().into_iter().flatten();
        Ok(outputs.find(|output| output["name"] == *name).cloned().unwrap_or(Value::Null))
    }

    /// Waits until the guest's tools and the desktop's own agree on a screen's size.
    pub fn agree(&self, head: usize, size: (u16, u16), limit: Duration) -> Result<()> {
        let wanted = json!({ "width": size.0, "height": size.1 });
        let mut last = Value::Null;
        let agreed = Deadline::after(limit).poll(&format!("a screen of {}x{}", size.0, size.1), || {
            last = self.screen(head)?;
            Ok((last["size"] == wanted && self.shows(size)?).then_some(()))
        });
        agreed.with_context(|| format!("{last}\n{}\n{}", self.look().unwrap_or_default(), self.journal()))
    }

    /// A window on the host that shows one of the screens.
    pub fn window(&self, head: usize) -> Result<Vnc> {
        Vnc::connect(&self.guest.socket(&format!("vnc{head}.sock")))
    }

    /// Tells a screen that it is a window of this size, there, as a display of QEMU's on D-Bus does (org.qemu.Display1).
    /// Of no size, it is taken away.
    pub fn offer(&self, head: usize, (x, y): (i32, i32), (width, height): (u32, u32)) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connection = connection::Builder::address(bus(&self.here).as_str()).build().await?;
            let path = format!("/org/qemu/Display1/Console_{head}");
            let name = "org.qemu.Display1.Console";
            // How large it is in millimetres is left to QEMU.
            let ask = (0_u16, 0_u16, x, y, width, height);
            connection.call_method(Some("org.qemu"), path.as_str(), Some(name), "SetUIInfo", &ask).await?;
            Ok(())
        })
    }

    /// A picture of a screen as QEMU has it, kept in `target/screens`. A screen that has just changed gets a moment, so that
    /// there is something to see: nothing is held against what is drawn.
    pub fn picture(&self, head: usize, name: &str) -> Result<PathBuf> {
        std::thread::sleep(DRAWN);
        let path = self.pictures.join(format!("{name}.png"));
        let ask = json!({ "filename": path, "format": "png", "device": "gpu", "head": head });
        self.guest.qmp("screendump", &ask)?;
        let bytes = std::fs::read(&path)?;
        ensure!(bytes.starts_with(b"\x89PNG"), "{} is no picture", path.display());
        Ok(path)
    }

    /// What the guest has said last.
    pub fn journal(&self) -> String {
        self.guest.check("journalctl -b -n 60 --no-pager").unwrap_or_default()
    }
}

fn bus(desktop: &Compositor) -> String {
    format!("unix:path={}", desktop.runtime().join("bus").display())
}

/// What the guest's tools call the way to its screens.
fn back_end(kind: Kind) -> &'static str {
    match kind {
        Kind::Sway => "sway",
        Kind::Labwc => "wlr-output-management",
        Kind::Mutter => "mutter",
        Kind::KWin => "kde-output-management",
        Kind::X11 => "randr",
    }
}

fn command(kind: Kind) -> &'static str {
    match kind {
        Kind::Sway => "/usr/bin/sway",
        Kind::Labwc => "/usr/bin/labwc -s foot",
        Kind::Mutter => "/usr/bin/mutter --wayland",
        Kind::KWin => "/usr/bin/kwin_wayland --xwayland --no-lockscreen --no-global-shortcuts",
        // By way of Xsession, which tells the user's services where the display is.
        Kind::X11 => {
            "/usr/bin/xinit /etc/X11/Xsession openbox -- /usr/bin/Xorg :0 vt1 -keeptty -nolisten tcp"
        }
    }
}
