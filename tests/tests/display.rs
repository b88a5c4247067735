//! The guest's screens become what the host asks for: real compositors without a screen, a real helper and daemon.

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::{Compositor, Kind, helper};
use integration_tests::{Beside, Deadline, Host, Process, Ran};
use serde_json::Value;

/// A guest's desktop, and a host that reaches it.
struct Rig {
    desktop: Compositor,
    host: Host,
    guest: Beside,
    helper: Process,
}

impl Rig {
    fn start(kind: Kind) -> Result<Self> {
        let desktop = Compositor::start(kind)?;
        let guest = Beside::start("")?;
        let helper = helper(&guest, &desktop)?;
        let rig = Self { desktop, host: guest.host()?, guest, helper };
        rig.ready()?;
        Ok(rig)
    }

    /// Waits until the screens are there.
    fn ready(&self) -> Result<()> {
        Deadline::after(std::time::Duration::from_secs(60)).poll("the guest's screens", || {
            let state = self.host.run(&["display", "vm", "--json"])?;
            Ok((state.status == 0 && state.text()?.contains("\"name\"")).then_some(()))
        })
    }

    fn display(&self, words: &[&str]) -> Result<Ran> {
        self.host.run(&[&["display", "vm"], words].concat())
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.display(&["--json"])?.text()?)?)
    }

    /// The first screen, as the guest tells it.
    fn screen(&self) -> Result<Value> {
        Ok(self.state()?["outputs"][0].clone())
    }

    /// What a program that no one here wrote says of the screens.
    fn look(&self) -> Result<String> {
        let words: &[&str] = match self.desktop.kind() {
            Kind::Sway | Kind::Labwc => &["wlr-randr"],
            Kind::Mutter => &["gdctl", "show"],
            Kind::KWin => &["kscreen-doctor", "-o"],
            Kind::X11 => &["xrandr"],
        };
        let output = self.desktop.command(words[0]).args(&words[1..]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("DISPLAY_LOG").is_some() {
            let guest = self.guest.log().unwrap_or_default();
            eprintln!("--- helper\n{}--- daemon\n{guest}", self.helper.output());
            eprintln!("--- screens\n{}", self.look().unwrap_or_default());
        }
    }
}

/// Tells sway something, as its user does.
fn swaymsg(desktop: &Compositor, words: &str) -> Result<std::process::Output> {
    let mut sockets = std::fs::read_dir(desktop.runtime())?.flatten().map(|entry| entry.path());
    let socket = sockets.find(|path| path.to_string_lossy().contains("sway-ipc")).context("its socket")?;
    let socket = socket.display().to_string();
    Ok(desktop.command("swaymsg").args(["-s", &socket, "--", words]).output()?)
}

/// Whether wlr-randr says that a screen is so.
fn wlr_shows(text: &str, size: &str, scale: &str, position: &str) -> bool {
    let current = text.lines().any(|line| line.contains("current") && line.contains(&format!("{size} px")));
    current && text.contains(&format!("Scale: {scale}")) && text.contains(&format!("Position: {position}"))
}

fn a_wlroots_compositor_is_set(kind: Kind, back_end: &str) -> Result<()> {
    let rig = Rig::start(kind)?;
    let state = rig.state()?;
    ensure!(state["back_end"] == back_end, "{state}");
    for (size, scale) in [("1733x911", "1"), ("2560x1600", "2"), ("801x601", "1.5"), ("3840x2160", "1.25")] {
        rig.display(&[&format!("{size}@{scale}"), "--position", "30,40"])?.text()?;
        let seen = rig.look()?;
        ensure!(wlr_shows(&seen, size, scale, "30,40"), "{size}@{scale}: {seen}");
    }
    // The scale stays where the size alone changes, and the size where the scale alone does.
    rig.display(&["1024x700"])?.text()?;
    ensure!(wlr_shows(&rig.look()?, "1024x700", "1.25", "30,40"));
    rig.display(&["@1"])?.text()?;
    ensure!(wlr_shows(&rig.look()?, "1024x700", "1", "30,40"));
    ensure!(rig.screen()?["rule"] == "host");
    // A compositor that is started anew is told again.
    let mut rig = rig;
    rig.desktop.restart()?;
    Deadline::after(std::time::Duration::from_secs(60)).poll("the size to come back", || {
        Ok(wlr_shows(&rig.look()?, "1024x700", "1", "30,40").then_some(()))
    })?;
    rig.ready()?;
    rig.display(&["--follow"])?.text()?;
    ensure!(rig.screen()?["rule"] == "display");
    Ok(())
}

