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

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::{Kind, noise};
use integration_tests::screens::{FILES, PICTURE, Screens, TEXT};
use integration_tests::{Deadline, GuestSpec, Lab, spice};

use self::beside::Beside;
use self::resize::Row;

/// The desktops, and how many sizes each is asked for: one that takes seconds for each is asked for fewer.
const DESKTOPS: [(Kind, usize); 5] =
    [(Kind::Labwc, 100), (Kind::Sway, 100), (Kind::X11, 100), (Kind::Mutter, 10), (Kind::KWin, 10)];

/// How long a copy may take to cross.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let mut screens = Screens::boot(spec.folders([]).qemu(spice::WORDS))?;
    let shared = shared(&screens);
    std::fs::create_dir(&shared)?;
    screens.host.run(&["share", "add", "vm", &shared.display().to_string()])?.text()?;
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
    files(screens).context("files in the clipboard")?;
    println!("{kind:?}: text, a picture and files were copied and pasted both ways");
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

/// A file that is copied on one side is read on the other, where it is shown.
fn files(screens: &Screens) -> Result<()> {
    let bytes = noise(3_000_000);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("from-the-host.bin");
    std::fs::write(&file, &bytes)?;
    let _copied = screens.here.copy(FILES, format!("file://{}\r\n", file.display()).as_bytes(), &[])?;
    let lies = Deadline::after(PATIENCE).poll("the host's file to be pasted in the guest", || {
        Ok(named(&screens.paste(FILES)?, "from-the-host.bin"))
    })?;
    screens.guest.put("/tmp/wanted", 0o644, &bytes)?;
    screens.check(&format!("cmp '{lies}' /tmp/wanted && cp '{lies}' /tmp/from-the-guest.bin"))?;
    screens.copy(FILES, b"file:///tmp/from-the-guest.bin\r\n")?;
    let lies = Deadline::after(PATIENCE).poll("the guest's file to be pasted here", || {
        let list = screens.here.paste(FILES, &[])?.unwrap_or_default();
        Ok(named(str::from_utf8(&list)?, "from-the-guest.bin"))
    })?;
    ensure!(std::fs::read(&lies)? == bytes, "{lies} is not what was copied");
    // What lies in a shared folder is there already, under the other's name for it.
    let (here, there) = (shared(screens).join("shared.txt"), "/mnt/hospes/shared/shared.txt");
    std::fs::write(&here, "shared\n")?;
    let _copied = screens.here.copy(FILES, format!("file://{}\r\n", here.display()).as_bytes(), &[])?;
    Deadline::after(PATIENCE).poll("the guest's own name for a shared file", || {
        Ok(named(&screens.paste(FILES)?, "shared.txt").filter(|path| path == there))
    })?;
    ensure!(screens.check(&format!("cat {there}"))? == "shared\n", "{there} is another file");
    screens.copy(FILES, format!("file://{there}\r\n").as_bytes())?;
    Deadline::after(PATIENCE).poll("the host's own name for a shared file", || {
        let list = screens.here.paste(FILES, &[])?.unwrap_or_default();
        Ok(named(str::from_utf8(&list)?, "shared.txt").filter(|path| Path::new(path) == here))
    })?;
    Ok(())
}

/// A folder of the host's that the guest has too.
fn shared(screens: &Screens) -> PathBuf {
    screens.host.home().join("shared")
}

/// Where the file of this name lies, in a list of files.
fn named(list: &str, name: &str) -> Option<String> {
    let paths = list.lines().filter_map(|line| line.trim().strip_prefix("file://"));
    paths.filter(|path| path.ends_with(name)).map(str::to_owned).next()
}
