//! Five hundred commands at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Deadline, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("crowd")).prepared(tools_started);

#[test]
fn five_hundred_at_once_are_all_exact() -> Result<()> {
    let guest = GUEST.get()?;
    let mut host = Host::new()?;
    host.add("vm", &guest)?;
    host.start_agent()?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    host.run(&["exec", "vm", "--", "true"])?.text()?;
    let memory = "awk '/^VmRSS/ { print $2 }' /proc/$(systemctl show -P MainPID hospes-session@1000)/status";
    let before: u64 = guest.check(memory)?.trim().parse()?;
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    // Each command waits until all 500 run, so that they are truly at once; opening a FIFO costs nothing meanwhile.
    let script = "echo $1; : >/tmp/crowd/$1; read go </tmp/crowd-go; echo $1; exit $(($1 % 100))";
    guest.check("install -d -m 777 /tmp/crowd && mkfifo -m 666 /tmp/crowd-go")?;
    thread::scope(|scope| -> Result<()> {
        for _ in 0..500 {
            scope.spawn(|| {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let text = n.to_string();
                let ran = host.run(&[
                    "exec",
                    "--connect-timeout",
                    "200s",
                    "vm",
                    "--",
                    "sh",
                    "-c",
                    script,
                    "sh",
                    &text,
                ]);
                let expected = format!("{n}\n{n}\n");
                let good = ran.as_ref().is_ok_and(|ran| {
                    ran.stdout == expected.as_bytes()
                        && ran.stderr.is_empty()
                        && ran.status == i32::try_from(n % 100).unwrap_or(-1)
                });
                if !good {
                    failures.lock().expect("no thread panics").push((n, ran));
                }
            });
        }
        Deadline::after(Duration::from_secs(300)).poll("500 commands to run at once", || {
            let count = guest.check("ls /tmp/crowd | wc -l")?;
            let failed = failures.lock().expect("no thread panics").len();
            Ok((count.trim() == "500" || failed > 0).then_some(()))
        })?;
        guest.check("sleep 3 >/tmp/crowd-go").map(drop)
    })?;
    let failures = failures.into_inner()?;
    ensure!(failures.is_empty(), "{} of 500 failed, the first: {:?}", failures.len(), failures.first());
    // What they took is given back: no descriptor and no child stays.
    let worker = "$(systemctl show -P MainPID hospes-session@1000)";
    guest.wait_until(&format!("test $(ls /proc/{worker}/fd | wc -l) -lt 40"), Duration::from_secs(60))?;
    guest.wait_until(
        "test $(ls /proc/$(systemctl show -P MainPID hospes-toolsd)/fd | wc -l) -lt 40",
        Duration::from_secs(30),
    )?;
    // The allocator may keep some: a tenth of what 500 windows of 512 KiB would be, at the most.
    let after: u64 = guest.check(memory)?.trim().parse()?;
    ensure!(after < before + 25_000, "the worker had {before} KiB before and has {after} KiB after");
    Ok(())
}