#[test]
fn labwc_is_set() -> Result<()> {
    a_wlroots_compositor_is_set(Kind::Labwc, "wlr-output-management")
}

#[test]
fn sway_is_set() -> Result<()> {
    a_wlroots_compositor_is_set(Kind::Sway, "sway")
}

#[test]
fn mutter_has_what_it_lists_and_says_so() -> Result<()> {
    let rig = Rig::start(Kind::Mutter)?;
    let state = rig.state()?;
    ensure!(state["back_end"] == "mutter" && state["outputs"][0]["size"]["width"] == 1280, "{state}");
    let refused = rig.display(&["1733x911"])?;
    ensure!(
        refused.status == 1 && refused.stderr.contains("lists no mode of 1733x911"),
        "{}: {}",
        refused.status,
        refused.stderr
    );
    // What it lists, it has: the size that it is at, told as the host's.
    rig.display(&["1280x800@1"])?.text()?;
    ensure!(rig.screen()?["rule"] == "host" && rig.screen()?["problem"].is_null());
    ensure!(rig.look()?.contains("1280x800"), "{}", rig.look()?);
    rig.display(&["--follow"])?.text()?;
    ensure!(rig.screen()?["rule"] == "display");
    Ok(())
}

#[test]
fn kwin_is_set_as_far_as_its_release_goes() -> Result<()> {
    let rig = Rig::start(Kind::KWin)?;
    let state = rig.state()?;
    ensure!(state["back_end"] == "kde-output-management", "{state}");
    for scale in [2.0, 1.5, 1.0] {
        rig.display(&[&format!("@{scale}")])?.text()?;
        ensure!(rig.screen()?["scale"] == scale, "{}", rig.state()?);
    }
    let asked = rig.display(&["1733x911"])?;
    let screen = rig.screen()?;
    if asked.status == 0 {
        // One that takes sizes of one's own rounds widths to multiples of eight, and says so.
        let width = screen["size"]["width"].as_u64().context("a width")?;
        ensure!((1726..=1740).contains(&width) && screen["size"]["height"] == 911, "{screen}");
        ensure!(width == 1733 || asked.stderr.contains("nearest"), "{}", asked.stderr);
    } else {
        ensure!(asked.status == 1 && asked.stderr.contains("lists no mode"), "{}", asked.stderr);
        ensure!(screen["size"]["width"] == 1280, "{screen}");
    }
    Ok(())
}

#[test]
fn an_x_server_is_set_and_keeps_no_modes_of_ours() -> Result<()> {
    let rig = Rig::start(Kind::X11)?;
    let state = rig.state()?;
    ensure!(state["back_end"] == "randr", "{state}");
    // Larger than it was begun, Xvfb has nothing.
    for size in ["1001x701", "801x601", "333x222", "1280x800"] {
        rig.display(&[size])?.text()?;
        let seen = rig.look()?;
        ensure!(seen.contains(&format!("current {}", size.replace('x', " x "))), "{size}: {seen}");
    }
    let modes = rig.look()?.lines().filter(|line| line.contains("hospes-")).count();
    ensure!(modes <= 1, "{}", rig.look()?);
    let scale = rig.display(&["@2"])?;
    ensure!(scale.status == 125 && scale.stderr.contains("no scale"), "{}", scale.stderr);
    let large = rig.display(&["1900x1000"])?;
    ensure!(large.status == 1, "{}", large.stderr);
    ensure!(rig.look()?.contains("current 1280 x 800"));
    Ok(())
}

