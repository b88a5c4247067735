//! What a copy costs that is pasted on the other side, beside one that is pasted where it was made. Two sways, and all
//! that is between them but a VM: a Unix socket stands where vsock would.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::desktop::{Compositor, Rig, noise};
use serde_json::json;

use crate::row::{Row, median};

const PICTURE: usize = 100 << 20;
const PICTURES: usize = 5;
const TEXTS: usize = 20;
const WAIT: Duration = Duration::from_secs(20);

pub(crate) fn measure() -> Result<Vec<Row>> {
    let rig = Rig::start("", true)?;
    let picture = noise(PICTURE);
    let _copied = rig.there.copy("image/png", &picture, &[])?;
    rig.here.pastes("image/png", &picture, &[])?;
    let (mut ours, mut there) = (Vec::new(), Vec::new());
    for _ in 0..PICTURES {
        ours.push(rate(&rig.here)?);
        there.push(rate(&rig.there)?);
    }
    let picture = Row::new(
        "clipboard",
        "a picture of 100 MiB, copied in the guest, pasted here",
        "MB/s",
        median(&ours),
    )
    .peer("pasted there", median(&there))
    .at_least(0.5, "pasted there", median(&there))
    .raw(json!({ "ours": ours, "there": there }));

    let (mut here_watch, mut there_watch) = (Watcher::start(&rig.here)?, Watcher::start(&rig.there)?);
    let (mut ours, mut there) = (Vec::new(), Vec::new());
    for n in 0..TEXTS {
        let text = format!("{n:010}");
        let began = Instant::now();
        let _copied = rig.there.copy("text/plain;charset=utf-8", text.as_bytes(), &[])?;
        there.push(there_watch.saw(&text, began)?);
        ours.push(here_watch.saw(&text, began)?);
    }
    let over: Vec<f64> = ours.iter().zip(&there).map(|(ours, there)| (ours - there).max(0.0)).collect();
    let text =
        Row::new("clipboard", "10 bytes, until pasted here: beyond the same there", "ms", median(&over))
            .peer("pasted there", median(&there))
            .bar("< 20".to_owned(), median(&over) < 20.0)
            .raw(json!({ "ours": ours, "there": there }));
    Ok(vec![picture, text])
}

/// How fast the picture is pasted, in MB/s.
fn rate(desktop: &Compositor) -> Result<f64> {
    let began = Instant::now();
    let pasted = desktop.paste("image/png", &[])?.context("there is no picture")?;
    ensure!(pasted.len() == PICTURE, "{} bytes were pasted", pasted.len());
    Ok(PICTURE as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// wl-paste, which pastes each copy as it is made.
struct Watcher {
    child: Child,
    pasted: Receiver<(Instant, Vec<u8>)>,
    text: Vec<u8>,
}

impl Watcher {
    fn start(desktop: &Compositor) -> Result<Self> {
        let mut command: Command = desktop.command("wl-paste");
        command.args(["-n", "--watch", "cat"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut output = child.stdout.take().context("wl-paste has an output")?;
        let (sender, pasted) = channel();
        thread::spawn(move || {
            let mut space = [0; 256];
            while let Ok(n @ 1..) = output.read(&mut space) {
                if sender.send((Instant::now(), space[..n].to_vec())).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, pasted, text: Vec::new() })
    }

    /// When this text came, in milliseconds from then on.
    fn saw(&mut self, text: &str, began: Instant) -> Result<f64> {
        loop {
            let (at, bytes) =
                self.pasted.recv_timeout(WAIT).with_context(|| format!("{text} was not pasted"))?;
            self.text.extend(bytes);
            if self.text.ends_with(text.as_bytes()) {
                return Ok(at.duration_since(began).as_secs_f64() * 1e3);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // To timeout(1), which ends its child with it.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
