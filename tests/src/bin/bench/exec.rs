//! Exec latency: `true`, from the start of the host's command to its end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::rig::{Rig, run, seconds};
use crate::row::{Row, median};

const ROUNDS: usize = 25;
const FIRST_ROUNDS: usize = 7;

pub(crate) fn measure(rig: &mut Rig) -> Result<Vec<Row>> {
    Ok(vec![warm(rig)?, first(rig)?])
}

fn warm(rig: &Rig) -> Result<Row> {
    let master = rig.host.home().join("ssh-master");
    let master = format!("ControlPath={}", master.display());
    run(&mut rig.ssh(&["-o", "ControlMaster=yes", "-o", "ControlPersist=600", "-o", &master, "-fN"], &[])?)?;
    let mut agent = GuestAgent::connect(rig)?;

    let mut samples: [Vec<f64>; 5] = Default::default();
    for round in 0..=ROUNDS {
        let row = [
            seconds(|| rig.hospes(&["exec", "dev", "--", "true"]))?,
            seconds(|| run(&mut rig.ssh(&[], &["true"])?))?,
            seconds(|| run(&mut rig.ssh(&["-o", &master], &["true"])?))?,
            seconds(|| agent.exec("/bin/true"))?,
            seconds(|| {
                ensure!(rig.floor("spawn /bin/true\n")?.read_byte()? == 0, "true failed on the floor");
                Ok(())
            })?,
        ];
        // The first round warms everything up.
        if round > 0 {
            samples.iter_mut().zip(row).for_each(|(samples, sample)| samples.push(sample * 1000.0));
        }
    }
    run(&mut rig.ssh(&["-o", &master, "-O", "exit"], &[])?)?;
    let [ours, ssh, mux, qga, floor] = samples.each_ref().map(|samples| median(samples));
    let raw = json!({ "hospes": samples[0], "ssh": samples[1], "ssh ControlMaster": samples[2],
                      "guest-exec": samples[3], "floor": samples[4] });
    Ok(Row::new("exec", "warm, `true`", "ms", ours)
        .peer("ssh", ssh)
        .peer("ssh ControlMaster", mux)
        .peer("guest-exec", qga)
        .floor(floor)
        .at_most(0.2, "ssh", ssh)
        .at_most(0.5, "ControlMaster", mux)
        .at_most(1.0, "guest-exec", qga)
        .at_most(1.5, "floor", floor)
        .raw(raw))
}

/// A user's first command: the worker and its PAM session start with it.
fn first(rig: &Rig) -> Result<Row> {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..FIRST_ROUNDS {
        rig.guest.check(
            "systemctl stop hospes-session@1000.service hospes-session@1000.socket && loginctl terminate-user dev \
             2>/dev/null; until ! systemctl -q is-active user@1000.service; do sleep 0.1; done",
        )?;
        ours.push(seconds(|| rig.hospes(&["exec", "dev", "--", "true"]))? * 1000.0);
        rig.guest.check(
            "systemctl stop hospes-session@1000.service hospes-session@1000.socket && loginctl terminate-user dev \
             2>/dev/null; until ! systemctl -q is-active user@1000.service; do sleep 0.1; done",
        )?;
        let took = rig.guest.check(
            "start=$EPOCHREALTIME; systemd-run --quiet --pipe --wait -p User=dev -p PAMName=login true </dev/null; \
             end=$EPOCHREALTIME; echo $(( (${end/./} - ${start/./}) ))",
        )?;
        peer.push(took.trim().parse::<f64>().context("microseconds")? / 1000.0);
    }
    let (first, run) = (median(&ours), median(&peer));
    Ok(Row::new("exec", "a user's first, `true`", "ms", first)
        .peer("systemd-run in the guest", run)
        .at_most(1.3, "systemd-run", run)
        .raw(json!({ "hospes": ours, "systemd-run": peer })))
}

/// A client of qemu-guest-agent that polls back to back, as fast as the agent answers.
struct GuestAgent {
    reader: BufReader<UnixStream>,
}

impl GuestAgent {
    fn connect(rig: &Rig) -> Result<Self> {
        let stream = UnixStream::connect(rig.guest.path("qga.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut agent = Self { reader: BufReader::new(stream) };
        agent.ask(&json!({ "execute": "guest-ping" }))?;
        Ok(agent)
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer)?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("qemu-guest-agent answered {answer}"),
        }
    }

    fn exec(&mut self, program: &str) -> Result<()> {
        let started = self.ask(&json!({ "execute": "guest-exec", "arguments": { "path": program } }))?;
        let pid = &started["pid"];
        loop {
            let status = self.ask(&json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } }))?;
            if status["exited"] == true {
                ensure!(status["exitcode"] == 0, "{program} ended so: {status}");
                return Ok(());
            }
        }
    }
}
