//! spice-vdagent in the same guest, on the same desktops, asked for the same.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::Deadline;
use integration_tests::desktop::{Kind, noise};
use integration_tests::screens::{PICTURE, Screens, TEXT};
use integration_tests::spice::Spice;

use crate::resize::Random;

/// How long it gets for one thing. What it can do takes it a second.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a desktop, and its own start, may take.
const START: Duration = Duration::from_secs(60);

/// Sizes that the VM's display offers.
const SIZES: usize = 10;

/// What it could do on one desktop.
pub(crate) struct Beside {
    kind: Kind,
    /// Text and a picture, to the guest and from it.
    clipboard: [bool; 4],
    /// A size that the SPICE client asks it for.
    monitor: bool,
    /// Sizes that the VM's display offers: how long each took, where the desktop follows by itself.
    window: Vec<Duration>,
}

impl Beside {
    /// Tells them all. Ours is not asked again: a desktop where it cannot do one of these has failed before.
    pub(crate) fn table(rows: &[Self]) {
        if rows.is_empty() {
            return;
        }
        println!(
            "\n| with spice-vdagent alone | text to the guest | text from it | a picture to it | a picture from it | a size the client asks for | a size the VM's display offers |"
        );
        println!("|---|---|---|---|---|---|---|");
        for row in rows {
            println!("{row}");
        }
    }

    fn followed(&self) -> String {
        match self.window.get(SIZES / 2) {
            Some(median) => format!("yes, by itself: median {:.2} s", median.as_secs_f32()),
            None => "no".to_owned(),
        }
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |can: bool| if can { "yes" } else { "no" };
        let [text_to, text_from, picture_to, picture_from] = self.clipboard.map(word);
        write!(
            f,
            "| {:?} | {text_to} | {text_from} | {picture_to} | {picture_from} | {} | {} |",
            self.kind,
            word(self.monitor),
            self.followed()
        )
    }
}

/// Lets it try. Ours is away from then on.
pub(crate) fn on(screens: &mut Screens, kind: Kind) -> Result<Beside> {
    screens.guest.check(
        "systemctl --global mask hospes-desktop; systemctl stop spice-vdagentd.socket spice-vdagentd",
    )?;
    screens.run_desktop(kind)?;
    let gone = screens.guest.sh("pgrep -x hospes-desktop")?;
    ensure!(gone.stdout.is_empty(), "hospes-desktop runs");
    let socket = screens.guest.socket("spice.sock");
    screens.guest.check("systemctl start spice-vdagentd.socket spice-vdagentd")?;
    let mut spice = Spice::connect(&socket)?;
    start_agent(screens)?;
    spice.meet(START).with_context(|| screens.journal())?;
    let mut clipboard = [false; 4];
    let picture = noise(300_000);
    for (n, (kind, bytes)) in [(TEXT, "über\n".as_bytes()), (PICTURE, &picture)].into_iter().enumerate() {
        clipboard[2 * n] = spice.offer(kind, bytes, LIMIT, || screens.can_paste(kind, bytes))?;
        spice.forget()?;
        let back = [bytes, b"back"].concat();
        screens.copy(kind, &back)?;
        clipboard[2 * n + 1] = spice.take(kind, LIMIT)?.as_deref() == Some(&back[..]);
    }
    let mut window = screens.window(0)?;
    spice.monitor(1404, 903)?;
    let monitor = window.becomes((1404, 903), LIMIT)?.is_some();
    let mut random = Random::new();
    let mut times = Vec::new();
    for _ in 0..SIZES {
        let size = random.size();
        window.ask(size.0, size.1)?;
        let Some(took) = window.becomes(size, LIMIT)? else { break };
        times.push(took);
    }
    times.sort();
    Ok(Beside { kind, clipboard, monitor, window: times })
}

/// As the desktop's autostart would, with what a session has in its environment.
fn start_agent(screens: &Screens) -> Result<()> {
    let cookie = match screens.kind()? {
        Kind::KWin => "XAUTHORITY=$(echo /run/user/1000/xauth_*)",
        _ => "XAUTHORITY=${XAUTHORITY:-}",
    };
    let session = if screens.kind()? == Kind::X11 { "x11" } else { "wayland" };
    screens.check(&format!(
        "export DISPLAY=${{DISPLAY:-:0}} {cookie} XDG_SESSION_TYPE={session}
         systemctl --user import-environment DISPLAY XAUTHORITY XDG_SESSION_TYPE ${{WAYLAND_DISPLAY:+WAYLAND_DISPLAY}}
         systemctl --user restart spice-vdagent"
    ))?;
    let started = Deadline::after(START).poll("spice-vdagent", || {
        Ok((screens.user("systemctl --user is-active spice-vdagent && pgrep -x spice-vdagent")?.status == 0)
            .then_some(()))
    });
    started.with_context(|| screens.journal())?;
    // It tells nobody when it is ready.
    std::thread::sleep(Duration::from_secs(5));
    Ok(())
}
