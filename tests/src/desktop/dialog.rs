//! A program with a window that has one line of text in it: it copies and pastes as toolkits do.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Compositor, Kind, PATIENCE};
use crate::Deadline;

/// Which toolkit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolkit {
    /// GTK's, as GNOME's programs are: zenity.
    Gtk,
    /// Qt's, as KDE's programs are: kdialog.
    Qt,
}

/// A dialog on a desktop. Dropping it ends it.
#[derive(Debug)]
struct Dialog(Child);

impl Compositor {
    /// What such a program's user gets who presses Ctrl+V.
    pub fn paste_into(&self, toolkit: Toolkit) -> Result<String> {
        let mut dialog = self.open(toolkit, "")?;
        Deadline::after(PATIENCE).poll("the dialog to take the paste", || {
            // Until there is a window with the keyboard, nobody gets them. All is selected first, so that it makes no
            // difference how often.
            self.press(&["a", "v"], true)?;
            dialog.0.try_wait().context("a dialog is waited for")
        })?;
        let mut text = String::new();
        let mut output = dialog.0.stdout.take().context("the dialog has an output")?;
        std::io::Read::read_to_string(&mut output, &mut text)?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Has such a program's user copy this text with Ctrl+C, until `arrived` says so.
    pub fn copy_from(
        &self,
        toolkit: Toolkit,
        text: &str,
        mut arrived: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let _dialog = self.open(toolkit, text)?;
        Deadline::after(PATIENCE).poll("what was copied in the dialog to arrive", || {
            self.press(&["a", "c"], false)?;
            Ok(arrived()?.then_some(()))
        })
    }

    fn open(&self, toolkit: Toolkit, text: &str) -> Result<Dialog> {
        let mut command = match toolkit {
            Toolkit::Gtk => {
                let mut command = self.command("zenity");
                command.args(["--entry", "--entry-text", text]);
                command
            }
            Toolkit::Qt => {
                let mut command = self.command("kdialog");
                command.args(["--inputbox", "text", text]);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Dialog(command.spawn()?))
    }

    /// Presses Ctrl and each of these, and Enter after them or not.
    fn press(&self, letters: &[&str], enter: bool) -> Result<()> {
        let mut command: Command;
        if self.kind() == Kind::X11 {
            command = self.command("xdotool");
            command.arg("key").args(letters.iter().map(|letter| format!("ctrl+{letter}")));
            command.args(enter.then_some("Return"));
        } else {
            // A keyboard of its own, which the window has to notice first.
            command = self.command("wtype");
            command.args(["-s", "500", "-M", "ctrl"]);
            command.args(letters.iter().flat_map(|letter| ["-k", letter]));
            command.args(["-m", "ctrl"]).args(if enter { &["-k", "Return"][..] } else { &[] });
        }
        let pressed = command.stderr(Stdio::null()).status()?;
        ensure!(pressed.success(), "no key was pressed: {pressed}");
        Ok(())
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        // To timeout(1), which ends its child with it.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
