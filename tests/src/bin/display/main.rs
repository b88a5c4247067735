//! `make test-display`: a booted guest with a real desktop on virtio-gpu, whose screens follow QEMU's. Sizes are asked for
//! by VNC, as a window does whose edge is dragged; what becomes of them is told by QEMU, by programs in the guest that no
//! one here wrote, and by pictures, which are kept in `target/screens`.
//!
//! Then ours goes, and spice-vdagent is asked for the same in the same guest.
//!
//! With `kernel PATH` the driver of `kernel-patches/` is looked at instead.
//!
//! `DISPLAY_ON=sway,labwc` runs some desktops alone, `DISPLAY_SIZES=10` so many sizes.

mod beside;
mod kernel;
mod resize;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::{Kind, noise};
use integration_tests::screens::{PICTURE, Screens, TEXT};
use integration_tests::{GuestSpec, Lab, spice};

use self::beside::Beside;
use self::resize::Row;

/// The desktops, and how many sizes each is asked for: one that takes seconds for each is asked for fewer.
const DESKTOPS: [(Kind, usize); 5] =
    [(Kind::Labwc, 100), (Kind::Sway, 100), (Kind::X11, 100), (Kind::Mutter, 10), (Kind::KWin, 10)];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("display: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every desktop did all of it.
fn run() -> Result<bool> {
    let mut words = std::env::args().skip(1);
    let part = words.next();
    if part.as_deref() == Some("kernel") {
        let module = words.next().context("usage: display kernel PATH, of the driver that was built")?;
        return kernel::run(Path::new(&module)).map(|()| true);
    }
    let does = |name: &str| part.as_deref().is_none_or(|part| part == name);
    let only = std::env::var("DISPLAY_ON").ok();
    let wanted = |kind: Kind| {
        let name = format!("{kind:?}").to_lowercase();
        only.as_ref().is_none_or(|only| only.split(',').any(|word| word == name))
    };
    let count = std::env::var("DISPLAY_SIZES").ok().map(|number| number.parse()).transpose()?;
    let spec = GuestSpec::new("display").installed(Lab::package()?).installed(Lab::desktop_package()?);
    let mut screens = Screens::boot(spec.qemu(spice::WORDS))?;
    let (mut rows, mut failed) = (Vec::new(), false);
    for (kind, sizes) in DESKTOPS.into_iter().filter(|(kind, _)| wanted(*kind) && does("resize")) {
        match on(&mut screens, kind, count.unwrap_or(sizes)) {
            Ok(row) => rows.push(row),
            Err(error) => {
                println!("{kind:?}: {error:#}");
                failed = true;
            }
        }
    }
    let mut others = Vec::new();
    for (kind, _) in DESKTOPS.into_iter().filter(|(kind, _)| wanted(*kind) && does("spice")) {
        match beside::on(&mut screens, kind) {
            Ok(row) => {
                println!("{row}");
                others.push(row);
            }
            Err(error) => {
                println!("{kind:?}, spice-vdagent: {error:#}");
                failed = true;
            }
        }
    }
    Row::table(&rows);
    Beside::table(&others);
    if !failed {
        screens.guest.hush();
    }
    Ok(!failed)
}

fn on(screens: &mut Screens, kind: Kind, sizes: usize) -> Result<Row> {
    screens.start(kind)?;
    let state = screens.state()?;
    println!("{kind:?}: screens are reached by {}. {}", state["back_end"], state["why"]);
    clipboard(screens).context("the clipboard")?;
    println!("{kind:?}: text and a picture were copied and pasted both ways");
    let row = resize::follow(screens, sizes)?;
    println!("{kind:?}: {row}");
    resize::asked(screens).context("sizes that the host asked for")?;
    resize::second(screens).context("the second screen")?;
    println!("{kind:?}: a second screen came, was placed, and followed");
    Ok(row)
}

/// What is copied on one side is pasted on the other.
fn clipboard(screens: &Screens) -> Result<()> {
    let here = &screens.here;
    let picture = noise(300_000);
    for (n, (kind, bytes)) in [(TEXT, "über\n".as_bytes()), (PICTURE, &picture)].into_iter().enumerate() {
        let _copied = here.copy(kind, bytes, &[])?;
        screens.pastes(kind, bytes).with_context(|| format!("{kind}, host to guest"))?;
        let back = [bytes, &[b'0' + u8::try_from(n)?]].concat();
        screens.copy(kind, &back)?;
        here.pastes(kind, &back, &[]).with_context(|| format!("{kind}, guest to host"))?;
    }
    ensure!(here.types(&[])?.iter().any(|kind| kind == PICTURE), "a picture is not offered as one");
    Ok(())
}
