//! Every desktop's clipboard: what is copied with the programs that people use there is pasted on the host, and back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::Deadline;
use integration_tests::desktop::{Compositor, Kind, Rig, Toolkit, noise};

const TEXT: &str = "text/plain;charset=utf-8";

/// Runs `check` with each desktop as the guest's, and sway as the host's.
fn each(check: impl Fn(&Rig) -> Result<()>) -> Result<()> {
    for kind in Kind::ALL {
        on(kind, &check)?;
    }
    Ok(())
}

fn on(kind: Kind, check: impl Fn(&Rig) -> Result<()>) -> Result<()> {
    let rig = Rig::between(Compositor::start(kind)?, Compositor::sway()?, "", true)?;
    check(&rig).with_context(|| format!("On {kind:?}"))
}

#[test]
fn text_pages_pictures_and_anything_else_cross_both_ways() -> Result<()> {
    each(|rig| {
        let picture = noise(300_000);
        let copies: [(&str, &[u8]); 5] = [
            (TEXT, "über\n".as_bytes()),
            ("text/html", b"<b>x</b>"),
            ("image/png", &picture),
            ("application/x-one; a=\"b c\"", b"one"),
            (TEXT, b"x"),
        ];
        for (from, to) in rig.ways() {
            for (kind, bytes) in copies {
                let _copied = from.copy(kind, bytes, &[])?;
                to.pastes(kind, bytes, &[]).with_context(|| format!("{kind} from {:?}", from.kind()))?;
            }
        }
        Ok(())
    })
}

#[test]
fn text_has_all_its_names_and_encodings() -> Result<()> {
    each(|rig| {
        for (from, to) in rig.ways() {
            let _copied = from.copy("UTF8_STRING", "müde €".as_bytes(), &[])?;
            for kind in [TEXT, "text/plain", "UTF8_STRING"] {
                to.pastes(kind, "müde €".as_bytes(), &[])
                    .with_context(|| format!("{kind}, {:?}", to.kind()))?;
            }
            if to.kind() == Kind::X11 {
                // X11's own word for Latin-1, which has no letter for one of them.
                to.pastes("STRING", b"m\xfcde ?", &[])?;
            }
        }
        Ok(())
    })
}

#[test]
fn latin1_is_told_apart_from_utf8() -> Result<()> {
    on(Kind::X11, |rig| {
        let _copied = rig.there.copy("STRING", b"m\xfcde", &[])?;
        rig.here.pastes(TEXT, "müde".as_bytes(), &[])
    })
}

#[test]
fn any_number_of_bytes_crosses() -> Result<()> {
    each(|rig| {
        for (from, to) in rig.ways() {
            for len in [1, 65_536, 262_144, 4_000_001, 20 << 20] {
                let bytes = noise(len);
                let _copied = from.copy("application/octet-stream", &bytes, &[])?;
                to.pastes("application/octet-stream", &bytes, &[])
                    .with_context(|| format!("{len} bytes from {:?}", from.kind()))?;
            }
            let _copied = from.copy("application/x-nothing", b"", &[])?;
            to.pastes("application/x-nothing", b"", &[]).context("Nothing at all")?;
        }
        Ok(())
    })
}

#[test]
fn the_primary_selection_is_shared_where_there_is_one() -> Result<()> {
    each(|rig| {
        if !rig.there.has_primary() {
            return Ok(());
        }
        for (from, to) in rig.ways() {
            let _marked = from.copy(TEXT, b"marked", &["-p"])?;
            to.pastes(TEXT, b"marked", &["-p"])?;
            let _copied = from.copy(TEXT, b"copied", &[])?;
            to.pastes(TEXT, b"copied", &[])?;
            assert_eq!(to.paste(TEXT, &["-p"])?.as_deref(), Some(&b"marked"[..]));
        }
        Ok(())
    })
}

#[test]
fn of_many_quick_copies_the_last_one_is_pasted() -> Result<()> {
    let count = std::env::var("COPIES").map_or(Ok(200), |count| count.parse())?;
    each(|rig| {
        for (from, to) in rig.ways() {
            from.copies(count)?;
            let _last = from.copy(TEXT, b"the last", &[])?;
            to.pastes(TEXT, b"the last", &[])?;
        }
        Ok(())
    })
}

