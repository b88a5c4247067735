//! When what is copied on one machine can be pasted on the other, and when not: real compositors, a real helper and daemon,
//! a real agent. What crosses is in `clipboard_matrix.rs`, on every desktop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::{Compositor, Rig, helper, noise};
use integration_tests::{Beside, Deadline, Host};

const TEXT: &str = "text/plain;charset=utf-8";

#[test]
fn text_has_all_its_names_and_other_types_keep_theirs() -> Result<()> {
    let rig = Rig::start("", true)?;
    for (from, to) in rig.ways() {
        let _copied = from.copy("UTF8_STRING", b"text", &[])?;
        for kind in [TEXT, "text/plain", "UTF8_STRING", "STRING", "TEXT"] {
            to.pastes(kind, b"text", &[])?;
        }
        let _copied = from.copy("application/x-one; a=\"b c\"", b"one", &[])?;
        to.pastes("application/x-one; a=\"b c\"", b"one", &[])?;
        let types = to.types(&[])?;
        ensure!(!types.iter().any(|name| name == "text/plain"), "no text was copied: {types:?}");
    }
    Ok(())
}

#[test]
fn of_many_quick_copies_the_last_one_is_pasted() -> Result<()> {
    let rig = Rig::start("", true)?;
    for (from, to) in rig.ways() {
        let mut copied = Vec::new();
        for n in 0..100 {
            copied.push(from.copy(TEXT, format!("copy {n}").as_bytes(), &[])?);
        }
        // They race; what is there when all but one have ended is the last one's.
        drop(copied);
        let _last = from.copy(TEXT, b"the last", &[])?;
        to.pastes(TEXT, b"the last", &[])?;
    }
    Ok(())
}

#[test]
fn connecting_overwrites_nothing_and_fills_what_is_empty() -> Result<()> {
    let rig = Rig::start("", false)?;
    let mut there = rig.there.copy(TEXT, b"there", &[])?;
    let _here = rig.here.copy(TEXT, b"here", &[])?;
    rig.there.pastes(TEXT, b"there", &[])?;
    rig.here.pastes(TEXT, b"here", &[])?;
    rig.host.run(&["clipboard", "vm", "--share", "on"])?.text()?;
    // A picture on the other selection shows that the two are joined by now.
    let _marked = rig.there.copy("image/png", b"picture", &["-p"])?;
    rig.here.pastes("image/png", b"picture", &["-p"])?;
    assert_eq!(rig.here.paste(TEXT, &[])?.as_deref(), Some(&b"here"[..]));
    assert_eq!(rig.there.paste(TEXT, &[])?.as_deref(), Some(&b"there"[..]));
    // And what is copied from now on counts.
    let _here = rig.here.copy(TEXT, b"new", &[])?;
    rig.there.pastes(TEXT, b"new", &[])?;
    there.replaced()
}

#[test]
fn nothing_is_shared_before_somebody_says_so_nor_after() -> Result<()> {
    let rig = Rig::start("", false)?;
    assert_eq!(rig.host.run(&["clipboard", "vm"])?.text()?, "The clipboard is not shared with vm\n");
    let _copied = rig.there.copy(TEXT, b"secret", &[])?;
    rig.there.pastes(TEXT, b"secret", &[])?;
    // The agent has heard of the desktop by now: a script sees what is copied there.
    assert_eq!(rig.host.run(&["clipboard", "vm", "paste"])?.text()?, "secret");
    assert_eq!(rig.here.paste(TEXT, &[])?, None);
    rig.host.run(&["clipboard", "vm", "--share", "on"])?.text()?;
    rig.here.pastes(TEXT, b"secret", &[])?;
    assert_eq!(rig.host.run(&["clipboard", "vm", "--json"])?.text()?, "{\"vm\":\"vm\",\"shared\":true}\n");
    rig.host.run(&["clipboard", "vm", "--share", "off"])?.text()?;
    gone(&rig.here)?;
    Ok(())
}

/// Waits until nothing can be pasted.
fn gone(desktop: &Compositor) -> Result<()> {
    let deadline = Deadline::after(Duration::from_secs(30));
    deadline.poll("the other side's copy to go", || Ok(desktop.types(&[])?.is_empty().then_some(())))
}

