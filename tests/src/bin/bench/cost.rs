//! What the daemon costs while nothing happens, and the package on the disk.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::rig::Rig;
use crate::row::Row;

const IDLE: Duration = Duration::from_secs(60);

pub(crate) fn measure(rig: &mut Rig) -> Result<Vec<Row>> {
    // The worker of the commands before goes: what is measured is the daemon, with one host's control session.
    let before = [wakeups(rig, "hospes-toolsd")?, wakeups(rig, "qemu-guest-agent")?];
    thread::sleep(IDLE);
    let after = [wakeups(rig, "hospes-toolsd")?, wakeups(rig, "qemu-guest-agent")?];
    let [ours, qga] = [after[0] - before[0], after[1] - before[1]];
    let rss = [rss(rig, "hospes-toolsd")?, rss(rig, "qemu-guest-agent")?];
    let installed: f64 =
        number(&rig.guest.check("dpkg-query -W -f '${Installed-Size}' hospes-tools")?)? / 1024.0;
    let peer: f64 =
        number(&rig.guest.check("dpkg-query -W -f '${Installed-Size}' qemu-guest-agent")?)? / 1024.0;
    Ok(vec![
        Row::new("cost", "the daemon's wake-ups in 60 s, idle", "wake-ups", ours)
            .peer("qemu-ga", qga)
            .bar("0".to_owned(), ours == 0.0),
        Row::new("cost", "the daemon's resident memory", "MiB", rss[0])
            .peer("qemu-ga", rss[1])
            .bar("≤ 6".to_owned(), rss[0] <= 6.0),
        Row::new("cost", "the package, installed", "MiB", installed)
            .peer("qemu-guest-agent", peer)
            .bar("≤ 8".to_owned(), installed <= 8.0),
    ])
}

/// How often its threads gave up the processor by themselves: each sleep that ended is one wake-up.
fn wakeups(rig: &Rig, unit: &str) -> Result<f64> {
    number(&rig.guest.check(&format!(
        "awk '/^voluntary_ctxt_switches/ {{ n += $2 }} END {{ print n }}' \
         /proc/$(systemctl show -P MainPID {unit})/task/*/status"
    ))?)
}

fn rss(rig: &Rig, unit: &str) -> Result<f64> {
    let kib = rig
        .guest
        .check(&format!("awk '/^VmRSS/ {{ print $2 }}' /proc/$(systemctl show -P MainPID {unit})/status"))?;
    Ok(number(&kib)? / 1024.0)
}

fn number(text: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("{text:?} is no number"))
}