#[test]
fn programs_of_gtk_and_qt_copy_and_paste() -> Result<()> {
    // Where a test can press keys.
    let kinds = [Kind::Sway, Kind::Labwc, Kind::X11];
    let places = kinds.into_iter().flat_map(|kind| [(kind, Toolkit::Gtk), (kind, Toolkit::Qt)]);
    for (kind, toolkit) in places {
        on(kind, |rig| {
            let _copied = rig.here.copy(TEXT, "für dort".as_bytes(), &[])?;
            rig.there.pastes(TEXT, "für dort".as_bytes(), &[])?;
            assert_eq!(rig.there.paste_into(toolkit)?, "für dort");
            let copied = "für hier";
            rig.there.copy_from(toolkit, copied, || {
                Ok(rig.here.paste(TEXT, &[])?.as_deref() == Some(copied.as_bytes()))
            })
        })
        .with_context(|| format!("With {toolkit:?}"))?;
    }
    Ok(())
}

#[test]
fn a_secret_stays_where_it_is() -> Result<()> {
    each(|rig| {
        let _copied = rig.there.copy(TEXT, b"no secret", &[])?;
        rig.here.pastes(TEXT, b"no secret", &[])?;
        // What a password manager's copy has beside its text; that type alone is enough.
        let _secret = rig.there.copy("x-kde-passwordManagerHint", b"secret", &[])?;
        let deadline = Deadline::after(Duration::from_secs(30));
        deadline.poll("the copy before it to go", || Ok(rig.here.types(&[])?.is_empty().then_some(())))?;
        let pasted = rig.host.run(&["clipboard", "vm", "paste"])?;
        ensure!(pasted.status != 0 && pasted.stdout.is_empty(), "{pasted:?}");
        Ok(())
    })
}

#[test]
fn a_desktop_that_dies_and_comes_back_is_found_again() -> Result<()> {
    for kind in Kind::ALL {
        let mut rig = Rig::between(Compositor::start(kind)?, Compositor::sway()?, "", true)?;
        for _ in 0..2 {
            for (from, to) in rig.ways() {
                // Copied again until it crosses: what was copied before the two were joined takes the place of nothing.
                let bytes = noise(100);
                Deadline::after(Duration::from_secs(60))
                    .poll("a copy to cross", || {
                        let _copied = from.copy("image/png", &bytes, &[])?;
                        std::thread::sleep(Duration::from_millis(200));
                        Ok((to.paste("image/png", &[])?.as_deref() == Some(&bytes[..])).then_some(()))
                    })
                    .with_context(|| format!("On {kind:?}"))?;
            }
            rig.there.restart()?;
        }
    }
    Ok(())
}

/// How much of memory a process had at most, or has, in KiB: a line of /proc/PID/status.
fn memory(pid: u32, line: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)).context("no such line")?;
    Ok(found.trim_matches(|c: char| !c.is_ascii_digit()).parse()?)
}

#[test]
#[ignore = "takes minutes: make test-desktop"]
fn half_a_gibibyte_takes_little_memory() -> Result<()> {
    let bytes = noise(500 << 20);
    each(|rig| {
        for (from, to) in rig.ways() {
            let _copied = from.copy("application/octet-stream", &bytes, &[])?;
            to.pastes("application/octet-stream", &bytes, &[])
                .with_context(|| format!("{:?}", from.kind()))?;
        }
        let daemon = rig.guest.pid().context("no daemon")?;
        let [helper, daemon] = [memory(rig.helper.pid(), "VmHWM:")?, memory(daemon, "VmHWM:")?];
        eprintln!("{:?}: helper {helper} KiB, daemon {daemon} KiB at most", rig.there.kind());
        ensure!(helper < 24 << 10 && daemon < 24 << 10, "helper {helper} KiB, daemon {daemon} KiB");
        Ok(())
    })
}

#[test]
#[ignore = "takes minutes: make test-desktop"]
fn while_nothing_happens_it_sleeps_and_is_small() -> Result<()> {
    let switches = |pid: u32| -> Result<u64> {
        let mut all = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            all += count.context("no count")?.trim().parse::<u64>()?;
        }
        Ok(all)
    };
    each(|rig| {
        let _copied = rig.there.copy(TEXT, b"x", &[])?;
        rig.here.pastes(TEXT, b"x", &[])?;
        std::thread::sleep(Duration::from_secs(15));
        let before = switches(rig.helper.pid())?;
        std::thread::sleep(Duration::from_secs(30));
        assert_eq!(switches(rig.helper.pid())?, before, "it woke up");
        let resident = memory(rig.helper.pid(), "VmRSS:")?;
        eprintln!("{:?}: the helper has {resident} KiB", rig.there.kind());
        ensure!(resident <= 8 << 10, "the helper has {resident} KiB");
        Ok(())
    })
}
