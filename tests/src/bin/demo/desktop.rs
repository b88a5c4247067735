//! A guest with a screen: labwc and sway on virtio-gpu, a window of theirs on this machine, and this machine's own desktop.
//! The pictures that QEMU takes of the screen are kept in `target/screens`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::Kind;
use integration_tests::screens::{Screens, TEXT};
use integration_tests::{GuestSpec, Lab, Vnc};

use crate::story::{Say, Story};

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn tell(story: &mut Story) -> Result<()> {
    let mut screens =
        story.must("A guest with a screen boots, and gets both packages by apt install", |say| {
            let packages = [Lab::package()?, Lab::desktop_package()?];
            say.typed("(in the guest) apt install ./hospes-tools_*.deb ./hospes-desktop_*.deb");
            let spec = packages.into_iter().fold(GuestSpec::new("demo-desktop"), GuestSpec::installed);
            Screens::boot(spec)
        })?;
    for kind in [Kind::Labwc, Kind::Sway] {
        chapter(story, &mut screens, kind)?;
    }
    if !story.failed {
        screens.guest.hush();
    }
    Ok(())
}

fn chapter(story: &mut Story, screens: &mut Screens, kind: Kind) -> Result<()> {
    let name = format!("{kind:?}").to_lowercase();
    story.must(&format!("{name} starts on virtio-gpu, and its screen is found"), |say| {
        say.typed(&format!("(in the guest, at the screen) {name}"));
        screens.start(kind)?;
        say.run(&screens.host, &["display", "vm"])?.text().map(drop)
    })?;
    let screens = &*screens;
    story.step(&format!("{name}: what is copied here is pasted there"), |say| {
        say.typed("(here) wl-copy 'from the host'");
        let _copied = screens.here.copy(TEXT, b"from the host", &[])?;
        screens.pastes(TEXT, b"from the host")?;
        if kind == Kind::Sway {
            // Something to see: labwc starts with it.
            screens.check("swaymsg exec foot")?;
        }
        say.typed("(in the guest) wl-paste");
        say.printed(&screens.check("wl-paste")?);
        Ok(())
    });
    story.step(&format!("{name}: what is copied there is pasted here"), |say| {
        say.typed("(in the guest) wl-copy 'from the guest'");
        screens.copy(TEXT, b"from the guest")?;
        screens.here.pastes(TEXT, b"from the guest", &[])?;
        say.typed("(here) wl-paste");
        let pasted = screens.here.paste(TEXT, &[])?.context("nothing can be pasted")?;
        say.printed(&String::from_utf8_lossy(&pasted));
        Ok(())
    });
    story.step(&format!("{name}: the window is dragged, and the screen follows"), |say| {
        let mut window = screens.window(0)?;
        for (at, size) in [(1024, 700), (1600, 900), (1333, 777)].into_iter().enumerate() {
            drag(say, &mut window, size)?;
            screens.agree(0, size, LIMIT)?;
            say.printed(&screens.picture(0, &format!("demo-{name}-{at}"))?.display().to_string());
        }
        say.run(&screens.host, &["display", "vm"])?.text().map(drop)
    });
    story.step(&format!("{name}: its user's scale outlives every size"), |say| {
        let mut window = screens.window(0)?;
        say.typed("(in the guest) the user sets a scale of 2");
        screens.set_scale(2)?;
        drag(say, &mut window, (2000, 1200))?;
        let screen = screens.screen(0)?;
        ensure!(screen["scale"] == 2.0, "{screen}");
        say.printed(&screens.picture(0, &format!("demo-{name}-scale"))?.display().to_string());
        say.run(&screens.host, &["display", "vm"])?.text()?;
        screens.set_scale(1).map(drop)
    });
    story.step(&format!("{name}: a size that no window has, and back"), |say| {
        say.run(&screens.host, &["display", "vm", "1234x567"])?.text()?;
        screens.agree(0, (1234, 567), LIMIT)?;
        say.run(&screens.host, &["display", "vm", "--follow"])?.text()?;
        screens.agree(0, (2000, 1200), LIMIT)
    });
    Ok(())
}

/// As a hand does that drags a window's edge: many sizes on the way, and one at the end.
fn drag(say: &Say, window: &mut Vnc, (width, height): (u16, u16)) -> Result<()> {
    say.typed(&format!("(here) the window is dragged to {width}x{height}"));
    for step in (0..10).rev() {
        window.ask(width + step * 7, height + step * 3)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = window.becomes((width, height), LIMIT)?.context("the screen did not follow")?;
    say.printed(&format!("the screen has it {:.2} s after the last of ten sizes", took.as_secs_f32()));
    Ok(())
}