#[test]
fn several_screens_are_set_by_name_and_stay_neighbours() -> Result<()> {
    let sway = Rig::start(Kind::Sway)?;
    let made = swaymsg(&sway.desktop, "create_output")?;
    ensure!(made.status.success(), "{made:?}");
    Deadline::after(std::time::Duration::from_secs(30)).poll("the second screen", || {
        Ok((sway.state()?["outputs"].as_array().context("screens")?.len() == 2).then_some(()))
    })?;
    let unnamed = sway.display(&["800x600"])?;
    ensure!(unnamed.status != 0 && unnamed.stderr.contains("HEADLESS-1, HEADLESS-2"), "{}", unnamed.stderr);
    let wrong = sway.display(&["800x600", "--output", "HEADLESS-9"])?;
    ensure!(wrong.status != 0 && wrong.stderr.contains("HEADLESS-9"), "{}", wrong.stderr);
    sway.display(&["1000x600", "--output", "HEADLESS-1", "--position", "0,0"])?.text()?;
    sway.display(&["800x600@2", "--output", "HEADLESS-2", "--position", "1000,100"])?.text()?;
    let state = sway.state()?;
    let place = |at: usize| {
        let output = &state["outputs"][at];
        (output["size"].clone(), output["position"].clone())
    };
    ensure!(place(1).1 == serde_json::json!({"x": 1000, "y": 100}), "{state}");
    ensure!(place(0).0 == serde_json::json!({"width": 1000, "height": 600}), "{state}");
    Ok(())
}

#[test]
fn what_the_user_chooses_is_theirs_until_the_host_lets_it_follow() -> Result<()> {
    for kind in [Kind::Labwc, Kind::Sway] {
        let rig = Rig::start(kind)?;
        rig.display(&["1500x700"])?.text()?;
        let name = rig.screen()?["name"].as_str().context("a name")?.to_owned();
        let chosen = match kind {
            Kind::Sway => {
                swaymsg(&rig.desktop, &format!("output {name} mode --custom 1111x777@60Hz scale 1.5"))?
            }
            _ => rig
                .desktop
                .command("wlr-randr")
                .args(["--output", &name, "--custom-mode", "1111x777@60", "--scale", "1.5"])
                .output()?,
        };
        ensure!(chosen.status.success(), "{chosen:?}");
        Deadline::after(std::time::Duration::from_secs(30)).poll("the choice to be told", || {
            let screen = rig.screen()?;
            Ok((screen["size"]["width"] == 1111 && screen["rule"] == "user").then_some(()))
        })?;
        ensure!(rig.screen()?["scale"] == 1.5);
        // A size from the host keeps the scale that the user chose.
        rig.display(&["1300x700"])?.text()?;
        ensure!(wlr_shows(&rig.look()?, "1300x700", "1.5", ""), "{}", rig.look()?);
        rig.display(&["--follow"])?.text()?;
        ensure!(rig.screen()?["rule"] == "display");
    }
    Ok(())
}

#[test]
fn a_size_that_no_screen_can_have_is_refused_before_anybody_is_asked() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    for size in ["1x1", "8192x4320", "99999x99999", "100"] {
        let refused = host.run(&["display", "vm", size])?;
        ensure!(refused.status == 125 && refused.stderr.contains(size.split('x').next().unwrap_or_default()));
    }
    let nobody = host.run(&["display", "vm"])?;
    ensure!(nobody.status == 125 && nobody.stderr.contains("No desktop"), "{}", nobody.stderr);
    let guest = Beside::start("[verbs]\ndisplay = false\n")?;
    let refused = guest.host()?.run(&["display", "vm"])?;
    ensure!(refused.status == 125 && refused.stderr.contains("[verbs] display"), "{}", refused.stderr);
    Ok(())
}
