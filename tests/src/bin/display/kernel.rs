//! `kernel-patches/`'s driver in a guest whose kernel it was built for: what modetest, which nobody here wrote, reads of
//! its connectors while QEMU's display changes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::screens::Screens;
use integration_tests::{Guest, GuestSpec};

/// The properties, as the driver names them.
const WANTED: [&str; 3] = ["hotplug_mode_update", "suggested X", "suggested Y"];

/// Loads it and looks.
pub(crate) fn run(module: &Path) -> Result<()> {
    let bytes = std::fs::read(module)
        .with_context(|| format!("{} is missing: run kernel-patches/build.sh", module.display()))?;
    let screens = Screens::boot(GuestSpec::new("kernel"))?;
    let guest = &screens.guest;
    let release = guest.check("uname -r")?;
    for name in WANTED {
        ensure!(
            property(guest, 0, name)?.is_none(),
            "the distribution's driver has {name} already: the patch can go"
        );
    }
    // Where a driver of one's own takes the place of the kernel's. It is loaded at the next boot.
    let folder = format!("/lib/modules/{}/updates", release.trim());
    guest.check(&format!("mkdir -p {folder}"))?;
    guest.put(&format!("{folder}/virtio-gpu.ko"), 0o644, &bytes)?;
    let built_for = guest.check(&format!("modinfo -F vermagic {folder}/virtio-gpu.ko"))?;
    ensure!(
        built_for.split_whitespace().next() == Some(release.trim()),
        "the driver is of {built_for}and the guest runs {release}`make clean-lab` makes it anew, of Debian's newest"
    );
    guest.check_within("depmod && sync", Duration::from_secs(120))?;
    guest.reboots(|guest| guest.sh("systemctl --no-block reboot").map(drop))?;
    let from = guest.check("modinfo -n virtio_gpu")?;
    ensure!(from.contains("updates"), "the driver comes from {from}");
    println!("kernel: {} runs {}", release.trim(), from.trim());
    // That it is not the distribution's is a warning; an error is the driver's own.
    let errors = guest.sh("dmesg --level=emerg,alert,crit,err | grep -i -e virtio_gpu -e drm")?.stdout;
    ensure!(errors.is_empty(), "{errors}");

    // QEMU leaves a scanout's place out of its display info, whatever its window says: all that can be seen there is that
    // the properties are there, and hold what it sends.
    for size in [(1000, 700), (1111, 777)] {
        screens.offer(1, (1280, 40), size)?;
        for head in 0..2 {
            let told = WANTED.map(|name| property(guest, head, name));
            let [follows, x, y] = told;
            ensure!(follows? == Some(1), "connector {head} does not say that its modes follow");
            ensure!((x?, y?) == (Some(0), Some(0)), "connector {head} is not where QEMU says");
        }
    }
    println!("kernel: {}: on both connectors, before and after a change", WANTED.join(", "));
    screens.guest.hush();
    Ok(())
}

/// The value of a connector's property, as modetest lists it: `ID NAME:`, and a line `value: N` beneath.
fn property(guest: &Guest, head: usize, name: &str) -> Result<Option<i32>> {
    let listed = guest.check("modetest -M virtio_gpu -c 2>/dev/null")?;
    let mut connector = None;
    let mut mine = false;
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(number) = words.iter().find_map(|word| word.strip_prefix("Virtual-")) {
            connector = number.parse::<usize>().ok();
        }
        if line.trim_end().ends_with(':') && words.first().is_some_and(|word| word.parse::<u32>().is_ok()) {
            mine = connector == Some(head + 1) && line.contains(&format!(" {name}:"));
        }
        if mine && let Some(value) = line.trim().strip_prefix("value:") {
            return Ok(value.trim().parse().ok());
        }
    }
    Ok(None)
}
