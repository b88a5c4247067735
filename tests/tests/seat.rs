//! Whose clipboard it is: several users with a desktop each, one screen, and a host that shares with the guest.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::desktop::{Compositor, Kind, Logind, Sitting, helper_of};
use integration_tests::{Beside, Deadline, Host, Process};

const TEXT: &str = "text/plain;charset=utf-8";
const ADA: u32 = 65_532;
const EVE: u32 = 65_533;
const WAIT: Duration = Duration::from_secs(30);

/// Two users' desktops, and a host that shares its own.
struct House {
    logind: Logind,
    ada: Compositor,
    eve: Compositor,
    host: Host,
    here: Compositor,
    guest: Beside,
    helpers: [Process; 2],
}

impl House {
    fn start() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "The users of this test are made by root: run it as root");
        let (ada, eve) = (Compositor::start_as(Kind::Sway, ADA)?, Compositor::start_as(Kind::Labwc, EVE)?);
        let here = Compositor::sway()?;
        let bus = format!("unix:path={}/bus", here.runtime().display());
        let logind = Logind::start(&bus)?;
        let guest = Beside::seated("[users]\nallow = [\"*\"]\n", &bus)?;
        let helpers = [helper_of(&guest, &ada)?, helper_of(&guest, &eve)?];
        let mut host = guest.host()?;
        host.set("WAYLAND_DISPLAY", &here.socket().display().to_string());
        host.start_agent()?;
        host.wait_connected("vm")?;
        host.run(&["clipboard", "vm", "--share", "on"])?.text()?;
        Ok(Self { logind, ada, eve, host, here, guest, helpers })
    }

    /// Waits until the host reaches a desktop of the guest's, or none.
    fn reached(&self, wanted: bool) -> Result<()> {
        Deadline::after(WAIT).poll("the host to notice", || {
            let list = self.host.run(&["clipboard", "vm", "paste", "--list"])?;
            let nobody = list.stderr.contains("No desktop in the guest can be reached now");
            Ok((nobody != wanted).then_some(()))
        })
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let helpers: Vec<String> = self.helpers.iter().map(Process::output).collect();
            eprintln!("{}\n{}", self.guest.log().unwrap_or_default(), helpers.join("\n"));
        }
    }
}

#[test]
fn what_one_user_copies_reaches_no_other_user_no_greeter_and_no_locked_screen() -> Result<()> {
    let house = House::start()?;
    let House { logind, ada, eve, here, .. } = &house;
    let _ada = ada.copy(TEXT, b"ada's", &[])?;
    let _eve = eve.copy(TEXT, b"eve's", &[])?;
    ada.pastes(TEXT, b"ada's", &[])?;
    eve.pastes(TEXT, b"eve's", &[])?;
    // Nobody sits there; somebody may be logged in by ssh, with a helper and a desktop of their own, and it makes no
    // difference.
    house.reached(false)?;
    assert_eq!(here.paste(TEXT, &[])?, None);

    logind.seat(Sitting::User(ADA))?;
    here.pastes(TEXT, b"ada's", &[])?;
    let _here = here.copy(TEXT, b"to ada", &[])?;
    ada.pastes(TEXT, b"to ada", &[])?;
    assert_eq!(eve.paste(TEXT, &[])?.as_deref(), Some(&b"eve's"[..]));

    // A lock, and a greeter, even one that runs as a user with a helper.
    for away in [Sitting::Locked(ADA), Sitting::Greeter(EVE), Sitting::Nobody] {
        logind.seat(away)?;
        house.reached(false)?;
        let _behind = ada.copy(TEXT, b"behind the lock", &[])?;
        ada.pastes(TEXT, b"behind the lock", &[])?;
        let _here = here.copy(TEXT, b"meanwhile", &[])?;
        here.pastes(TEXT, b"meanwhile", &[])?;
        ensure!(house.host.run(&["clipboard", "vm", "paste"])?.stdout.is_empty(), "{away:?}");
        ensure!(house.host.run_with(&["clipboard", "vm", "copy"], b"x")?.status != 0, "{away:?}");
        assert_eq!(ada.paste(TEXT, &[])?.as_deref(), Some(&b"behind the lock"[..]), "{away:?}");
        assert_eq!(eve.paste(TEXT, &[])?.as_deref(), Some(&b"eve's"[..]), "{away:?}");
    }

    // Another user: ada's things are hers, and the host's go to eve alone.
    logind.seat(Sitting::User(EVE))?;
    house.reached(true)?;
    let _here = here.copy(TEXT, b"to eve", &[])?;
    eve.pastes(TEXT, b"to eve", &[])?;
    let _eve = eve.copy(TEXT, b"from eve", &[])?;
    here.pastes(TEXT, b"from eve", &[])?;
    assert_eq!(ada.paste(TEXT, &[])?, None, "what ada had last has ended with its program");
    Ok(())
}

#[test]
fn of_a_thousand_switches_the_last_one_counts() -> Result<()> {
    let house = House::start()?;
    for n in 0..1000 {
        house.logind.seat(if n % 2 == 0 { Sitting::User(EVE) } else { Sitting::Locked(ADA) })?;
    }
    house.logind.seat(Sitting::User(ADA))?;
    house.reached(true)?;
    let _ada = house.ada.copy(TEXT, b"ada's", &[])?;
    house.here.pastes(TEXT, b"ada's", &[])?;
    assert_eq!(house.eve.paste(TEXT, &[])?, None);
    Ok(())
}