#[test]
fn scripts_copy_paste_and_list_without_sharing() -> Result<()> {
    let rig = Rig::start("", false)?;
    let paste = |words: &[&str]| rig.host.run(&[&["clipboard", "vm", "paste"], words].concat());
    let empty = paste(&[])?;
    assert_eq!((empty.status, empty.stderr.contains("Nothing can be pasted")), (1, true), "{}", empty.stderr);
    let picture = noise(3_000_000);
    ensure!(rig.host.run_with(&["clipboard", "vm", "copy", "--type", "image/png"], &picture)?.status == 0);
    assert_eq!(rig.there.paste("image/png", &[])?, Some(picture.clone()));
    ensure!(paste(&[])?.stdout == picture, "the picture is the best there is");
    ensure!(rig.host.run_with(&["clipboard", "vm", "copy"], b"text")?.status == 0);
    assert_eq!(rig.there.paste("UTF8_STRING", &[])?.as_deref(), Some(&b"text"[..]));
    assert_eq!(paste(&["--list"])?.text()?, "text/plain;charset=utf-8\n");
    assert_eq!(paste(&["--type", "text/plain"])?.text()?, "text");
    assert_eq!(paste(&["--type", "image/png"])?.status, 1);
    assert_eq!(rig.here.paste(TEXT, &[])?, None, "this machine's own clipboard has no part in it");
    let _copied = rig.there.copy("text/html", b"<i>", &[])?;
    rig.there.pastes("text/html", b"<i>", &[])?;
    assert_eq!(paste(&[])?.text()?, "<i>");
    let long = rig.host.run_with(&["clipboard", "vm", "copy"], &vec![0; (64 << 20) + 1])?;
    assert_eq!((long.status, long.stderr.contains("limit")), (125, true), "{}", long.stderr);
    assert_eq!(paste(&[])?.text()?, "<i>", "what was too long took the place of nothing");
    Ok(())
}

