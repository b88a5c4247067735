//! The programs that the guest's user has on their desktop, and which nobody here wrote.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Screens, USER};
use crate::desktop::Kind;
use crate::{Deadline, Output};

/// Text, as it is copied.
pub const TEXT: &str = "text/plain;charset=utf-8";
/// A picture.
pub const PICTURE: &str = "image/png";
/// Files, as every file manager copies them.
pub const FILES: &str = "text/uri-list";
/// Of one paste.
const PATIENCE: Duration = Duration::from_secs(60);

impl Screens {
    /// Runs a script as the user at the screen, in their session.
    pub fn user(&self, script: &str) -> Result<Output> {
        let environment = match self.kind()? {
            Kind::Sway => "WAYLAND_DISPLAY=wayland-1 SWAYSOCK=$(echo /run/user/1000/sway-ipc.*)",
            Kind::Labwc | Kind::KWin => "WAYLAND_DISPLAY=wayland-0",
            // Programs without a window copy and paste by X there.
            Kind::Mutter => {
                "WAYLAND_DISPLAY=wayland-0 DISPLAY=:0 XAUTHORITY=$(echo /run/user/1000/.mutter-Xwaylandauth.*)"
            }
            Kind::X11 => "DISPLAY=:0",
        };
        let quoted = script.replace('\'', r"'\''");
        self.guest.sh(&format!(
            "runuser -u {USER} -- env XDG_RUNTIME_DIR=/run/user/1000 \
             DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus {environment} timeout 60 bash -c '{quoted}'"
        ))
    }

    /// As [`user`](Self::user), of what has to succeed.
    pub fn check(&self, script: &str) -> Result<String> {
        let output = self.user(script)?;
        ensure!(
            output.status == 0,
            "In the guest, this ended with {}: {script}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// What such a program says of the screens.
    pub fn look(&self) -> Result<String> {
        self.check(look(self.kind()?))
    }

    /// Whether such a program says that a screen has this size now.
    pub fn shows(&self, (width, height): (u16, u16)) -> Result<bool> {
        let kind = self.kind()?;
        let told = self.look()?;
        Ok(told.lines().any(|line| match kind {
            Kind::Sway | Kind::Labwc => {
                line.contains("current") && line.contains(&format!(" {width}x{height} px"))
            }
            // Its own program needs Qt's plugin for Wayland: QEMU has to be believed.
            Kind::KWin => true,
            // Its list marks the current one, its summary tells it.
            Kind::Mutter => line.contains(&format!("{width}x{height}")),
            Kind::X11 => line.contains('*') && line.contains(&format!("{width}x{height}")),
        }))
    }

    /// Sets the first screen's scale as its user does, or on KWin the host; false where the desktop has none.
    pub fn set_scale(&self, scale: u32) -> Result<bool> {
        let script = match self.kind()? {
            Kind::Labwc => format!("wlr-randr --output Virtual-1 --scale {scale}"),
            Kind::Sway => format!("swaymsg output Virtual-1 scale {scale}"),
            Kind::Mutter => format!("gdctl set -L -M Virtual-1 --primary --scale {scale}"),
            Kind::KWin => String::new(),
            Kind::X11 => return Ok(false),
        };
        if script.is_empty() {
            let scale = format!("@{scale}");
            self.host.run(&["display", "vm", "--output", "Virtual-1", &scale])?.text()?;
        } else {
            self.check(&script)?;
        }
        Deadline::after(PATIENCE).poll("the scale that the user set", || {
            Ok((self.screen(0)?["scale"] == f64::from(scale)).then_some(()))
        })?;
        Ok(true)
    }

    /// Copies these bytes in the guest.
    pub fn copy(&self, kind: &str, bytes: &[u8]) -> Result<()> {
        let file = "/tmp/copied";
        self.guest.put(file, 0o644, bytes)?;
        let program = if self.copies_by_x()? { "xclip -in -selection clipboard" } else { "wl-copy" };
        self.check(&format!("{program} -t '{kind}' <{file} >/dev/null 2>&1")).map(drop)
    }

    /// Waits until these bytes can be pasted in the guest.
    pub fn pastes(&self, kind: &str, bytes: &[u8]) -> Result<()> {
        let pasted = Deadline::after(PATIENCE).poll("what was copied to be pasted in the guest", || {
            Ok(self.can_paste(kind, bytes)?.then_some(()))
        });
        pasted.with_context(|| self.journal())
    }

    /// What can be pasted in the guest now, as text; nothing where nothing can be.
    pub fn paste(&self, kind: &str) -> Result<String> {
        let program = self.pasting()?;
        Ok(self.user(&format!("timeout 5 {program} -t '{kind}'"))?.stdout)
    }

    /// Whether these bytes can be pasted in the guest.
    pub fn can_paste(&self, kind: &str, bytes: &[u8]) -> Result<bool> {
        let program = self.pasting()?;
        let wanted = "/tmp/wanted";
        self.guest.put(wanted, 0o644, bytes)?;
        Ok(self.user(&format!("timeout 5 {program} -t '{kind}' | cmp - {wanted}"))?.status == 0)
    }

    fn pasting(&self) -> Result<&'static str> {
        Ok(if self.copies_by_x()? { "xclip -out -selection clipboard" } else { "wl-paste --no-newline" })
    }

    fn copies_by_x(&self) -> Result<bool> {
        Ok(matches!(self.kind()?, Kind::Mutter | Kind::X11))
    }
}

/// What lists the screens.
pub(super) fn look(kind: Kind) -> &'static str {
    match kind {
        Kind::Sway | Kind::Labwc => "wlr-randr",
        Kind::Mutter => "gdctl show",
        Kind::KWin => "test -S /run/user/1000/wayland-0 && pgrep -l kwin_wayland",
        Kind::X11 => "xrandr",
    }
}