#[test]
fn the_guests_policy_closes_either_direction() -> Result<()> {
    let rig = Rig::start("[clipboard]\nto-host = false\n", true)?;
    let _copied = rig.here.copy(TEXT, b"into the guest", &[])?;
    rig.there.pastes(TEXT, b"into the guest", &[])?;
    let _copied = rig.there.copy(TEXT, b"out of the guest", &[])?;
    rig.there.pastes(TEXT, b"out of the guest", &[])?;
    let refused = rig.host.run(&["clipboard", "vm", "paste"])?;
    assert_eq!((refused.status, refused.stderr.contains("to-host")), (125, true), "{}", refused.stderr);
    let _marked = rig.here.copy(TEXT, b"mark", &["-p"])?;
    rig.there.pastes(TEXT, b"mark", &["-p"])?;
    assert_ne!(rig.here.paste(TEXT, &[])?.as_deref(), Some(&b"out of the guest"[..]));

    let rig = Rig::start("[verbs]\nclipboard = false\n", true)?;
    let refused = rig.host.run(&["clipboard", "vm", "paste"])?;
    assert_eq!(
        (refused.status, refused.stderr.contains("[verbs] clipboard")),
        (125, true),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn compositors_helpers_daemons_and_agents_may_die_and_come_back() -> Result<()> {
    let mut rig = Rig::start("", true)?;
    let mut n = 0;
    let mut works = |rig: &Rig| -> Result<()> {
        for (from, to) in rig.ways() {
            n += 1;
            // Copied again until it crosses: what was copied before the two were joined takes the place of nothing.
            let bytes = format!("copy {n}").into_bytes();
            Deadline::after(Duration::from_secs(60)).poll("a copy to cross", || {
                let _copied = from.copy(TEXT, &bytes, &[])?;
                std::thread::sleep(Duration::from_millis(100));
                Ok((to.paste(TEXT, &[])?.as_deref() == Some(&bytes[..])).then_some(()))
            })?;
        }
        Ok(())
    };
    works(&rig)?;
    rig.there.restart()?;
    works(&rig)?;
    rig.here.restart()?;
    works(&rig)?;
    rig.helper = helper(&rig.guest, &rig.there)?;
    works(&rig)?;
    rig.guest.restart()?;
    works(&rig)?;
    rig.host.kill_agent();
    rig.host.start_agent()?;
    works(&rig)
}

#[test]
fn what_the_other_side_had_goes_with_it() -> Result<()> {
    let mut rig = Rig::start("", true)?;
    let _copied = rig.there.copy(TEXT, b"there", &[])?;
    rig.here.pastes(TEXT, b"there", &[])?;
    rig.helper.kill();
    gone(&rig.here)?;
    rig.helper = helper(&rig.guest, &rig.there)?;
    rig.here.pastes(TEXT, b"there", &[])?;
    rig.there.kill();
    gone(&rig.here)
}

#[test]
fn of_seven_guests_only_the_one_that_it_is_shared_with_is_told_and_heard() -> Result<()> {
    let here = Compositor::sway()?;
    let mut host = Host::sharing_identity()?;
    for (name, value) in here.environment().iter().filter(|(name, _)| *name != "XDG_RUNTIME_DIR") {
        host.set(name, value);
    }
    let mut guests = Vec::new();
    for n in 0..7 {
        let (guest, there) = (Beside::start("")?, Compositor::sway()?);
        let helper = helper(&guest, &there)?;
        host.add_socket(&format!("vm{n}"), &guest.socket())?;
        guests.push((guest, there, helper));
    }
    host.start_agent()?;
    for n in 0..7 {
        let name = format!("vm{n}");
        host.wait_connected(&name)?;
        Deadline::after(Duration::from_secs(60)).poll("the guest's desktop", || {
            let listed = host.run(&["clipboard", &name, "paste", "--list"])?;
            Ok(listed.stderr.contains("Nothing can be pasted").then_some(()))
        })?;
    }
    let mut before = Vec::new();
    for (n, (_, there, _)) in guests.iter().enumerate() {
        before.push(there.copy(TEXT, format!("the secret of guest {n}").as_bytes(), &[])?);
        there.pastes(TEXT, format!("the secret of guest {n}").as_bytes(), &[])?;
    }
    // One after the other, as a window gets the focus.
    for shared in [3, 6] {
        let name = format!("vm{shared}");
        host.run(&["clipboard", &name, "--share", "on"])?.text()?;
        let (_, there, _) = &guests[shared];
        let bytes = format!("for guest {shared} alone");
        // Copied again until it crosses: what was copied before the two were joined takes the place of nothing.
        Deadline::after(Duration::from_secs(60)).poll("a copy to cross", || {
            let _copied = here.copy(TEXT, bytes.as_bytes(), &[])?;
            std::thread::sleep(Duration::from_millis(100));
            Ok((there.paste(TEXT, &[])?.as_deref() == Some(bytes.as_bytes())).then_some(()))
        })?;
        let back = format!("from guest {shared}");
        let _copied = there.copy(TEXT, back.as_bytes(), &[])?;
        here.pastes(TEXT, back.as_bytes(), &[])?;
        for (n, (_, other, _)) in guests.iter().enumerate().filter(|(n, _)| *n != shared && *n != 3) {
            let secret = format!("the secret of guest {n}");
            assert_eq!(other.paste(TEXT, &[])?.as_deref(), Some(secret.as_bytes()), "guest {n} was told");
        }
        // What the others copy is not heard: the copy on the host stays.
        before.push(guests[0].1.copy(TEXT, b"the secret of guest 0", &[])?);
        guests[0].1.pastes(TEXT, b"the secret of guest 0", &[])?;
        assert_eq!(here.paste(TEXT, &[])?.as_deref(), Some(back.as_bytes()));
        host.run(&["clipboard", &name, "--share", "off"])?.text()?;
        gone(&here)?;
    }
    Ok(())
}

/// A picture of four pixels as BMP: a header of 54 bytes, then blue, green and red of each, lines filled up to four bytes.
fn bitmap() -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    for word in [70u32, 0, 54, 40, 2, 2, 1 | 24 << 16, 0, 16, 2835, 2835, 0, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 255, 0, 255, 0, 0, 0, 255, 0, 0, 255, 255, 255, 0, 0]);
    bytes
}

#[test]
fn a_picture_that_is_no_png_is_pasted_as_one_too() -> Result<()> {
    let rig = Rig::start("", true)?;
    for (from, to) in rig.ways() {
        let _copied = from.copy("image/bmp", &bitmap(), &[])?;
        to.pastes("image/bmp", &bitmap(), &[])?;
        let png = to.paste("image/png", &[])?.context("no PNG was offered")?;
        // Its signature, and IHDR with width, height, and eight bits of a colour.
        ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{png:?}");
        assert_eq!(&png[12..26], b"IHDR\0\0\0\x02\0\0\0\x02\x08\x02");
        // What is none is offered, and comes to nothing.
        let _torn = from.copy("image/jpeg", b"no picture", &[])?;
        to.pastes("image/jpeg", b"no picture", &[])?;
        assert_ne!(to.paste("image/png", &[])?.filter(|png| !png.is_empty()), Some(png));
    }
    let pasted = rig.host.run_with(&["clipboard", "vm", "copy", "--type", "image/bmp"], &bitmap())?;
    ensure!(pasted.status == 0, "{pasted:?}");
    let png = rig.host.run(&["clipboard", "vm", "paste", "--type", "image/png"])?;
    ensure!(png.stdout.starts_with(b"\x89PNG"), "{}", png.stderr);
    Ok(())
}
